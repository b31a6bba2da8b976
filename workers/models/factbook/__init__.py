"""The bundled model: a small LLaDA-architecture diffusion model that answers questions about a fact sheet.

Terms: docs/glossary.md.
"""
