"""A recording with holes, trials of their own lengths and no true rates, from file to rates.h5."""

import h5py
import numpy as np
import pytest
from conftest import FIT, csv_rows

import sbtt_jax
from sbtt_jax import config, recipes
from sbtt_jax.data import problem
from sbtt_jax.data.arrays import Array, Arrays
from sbtt_jax.data.recording import assemble
from sbtt_jax.errors import InputError
from sbtt_jax.model import metrics
from sbtt_jax.run import priors, scores
from sbtt_jax.run.evaluate import evaluate
from sbtt_jax.run.restore import restore
from sbtt_jax.run.train import Outcome, train

LENGTHS = np.random.default_rng(3).integers(8, 13, 40)
RECIPE = recipes.load(recipes.named("recording"))


@pytest.fixture(scope="module")
def counts():
    rng = np.random.default_rng(1)
    counts = rng.poisson(rng.gamma(2.0, 0.3, (40, 12, 6))).astype(float)
    counts[rng.random(counts.shape) < 0.5] = np.nan
    for trial, length in enumerate(LENGTHS):
        counts[trial, length:] = np.nan
        counts[trial, length - 1, 0] = 1
    return counts


def settings_for(path, bandwidths=(), **data):
    return config.updated(
        RECIPE,
        bandwidths=bandwidths,
        data={"path": str(path), **data},
        train={"epochs": 2, "warmup_epochs": 1, "batch_size": 16},
        model={"encoder_size": 5, "decoder_size": 6},
    )


def write(path, counts):
    with h5py.File(path, "w") as file:
        file["spikes"] = counts
    return path


@pytest.fixture(scope="module")
def run(counts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recording")
    path = write(folder / "recording.h5", counts)
    assert train(settings_for(path), folder / "run") == Outcome(0, [])
    evaluate(folder / "run", full=True)
    return folder / "run"


def test_rates_of_every_point_up_to_each_trials_end(run):
    with h5py.File(run / "evaluation" / "rates.h5") as file:
        np.testing.assert_array_equal(file["length"], LENGTHS)
        np.testing.assert_array_equal(file["trial_index"], np.arange(40))
        assert (file["split"][()] == b"valid").sum() == 8
        group = file["bandwidth_06/seed_0"]
        inside = np.arange(12) < LENGTHS[:, None]
        for name in ("rates", "latents"):
            np.testing.assert_array_equal(np.isfinite(group[name][()]).all(-1), inside)
        assert np.isfinite(group["initial_states"][()]).all()


def test_without_true_rates_the_figure_of_merit_is_heldout_likelihood(run):
    (row,) = csv_rows(run / "evaluation" / "metrics.csv")
    assert row["r2"] == row["r2_missing"] == row["bits_per_spike_missing"] == ""
    assert np.isfinite(float(row["bits_per_spike_heldout"]))
    data = problem.load(recipes.load(run / "config.yaml"))
    inside = np.arange(12) < LENGTHS[data.valid][:, None]
    missing = 1 - data.observed[data.valid].sum() / (6 * inside.sum())
    assert float(row["missing_fraction"]) == pytest.approx(missing, rel=1e-5)
    assert not (run / "evaluation" / "r2_vs_missing.png").exists()


def test_heldout_points_are_judged_without_being_seen(run, monkeypatch):
    settings = recipes.load(run / "config.yaml")
    data = problem.load(settings)
    ((key, trained),) = restore(run).items()
    view, shown = scores.view(settings, data, key.bandwidth), []

    def spy(model, counts, observed, lengths, **how):
        shown.append(observed)
        return infer_all(model, counts, observed, lengths, **how)

    infer_all = scores.infer_all
    monkeypatch.setattr(scores, "infer_all", spy)
    prior = priors.learn(view, trained.model)
    blind = view.blind(trained.model, prior)
    assert view.folds.any()
    assert view.reporting.any()
    assert not (shown[0] & view.reporting).any()
    np.testing.assert_array_equal(shown[0] | view.reporting, data.observed[data.valid])
    counts = data.counts[data.valid]
    (row,) = csv_rows(run / "evaluation" / "metrics.csv")
    reported = metrics.bits_per_spike(blind, counts, view.reporting)
    assert float(row["bits_per_spike_heldout"]) == pytest.approx(reported, abs=1e-4)


@pytest.mark.usefixtures("undrawn")
def test_more_padding_gives_the_same_rates(run, counts, tmp_path, caplog):
    wider = np.concatenate([counts, np.full((40, 9, 6), np.nan)], axis=1)
    path, others = write(tmp_path / "wider.h5", wider), ("rates_bandwidth_29.png", "notes.png")
    (tmp_path / "out").mkdir()
    for name in (*others, "r2_vs_missing.png"):  # of another run, and the user's
        (tmp_path / "out" / name).touch()
    found = evaluate(run, data=str(path), out=tmp_path / "out")
    figures = sorted((tmp_path / "out").glob("*.png"))
    assert figures == sorted([*found.figures, tmp_path / "out" / "notes.png"])
    files = (h5py.File(folder / "rates.h5") for folder in (tmp_path / "out", run / "evaluation"))
    wide, narrow = (file["bandwidth_06/seed_0/rates"][()] for file in files)
    np.testing.assert_allclose(wide[:, :12], narrow, rtol=1e-4)
    assert "32 of 40 trials are training trials of this run; scores are of them too" in caplog.text
    assert np.isnan(wide[:, 12:]).all()
    (tmp_path / "again").mkdir()  # another recording of the same name
    (run / "evaluation_wider").symlink_to(tmp_path / "out")
    again = write(tmp_path / "again" / "wider.h5", wider)
    with pytest.raises(InputError, match=rf"has the results of {path}; name another folder"):
        evaluate(run, data=str(again))


def test_another_recording_than_was_trained_on(run, counts, tmp_path):
    text = (run / "config.yaml").read_text().replace("recording.h5", "elsewhere.h5")
    (tmp_path / "config.yaml").write_text(text)
    lost = r"elsewhere.h5: no such file, .* trained on it; say where it is now with --data FILE"
    with pytest.raises(InputError, match=lost):
        evaluate(tmp_path)
    path = write(tmp_path / "other.h5", counts[..., :4])
    with pytest.raises(InputError, match=r"was trained on 6 neurons; .*other.h5 has 4"):
        evaluate(run, data=str(path), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_condition_may_be_unknown_and_a_name_misspelled(counts):
    def of(**arrays):
        arrays = {"spikes": counts, "bin_width": 0.01} | arrays
        return assemble(Arrays("file", {key: Array(np.asarray(v)) for key, v in arrays.items()}))

    numbers = np.arange(40.0) % 3
    numbers[[0, 5]] = np.nan
    names = np.where(
        np.isnan(numbers), "", np.array(["a", "b", "c"])[np.nan_to_num(numbers).astype(int)]
    )
    for given in (numbers, names):
        data = of(condition=given)
        assert len(data.condition_values) == 3
        assert np.flatnonzero(data.condition < 0).tolist() == [0, 5]
        np.testing.assert_array_equal(data.conditions_of(np.arange(40)), given)
    from_python = [None if np.isnan(one) else one for one in numbers]
    spikes = sbtt_jax.Recording(counts, bin_width=0.01, condition=from_python)
    np.testing.assert_array_equal(
        assemble(spikes.arrays).condition, of(condition=numbers).condition
    )
    with pytest.raises(InputError, match="condition is missing in all trials"):
        of(condition=np.full(40, np.nan))
    data = of(conditions=numbers, masks=np.ones(40, bool), weight=1.0)
    assert data.notes == tuple(
        f"{name} is not read; {meant} would be, if that is what it is"
        for name, meant in (("conditions", "condition"), ("masks", "mask"))
    )


@pytest.mark.usefixtures("undrawn")
def test_what_was_never_sampled_is_named_with_the_setting_that_drops_it(spikes, tmp_path):
    counts = np.insert(np.insert(spikes, [2, 4], np.nan, axis=2), 7, np.nan, axis=0)
    path, run = write(tmp_path / "r.h5", counts), tmp_path / "run"
    with pytest.raises(InputError, match=r"observed in trial 7; --data\.drop_unobserved_trials"):
        train(settings_for(path), run)
    data = {"drop_unobserved_trials": True}
    with pytest.raises(InputError, match=r"of neurons 2, 5 in .*--data\.drop_neurons 2 5 drops"):
        train(settings_for(path, **data), run)
    assert not run.exists()
    settings = settings_for(path, **data, drop_neurons=(2, 5))
    known = {"model": FIT["model"], "train": FIT["train"] | {"batch_size": 32}}  # compiled already
    train(config.updated(settings, **known), run)
    evaluate(run)
    with h5py.File(run / "evaluation" / "rates.h5") as file:
        np.testing.assert_array_equal(file["dropped_trials"], [7])
        np.testing.assert_array_equal(file["dropped_neurons"], [2, 5])
        np.testing.assert_array_equal(file["neuron_index"], [0, 1, 3, 4])
        np.testing.assert_array_equal(file["trial_index"], np.delete(np.arange(31), 7))
        assert file["bandwidth_04/seed_0/rates"].shape == spikes.shape


@pytest.mark.parametrize(
    ("shape", "settings", "said"),
    [
        ((4, 2, 30), {"bandwidths": (1,)}, "at bandwidth 1, nothing is observed of .* more"),
        # Nothing would be left to choose the best epoch by.
        ((5, 2, 3), {"holdout_fraction": 1e-6}, "have 6 observed points, and .*fraction 1e-06"),
    ],
    ids=["thinning", "holdout"],
)
def test_settings_that_leave_nothing_observed_are_refused(shape, settings, said, tmp_path):
    path = write(tmp_path / "r.h5", np.ones(shape))
    with pytest.raises(InputError, match=said):
        train(settings_for(path, **settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_sizes_of_the_lorenz_set_do_not_bound_a_recording(tmp_path):
    """More neurons than a Lorenz set has, and bandwidths that are given before the file is."""
    counts = np.random.default_rng(0).poisson(1.0, (10, 5, 40))
    path = write(tmp_path / "r.h5", counts)
    assert problem.load(settings_for(path, (40, 35))).neurons == 40
    with pytest.raises(InputError, match=r"bandwidths has 41, and .*r.h5 holds 40 neurons"):
        problem.load(settings_for(path, (41,)))
    with pytest.raises(InputError, match="bandwidths is empty, which needs a recording"):
        train(RECIPE, tmp_path / "run")
