"""Turn a client's call into text, for both transports: prompts, shared contexts, workers' chunks.

Terms: docs/glossary.md.
"""
