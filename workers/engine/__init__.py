"""Runs the engine, whose step is schedule, run, commit.

Terms: docs/glossary.md.
"""
