"""Masks: where training starts, how they are put in force, how they are stored."""
