"""A session without trials, cut into overlapping windows, and what is inferred in them merged back.

Training and validation are blocks of time, so that no bin is in windows of both. Windows do not
straddle long gaps.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from sbtt_jax.data.dataset import Dataset, Session
from sbtt_jax.errors import InputError

BLOCKS = 25  # of time, about, in a session; more would leave more edges
LONG_GAP = 0.5  # of a window, without any sample: windows end before it
LEAST_OVERLAP = 0.5  # of the windows in which rates are inferred
SHORTEST = 0.25  # of a window: less at the end of a validation block is left out

Starts = Int[np.ndarray, " window"]


def chopped(
    data: Dataset,
    chop: float,
    overlap: float,
    valid_fraction: float,
    seed: int,
    error: Callable[[str], InputError],
) -> Dataset:
    """The session of a data set as windows, which are its trials.

    chop: length of a window in seconds. overlap: share of a training window that the next one has
    too; validation windows have none, so that each point is judged once.

    Raises `error` if the session is too short to be split.
    """
    observed, length = data.session.observed, window_bins(chop, data.bin_width)
    runs = segments(observed.any(1), length)
    total = sum(stop - start for start, stop in runs)
    blocks = [part for run in runs for part in _blocks(*run, max(length, total // BLOCKS))]
    if len(blocks) < 2:
        axes = "; are its axes bin x neuron?" if data.neurons > len(observed) else ""
        raise error(
            f"data.chop {chop:g} is {length} bins and the session has {total}; at least two "
            f"windows are needed, one to train and one to validate{axes}"
        )
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(blocks), bool)
    many = min(max(round(valid_fraction * len(blocks)), 1), len(blocks) - 1)
    chosen[rng.permutation(len(blocks))[:many]] = True
    train = _each(_joined(blocks, ~chosen), length, overlap)
    valid = _each(_joined(blocks, chosen), length, None)
    both = [(*window, True) for window in train] + [(*window, False) for window in valid]
    both = sorted(w for w in both if observed[w[0] : w[1]].any())
    starts, stops, is_train = (np.array(each) for each in zip(*both, strict=True))
    data = _in_windows(data, starts, stops, length)
    return replace(data, train=np.flatnonzero(is_train), valid=np.flatnonzero(~is_train))


def all_judged(data: Dataset, chop: float | None) -> Dataset:
    """`Dataset.all_judged`, of a session in windows of so many seconds, placed over all of it as
    those for validation are."""
    if data.session is not None:
        length = window_bins(chop, data.bin_width)
        every = _each(segments(data.session.observed.any(1), length), length, None)
        starts, stops = np.array(every, int).reshape(-1, 2).T
        data = _in_windows(data, starts, stops, length)
    return data.all_judged()


def _in_windows(data: Dataset, starts: Starts, stops: Starts, length: int) -> Dataset:
    """A session with these windows as its trials."""
    whole = data.session
    return replace(
        data,
        counts=cut(whole.counts, starts, stops, length),
        observed=cut(whole.observed, starts, stops, length),
        trial_start=data.times[starts],
        session=whole._replace(trial_starts=starts),
    )


def window_bins(chop: float, bin_width: float) -> int:
    """Bins of a window of so many seconds."""
    return max(2, round(chop / bin_width))


def session(counts: np.ndarray, observed: np.ndarray, length: int, overlap: float) -> Session:
    """A session, and the windows of so many bins that its rates are inferred in.

    They overlap by half at least: less is known at the edges of a window than in its middle.
    """
    every = _each(segments(observed.any(1), length), length, max(overlap, LEAST_OVERLAP))
    starts, stops = np.array(every, int).reshape(-1, 2).T
    return Session(counts, observed, starts, starts, stops - starts)


def segments(seen: Bool[np.ndarray, " bin"], length: int) -> list[tuple[int, int]]:
    """First and last bin (exclusive) of what lies between gaps that are long for windows of so many
    bins."""
    at, longest_gap = np.flatnonzero(seen), max(1, round(LONG_GAP * length))
    if not at.size:
        return []
    breaks = np.flatnonzero(np.diff(at) > longest_gap)
    starts, stops = at[np.r_[0, breaks + 1]], at[np.r_[breaks, -1]] + 1
    return list(zip(starts.tolist(), stops.tolist(), strict=True))


def _blocks(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    """A segment in equal parts of about `size` bins."""
    edges = np.linspace(start, stop, max(1, (stop - start) // size) + 1).round().astype(int)
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def _joined(
    blocks: Sequence[tuple[int, int]], chosen: Bool[np.ndarray, " block"]
) -> list[tuple[int, int]]:
    """The chosen blocks, those that touch as one."""
    runs: list[tuple[int, int]] = []
    for (start, stop), own in zip(blocks, chosen, strict=True):
        if own and runs and runs[-1][1] == start:
            runs[-1] = runs[-1][0], stop
        elif own:
            runs.append((start, stop))
    return runs


def _each(runs: Sequence[tuple[int, int]], length: int, overlap: float | None) -> list[tuple]:
    return [window for run in runs for window in placed(*run, length, overlap)]


def placed(start: int, stop: int, length: int, overlap: float | None) -> list[tuple[int, int]]:
    """First and last bin (exclusive) of the windows in a run of bins.

    overlap: share of a window that the next one has too; the last one ends with the run. None: no
    overlap, the last one is shorter, and left out if it would be much shorter.
    """
    if overlap is None:
        windows = [(at, min(at + length, stop)) for at in range(start, stop, length)]
        return [w for w in windows if w[1] - w[0] >= SHORTEST * length or w[0] == start]
    last = max(start, stop - length)
    step = max(1, round((1 - overlap) * length))
    return [(at, min(at + length, stop)) for at in [*range(start, last, step), last]]


def cut(
    values: Shaped[np.ndarray, "bin neuron"], starts: Starts, stops: Starts, length: int
) -> Shaped[np.ndarray, "window length neuron"]:
    """The windows, each filled up with zeros at its end."""
    out = np.zeros((len(starts), length, values.shape[1]), values.dtype)
    for row, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        out[row, : stop - start] = values[start:stop]
    return out


def merge(
    values: Float[np.ndarray, "window length number"], starts: Starts, lengths: Starts, bins: int
) -> Float[np.ndarray, "bin number"]:
    """What windows say about each bin of the session, weighed smoothly: a bin in the middle of a
    window counts most, one at its edge least. NaN where there is no window.

    starts, lengths: first bin of each window in the session, and its bins.
    """
    total, weight = np.zeros((bins, values.shape[2])), np.zeros((bins, 1))
    for window, start, length in zip(values, starts, lengths, strict=True):
        own = np.sin(np.pi * (np.arange(length) + 0.5) / length)[:, None] ** 2
        total[start : start + length] += own * window[:length]
        weight[start : start + length] += own
    return np.where(weight > 0, total / np.where(weight > 0, weight, 1), np.nan)
