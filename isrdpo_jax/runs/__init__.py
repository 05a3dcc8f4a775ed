"""A run on disk and its life: paths, atomic files, manifests, lock, checkpoints, metrics, stopping. Host only."""
