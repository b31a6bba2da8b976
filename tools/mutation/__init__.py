"""Measure whether tests notice when the cache service's core decides otherwise: `make mutation`.

A mutant is the core with one expression or statement changed. Nothing on disk changes: each mutant is a fork of one
process that has loaded the libraries, in which one module is compiled from the changed tree.
"""
