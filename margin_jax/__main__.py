"""``python -m margin_jax`` is the command ``margin-jax``."""

from margin_jax.cli import main

if __name__ == "__main__":
    main()
