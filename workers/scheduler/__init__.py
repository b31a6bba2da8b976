"""What runs next: admission, cache policies as schedules of passes, and the budget of expensive passes. Pure.

Terms: docs/glossary.md.
"""
