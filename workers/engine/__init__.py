"""Runs the engine, whose step is schedule, run, apply.

Terms: docs/glossary.md.
"""
