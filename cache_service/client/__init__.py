"""The cache service as its callers see it: calls with deadlines, watches that resume, waits for builds.

Terms: docs/glossary.md.
"""
