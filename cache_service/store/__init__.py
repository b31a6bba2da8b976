"""Where the log of events lives: in this process, or in a Redis-protocol server."""
