"""Computes attention of ragged query rows over paged keys and values: one contract, a reference and a fast path.

Terms: docs/glossary.md.
"""
