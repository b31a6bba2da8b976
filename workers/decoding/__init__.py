"""Turns one request's logits into committed tokens: adjust, choose tokens, rank the positions, take a portion. Pure.

Terms: docs/glossary.md.
"""
