import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SMALL, small_data, small_problem, train_small

from sbtt_jax.data.dataset import statistics
from sbtt_jax.model import smoothing
from sbtt_jax.model.smoothing import PRIOR, WIDTHS, Smoothing
from sbtt_jax.observations import OBSERVATIONS


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    observed = rng.random((3, 9, 4)) < 0.6
    counts = np.where(observed, rng.poisson(1.5, observed.shape), 0).astype(np.float32)
    mean, deviation = np.float32([[0.5, 1.0, 2.0, 4.0], [0.7, 3.0, 1.0, 0.5]])
    return tuple(map(jnp.asarray, (counts, observed, mean, deviation)))


def made(observation="poisson", **weights):
    smoothing = Smoothing(4, OBSERVATIONS[observation])
    for name, value in weights.items():
        getattr(smoothing, name)[...] = jnp.asarray(value, jnp.float32)
    return smoothing


@pytest.mark.parametrize("way", [smoothing._by_bin, smoothing._at_once])
def test_sums_are_over_all_other_bins(way):
    values = jnp.float32(np.random.default_rng(1).random((7, 2)))
    distance = np.abs(np.subtract.outer(np.arange(7), np.arange(7)))
    for width, found in zip(WIDTHS, np.moveaxis(way(values), 1, 0), strict=True):
        kernel = np.where(distance, np.exp(-distance / width), 0)
        np.testing.assert_allclose(found, kernel @ values, rtol=1e-5)


@pytest.mark.parametrize("name", ["poisson", "negative_binomial", "gaussian"])
def test_adds_nothing_at_first_and_how_far_values_are_from_the_mean_later(name, batch):
    counts, observed, mean, deviation = batch
    np.testing.assert_array_equal(made(name)(*batch), 0)
    outputs = OBSERVATIONS[name].outputs
    own = np.zeros((outputs, len(WIDTHS), 4))
    own[-1, 2, 3] = 0.7
    found = np.array(made(name, own=own)(*batch))
    assert found.shape == (3, 9, 4 * outputs)
    assert not found[..., :-1].any()
    distance = np.abs(np.subtract.outer(np.arange(9), np.arange(9)))
    kernel = np.where(distance, np.exp(-distance / WIDTHS[2]), 0)
    total, bins = (kernel @ array[..., 3].T for array in (counts, observed))
    change = np.log((total + PRIOR) / (mean[3] * bins + PRIOR))
    if name == "gaussian":
        change = (total - mean[3] * bins) / deviation[3] / (bins + PRIOR)
    np.testing.assert_allclose(found[..., -1], 0.7 * change.T, rtol=1e-4, atol=1e-6)


def test_the_unit_of_values_is_of_no_matter(batch):
    counts, observed, mean, deviation = batch
    own = made("gaussian", own=np.random.default_rng(1).normal(size=(2, len(WIDTHS), 4)))
    found = own(500 * counts, observed, 500 * mean, 500 * deviation)
    np.testing.assert_allclose(found, own(*batch), rtol=1e-4, atol=1e-5)


def test_a_count_does_not_move_its_own_rate_nor_that_of_another_neuron(batch):
    counts, observed, *moments = batch
    smoothing = made(shared=np.ones((1, len(WIDTHS), 1)))
    more = counts.at[1, 4, 2].add(3)
    moved = np.array(smoothing(more, observed, *moments) != smoothing(*batch))
    expected = np.zeros(moved.shape, bool)
    expected[1, :, 2] = np.arange(9) != 4
    np.testing.assert_array_equal(moved, expected)


def test_statistics_can_be_divided_by():
    values = np.zeros((4, 5, 3), np.uint8)
    values[..., 1], values[::2, ::2, 2] = 7, 50
    observed = np.ones(values.shape, bool)
    observed[0, 0, 1] = False
    mean, deviation = statistics(values, observed, np.arange(4))
    np.testing.assert_allclose(mean, [0.5 / 20, 7, 15])
    least = np.sqrt(0.1 * values[..., 2].var() / 3)
    np.testing.assert_allclose(deviation, [least, least, values[..., 2].std()])
    mean, deviation = statistics(np.full_like(values, 2), observed, np.arange(4))
    np.testing.assert_array_equal([*mean, *deviation], [2, 2, 2, 1, 1, 1])


def test_padding_changes_nothing(batch):
    counts, observed, *moments = batch
    smoothing = made(shared=np.ones((1, len(WIDTHS), 1)))
    wide = (jnp.pad(array, [(0, 0), (0, 5), (0, 0)]) for array in (counts, observed))
    np.testing.assert_allclose(smoothing(*wide, *moments)[:, :9], smoothing(*batch), rtol=1e-5)


@pytest.mark.slow
def test_training_begins_at_the_mean_rates_and_statistics_are_not_trained():
    model = SMALL.model_copy(update={"standardize": True, "smoothing": True, "mask_input": True})
    for optimizer in ("adam", "adamw"):
        problem = small_problem(model=model, optimizer=optimizer, weight_decay=0.1)
        state, log = train_small(problem)
        ((mean, deviation),) = problem.statistics()
        np.testing.assert_allclose(state.params["mean"][0], mean, rtol=1e-6)
        np.testing.assert_allclose(state.params["deviation"][0], deviation, rtol=1e-6)
        data, seen = small_data(), problem.masks.observed[0][problem.data.train]
        known = np.where(seen, data.counts[data.train], np.nan)
        np.testing.assert_allclose(mean, np.nanmean(known, (0, 1)), rtol=1e-6)
        np.testing.assert_allclose(deviation, np.nanstd(known, (0, 1)), rtol=1e-6)
        assert np.abs(np.array(state.params["smoothing"]["shared"])).max() > 0
        still = small_problem(model=model, optimizer=optimizer, learning_rate=1e-9)
        _, log = train_small(still)
        nll = (mean - known * np.log(mean))[seen].mean()
        assert log.train_nll[0, 0] == pytest.approx(nll, rel=1e-5)
