"""What one replica tells the cache service and the other replicas, and what it learns from them.

Terms: docs/glossary.md.
"""
