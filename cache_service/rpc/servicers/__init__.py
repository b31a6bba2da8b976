"""The gRPC wall, one servicer a noun: each method decodes, lets a core decide, and encodes. No rules here.

Terms: docs/glossary.md.
"""
