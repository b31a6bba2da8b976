"""Decide what the service does: pure functions of a state and a call return events.

Terms: docs/glossary.md.
"""
