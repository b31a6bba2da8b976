"""Keep keys, values and boundary states in pages: the pool knows their owners, the storage their content.

Terms: docs/glossary.md.
"""
