"""For operators: command line, operator port, metrics, Flower, supervisor, demo and sample webhooks."""
