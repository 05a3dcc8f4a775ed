"""Grids of runs: their points, who runs them, and what comes of them."""
