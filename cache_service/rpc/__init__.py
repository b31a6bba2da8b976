"""The gRPC side decodes a call, lets the core decide, and encodes the answer.

Terms: docs/glossary.md.
"""
