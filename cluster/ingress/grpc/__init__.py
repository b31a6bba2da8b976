"""The gRPC API: decode, call the services, encode. Protobuf classes go no further than this.

Terms: docs/glossary.md.
"""
