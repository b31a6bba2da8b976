"""The gRPC servicers: each method decodes, lets a core decide, and encodes. They hold no rules."""
