"""Runs the engine, whose step is schedule, run, commit."""
