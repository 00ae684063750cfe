"""A graph as a program of sparse kernels: layouts, memory, tiles and plans."""
