"""What evaluate.py writes beside rates.h5 for other programs; `EXPORTS` lists the formats."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from sbtt_jax.data.dataset import Dataset
from sbtt_jax.data.nwb import recognizes
from sbtt_jax.errors import InputError
from sbtt_jax.observations import Observation
from sbtt_jax.run import nwb_export
from sbtt_jax.run.files import atomic_write, hdf5

Values = Float[np.ndarray, "*trial bin number"]


class Exported(NamedTuple):
    """What one model, or the mean of several, infers about a recording; of a session, without an
    axis of trials.

    source: the recording's file. model: columns that say which.
    rates: spikes/s. interval: lower and upper ends of their intervals, if known.
    """

    source: Path
    data: Dataset
    model: dict[str, Any]
    rates: Values
    latents: Values | None = None
    interval: tuple[Values, Values] | None = None


def nwb(what: Exported, out: Path) -> None:
    """A copy of an NWB recording with rates and latents in its own clock."""
    data = what.data
    nwb_export.export(
        what.source,
        out,
        rates=what.rates,
        latents=what.latents,
        unit_ids=data.unit_id,
        starts=_starts(data),
        lengths=None if data.session is not None else data.lengths,
        bin_width=data.bin_width,
        model=", ".join(f"{name} {value}" for name, value in what.model.items()),
        interval=what.interval,
    )


def nlb(what: Exported, out: Path) -> None:
    """Rates as the Neural Latents Benchmark takes them, in counts per bin, in a group of the name
    of the recording's file. Pei, Ye et al. 2021 (arXiv 2109.04463)."""
    data = what.data
    bins, neurons = data.given.any(1), data.given.any(0)
    is_test = np.isin(np.arange(len(data.counts)), data.test)
    rates = what.rates * data.bin_width
    with atomic_write(out) as part, hdf5(part, "w") as file:
        group = file.create_group(what.source.stem)
        for split, here in (("train", rates[~is_test]), ("eval", rates[is_test])):
            within, ahead = here[:, bins], here[:, ~bins]
            group[f"{split}_rates_heldin"] = within[..., neurons]
            group[f"{split}_rates_heldout"] = within[..., ~neurons]
            if ahead.size:
                group[f"{split}_rates_heldin_forward"] = ahead[..., neurons]
                group[f"{split}_rates_heldout_forward"] = ahead[..., ~neurons]


def _starts(data: Dataset) -> Any:
    return data.time_start if data.session is not None else data.trial_start


def _not_nwb(source: Path, data: Dataset) -> str | None:
    if not recognizes(source) or _starts(data) is None or data.unit_id is None:
        return "not an NWB file; --export nwb adds to one"
    return None


def _not_nlb(source: Path, data: Dataset) -> str | None:
    if data.given is not None and data.test is not None:
        return None
    lacks = "no test trials" if data.test is None else "no neurons that are only predicted"
    return f"{lacks}; --export nlb is for the benchmark's tensors"


class Export(NamedTuple):
    """A row of `EXPORTS`: how a file is written, and how its name ends.

    missing: what a recording lacks to be exported so, and what would be right; None if nothing.
    """

    write: Callable[[Exported, Path], None]
    missing: Callable[[Path, Dataset], str | None]
    ending: str
    summary: str


EXPORTS = {
    "nwb": Export(nwb, _not_nwb, ".nwb", "a copy of an NWB recording with rates and latents in it"),
    "nlb": Export(nlb, _not_nlb, "_submission.h5", "a submission to the Neural Latents Benchmark"),
}


def check(name: str, source: Path, data: Dataset, observation: Observation) -> None:
    """Raise InputError if the recording is none that can be exported so."""
    if not observation.is_count:
        raise InputError(f"{source}: --export {name} is for firing rates, and its values are none")
    if (data.neuron_numbers < 0).any():
        lost = "lacks neurons that the model was trained on, which an export has no place for"
        raise InputError(f"{source}: {lost}; rates.h5 has their rates")
    if lacks := EXPORTS[name].missing(source, data):
        raise InputError(f"{source}: {lacks}")


def write(name: str, what: Exported, folder: Path, *, alone: bool) -> Path:
    """Write one export into a folder; returns the file.

    alone: whether it is of the only model of the run; otherwise the file's name says of which.

    Raises SaveError if the file cannot be written.
    """
    export = EXPORTS[name]
    which = "" if alone else "".join(f"_{k}_{v}" for k, v in what.model.items())
    out = folder / f"{what.source.stem}{which}{export.ending}"
    export.write(what, out)
    return out
