"""python -m pwiser_jax: the same as the command `pwiser`."""

import sys

from pwiser_jax.cli import main

sys.exit(main())
