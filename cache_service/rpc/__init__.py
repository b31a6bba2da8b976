"""The cache service's gRPC side: it decodes a call, lets the core decide, and encodes the answer."""
