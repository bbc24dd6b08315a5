"""Parts of the load test of the service: an HTTP client on raw sockets, the service as a process, damaged requests."""
