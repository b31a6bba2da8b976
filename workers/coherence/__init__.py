"""Let a replica work with the others: as a member of the cache service that shares its entries.

Terms: docs/glossary.md.
"""
