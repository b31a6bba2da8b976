"""The engine: one step is schedule, run, commit.

Terms: docs/glossary.md.
"""
