"""Serve OpenAI's HTTP API, and the routes of shared contexts.

Terms: docs/glossary.md.
"""
