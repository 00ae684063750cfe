"""`fggp bench`: size, speed and memory of a trained network, in fggp and other engines.

engines (what can run it) → worker (a measurement, in a process of its own) → bench → tables and picture.
"""
