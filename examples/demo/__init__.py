"""A live tour: `python -m examples.demo` runs 20,000 calls through real processes and checks them.

Read `tasks` first: it is all that an application writes. The rest starts, watches and checks it.
"""
