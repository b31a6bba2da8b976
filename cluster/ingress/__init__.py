"""Where requests come in: one service, two transports.

Terms: docs/glossary.md.
"""
