"""Shared contexts: their drafting, editing and denoising.

Terms: docs/glossary.md.
"""
