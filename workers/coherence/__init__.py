"""Make a replica a member of the cache service, so that it shares its entries with other replicas.

Terms: docs/glossary.md.
"""
