"""`fggp grid`: many runs, several at once, on one machine or on many.

plan (what to run) → folder (what is known of it) → session (which run next) → local_jobs or ray_jobs (where) →
work (a run, in a process of its own) → folder; progress shows it.
"""
