"""Whole runs through the library: what is written, resumed, restored and evaluated."""

import csv
import signal

import h5py
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import ROOT

from sbtt_jax import checkpoints, config, evaluation, experiment, metrics
from sbtt_jax.errors import InputError
from sbtt_jax.run_folder import RunFolder


@pytest.fixture(scope="module")
def settings():
    return config.load(ROOT / "configs" / "smoke.yaml")


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory):
    """A finished smoke run, evaluated."""
    path = tmp_path_factory.mktemp("runs") / "smoke"
    experiment.train(settings, path)
    evaluation.evaluate(path)
    return path


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def newest_state(path):
    folder = path / "checkpoints"
    step = folder / str(checkpoints.newest(folder))
    with ocp.StandardCheckpointer() as checkpointer:
        return [checkpointer.restore((step / item).resolve()) for item in ("best", "rest")]


def test_history_has_a_row_for_each_model_and_epoch(run, settings):
    history = rows(run / "history.csv")
    assert list(history[0])[:7] == (
        ["bandwidth", "seed", "epoch", "train_nll", "valid_nll", "train_r2", "valid_r2"]
    )
    keys = {(int(r["bandwidth"]), int(r["seed"]), int(r["epoch"])) for r in history}
    assert len(history) == len(keys) == 3 * settings.train.epochs
    assert {bandwidth for bandwidth, _, _ in keys} == set(settings.bandwidths)
    assert all(np.isfinite(float(r["valid_nll"])) for r in history)


def test_every_setting_is_written(run, settings):
    assert config.load(run / "config.yaml") == settings


def test_metrics_say_what_the_best_epoch_says(run, settings):
    history = rows(run / "history.csv")
    metrics = rows(run / "evaluation" / "metrics.csv")
    assert list(metrics[0]) == [
        "bandwidth",
        "seed",
        "missing_fraction",
        "epoch",
        "nll",
        "r2",
        "r2_observed",
        "r2_missing",
        "bits_per_spike",
        "bits_per_spike_missing",
        "bits_per_spike_heldout",
        "status",
    ]
    assert [int(r["bandwidth"]) for r in metrics] == list(settings.bandwidths)
    for row in metrics:
        own = [r for r in history if r["bandwidth"] == row["bandwidth"]]
        best = min(own, key=lambda r: float(r["valid_nll"]))
        assert row["epoch"] == best["epoch"]
        assert float(row["nll"]) == pytest.approx(float(best["valid_nll"]), rel=1e-4)
        assert float(row["r2"]) == pytest.approx(float(best["valid_r2"]), rel=1e-3, abs=1e-4)
        missing = 1 - int(row["bandwidth"]) / settings.data.neurons
        assert float(row["missing_fraction"]) == pytest.approx(missing, abs=1e-6)
    assert metrics[0]["r2_missing"] == metrics[0]["bits_per_spike_missing"] == ""
    assert all(row["bits_per_spike_heldout"] == "" for row in metrics)  # none are held out


def test_rates_of_every_trial_in_file_order(run, settings):
    data = experiment.load_data(settings)
    trained = evaluation.restore(run)
    with h5py.File(run / "evaluation" / "rates.h5") as file:
        np.testing.assert_array_equal(np.flatnonzero(file["split"][()] == b"valid"), data.valid)
        assert file.attrs["bin_width"] == settings.data.bin_width
        for key, (model, _) in trained.items():
            group = file[f"bandwidth_{key.bandwidth:02d}/seed_{key.seed}"]
            observed = experiment.observed_at(settings, data, key.bandwidth)
            inference = evaluation.infer(model, data.counts, observed)
            assert group["rates"].attrs["unit"] == "spikes/s"
            rates = np.exp(inference.lograte) / settings.data.bin_width
            np.testing.assert_allclose(group["rates"][()], rates, rtol=1e-5)
            np.testing.assert_allclose(group["latents"][()], inference.latent, atol=1e-6)
            np.testing.assert_allclose(group["initial_states"][()], inference.ic, atol=1e-6)


def test_no_model_is_above_the_ceiling(run, settings):
    ceiling = evaluation.ceiling(settings, experiment.load_data(settings))
    assert list(ceiling) == list(settings.bandwidths)
    assert 1 >= min(ceiling[12], ceiling[6]) > ceiling[2] > 0.5
    for row in rows(run / "evaluation" / "metrics.csv"):
        assert float(row["r2"]) < ceiling[int(row["bandwidth"])]


def test_figures_are_pictures(run, settings):
    names = [f"evaluation/rates_bandwidth_{b:02d}.png" for b in settings.bandwidths]
    for name in [*names, "evaluation/r2_vs_missing.png", "history.png"]:
        content = (run / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000


def test_one_model_by_its_bandwidth(run):
    every, one = evaluation.restore(run), evaluation.restore(run, bandwidth=6)
    key = experiment.ModelKey(6, 0)
    assert list(one) == [key]
    counts = np.ones((1, 20, 12), np.float32)
    a, b = (
        evaluation.infer(models[key].model, counts, counts > 0).lograte for models in (every, one)
    )
    np.testing.assert_array_equal(a, b)
    with pytest.raises(InputError, match="has no bandwidth 7; there are 12, 6, 2"):
        evaluation.restore(run, bandwidth=7)


def test_stopped_and_resumed_is_as_if_never_stopped(run, settings, tmp_path, monkeypatch):
    """Stopped by a signal after epoch 3, between two checkpoints, then resumed to the end."""
    part = tmp_path / "part"
    seen = []

    def count_epochs(keys, epoch, log):
        seen.append(epoch)
        if epoch == 2:
            signal.raise_signal(signal.SIGTERM)
        return history_rows(keys, epoch, log)

    history_rows = experiment._history_rows
    monkeypatch.setattr(experiment, "_history_rows", count_epochs)
    assert experiment.train(settings, part) == signal.SIGTERM
    assert seen == [0, 1, 2]
    assert checkpoints.newest(part / "checkpoints") == 3
    assert experiment.train(settings, part, resume=True) is None
    assert seen == list(range(settings.train.epochs))
    assert (part / "history.csv").read_text() == (run / "history.csv").read_text()
    jax.tree.map(np.testing.assert_array_equal, newest_state(part), newest_state(run))


def test_rows_after_the_checkpoint_are_written_once(settings, tmp_path):
    """Killed between checkpoints: the history runs ahead of the state that is resumed."""
    folder = RunFolder(tmp_path)
    rows_of = [
        experiment.HistoryRow(29, 0, epoch, 1.0, 2.0, 0.5, float("nan"), float("nan"))
        for epoch in range(5)
    ]
    with folder.writing_history(0) as history:
        history.append(rows_of)
    with folder.history.open("a") as file:
        file.write("29,0,5,0.3")  # cut short by the kill
    with folder.writing_history(3) as history:
        history.append(rows_of[3:])
    assert list(map(str, folder.read_history())) == list(map(str, rows_of))  # NaN beside NaN


def test_a_run_is_never_replaced_or_mixed_up(run, settings):
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match="--resume goes on with it, --overwrite replaces it"):
        experiment.train(settings, run)
    other = config.check(settings.model_dump() | {"seeds": [5]})
    with pytest.raises(InputError, match=r"other settings: seeds was \(0,\), now \(5,\)"):
        experiment.train(other, run, resume=True)
    with pytest.raises(InputError, match="exclude each other"):
        experiment.train(settings, run, resume=True, overwrite=True)
    with RunFolder(run).alone():
        for how in ("resume", "overwrite"):
            with pytest.raises(InputError, match="another training is writing here"):
                experiment.train(settings, run, **{how: True})
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_overwriting_takes_what_a_run_wrote_and_nothing_else(settings, tmp_path):
    settings = config.check(
        settings.model_dump()
        | {"bandwidths": [6], "train": settings.train.model_dump() | {"epochs": 1}}
    )
    experiment.train(settings, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    experiment.train(settings, tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert len(rows(tmp_path / "history.csv")) == 1


def test_masks_keep_what_the_recording_misses(settings):
    data = experiment.load_data(settings)
    gaps = np.random.default_rng(0).random(data.counts.shape) < 0.3
    holed = experiment.Dataset(
        data.counts, ~gaps, data.train, data.valid, data.bin_width, data.rates
    )
    everything = experiment.observed_at(settings, holed, 12)
    np.testing.assert_array_equal(everything, ~gaps)
    some = experiment.observed_at(settings, holed, 6)
    assert not (some & gaps).any()
    np.testing.assert_array_equal(experiment.observed_at(settings, data, 6) & ~gaps, some)


def test_heldout_points_are_hidden_and_in_validation_trials_only(settings):
    values = settings.model_dump()
    values["data"]["holdout_fraction"] = 0.25
    settings = config.check(values)
    data = experiment.load_data(settings)
    keys = experiment.models(settings, data.neurons)
    masks = experiment.observation_masks(settings, data, keys)
    assert not (masks.observed & masks.heldout).any()
    assert not masks.heldout[:, data.train].any()
    for i, key in enumerate(keys):
        given = experiment.observed_at(settings, data, key.bandwidth)
        np.testing.assert_array_equal(masks.observed[i] | masks.heldout[i], given)
        share = masks.heldout[i][data.valid].sum() / given[data.valid].sum()
        assert share == pytest.approx(0.25, abs=0.06)


def test_seeds_of_a_bandwidth_are_scored_together_too(settings, tmp_path):
    several = config.check(settings.model_dump() | {"bandwidths": [6, 3], "seeds": [0, 1, 2]})
    experiment.train(several, tmp_path / "run")
    scores, ensembles = evaluation.evaluate(tmp_path / "run")
    table = rows(tmp_path / "run" / "evaluation" / "ensemble.csv")
    assert [(row["bandwidth"], row["models"]) for row in table] == [("6", "3"), ("3", "3")]
    data = experiment.load_data(several)
    with h5py.File(tmp_path / "run" / "evaluation" / "rates.h5") as file:
        for row in table:
            group = file[f"bandwidth_{int(row['bandwidth']):02d}"]
            each = [group[f"seed_{seed}/rates"][:] for seed in (0, 1, 2)]
            mean = np.mean(each, axis=0, dtype=np.float64)
            np.testing.assert_allclose(group["ensemble/rates"][:], mean, rtol=1e-5)
            r2 = metrics.r2(data.rates[data.valid], mean[data.valid] * data.bin_width)
            assert float(row["r2"]) == pytest.approx(r2, abs=1e-4)
    # The mean of several estimates has at most the mean of their squared errors.
    for ensemble in ensembles:
        alone = [s.r2 for s in scores if s.bandwidth == ensemble.bandwidth]
        assert ensemble.r2 >= np.mean(alone) - 1e-6


def test_an_evaluation_of_one_seed_leaves_no_ensemble_of_another(run, tmp_path):
    (tmp_path / "ensemble.csv").write_text("from before\n")
    evaluation.evaluate(run, out=tmp_path)
    assert not (tmp_path / "ensemble.csv").exists()
