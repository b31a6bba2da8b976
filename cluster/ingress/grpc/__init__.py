"""Serve the gRPC API: decode, call the services, encode. Protobuf classes are used only here.

Terms: docs/glossary.md.
"""
