"""What bodies of HTTP requests may say. The one home of pydantic.

Terms: docs/glossary.md.
"""
