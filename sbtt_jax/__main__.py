"""The console script sbtt, also as python -m sbtt_jax, where it is not on the path."""

from sbtt_jax import signals


def main() -> None:
    """`cli.main`, imported so that Ctrl-C meanwhile ends it in one line."""
    with signals.ending():
        from sbtt_jax import cli
    cli.main()


if __name__ == "__main__":
    main()
