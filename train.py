"""Train the models of a settings file and write a run folder: python train.py --help"""

from sbtt_jax import cli

if __name__ == "__main__":
    cli.run(cli.train)
