"""Where a run's numbers come from: versions, devices, source and data, as config.yaml records."""

import hashlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sbtt_jax.config import DataSettings, Settings
from sbtt_jax.data import labels, problem, windows
from sbtt_jax.data.dataset import Dataset
from sbtt_jax.data.problem import listed
from sbtt_jax.errors import InputError
from sbtt_jax.recipes import LAYOUT
from sbtt_jax.training import devices

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
Record = dict[str, Any]


def record(data: Dataset) -> Record:
    """Layout of the run folder, package versions, devices, git commit if any, data fingerprint;
    names of the neurons, and how many points of a trial are never input, if there are any."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "layout": LAYOUT,
        "versions": {"python": platform.python_version(), **versions},
        "device": devices.describe(),
        "commit": _commit(),
        "data": fingerprint(data),
        **({} if data.unit_id is None else {"unit_id": labels.ids(data.unit_id)}),
        **({} if data.given is None else {"only_predicted": int((~data.given).sum())}),
    }


def fingerprint(data: Dataset) -> dict[str, str | None]:
    """SHA-256 sums of what models are trained on and, separately, of the true rates.

    They are of the arrays, so that a recording may be moved or stored in another way; and separate,
    because a generated set's rates may differ in the last bit from one CPU to another.
    """
    trained_on = data.counts, data.observed, data.train, data.valid, np.array(data.bin_width)
    trained_on += tuple(one for one in (data.test, data.given) if one is not None)
    rates = None if data.rates is None else _sha256(data.rates)
    return {"counts": _sha256(*trained_on), "rates": rates}


def require_current(path: Path, begun: Record) -> None:
    """Refuse to resume the run at `path` if an older version began it."""
    if begun.get("layout", 1) < LAYOUT:
        raise InputError(
            f"{path}: begun by an older version of sbtt-jax; evaluate.py reads it, but it cannot "
            "be resumed"
        )


def require_same(begun: Record, now: Record) -> None:
    """Refuse to resume a run on other data than it was begun with."""
    if differing_data(begun, now["data"]) == "counts":
        raise InputError(
            "the recording is not the one that the run was begun with (its fingerprint in "
            "config.yaml differs); give that one by --data, or another folder by --out"
        )


def resumed(begun: Record, now: Record, epochs: int) -> tuple[Record, list[str]]:
    """The record of a run resumed after `epochs` epochs, and what to tell the user."""
    notes = []
    if differing_data(begun, now["data"]) == "rates":
        notes.append("the true rates are not those that the run was begun with; R2 will differ")
    parts = {name: now[name] for name in ("versions", "device", "commit")}
    last = (begun.get("resumed") or [begun])[-1]
    changed = [name for name in parts if last.get(name) != parts[name]]
    if changed:
        begun = begun | {"resumed": [*begun.get("resumed", []), {"after_epochs": epochs, **parts}]}
    if others := " and ".join(name for name in changed if name != "commit"):
        notes.append(
            f"other {others} than before; from here on, last bits may differ from those of a run "
            "that was never stopped"
        )
    return begun, notes


def differing_data(begun: Record, data: dict[str, str | None]) -> str | None:
    """Which part of the data differs from the record, "counts" or "rates"; None if none does."""
    known = data | (begun.get("data") or {})
    return next((name for name in data if known[name] != data[name]), None)


def in_order(data: Dataset, begun: Record, source: str | Path = "array") -> Dataset:
    """The data with the neurons that a model was trained on, by their names, in that order.

    Those that are not there count as never observed; others are left out; a note says so. If the
    data have no names, their neurons are taken to be the model's, and are called so.

    Raises InputError, naming the source, if none of them is there, or not one each.
    """
    wanted = begun.get("unit_id")
    if not wanted or (data.unit_id is None and data.neurons != len(wanted)):
        return data
    if data.unit_id is None:
        return replace(data, unit_id=np.array(wanted))
    try:
        order = labels.order_of(data.unit_id, wanted)
    except ValueError as error:
        raise InputError(f"{source}: {error}") from None
    if order == list(range(data.neurons)):
        return data
    lost = [name for name, place in zip(wanted, order, strict=True) if place < 0]
    if lost and data.dropped_neurons:  # by their places, perhaps of another order
        lacks = f"unit_id lacks {listed(lost)}, and data.drop_neurons was given by places"
        raise InputError(f"{source}: {lacks}")
    others = np.delete(data.unit_ids, [place for place in order if place >= 0]).tolist()
    notes = {
        f"of the {len(wanted)} neurons that the model was trained on, {len(lost)} not there and "
        f"taken as never observed: {listed(lost)}": lost,
        f"left out, since the model was not trained on them: {listed(others)}": others,
    }
    found = data.with_neurons(order, np.array(wanted))
    told = (note for note, names in notes.items() if names)
    return replace(found, notes=(*found.notes, *told))


def read_in_order(
    read: Callable[[Sequence[int]], Dataset],
    dropped: Sequence[int],
    begun: Record,
    source: str | Path = "array",
) -> Dataset:
    """What `read` reads with these of its neurons dropped, `in_order`.

    Where neurons have names, those that were dropped by their places in one recording are left out
    of another, which may have others there, by their names.

    Raises as `read` and as `in_order`.
    """
    if dropped and begun.get("unit_id"):
        with suppress(InputError):
            return in_order(read(dropped), begun, source)
        dropped = ()
    return in_order(read(dropped), begun, source)


def read_judged(
    read: Callable[..., Dataset],
    settings: DataSettings,
    begun: Record,
    source: str | Path = "array",
) -> Dataset:
    """What `read` reads, `read_in_order`, if that is the recording that a run was trained on; of
    another, of which nothing is to be learned, all trials are to be reported on.

    read: takes the neurons to drop, and `learn` as of `recording.assemble`.

    Raises as `read` and as `in_order`, and InputError if another has no sample.
    """
    try:
        data = read_in_order(partial(read, learn=True), settings.drop_neurons, begun, source)
        if differing_data(begun, fingerprint(data)) != "counts":
            return data
    except InputError:
        if not begun.get("data"):  # nothing says which it was
            raise
        data = read_in_order(partial(read, learn=False), settings.drop_neurons, begun, source)
    if not data.observed.any():
        raise InputError(f"{source}: nothing is observed")
    return windows.all_judged(data, settings.chop)


def trained_on(settings: Settings, begun: Record) -> Dataset:
    """The data that a run was trained on, with its neurons in that order.

    Raises InputError if they are not where they were, or are no longer the same.
    """
    path = settings.data.path or "the Lorenz set"
    data = in_order(problem.read(settings), begun, path)
    if differing_data(begun, fingerprint(data)) == "counts":
        reason = "has changed, or is read otherwise, since the run was trained on it"
        raise InputError(f"{path}: {reason}")
    return data


def shared_trials(trials: Dataset, other: Dataset) -> int:
    """How many of these trials, of those with any counts, are training trials of another set."""

    def sums(data, which):
        found = []
        for row in which:
            counts, observed = data.counts[row], data.observed[row]
            if counts.any():  # to the last bin observed, since one set may be padded
                end = np.flatnonzero(observed.any(1))[-1] + 1
                found.append(_sha256(counts[:end], observed[:end]))
        return found

    known = set(sums(other, other.train))
    return sum(one in known for one in sums(trials, range(len(trials.counts))))


def _sha256(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in map(np.asarray, arrays):
        # In one width and byte order, whatever the machine's or the file's own are.
        array = array.astype({"u": "<u2", "i": "<i8", "f": "<f8"}.get(array.dtype.kind, "?"))
        digest.update(f"{array.dtype.kind} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def _commit() -> str | None:
    """The commit of the source, with a plus if it was changed since; None outside of git."""

    how = {"cwd": Path(__file__).parent, "stderr": subprocess.DEVNULL, "text": True, "timeout": 10}

    def git(*arguments: str) -> str:
        return subprocess.check_output(["git", *arguments], **how).strip()

    try:
        # A copy inside another project's repository is not of that project's commit.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None
