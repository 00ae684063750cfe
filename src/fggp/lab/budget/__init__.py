"""`fggp budget`: the sparsity that meets a limit of accuracy, time or size.

settings (the wishes) → prediction (what random masks cost, before any training) → search (which sparsities to try) →
trials (complete runs, as a grid) → budget (chooses, ships, reports).
"""
