"""The cores decide: pure functions of a state and a call return events.

Terms: docs/glossary.md.
"""
