"""Architectures, checkpoint loading and the bundled models. Leaves: nothing here imports the engine.

Terms: docs/glossary.md.
"""
