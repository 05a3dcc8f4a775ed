"""ISR-DPO: iterative self-retrospective preference training of video language models, in JAX."""

__version__ = "0.1.0"
