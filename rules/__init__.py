"""What events and tasks are, and every decision about them.

Pure by contract (see `pyproject.toml`): no clock, no randomness, no environment, no I/O. `now` and `chance` are arguments.
"""
