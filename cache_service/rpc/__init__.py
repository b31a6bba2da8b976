"""The cache service's gRPC side: decode a call, ask the core, encode the answer.

Terms: docs/glossary.md.
"""
