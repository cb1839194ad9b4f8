"""Selective backpropagation through time: firing rates from recordings with holes in them.

`fit` trains a model on an array of spike counts, `load` restores one from a run folder.
"""

from typing import Any

__all__ = ["Fitted", "InputError", "fit", "load"]


def __getattr__(name: str) -> Any:
    # Imported only when asked for, so that masking and generating data do not wait for JAX.
    if name == "InputError":
        from sbtt_jax.errors import InputError

        return InputError
    if name in __all__:
        from sbtt_jax import estimator

        return getattr(estimator, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
