"""Cache prefix states that stay valid under bidirectional attention: entries, and how deep they are reused.

Terms: docs/glossary.md.
"""
