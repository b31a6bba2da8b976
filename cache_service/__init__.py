"""The cache service keeps, in order, which replica holds which prefix entry at which version.

Terms: docs/glossary.md.
"""
