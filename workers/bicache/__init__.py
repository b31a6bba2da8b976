"""Prefix states that stay valid under bidirectional attention: entries, reuse depths, and their announcement.

Terms: docs/glossary.md.
"""
