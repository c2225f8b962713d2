"""For tests: a private server, a worker in this process, its clock, and child processes."""
