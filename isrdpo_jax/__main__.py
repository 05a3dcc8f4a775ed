"""`python -m isrdpo_jax` is `isrdpo`."""

from isrdpo_jax.cli import main

if __name__ == "__main__":
    main()
