"""The bodies of HTTP requests. The one home of pydantic.

Terms: docs/glossary.md.
"""
