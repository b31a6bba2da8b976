"""What the cache service decides: pure functions of a state and a call that return events.

Terms: docs/glossary.md.
"""
