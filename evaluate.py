"""Evaluate the trained models of a run folder: python evaluate.py --help"""

from sbtt_jax import cli

if __name__ == "__main__":
    cli.run(cli.evaluate)
