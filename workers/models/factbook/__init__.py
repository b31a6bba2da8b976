"""The bundled model is a small diffusion model of LLaDA's architecture that answers questions about a fact sheet.

Terms: docs/glossary.md.
"""
