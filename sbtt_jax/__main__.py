"""python -m sbtt_jax: the command sbtt, where it is not on the path."""

from sbtt_jax import cli

cli.main()
