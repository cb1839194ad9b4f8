"""Train the models of a settings file and write a run folder: python train.py --help"""

from sbtt_jax import signals

if __name__ == "__main__":
    with signals.ending():
        from sbtt_jax import cli
    cli.run(cli.train)
