"""A store in a Redis-protocol server, for several instances at once. The only place that imports `redis`.

Terms: docs/glossary.md.
"""
