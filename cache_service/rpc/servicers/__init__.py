"""Decode a call, let a core decide, and encode the answer: one servicer for each gRPC service.

Terms: docs/glossary.md.
"""
