"""Neurons and bins that are predicted without being given, and trials that are only reported on."""

import warnings
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import csv_rows, identical, save

import sbtt_jax
from sbtt_jax import config, recipes
from sbtt_jax.data import problem
from sbtt_jax.data.dataset import Dataset
from sbtt_jax.data.recording import read
from sbtt_jax.errors import InputError
from sbtt_jax.model import metrics
from sbtt_jax.run import exports, priors, scores
from sbtt_jax.run.evaluate import evaluate
from sbtt_jax.run.restore import restore
from sbtt_jax.run.train import train

BINS, NEURONS = 10, 5  # given; three bins and two neurons more are only predicted
QUICK = {"epochs": 6, "warmup_epochs": 1, "steps_per_epoch": 20, "learning_rate": 2e-2}
MODEL = {"encoder_size": 8, "decoder_size": 9, "latent_size": 3, "inferred_inputs": 2}


def counts_of(trials, seed):
    """All neurons follow one signal, each in a sign of its own."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, (trials, 1, 1))
    sign = np.where(np.arange(NEURONS + 2) % 2, 1.0, -1.0)
    signal = np.sin(phase + np.arange(BINS + 3)[:, None] / 3)
    return rng.poisson(np.exp(0.3 + 1.3 * signal * sign)).astype(float)


TRAIN, EVAL = counts_of(60, 0), counts_of(20, 1)


def tensors(counts, split, parts):
    places = {
        "heldin": np.s_[:, :BINS, :NEURONS],
        "heldout": np.s_[:, :BINS, NEURONS:],
        "heldin_forward": np.s_[:, BINS:, :NEURONS],
        "heldout_forward": np.s_[:, BINS:, NEURONS:],
    }
    return {f"{split}_spikes_{part}": counts[places[part]] for part in parts}


ALL = "heldin", "heldout", "heldin_forward", "heldout_forward"


def benchmark_file(path, counts=TRAIN, test=EVAL, parts=("heldin",)):
    return save(path, tensors(counts, "train", ALL) | tensors(test, "eval", parts))


def settings(path, **how):
    recipe = recipes.load(recipes.named("recording"))
    own = {"path": str(path), "bin_width": 0.02}
    return config.updated(recipe, data=own | how, model=MODEL, train=QUICK)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predicted")
    path = benchmark_file(folder / "mc_toy.h5")
    train(settings(path), folder / "run")
    evaluate(folder / "run", export="nlb")
    return folder / "run"


def test_the_benchmarks_tensors_become_one_recording(tmp_path):
    data = read(benchmark_file(tmp_path / "mc_toy.h5"))
    assert data.counts.shape == (80, BINS + 3, NEURONS + 2)
    assert data.split.count("test") == 20
    np.testing.assert_array_equal(data.counts[:60], TRAIN)
    np.testing.assert_array_equal(data.counts[data.test, :BINS, :NEURONS], EVAL[:, :BINS, :NEURONS])
    assert data.observed[:60].all()
    np.testing.assert_array_equal(data.observed[data.test].all(0), data.given)
    assert data.given[:BINS, :NEURONS].all()
    assert data.given.sum() == BINS * NEURONS
    assert data.lengths is None  # bins to be predicted are no padding


def test_inputs_that_are_narrower_than_targets(tmp_path):
    arrays = {}
    for split, part in (("train", TRAIN[:40]), ("valid", TRAIN[40:])):
        arrays[f"{split}_encod_data"], arrays[f"{split}_recon_data"] = (
            part[:, :BINS, :NEURONS],
            part,
        )
    data = read(save(tmp_path / "lfads.h5", arrays))
    assert (data.given.sum(), data.neurons) == (BINS * NEURONS, NEURONS + 2)
    np.testing.assert_array_equal(data.counts, TRAIN)
    arrays["train_encod_data"] = arrays["train_encod_data"][:, :-1]
    with pytest.raises(InputError, match="expected the same in all splits"):
        read(save(tmp_path / "differ.h5", arrays))
    given = np.ones(TRAIN.shape[1:], bool)
    given[3, 1] = False
    data = read(save(tmp_path / "given.npz", {"spikes": TRAIN, "given": given}))
    np.testing.assert_array_equal(data.given, given)


def test_what_is_not_given_is_predicted_and_never_input(run, tmp_path):
    """Scores are those of the benchmark, over points that no rate depends on."""
    other = TRAIN.copy()
    other[:, BINS:] = 0
    other[:, :, NEURONS:] = 3
    path = benchmark_file(tmp_path / "other.h5", other)
    recording, changed = (problem.load(settings(p)) for p in (run.parent / "mc_toy.h5", path))
    (one,) = restore(run).values()
    view = scores.view(one.settings, recording, NEURONS + 2)
    prior = priors.learn(view, one.model)
    rates = view.infer(one.model, prior)[1]
    again = scores.view(one.settings, changed, NEURONS + 2).infer(one.model, prior)[1]
    np.testing.assert_array_equal(rates, again)

    (row,) = csv_rows(run / "evaluation" / "metrics.csv")
    valid, free = recording.valid, view.folds == 0  # which chooses nothing
    assert free[:, ~recording.given].mean() == pytest.approx(0.2, abs=0.05)
    places = {"co_bps": np.s_[:, :BINS, NEURONS:], "fp_bps": np.s_[:, BINS:]}
    for name, place in places.items():  # the file has no evaluation targets
        where = np.zeros((len(valid), BINS + 3, NEURONS + 2), bool)
        where[place] = True
        where &= free
        expected = metrics.bits_per_spike(rates[valid], recording.counts[valid], where)
        assert float(row[name]) == pytest.approx(expected, rel=1e-4)
    assert float(row["co_bps"]) > 0.1
    assert float(row["fp_bps"]) > 0.1
    for baseline in csv_rows(run / "evaluation" / "baselines.csv"):
        assert np.isfinite(float(baseline["co_bps"]))


def test_a_submission_has_the_benchmarks_layout(run):
    with (
        h5py.File(run / "evaluation" / "mc_toy_submission.h5") as file,
        h5py.File(run / "evaluation" / "rates.h5") as rates,
    ):
        group, inferred = file["mc_toy"], rates["bandwidth_07/seed_0/rates"][:] * 0.02
        assert len(group) == 8
        for split, part in (("train", inferred[:60]), ("eval", inferred[60:])):
            for key, value in tensors(part, split, ALL).items():
                written = group[key.replace("spikes", "rates")][:]
                np.testing.assert_allclose(written, value, rtol=1e-5)


def test_neurons_and_bins_of_a_submission_are_where_the_file_has_them(tmp_path):
    given = np.ones((3, 4), bool)
    given[1], given[:, [0, 2]] = False, False
    whole = np.arange(60.0).reshape(5, 3, 4)
    trials, test = np.arange(3), np.array([3, 4])
    data = Dataset(whole, np.ones(whole.shape, bool), trials[:2], trials[2:], 0.5)
    data = replace(data, test=test, given=given)
    exports.nlb(exports.Exported(Path("toy.h5"), data, {}, whole), tmp_path / "submission.h5")
    with h5py.File(tmp_path / "submission.h5") as file:
        for split, part in (("train", whole[:3]), ("eval", whole[3:])):
            for name, bins in (("", [0, 2]), ("_forward", [1])):
                for place, neurons in (("heldin", [1, 3]), ("heldout", [0, 2])):
                    written = file[f"toy/{split}_rates_{place}{name}"][:]
                    np.testing.assert_array_equal(written, part[:, bins][..., neurons] / 2)


@pytest.mark.usefixtures("undrawn")
def test_evaluation_targets_are_scored_once_they_are_known(run, tmp_path):
    path = benchmark_file(tmp_path / "mc_toy.h5", parts=ALL)
    whole = sbtt_jax.Recording(np.concatenate([TRAIN, EVAL]), given=read(path).given)
    with warnings.catch_warnings(action="error"):
        inferred, again = (sbtt_jax.load(run).infer(one) for one in (path, whole))
    np.testing.assert_allclose(again.rates, inferred.rates, rtol=1e-5)
    evaluate(run, data=str(path), out=tmp_path / "out")
    (row,) = csv_rows(tmp_path / "out" / "metrics.csv")
    with h5py.File(tmp_path / "out" / "rates.h5") as file:
        rates = file["bandwidth_07/seed_0/rates"][:] * 0.02
    np.testing.assert_allclose(inferred.rates * 0.02, rates, rtol=1e-5)
    data = read(path)
    where = np.zeros(data.counts.shape, bool)
    where[:, :BINS, NEURONS:] = True
    expected = metrics.bits_per_spike(rates, data.counts, where)
    assert float(row["co_bps"]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("known", ["co_bps", "fp_bps"])
def test_what_test_trials_do_not_tell_of_is_scored_in_validation_trials(known):
    places = {"co_bps": np.s_[:, :BINS, NEURONS:], "fp_bps": np.s_[:, BINS:]}
    given = np.zeros((BINS + 3, NEURONS + 2), bool)
    given[:BINS, :NEURONS] = True
    counts = np.concatenate([TRAIN, EVAL]).astype(np.uint8)
    observed, trials = np.ones(counts.shape, bool), np.arange(80)
    observed[60:] = given
    observed[60:][places[known]] = True
    data = Dataset(counts, observed, trials[:40], trials[40:60], 0.02, test=trials[60:])
    data = replace(data, given=given)
    own = {"data": {"holdout_fraction": 0.2}, "train": {"folds": 4}, "bandwidths": [NEURONS + 2]}
    of_data = scores.view(config.check(own), data, NEURONS + 2)
    rates = np.random.default_rng(2).gamma(2.0, 0.5, counts.shape)[of_data.scored]
    found = of_data.score(rates, None)
    for name, place in places.items():
        own, where = (60, 80) if name == known else (40, 60), np.zeros((20, *given.shape), bool)
        where[place] = True
        free = (of_data.folds == 0) & where
        assert free.sum() / where.sum() == pytest.approx(0.2 * (name != known), abs=0.04)
        right = rates[np.searchsorted(of_data.scored, trials[slice(*own)])], counts[slice(*own)]
        expected = metrics.bits_per_spike(*right, where if name == known else free)
        assert found[name] == pytest.approx(expected)


@pytest.mark.usefixtures("undrawn")
def test_test_trials_neither_train_nor_choose(tmp_path):
    paths = []
    for name, test in (("one", EVAL), ("other", EVAL[::-1] + 1)):
        arrays = {"spikes": TRAIN, "test_data": test}
        paths.append(save(tmp_path / f"{name}.h5", arrays))
        short = config.updated(settings(paths[-1]), train={"epochs": 2})
        train(short, tmp_path / name)
    (one,), (other,) = (restore(tmp_path / name).values() for name in ("one", "other"))
    identical(one.params, other.params)
    found = evaluate(tmp_path / "one").models[0]
    own = problem.load(settings(paths[0]))
    view = scores.view(one.settings, own, NEURONS + 2)
    assert view.reporting.shape == EVAL.shape
    _, rates, blind = view.infer(one.model, priors.learn(view, one.model))
    assert found["nll"] == pytest.approx(
        metrics.nll(rates[own.test], EVAL, np.ones(EVAL.shape, bool)), rel=1e-5
    )
    heldout = metrics.bits_per_spike(blind, EVAL, view.reporting)
    assert found["bits_per_spike_heldout"] == pytest.approx(heldout, rel=1e-5)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("trials", [1, 20])
def test_all_trials_of_another_recording_are_scored(run, trials, tmp_path, caplog):
    path = save(tmp_path / "new.h5", {"spikes": EVAL[:trials]})
    found = evaluate(run, data=str(path), out=tmp_path / "out").models[0]
    assert "nothing says here which (given)" in caplog.text
    with h5py.File(tmp_path / "out" / "rates.h5") as file:
        assert file["split"].asstr()[:].tolist() == ["test"] * trials
        rates = file["bandwidth_07/seed_0/rates"][:] * 0.02
    everywhere = np.ones(rates.shape, bool)
    assert found["nll"] == pytest.approx(metrics.nll(rates, EVAL[:trials], everywhere), rel=1e-4)
    names = [row["baseline"] for row in csv_rows(tmp_path / "out" / "baselines.csv")]
    assert "smoothing" in names  # learned from the recording that the run was trained on


@pytest.mark.usefixtures("undrawn")
def test_without_the_recording_trained_on_there_are_no_baselines(run, tmp_path, caplog):
    text = (run / "config.yaml").read_text().replace("mc_toy.h5", "gone.h5")
    for item in run.iterdir():
        if item.name != "config.yaml":
            (tmp_path / item.name).symlink_to(item)
    (tmp_path / "config.yaml").write_text(text)
    path = save(tmp_path / "new.h5", {"spikes": EVAL})
    evaluate(tmp_path, data=str(path), out=tmp_path / "out")
    assert "no baselines" in caplog.text
    assert not (tmp_path / "out" / "baselines.csv").exists()
