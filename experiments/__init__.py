"""Experiments: each script asks one question of the library."""
