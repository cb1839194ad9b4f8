"""Evaluate the trained models of a run folder: python evaluate.py --help"""

from sbtt_jax import signals

if __name__ == "__main__":
    with signals.ending():
        from sbtt_jax import cli
    cli.run(cli.evaluate)
