"""Define the bodies of HTTP requests. Pydantic is used only here.

Terms: docs/glossary.md.
"""
