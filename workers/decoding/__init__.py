"""Turns one request's logits into committed tokens: adjust the logits, choose tokens, rank the
positions, commit a portion of them. Pure.

Terms: docs/glossary.md.
"""
