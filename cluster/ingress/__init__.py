"""Receive requests: one service behind two transports, HTTP and gRPC.

Terms: docs/glossary.md.
"""
