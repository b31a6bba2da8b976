"""Each servicer decodes a call, lets a core decide, and encodes the answer. Servicers hold no rules.

Terms: docs/glossary.md.
"""
