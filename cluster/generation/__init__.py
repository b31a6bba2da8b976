"""From a client's call to text, whatever it came over: prompts, shared contexts, workers' chunks.

Terms: docs/glossary.md.
"""
