"""How fast Leadwire is beside what a Python developer writes in an afternoon: the same events, sink and machine.

`make bench` runs it; `README.md` in this folder says how to read its table.
"""
