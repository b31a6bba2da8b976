"""The way from a client's call to text, over either transport: prompts, shared contexts, workers' chunks.

Terms: docs/glossary.md.
"""
