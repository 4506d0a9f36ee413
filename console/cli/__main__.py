"""`python -m console.cli` is `leadwire`: how the supervisor and the demo start processes of their own installation."""

from console.cli import main

main()
