"""Store the log in a Redis-protocol server, which several instances may share. No other package imports `redis`.

Terms: docs/glossary.md.
"""
