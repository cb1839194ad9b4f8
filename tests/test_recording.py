"""A recording with holes, trials of their own lengths and no true rates, from file to rates.h5."""

import csv

import h5py
import numpy as np
import pytest
from conftest import ROOT

from sbtt_jax import config, evaluation, experiment
from sbtt_jax.errors import InputError

LENGTHS = np.random.default_rng(3).integers(8, 13, 40)


@pytest.fixture(scope="module")
def counts():
    rng = np.random.default_rng(1)
    counts = rng.poisson(rng.gamma(2.0, 0.3, (40, 12, 6))).astype(float)
    counts[rng.random(counts.shape) < 0.5] = np.nan
    for trial, length in enumerate(LENGTHS):
        counts[trial, length:] = np.nan
        counts[trial, length - 1, 0] = 1
    return counts


def settings_for(path, **changes):
    values = config.load(ROOT / "configs" / "recording.yaml").model_dump()
    values["data"] |= {"path": str(path)} | changes.pop("data", {})
    values["train"] |= {"epochs": 3, "warmup_epochs": 1, "batch_size": 16}
    values["model"] |= {"encoder_size": 5, "decoder_size": 6}
    return config.check(values | changes)


def write(path, **arrays):
    with h5py.File(path, "w") as file:
        for key, value in arrays.items():
            file[key] = value
    return path


@pytest.fixture(scope="module")
def run(counts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recording")
    path = write(folder / "recording.h5", spikes=counts)
    assert experiment.train(settings_for(path), folder / "run") is None
    evaluation.evaluate(folder / "run")
    return folder / "run"


def test_rates_of_every_point_up_to_each_trials_end(run, counts):
    with h5py.File(run / "evaluation" / "rates.h5") as file:
        np.testing.assert_array_equal(file["length"], LENGTHS)
        np.testing.assert_array_equal(file["trial_index"], np.arange(40))
        assert (file["split"][()] == b"valid").sum() == 8
        group = file["bandwidth_06/seed_0"]
        real = np.arange(12) < LENGTHS[:, None]
        for name in ("rates", "latents"):
            finite = np.isfinite(group[name][()]).all(-1)
            np.testing.assert_array_equal(finite, real)
        assert np.isfinite(group["initial_states"][()]).all()


def test_without_true_rates_the_figure_of_merit_is_heldout_likelihood(run):
    with (run / "evaluation" / "metrics.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["r2"] == row["r2_missing"] == row["bits_per_spike_missing"] == ""
    assert np.isfinite(float(row["bits_per_spike_heldout"]))
    settings = config.load(run / "config.yaml")
    data = experiment.load_data(settings)
    real = np.arange(12) < LENGTHS[data.valid][:, None]
    missing = 1 - data.observed[data.valid].sum() / (6 * real.sum())
    assert float(row["missing_fraction"]) == pytest.approx(missing, rel=1e-5)
    assert not (run / "evaluation" / "r2_vs_missing.png").exists()


def test_heldout_points_are_judged_without_being_seen(run):
    settings = config.load(run / "config.yaml")
    data = experiment.load_data(settings)
    ((key, (model, _)),) = evaluation.restore(run).items()
    observed = experiment.observed_at(settings, data, key.bandwidth)
    held = experiment.held_out(settings, data, key.bandwidth, observed)
    before = evaluation.heldout_rates(data, model, observed, held)
    seen = {}

    def spy(model, counts, shown, **how):
        seen["shown"] = shown
        return infer(model, counts, shown, **how)

    infer = evaluation.infer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "infer", spy)
        again = evaluation.heldout_rates(data, model, observed, held)
    np.testing.assert_array_equal(again, before)
    assert held.any()
    np.testing.assert_array_equal(before > 0, held)
    assert not (seen["shown"] & held).any()
    np.testing.assert_array_equal(seen["shown"] | held, data.observed[data.valid])


def test_more_padding_gives_the_same_rates(run, counts, tmp_path):
    wider = np.concatenate([counts, np.full((40, 9, 6), np.nan)], axis=1)
    path = write(tmp_path / "wider.h5", spikes=wider)
    evaluation.evaluate(run, data=str(path), out=tmp_path / "out")
    with (
        h5py.File(tmp_path / "out" / "rates.h5") as wide,
        h5py.File(run / "evaluation" / "rates.h5") as file,
    ):
        name = "bandwidth_06/seed_0/rates"
        np.testing.assert_allclose(wide[name][:, :12], file[name], rtol=1e-4)
        assert np.isnan(wide[name][:, 12:]).all()


def test_a_recording_that_moved_is_asked_for(run, tmp_path, counts):
    text = (run / "config.yaml").read_text().replace("recording.h5", "elsewhere.h5")
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=r"elsewhere.h5: no such file, .* was trained on it; say"):
        evaluation.evaluate(tmp_path / "moved")


def test_other_neurons_are_refused(run, counts, tmp_path):
    path = write(tmp_path / "other.h5", spikes=counts[..., :4])
    with pytest.raises(InputError, match=r"was trained on 6 neurons; .*other.h5 has 4"):
        evaluation.evaluate(run, data=str(path), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_was_never_sampled_is_named_with_the_setting_that_drops_it(counts, tmp_path):
    counts = counts.copy()
    counts[7] = np.nan
    counts[:, :, [2, 5]] = np.nan
    path = write(tmp_path / "r.h5", spikes=counts)
    data = {}
    with pytest.raises(InputError, match=r"observed in trial 7; --data\.drop_unobserved_trials"):
        experiment.train(settings_for(path), tmp_path / "run")
    data["drop_unobserved_trials"] = True
    with pytest.raises(InputError, match=r"of neurons 2, 5 in .*--data\.drop_neurons 2 5 drops"):
        experiment.train(settings_for(path, data=data), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    data["drop_neurons"] = (2, 5)
    experiment.train(settings_for(path, data=data), tmp_path / "run")
    evaluation.evaluate(tmp_path / "run")
    with h5py.File(tmp_path / "run" / "evaluation" / "rates.h5") as file:
        np.testing.assert_array_equal(file["dropped_trials"], [7])
        np.testing.assert_array_equal(file["dropped_neurons"], [2, 5])
        np.testing.assert_array_equal(file["neuron_index"], [0, 1, 3, 4])
        np.testing.assert_array_equal(file["trial_index"], np.delete(np.arange(40), 7))
        assert file["bandwidth_04/seed_0/rates"].shape == (39, 12, 4)


def test_thinning_that_leaves_a_neuron_unobserved_is_refused(tmp_path):
    counts = np.full((4, 2, 30), 1.0)
    path = write(tmp_path / "r.h5", spikes=counts)
    with pytest.raises(InputError, match=r"at bandwidth 1, nothing is observed of neurons .* more"):
        experiment.train(settings_for(path, bandwidths=(1,)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_share_that_holds_nothing_out_is_refused(tmp_path):
    """There would be nothing to choose the best epoch by."""
    path = write(tmp_path / "r.h5", spikes=np.ones((5, 2, 3)))
    settings = settings_for(path, data={"holdout_fraction": 1e-6})
    with pytest.raises(
        InputError, match=r"have 6 observed points, and data\.holdout_fraction 1e-06"
    ):
        experiment.train(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_sizes_of_the_lorenz_set_do_not_bound_a_recording(tmp_path):
    """More neurons than a Lorenz set has, and bandwidths that are given before the file is."""
    counts = np.random.default_rng(0).poisson(1.0, (10, 5, 40))
    path = write(tmp_path / "r.h5", spikes=counts)
    settings = config.check({"bandwidths": [40, 35]})
    assert experiment.load_data(config.on_recording(settings, str(path))).neurons == 40
    with pytest.raises(InputError, match=r"bandwidths has 40, and data\.neurons is 29"):
        experiment.load_data(settings)
    settings = config.on_recording(config.check({"bandwidths": [41]}), str(path))
    with pytest.raises(InputError, match=r"bandwidths has 41, and .*r.h5 holds 40 neurons"):
        experiment.load_data(settings)


def test_settings_for_a_recording_need_one(tmp_path):
    settings = config.load(ROOT / "configs" / "recording.yaml")
    with pytest.raises(InputError, match="bandwidths is empty, which needs a recording"):
        experiment.train(settings, tmp_path / "run")
