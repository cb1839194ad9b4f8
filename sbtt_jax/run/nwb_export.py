"""A copy of an NWB recording with the rates and latents that a model inferred from it.

They are time series of the processing module `ecephys`, where the field's viewers look for what was
computed from recordings of spikes. All times are in the file's own clock.
"""

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num

from sbtt_jax.data.binning import MOST
from sbtt_jax.data.nwb import imported, recognizes
from sbtt_jax.errors import InputError
from sbtt_jax.model import intervals
from sbtt_jax.run.files import atomic_write, hdf5

MODULE, RATES, LATENTS = "ecephys", "InferredFiringRates", "InferredLatents"
COLUMNS = f"{RATES}Units"
ENDS = f"{RATES}Low", f"{RATES}High"
SHARE = f"{intervals.LEVEL:.0%}"

Rates = Float[np.ndarray, "*trial bin neuron"]


def export(
    source: Path,
    out: Path,
    *,
    rates: Rates,
    latents: Float[np.ndarray, "*trial bin latent"] | None,
    unit_ids: Int[np.ndarray, " neuron"],
    starts: Num[np.ndarray, "*trial"] | float,
    lengths: Int[np.ndarray, " trial"] | None,
    bin_width: float,
    model: str,
    interval: tuple[Rates, Rates] | None = None,
) -> None:
    """Write a copy of `source` that also holds what was inferred, trials in the order of time.

    rates, latents: spikes/s, and the model's own unit; without the axis of trials if the recording
      is continuous.
    unit_ids: of each neuron, as in the file's units table.
    starts: seconds, of the first bin of each trial or of the recording.
    lengths: bins of each trial, after which nothing is written; None if all are full.
    model: which one, in words for the file's readers.
    interval: lower and upper ends of the rates' intervals, of level `intervals.LEVEL`.

    Raises InputError if `source` is not NWB, has no such units, or holds an export already; if
    `out` is `source`; or if trials overlap. Raises SaveError if `out` cannot be written.
    """
    if not recognizes(source):
        raise InputError(f"{source}: not an NWB file; an export adds to one")
    if out.exists() and out.samefile(source):
        raise InputError(f"{out}: is the recording itself, which is never changed; name another")
    starts, order = np.sort(np.atleast_1d(starts)), np.argsort(np.atleast_1d(starts))
    arrays = {RATES: rates, LATENTS: latents, **dict(zip(ENDS, interval or (), strict=False))}
    arrays = {
        name: array.reshape(len(starts), -1, array.shape[-1])[order]
        for name, array in arrays.items()
        if array is not None
    }
    bins = arrays[RATES].shape[1]
    lengths = np.full(len(starts), bins) if lengths is None else lengths[order]
    kept = np.arange(bins) < lengths[:, None]
    _check_apart(starts, starts + lengths * bin_width, bin_width)
    times = (starts[:, None] + (np.arange(bins) + 0.5) * bin_width)[kept]
    values = {name: array[kept] for name, array in arrays.items()}
    with atomic_write(out) as part:
        shutil.copyfile(source, part)
        _add(source, part, values, times, unit_ids, model)


def _check_apart(
    starts: Float[np.ndarray, " trial"], ends: Float[np.ndarray, " trial"], bin_width: float
) -> None:
    # Starts may have been rounded to single precision; the centres of bins are in order still.
    if (early := starts[1:] < ends[:-1] - MOST * bin_width).any():
        start, end = starts[1:][early][0], ends[:-1][early][0]
        both = f"a trial starts at {start:.15g} s, before another ends at {end:.15g} s"
        raise InputError(f"{both}; a time series has one value at a time, so shorten data.window")


def _add(
    source: Path,
    part: Path,
    values: dict[str, Float[np.ndarray, "time _"]],
    times: Float[np.ndarray, " time"],
    unit_ids: Int[np.ndarray, " neuron"],
    model: str,
) -> None:
    """Add the series to the copy, each a row per bin, and a table of what their columns are."""
    pynwb = imported(source)
    from hdmf.common import DynamicTable, DynamicTableRegion

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of schema versions, and of the temporary file's name
        with (
            hdf5(part, "r+") as writable,
            pynwb.NWBHDF5IO(mode="r+", file=writable, load_namespaces=True) as io,
        ):
            file = io.read()
            rows = _rows(source, file, unit_ids)
            if MODULE in file.processing:
                module = file.processing[MODULE]
            else:
                module = file.create_processing_module(MODULE, "computed from recordings of spikes")
            if taken := {RATES, LATENTS, *ENDS, COLUMNS} & module.data_interfaces.keys():
                raise InputError(f"{source}: holds {min(taken)} already; export to the original")
            words = {RATES: "firing rates", LATENTS: "latents"}
            words |= {
                name: f"{which} ends of {SHARE} intervals of the firing rates"
                for name, which in zip(ENDS, ("lower", "upper"), strict=True)
            }
            first = None
            for name, array in values.items():
                columns = "the model's latents" if name == LATENTS else COLUMNS
                first = pynwb.TimeSeries(
                    name,
                    data=array.astype(np.float32),
                    unit="a.u." if name == LATENTS else "spikes/s",
                    timestamps=times if first is None else first,  # stored once
                    description=f"{words[name]} inferred by sbtt_jax, {model}; a row per bin",
                    comments=f"Columns: {columns}. Timestamps are the centres of bins.",
                )
                module.add(first)
            unit = DynamicTableRegion(
                name="unit", data=rows.tolist(), description="row of units", table=file.units
            )
            description = f"the unit of each column of {RATES}; a row's id is the unit's"
            ids = unit_ids.tolist()
            module.add(DynamicTable(COLUMNS, description=description, id=ids, columns=[unit]))
            io.write(file)


def _rows(source: Path, file: Any, unit_ids: Int[np.ndarray, " neuron"]) -> Int[np.ndarray, " _"]:
    """The row of each unit in the file's table."""
    ids = np.asarray(file.units.id[:]) if file.units is not None else np.empty(0, int)
    if (unknown := ~np.isin(unit_ids, ids)).any():
        wrong = f"no unit {unit_ids[unknown][0]}"
        raise InputError(f"{source}: {wrong}; export to the recording that rates are of")
    # Units of one name are told apart by their order, if all of them are there.
    twice, many = np.unique(ids, return_counts=True)
    own = (unit_ids[:, None] == twice).sum(0)
    if (some := (own > 0) & (own < many) & (many > 1)).any():
        which = f"{many[some][0]} rows of units have the id {twice[some][0]}, and rates are of "
        rule = f"{own[some][0]} of them; expected all of these, or ids that differ"
        raise InputError(f"{source}: {which}{rule}")
    order = np.argsort(ids, kind="stable")
    before = np.array([(unit_ids[:i] == one).sum() for i, one in enumerate(unit_ids)], int)
    return order[np.searchsorted(ids, unit_ids, sorter=order) + before]
