"""Draft, edit and denoise shared contexts.

Terms: docs/glossary.md.
"""
