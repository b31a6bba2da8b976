"""The engine: one step is schedule, run, commit."""
