"""One worker serves one model on one device: scheduling, memory, BiCache, decoding and coherence.

Terms: docs/glossary.md.
"""
