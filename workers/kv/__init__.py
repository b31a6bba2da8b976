"""Memory for keys, values and boundary states: who owns which page, and what lies in it.

Terms: docs/glossary.md.
"""
