"""One training run: data, networks, settings, steps, checkpoints and the run folder."""
