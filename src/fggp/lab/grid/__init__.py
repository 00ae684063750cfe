"""`fggp grid`: many runs, several at once.

settings and plan (what to run) → folder (what is finished) → session (which run is next) → worker (trains a run in a
process of its own) → folder.
"""
