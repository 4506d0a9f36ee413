"""The front door: webhooks and their sources, and the operator's ways in (command line, supervisor, demo)."""
