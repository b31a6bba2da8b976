"""The decisions of the cache service: pure functions of a state and a call that return events."""
