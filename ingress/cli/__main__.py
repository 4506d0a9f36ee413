"""`python -m ingress.cli` is `leadwire`: how the supervisor and the demo start processes of their own installation."""

from ingress.cli import main

main()
