"""Shared contexts: their drafting, editing and denoising."""
