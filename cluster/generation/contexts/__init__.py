"""Shared contexts as users write, edit and denoise them.

Terms: docs/glossary.md.
"""
