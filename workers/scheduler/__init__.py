"""Decide what runs next: admission, cache policies as schedules of passes, the budget of expensive passes. Pure.

Terms: docs/glossary.md.
"""
