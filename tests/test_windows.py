"""Sessions without trials: cut into windows, split by blocks of time, merged back."""

import dataclasses

import h5py
import numpy as np
import pytest
from conftest import save
from hypothesis import given, settings
from hypothesis import strategies as st

import sbtt_jax
from sbtt_jax import config, recipes
from sbtt_jax.config import DataSettings
from sbtt_jax.data import lorenz, windows
from sbtt_jax.data.arrays import Array, Arrays
from sbtt_jax.data.objects import Recording
from sbtt_jax.data.problem import observed_at, prepare, reading
from sbtt_jax.data.recording import assemble
from sbtt_jax.errors import InputError
from sbtt_jax.run import provenance
from sbtt_jax.run.evaluate import evaluate
from sbtt_jax.run.train import train

SMALL = {"encoder_size": 8, "decoder_size": 9}


def a_session(bins=600, neurons=5, seed=0):
    """Counts, NaN where not observed: holes everywhere, and one long gap."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(0.8, (bins, neurons)).astype(float)
    counts[rng.random(counts.shape) < 0.3] = np.nan
    counts[bins // 3 : bins // 3 + 40] = np.nan
    return counts


def chopped(counts, **how):
    return assemble(Recording(counts, bin_width=0.02).arrays, **{"chop": 0.4, **how})


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    bins=st.integers(1, 90),
    length=st.integers(2, 30),
    overlap=st.floats(0, 0.95),
    gaps=st.lists(st.tuples(st.integers(0, 89), st.integers(1, 40)), max_size=3),
)
def test_cut_and_merged_is_what_it_was(bins, length, overlap, gaps):
    values = np.random.default_rng(0).normal(size=(bins, 3))
    seen = np.ones(bins, bool)
    for start, size in gaps:
        seen[start : start + size] = False
    runs = windows.segments(seen, length)
    every = [window for run in runs for window in windows.placed(*run, length, overlap)]
    starts, stops = np.array(every, int).reshape(-1, 2).T
    merged = windows.merge(windows.cut(values, starts, stops, length), starts, stops - starts, bins)
    inside = np.isfinite(merged).all(1)
    np.testing.assert_allclose(merged[inside], values[inside], rtol=1e-9, atol=1e-12)
    assert inside[seen].all()
    # Where nothing is inferred, nothing was observed for half of a window.
    edges = np.diff(np.pad((~inside).astype(int), 1))
    for start, stop in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True):
        assert stop - start >= min(round(length / 2), bins) or start == 0 or stop == bins
        assert not seen[start:stop].any()


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_training_and_validation_are_blocks_of_time(overlap, seed):
    counts = a_session()
    data = chopped(counts, overlap=overlap, seed=seed)
    length, starts = data.counts.shape[1], data.session.trial_starts
    assert length == 20
    at = {name: np.zeros(len(counts), int) for name in ("train", "valid")}
    for name, used in at.items():
        for trial in getattr(data, name):
            bins = slice(starts[trial], starts[trial] + length)
            here = np.where(data.observed[trial], data.counts[trial], np.nan)
            there = counts[bins]
            np.testing.assert_array_equal(here[: len(there)][data.observed[trial, : len(there)]],
                                          there[data.observed[trial, : len(there)]])  # fmt: skip
            used[bins][data.observed[trial, : len(there)].any(1)] += 1
            assert not np.isnan(there).all(1)[5:-5].all()  # no window straddles the gap
    assert not (at["train"].astype(bool) & at["valid"].astype(bool)).any()
    assert at["valid"].max() == 1  # each point is judged once
    share = (at["valid"] > 0).sum() / (~np.isnan(counts).all(1)).sum()
    assert 0.1 < share < 0.3
    np.testing.assert_allclose(data.trial_start, starts * 0.02)


def test_overlapping_windows_see_the_same_samples_of_a_thinned_session():
    data = chopped(a_session(), overlap=0.75)
    own = config.updated(recipes.load(recipes.named("recording")), bandwidths=[2])
    observed = observed_at(own, data, 2)
    starts, length = data.session.trial_starts, data.counts.shape[1]
    seen = np.zeros(data.session.counts.shape, bool)
    for start, mask in zip(starts, observed, strict=True):
        seen[start : start + length] |= mask[: len(seen) - start]
    for start, mask in zip(starts, observed, strict=True):
        there = (seen & data.session.observed)[start : start + length]
        inside = data.observed[np.flatnonzero(starts == start)[0]][: len(there)]
        np.testing.assert_array_equal(mask[: len(there)], there & inside)
    assert observed.sum(2).mean() < 2


@pytest.mark.parametrize(
    ("source", "sizes"),
    [
        (a_session(seed=1), [20] * 10 + [20] * 18),  # on both sides of its gap
        (np.ones((33, 5)), [20, 13]),
        (np.ones((44, 5)), [20, 20]),  # a quarter of a window would be needed
        (np.zeros((60, 5)), [20, 20, 20]),
        (np.ones((3, 25, 5)), [25, 25, 25]),
    ],
)
def test_each_point_of_another_recording_is_judged_once(source, sizes):
    """Of one that is too short to learn from, silent, or of trials, too."""
    own = config.updated(recipes.load(recipes.named("recording")), data={"chop": 0.4})

    def read(dropped, learn, spikes=source):
        how = reading(own) | {"bin_width": 0.02, "drop_neurons": dropped, "learn": learn}
        return assemble(Recording(spikes).arrays, **how)

    def same(dropped, learn):
        return read(dropped, learn, a_session())

    record = provenance.record(same((), True))
    as_trained = provenance.read_judged(same, own.data, record)
    assert provenance.fingerprint(as_trained) == record["data"]
    assert len(as_trained.train)
    data = provenance.read_judged(read, own.data, record)
    assert (len(data.train), len(data.valid), data.split) == (0, 0, ["test"] * len(sizes))
    assert data.inside[..., 0].sum(1).tolist() == sizes
    if data.session is None:
        return
    times = np.zeros(source.shape, int)
    for start, seen, counts in zip(
        data.session.trial_starts, data.observed, data.counts, strict=True
    ):
        times[start : start + 20] += seen[: len(source) - start]
        there = source[start : start + 20]
        np.testing.assert_array_equal(counts[seen], there[seen[: len(there)]])
    assert times.max() == 1
    left_out = (np.isfinite(source) & (times == 0)).any(1)
    assert left_out.sum() == {44: 4}.get(len(source), 0)


def test_a_recording_without_a_sample_cannot_be_judged():
    session = a_session()
    record = provenance.record(chopped(session))

    def read(dropped, learn):
        return chopped(np.full((60, 5), np.nan), learn=learn)

    with pytest.raises(InputError, match="other: nothing is observed"):
        provenance.read_judged(read, DataSettings(chop=0.4), record, "other")


def test_a_session_for_a_model_of_trials():
    with pytest.raises(InputError, match=r"the model was trained on trials, so cut it into such"):
        assemble(Recording(np.ones((60, 5)), bin_width=0.02).arrays, learn=False)


def test_a_session_too_short_to_be_split_or_without_a_window_length(tmp_path):
    with pytest.raises(InputError, match="the session has 30; at least two windows are needed"):
        chopped(np.ones((30, 4)))
    with pytest.raises(InputError, match=r"one to validate; are its axes bin x neuron\?$"):
        chopped(np.ones((4, 30)))
    path = save(tmp_path / "session.h5", {"spikes": a_session()})
    with pytest.raises(InputError, match=r"set data.chop to the seconds of a window"):
        prepare(config.updated(recipes.load(recipes.named("recording")), data={"path": str(path)}))
    with pytest.raises(InputError, match=r"data.chop is for a session without trials"):
        chopped(np.ones((4, 30, 4)))


@pytest.mark.slow
def test_two_commands_on_a_session(tmp_path):
    counts = a_session()
    time = 100 + np.arange(len(counts)) * 0.02
    with h5py.File(tmp_path / "session.h5", "w") as file:
        file["spikes"], file["time"], file["neuron"] = counts, time, np.arange(5) + 10
        file["time"].attrs["units"] = "s"
        for axis, name in enumerate(("time", "neuron")):
            file[name].make_scale(name)
            file["spikes"].dims[axis].attach_scale(file[name])
    own = {"path": str(tmp_path / "session.h5"), "chop": 0.4}
    quick = {"epochs": 2, "warmup_epochs": 1, "steps_per_epoch": 5}
    recipe = recipes.load(recipes.named("recording"))
    settings = config.updated(recipe, data=own, model=SMALL, train=quick, seeds=[0, 1, 2])
    train(settings, tmp_path / "run")
    found = evaluate(tmp_path / "run")
    assert (found.out / "intervals_bandwidth_05.png").stat().st_size > 10_000
    fitted = sbtt_jax.load(tmp_path / "run", seed=0)
    inferred = fitted.infer(counts)
    with h5py.File(tmp_path / "run" / "evaluation" / "rates.h5") as file:
        group = file["bandwidth_05/seed_0"]
        rates = group["rates"]
        assert rates.shape == counts.shape
        assert [axis[0].name.split("/")[-1] for axis in rates.dims] == ["time", "neuron"]
        np.testing.assert_allclose(group["time"][:], time)
        assert group["neuron"][:].tolist() == [10, 11, 12, 13, 14]
        np.testing.assert_allclose(rates[:], inferred.rates, rtol=1e-4)
    missing = np.isnan(inferred.rates).all(1)
    assert missing.sum() == 40
    assert np.isnan(counts[missing]).all()


@pytest.mark.slow
def test_seams_are_as_good_as_the_middle_of_windows():
    errors, jumps = [], []
    for seed in (0, 1, 2):
        made = lorenz.generate(seed, conditions=1, trials_per_condition=1, bins=6000, neurons=29)
        counts, true = made.counts[0].astype(float), made.rates[0]
        counts[np.random.default_rng(seed).random(counts.shape) < 0.5] = np.nan
        fitted = sbtt_jax.fit(counts, bin_width=0.02, data={"chop": 1.0}, train={"epochs": 60})
        for overlap in (0.0, 0.8):
            own = config.updated(fitted.settings, data={"overlap": overlap})
            rates = dataclasses.replace(fitted, settings=own).infer(counts).rates * 0.02
            session = windows.session(counts, np.isfinite(counts), 50, overlap)
            seams = np.r_[session.starts[1:], (session.starts + session.lengths)[:-1]]
            near = np.zeros(len(counts), bool)
            near[seams] = near[seams - 1] = True
            error, jump = ((rates - true) ** 2).mean(1), np.abs(np.diff(rates, axis=0)).mean(1)
            errors.append(error[near].mean() / error[~near].mean())
            jumps.append(jump[seams - 1].mean() / jump.mean())
    assert np.mean(errors) < 1.15
    assert np.mean(jumps) < 1.1


def test_what_may_be_input_is_said_of_trials_alone():
    session = Recording(np.ones((60, 3)), bin_width=0.1, given=np.eye(60, 3) == 0)
    with pytest.raises(InputError, match="given is for trials, and this is a session without any"):
        sbtt_jax.fit(session, data={"chop": 1.0})
    counts = a_session()
    beside = {"trial_start": [0.0, 4.0], "condition": [1, 2], "rates": np.ones(counts.shape)}
    arrays = {"spikes": counts} | beside
    file = Arrays("file", {name: Array(np.asarray(value)) for name, value in arrays.items()})
    data = assemble(file, bin_width=0.02, chop=0.4)
    assert data.notes == (
        "rates, condition, trial_start: not read, since this is a session without trials",
    )
    (note,) = assemble(file, bin_width=0.02, chop=0.4, condition="cue", rates_unit="1/s").notes
    assert note.startswith("data.condition, data.rates_unit, rates, condition, trial_start: not")
