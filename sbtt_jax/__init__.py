"""Selective backpropagation through time: firing rates from recordings with holes in them.

`fit` trains a model on a recording, `load` restores one from a run folder, an `Ensemble` of several
says how sure their rates are. `Recording` holds what is known about a recording, `bin_spikes` makes
counts of spike times, `bin_frames` puts values per frame of a scan into bins.
"""

import importlib
import importlib.metadata
from typing import Any

# Imported only when asked for, so that masking and generating data do not wait for JAX.
_WHERE = {
    "Ensemble": "fitted",
    "Fitted": "fitted",
    "Rates": "fitted",
    "SaveError": "errors",
    "Score": "fitted",
    "InputError": "errors",
    "Recording": "data.objects",
    "bin_frames": "data.frames",
    "bin_spikes": "data.binning",
    "fit": "estimator",
    "load": "estimator",
}
__all__ = [
    "Ensemble", "Fitted", "InputError", "Rates", "Recording", "SaveError", "Score",
    "bin_frames", "bin_spikes", "fit", "load",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("sbtt-jax")
    if name in _WHERE:
        return getattr(importlib.import_module(f"sbtt_jax.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
