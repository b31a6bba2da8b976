"""The cluster is a Ray Serve application: ingress, router, command line and supervisor.

Terms: docs/glossary.md.
"""
