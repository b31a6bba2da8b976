"""The bodies of HTTP requests. The one home of pydantic."""
