"""Intervals of rates, from several models that differ in seed."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
from conftest import FIT, save
from test_predicted import csv_rows

import sbtt_jax
from sbtt_jax import config, recipes
from sbtt_jax.errors import InputError
from sbtt_jax.model import intervals
from sbtt_jax.run.evaluate import evaluate
from sbtt_jax.run.train import train


def spread_of(models, variance):
    spread = None
    for rates in models:
        spread = intervals.add(spread, rates, variance)
    return spread


@pytest.mark.parametrize("count", [3, 6])
@pytest.mark.parametrize("within", [0.0, 0.3])
@pytest.mark.parametrize("level", [0.9, 0.5])
def test_they_hold_the_truth_as_often_as_they_say(count, within, level):
    """The truth is as far from the models as they are from each other, and off by what none can
    know."""
    rng = np.random.default_rng(0)
    middle = rng.uniform(20, 30, (200, 40, 5))
    models = middle + rng.normal(0, 0.5, (count, *middle.shape))
    true = middle + rng.normal(0, 0.5, middle.shape) + rng.normal(0, within, middle.shape)
    spread = spread_of(models, np.full(true.shape, within**2) if within else None)
    for is_signed in (True, False):
        interval = intervals.bounds(spread, level, is_signed=is_signed)
        held = intervals.coverage(interval, true, np.ones(true.shape, bool))
        assert held == pytest.approx(level, abs=0.025)


def test_the_variance_is_that_within_and_between_models():
    rng = np.random.default_rng(0)
    models, own = rng.gamma(2.0, 1.0, (4, 3, 5)), rng.gamma(1.0, 0.1, (3, 5))
    found = intervals.bounds(spread_of(models, own))
    np.testing.assert_allclose(found.mean, models.mean(0))
    np.testing.assert_allclose(found.sd**2, own + 1.25 * models.var(0, ddof=1))
    assert (found.low > 0).all()
    assert (found.low < found.high).all()
    with pytest.raises(ValueError, match="three models"):
        intervals.bounds(spread_of(models[:2], own))


@pytest.fixture(scope="module")
def models(spikes):
    return [sbtt_jax.fit(spikes, seed=seed, **FIT) for seed in range(3)]


def test_an_ensemble_of_fitted_models(models, spikes):
    ensemble = sbtt_jax.Ensemble(models)
    narrow, wide = ensemble.infer(spikes, 0.5), ensemble.infer(spikes)
    rates = np.mean([model.infer(spikes).rates for model in models], axis=0)
    np.testing.assert_allclose(wide.rates, rates, rtol=1e-5)
    inside = np.isfinite(rates)
    for smaller, larger in (
        (wide.low, narrow.low), (narrow.low, narrow.rates), (narrow.rates, wide.high),
    ):  # fmt: skip
        assert (smaller[inside] < larger[inside]).all()
    assert np.isnan(wide.sd[3, -1]).all()
    with pytest.raises(InputError, match=r"fitted to different splits.*data=\{'seed': 0\}"):
        ensemble.score(spikes)
    assert models[0].infer(spikes).sd is None
    labelled = pytest.importorskip("xarray") and wide.to_xarray()
    np.testing.assert_array_equal(labelled["low"], wide.low)
    assert labelled["high"].attrs["units"] == "spikes/s"
    for given, words in (
        (models[:2], "three models"),
        (models[0], "several fitted models"),
        ([*models, "a"], "several fitted models"),
        ([*models, models[0]], "seeds 0, 1, 2, 0"),
    ):
        with pytest.raises(InputError, match=words):
            sbtt_jax.Ensemble(given)
    with pytest.raises(InputError, match="between 0 and 1"):
        ensemble.infer(spikes, 1.5)


def test_models_of_an_ensemble_are_of_the_same_neurons_by_their_names(models, spikes):
    def named(model, names):
        return replace(model, _provenance={**model._provenance, "unit_id": list(names)})

    own = [named(one, names) for one, names in zip(models, ("abcd", "dbac", "abcd"), strict=True)]
    given = sbtt_jax.Recording(spikes, bin_width=0.01, unit_id=list("abcd"))
    found = sbtt_jax.Ensemble(one for one in own).infer(given)
    apart = [one.infer(given) for one in own]
    by_name = [one.rates[..., np.argsort(one.unit_id)] for one in apart]
    np.testing.assert_array_equal(found.unit_id, list("abcd"))
    np.testing.assert_allclose(found.rates, np.mean(by_name, axis=0), rtol=1e-5)
    wider = config.updated(models[2].settings, data={"bin_width": 0.02})
    with pytest.raises(InputError, match="differ in bin_width"):
        sbtt_jax.Ensemble([*own[:2], replace(models[2], settings=wider)])


@pytest.mark.slow
def test_a_run_of_several_seeds_has_them(tmp_path, spikes):
    true = np.full(spikes.shape, 1.0)  # counts per bin
    arrays = {"spikes": spikes, "bin_width": 0.01, "rates": true, "conversion_factor": 1.0}
    file = save(tmp_path / "own.h5", arrays)
    recipe = recipes.load(recipes.named("recording"))
    changes = {name: FIT[name] for name in ("model", "train")}
    own = config.updated(recipe, seeds=[0, 1, 2], data={"path": str(file)}, **changes)
    train(own, tmp_path / "run")
    found = evaluate(tmp_path / "run", full=True)
    (row,) = csv_rows(found.out / "ensemble.csv")
    assert (found.out / "intervals_bandwidth_04.png").stat().st_size > 10_000
    with h5py.File(found.out / "rates.h5") as rates:
        group = rates["bandwidth_04/ensemble"]
        mean, sd, low, high = (
            group[name][:] for name in ("rates", "rates_sd", "rates_low", "rates_high")
        )
        split = group["split"].asstr()[:]
    inside = np.isfinite(mean)
    assert ((low < mean) & (mean < high) & (sd > 0))[inside].all()
    judged = inside & (split == "valid")[:, None, None]
    held = ((low <= 100 * true) & (100 * true <= high))[judged].mean()  # spikes/s
    assert float(row["interval_coverage"]) == pytest.approx(held, abs=0.005)
    models = [sbtt_jax.load(tmp_path / "run", seed=seed) for seed in range(3)]
    scored = sbtt_jax.Ensemble(models).score(file)
    assert scored.bits_per_spike == pytest.approx(float(row["bits_per_spike_heldout"]), rel=1e-4)
    assert scored.baselines.keys() >= {"smoothing", "low_rank"}
