"""Run the cache service, which keeps the holders and the versions of prefix entries.

Terms: docs/glossary.md.
"""
