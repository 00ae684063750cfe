"""`fggp bench`: size, speed and memory of a network, in fggp and other engines.

settings → networks (dense and pruned) → engines (times, in turns) with a worker process each → bench → tables, picture.
"""
