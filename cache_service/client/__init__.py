"""The client of the cache service: calls with deadlines, watches that resume, and waits for builds."""
