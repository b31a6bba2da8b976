"""The client calls the cache service with deadlines, resumes watches, and waits for builds.

Terms: docs/glossary.md.
"""
