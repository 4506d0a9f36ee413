"""For people: the command line, the operator port, metrics, the Flower process, the supervisor, the demo and its samples."""
