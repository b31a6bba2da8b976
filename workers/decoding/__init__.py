"""From one request's logits to committed tokens: adjust, choose tokens, rank the positions, take a portion. Pure.

Terms: docs/glossary.md.
"""
