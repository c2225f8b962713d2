"""For tests: a private server, and processes that end with the test."""
