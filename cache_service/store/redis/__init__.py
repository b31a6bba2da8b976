"""A store in a Redis-protocol server, which several instances may share. No other package imports `redis`."""
