"""Data on the host: videos, prompts, tokens, prepared data sets. No JAX."""
