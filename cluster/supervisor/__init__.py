"""Run the processes of `palimpsest serve`: a supervisor, the driver that starts Ray, and the cache service.

Terms: docs/glossary.md.
"""
