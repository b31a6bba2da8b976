"""Where requests come in: one service, two transports."""
