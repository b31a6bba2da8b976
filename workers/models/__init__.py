"""Holds the architectures, checkpoint loading and the bundled models. Nothing here imports the engine.

Terms: docs/glossary.md.
"""
