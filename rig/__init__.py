"""Parts that the tests, `faults`, `demo` and `bench` start: servers and proxies. It imports none of them."""
