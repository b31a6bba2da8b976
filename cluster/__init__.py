"""Run the Ray Serve application: ingress, router, command line and supervisor.

Terms: docs/glossary.md.
"""
