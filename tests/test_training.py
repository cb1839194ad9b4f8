from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import (
    SMALL,
    close,
    identical,
    one_model,
    quick,
    small_data,
    small_problem,
    train_small,
)
from flax import nnx
from jax.flatten_util import ravel_pytree

from sbtt_jax.data.dataset import Dataset
from sbtt_jax.data.problem import Masks
from sbtt_jax.model import metrics
from sbtt_jax.model.inference import infer_all
from sbtt_jax.observations import POISSON, masked_nll
from sbtt_jax.run.train import history_rows
from sbtt_jax.training import epoch, population
from sbtt_jax.training.optimizer import hyperparameters, optimizer

ALL_KINDS = {"coordinated_dropout": 0.3, "average_decay": 0.9, "schedule": "cosine"}
FOUR = {"bandwidths": (3, 2), "seeds": (0, 1)}


def model_of(params):
    return nnx.merge(epoch.graph(5, SMALL), params)


def optimizer_of(steps=1, **settings):
    train = small_problem(**settings).train
    return optimizer(train, steps, hyperparameters(SMALL, train))


@pytest.mark.parametrize("settings", [pytest.param({}, marks=pytest.mark.slow), ALL_KINDS])
def test_counts_at_missing_points_leave_no_trace(settings):
    problem, data = small_problem(**settings), small_data()
    known = problem.masks.observed[0]
    noise = np.random.default_rng(9).integers(0, 255, known.shape, np.uint8)
    spoiled = replace(data, counts=np.where(known, data.counts, noise))
    assert (spoiled.counts != data.counts).mean() > 0.2
    identical(train_small(problem), train_small(small_problem(spoiled, **settings)))


def test_true_rates_steer_nothing():
    blind = small_problem(replace(small_data(), rates=None))
    (with_rates, _), (without, log) = map(train_small, (small_problem(), blind))
    close(with_rates, without, rtol=1e-5, atol=1e-6)
    assert log.valid_r2 is None


@pytest.mark.parametrize("settings", [pytest.param({}, marks=pytest.mark.slow), ALL_KINDS])
def test_each_model_is_the_one_trained_alone(settings):
    """To the last bit on a CPU, where models take turns."""
    problem = small_problem(**FOUR, **settings)
    together, log = train_small(problem)
    same = identical if jax.default_backend() == "cpu" else close
    for i, key in enumerate(problem.keys):
        alone = small_problem(bandwidths=(key.bandwidth,), seeds=(key.seed,), **settings)
        alone, alone_log = train_small(alone)
        same(jax.tree.map(lambda a, i=i: a[:, [i]], log), alone_log)
        same(one_model(together, i), one_model(alone, 0))
    bias = together.params["readout"]["bias"]
    assert not np.allclose(bias[0], bias[1])


def test_fit_is_the_epoch_loop_in_any_thread_and_prints_nothing(capfd):
    problem = small_problem(**FOUR)
    expected, expected_log = train_small(problem)
    logs = []

    def stop_after_two(state, log):
        logs.append(log)
        return int(state.epoch[0]) == 2

    stopped = population.fit(problem, on_epoch=stop_after_two)
    assert stopped.epoch.tolist() == [2] * 4
    with ThreadPoolExecutor(1) as pool:
        whole = pool.submit(population.fit, problem, stopped, on_epoch=stop_after_two).result()
    identical(whole, expected)
    identical(jax.tree.map(lambda *a: np.stack(a), *logs), expected_log)
    identical(stopped.seed, expected.seed)  # still there: what is given is left as it was
    assert capfd.readouterr() == ("", "")


def test_whole_trials_are_trained_on_as_they_are():
    """Coordinated dropout that hides nothing and weighs all points alike is none."""
    hiding = {"coordinated_dropout": 0.9, "coordinated_dropout_pass": 1.0}
    nearly_all_and_half = {"coordinated_dropout_whole": (0.9999999, 0.5)}
    none = train_small(small_problem())[1].train_nll[:, 0]
    whole, some = train_small(small_problem(**hiding, **nearly_all_and_half))[1].train_nll.T
    np.testing.assert_allclose(whole, none, rtol=1e-5)
    assert not np.allclose(some, none, rtol=1e-3)


def test_neurons_are_hidden_as_often_as_trials_lack_them():
    data = small_data()
    whole = small_problem(data, coordinated_dropout_neurons="auto")
    assert whole.masks.lacking is None
    observed = data.observed.copy()
    observed[:4, :, 0] = False  # 4 of 17 training trials
    observed[2:14, :, 1] = False  # 12
    observed[:, :3, 2] = False  # never all of it
    part = replace(data, observed=observed)
    found = small_problem(part, coordinated_dropout_neurons="auto").masks.lacking
    np.testing.assert_allclose(found, [[4 / 17, 0.5, 0, 0, 0]])
    blocks = observed.copy()
    blocks[:8, :, :2] = blocks[8:, :, 2:] = False  # nothing relates these neurons to those
    part = small_problem(replace(data, observed=blocks), coordinated_dropout_neurons="auto")
    np.testing.assert_allclose(part.masks.lacking, [[0, 6 / 17, 0, 0, 0]])
    fixed = small_problem(data, coordinated_dropout_neurons=0.3).masks.lacking
    np.testing.assert_allclose(fixed, [[0.3] * 5])


def test_a_hidden_neuron_is_hidden_from_a_whole_trial():
    hidden = epoch._hidden(
        jax.random.key(0),
        quick(),
        jax.tree.map(np.float32, hyperparameters(SMALL, quick())),
        (2000, 9, 3),
        jnp.array([0.0, 0.2, 0.5]),
    )
    assert (hidden.all(1) == hidden.any(1)).all()
    np.testing.assert_allclose(hidden[:, 0].mean(0), [0, 0.2, 0.5], atol=0.04)
    # Not so in trials that are left whole, which are others than those.
    own = quick(coordinated_dropout_whole=0.4)
    values = jax.tree.map(np.float32, hyperparameters(SMALL, own))
    hidden = epoch._hidden(jax.random.key(0), own, values, (2000, 9, 3), jnp.full(3, 0.5))
    np.testing.assert_allclose(hidden[:, 0].mean(0), 0.3, atol=0.04)
    assert hidden.any((1, 2)).mean() == pytest.approx(0.6 * 0.875, abs=0.04)
    # All of them hidden is all points hidden.
    every = small_problem(coordinated_dropout_neurons=0.9999999)
    points = small_problem(coordinated_dropout=0.9999999)
    both = (train_small(one)[1].train_nll for one in (every, points))
    np.testing.assert_allclose(*both, rtol=1e-5)
    # None of them is what training is without.
    identical(
        train_small(small_problem(coordinated_dropout_neurons="auto")), train_small(small_problem())
    )


@pytest.mark.parametrize(
    "settings",
    [{}, ALL_KINDS, {"folds": 3}],
    ids=["weights", "averaged weights", "several passes"],
)
@pytest.mark.parametrize("constant", [False, True])
def test_validation_is_that_of_the_model_without_dropout(settings, constant):
    """Its R2 is that of `metrics` also where the true rate of a neuron never changes."""
    data = small_data()
    if constant:
        data.rates[..., 2] = 0.7
    problem = small_problem(data, **FOUR, **settings)
    state, log = train_small(problem)
    validated = state.params if state.average is None else state.average
    for i in range(4):
        observed, folds = (mask[i][data.valid] for mask in problem.masks[:2])
        counts, passes = data.counts[data.valid], range(1, problem.train.folds + 1)
        net, seen, hidden, rates = model_of(one_model(validated, i)), [], [], []
        for each in passes:
            seen.append(observed & (folds != each))
            hidden.append(folds == each)
            rates.append(np.exp(infer_all(net, counts, seen[-1]).output))
        counts, rates = np.tile(counts, (len(passes), 1, 1)), np.concatenate(rates)
        for found, where in ((log.valid_nll, seen), (log.heldout_nll, hidden)):
            nll = metrics.nll(rates, counts, np.concatenate(where))
            assert found[-1, i] == pytest.approx(nll, rel=1e-5)
        r2 = metrics.r2(np.tile(data.rates[data.valid], (len(passes), 1, 1)), rates)
        assert log.valid_r2[-1, i] == pytest.approx(r2, rel=1e-4)
    bias = validated["readout"]["bias"]
    assert np.allclose(bias, state.params["readout"]["bias"]) == (state.average is None)


@pytest.mark.parametrize("holdout", [pytest.param(0.0, marks=pytest.mark.slow), 0.3])
def test_best_epoch_is_kept(holdout):
    # So large a step that the loss goes up and down.
    problem = small_problem(seeds=(0, 1), holdout=holdout, learning_rate=0.3)
    state, params, judged = population.begin(problem), [], []
    for _ in range(12):
        state, log = train_small(problem, epochs=1, state=state)
        params.append(state.params)
        judged.append((log.heldout_nll if holdout else log.valid_nll)[0])
    identical(state.best[1:], (np.min(judged, 0), np.argmin(judged, 0)))
    assert (state.best.epoch < 11).any()
    for i, best in enumerate(state.best.epoch):
        identical(one_model(state.best.params, i), one_model(params[best], i))


def test_every_trial_once_an_epoch_and_the_short_batch_kept():
    order = epoch.batches(jnp.arange(17), 8)
    assert order.tolist() == [[*range(8)], [*range(8, 16)], [16] + [-1] * 7]
    # A batch larger than the set is the set, and takes no more room.
    assert epoch.batches(jnp.arange(17), 10**9).shape == (1, 17)
    assert epoch.batches(jnp.arange(0), 8).shape == (0, 1)


def test_the_short_batch_weighs_as_a_batch_of_its_own():
    """17 trials in batches of 8 make three steps of PyTorch's Adam; padding adds nothing."""
    problem = small_problem()
    begun = population.begin(problem)
    no_dropout = begun.values._replace(dropout=np.float32([0]))
    state, _ = train_small(problem, epochs=1, state=begun._replace(values=no_dropout))
    start, unravel = ravel_pytree(nnx.state(epoch.build(5, SMALL, 0)))

    @jax.jit
    @jax.grad
    def gradient(weights, *batch):
        nll, points = masked_nll(POISSON, model_of(unravel(weights))(*batch).output, *batch)
        return nll / points

    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(np.uint32(0)), 1), 0)
    shuffled = np.asarray(jax.random.permutation(jax.random.split(key)[0], problem.trials.train))
    w, m, v = np.asarray(start, np.float64), 0.0, 0.0
    # The mean over eight copies of a trial is that over the trial, and needs no other program.
    for step, batch in enumerate((shuffled[:8], shuffled[8:16], shuffled[16:].repeat(8)), start=1):
        g = gradient(np.float32(w), problem.trials.counts[batch], problem.masks.observed[0][batch])
        # Decay enters the gradient before the moments.
        g = np.asarray(g, np.float64) + problem.train.weight_decay * w
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        m_hat, v_hat = m / (1 - 0.9**step), v / (1 - 0.999**step)
        w = w - problem.train.learning_rate * m_hat / (np.sqrt(v_hat) + 1e-8)
    ours, expected = map(jax.tree.leaves, (one_model(state.params, 0), unravel(np.float32(w))))
    for a, b in zip(ours, expected, strict=True):
        # Adam turns rounding of a near-zero gradient into steps of up to the learning rate.
        assert np.mean(np.abs(a - b) < 1e-5) > 0.98


def test_padding_behind_trials_changes_nothing():
    """Trials of their own lengths, in arrays of 9 bins and of 14."""
    lengths = np.random.default_rng(4).integers(3, 10, 22).astype(np.int32)
    observed = np.broadcast_to((np.arange(9) < lengths[:, None])[..., None], (22, 9, 5))
    model = SMALL.model_copy(update={"input_scaling": True})
    data = replace(small_data(), observed=observed)
    problem = small_problem(data, model=model)
    trials, masks = problem.trials, problem.masks
    np.testing.assert_array_equal(trials.lengths, lengths)

    widths, wide = [(0, 0), (0, 5), (0, 0)], replace(problem)
    counts, rates = (np.pad(a, widths, constant_values=1) for a in (trials.counts, trials.rates))
    vars(wide)["trials"] = trials._replace(counts=counts, rates=rates)
    vars(wide)["masks"] = Masks(*(np.pad(mask, [(0, 0), *widths]) for mask in masks[:2]), None)
    (a, a_log), (b, b_log) = train_small(problem), train_small(wide)
    close(a_log, b_log)
    close(a.params, b.params, rtol=1e-3, atol=1e-4)


def test_adamw_decays_the_weights_themselves():
    weights = np.float32([2.0])
    tx = optimizer_of(optimizer="adamw", weight_decay=0.1, learning_rate=0.5)
    updates, _ = tx.update(np.float32([0.0]), tx.init(weights), weights)
    assert float(updates[0]) == pytest.approx(-0.5 * 0.1 * 2.0)


def test_clipping_bounds_the_gradient_not_the_step():
    weights, tx = np.zeros(2, np.float32), optimizer_of(clip_norm=1.0, weight_decay=0.0)
    _, state = tx.update(np.float32([30.0, 40.0]), tx.init(weights), weights)
    first_moment = optax.tree_utils.tree_get(state, "mu")
    np.testing.assert_allclose(first_moment, [0.06, 0.08], rtol=1e-5)


def test_warmup_and_cosine():
    rise_and_fall = {"epochs": 10, "schedule": "cosine", "warmup_epochs": 2}
    tx = optimizer_of(5, **rise_and_fall, weight_decay=0.0, learning_rate=1.0)
    update, state, sizes = jax.jit(tx.update), tx.init(np.zeros(1, np.float32)), []
    for _ in range(50):
        updates, state = update(np.ones(1, np.float32), state, np.zeros(1, np.float32))
        sizes.append(-float(updates[0]))
    at = [sizes[i] for i in (0, 5, 10, 30, 49)]
    np.testing.assert_allclose(at, [0, 0.5, 1, 0.5, 0.0015], rtol=1e-3, atol=5e-5)
    assert np.argmax(sizes) == 10


def test_learns_what_there_is_to_learn():
    """Two kinds of trials with opposite rates: models tell them apart from half of the points."""
    ramp = np.linspace(0.2, 3.0, 10, dtype=np.float32)
    rates = np.stack([ramp, ramp[::-1]])[np.arange(256) % 2, :, None].repeat(5, axis=2)
    counts = np.random.default_rng(0).poisson(rates).astype(np.uint8)
    train, valid = np.split(np.arange(256), 2)
    data = Dataset(counts, np.ones(counts.shape, bool), train, valid, 0.02, rates)
    _, log = train_small(small_problem(data, **FOUR, holdout=0.0), epochs=20)
    assert (log.valid_r2[-1] > 0.75).all()


@pytest.mark.slow
def test_a_penalty_makes_inferred_inputs_smaller():
    model = SMALL.model_copy(update={"inferred_inputs": 2})
    squares = []
    for penalty in (0.0, 10.0):
        problem = small_problem(model=model, input_penalty=penalty, epochs=6)
        state, _ = train_small(problem)
        net = nnx.merge(epoch.graph(5, model), one_model(state.params, 0))
        inferred = infer_all(net, problem.data.counts, problem.masks.observed[0])
        squares.append((inferred.inputs**2).mean())
    assert 0 < squares[1] < squares[0] / 2


@pytest.mark.slow
def test_the_penalty_is_of_the_mean_over_bins():
    """Whether or not the lengths of trials are known."""
    problem = small_problem(
        model=SMALL.model_copy(update={"inferred_inputs": 2}), input_penalty=10.0
    )
    trials, ragged = problem.trials, replace(problem)
    lengths = np.full(len(trials.counts), trials.counts.shape[1], np.int32)
    vars(ragged)["trials"] = trials._replace(lengths=lengths)
    (one, _), (other, _) = train_small(problem, 1), train_small(ragged, 1)
    close(one.params, other.params, rtol=1e-3, atol=1e-4)


def test_an_epoch_has_as_many_steps_as_asked_for_and_passes_evenly_through_the_trials():
    trials = jnp.arange(17)
    settings = small_problem(steps_per_epoch=5).train
    order = epoch._order(jax.random.key(0), trials, settings)
    assert order.shape == (5, 8)
    times = np.bincount(np.ravel(order), minlength=17)
    assert set(times) <= {2, 3}  # 40 of 17
    assert small_problem(steps_per_epoch=5).steps == 5
    first, other = (np.array(epoch._order(jax.random.key(k), trials, settings)) for k in (0, 1))
    assert (first != other).any()


@pytest.mark.slow
def test_r2_of_training_is_that_of_one_pass_however_many_steps_an_epoch_has():
    """Weights that hardly move explain as little of the true rates at every pass."""
    how = {
        "learning_rate": 1e-9,
        "warmup_epochs": 0,
        "model": SMALL.model_copy(update={"dropout": 0.0}),
    }
    found = [
        train_small(small_problem(**how, steps_per_epoch=steps), epochs=1)[1].train_r2
        for steps in (None, 3, 30)
    ]
    np.testing.assert_allclose(found, found[0].item(), atol=0.05)


def test_training_ends_when_all_models_are_out_of_patience():
    """And what had ended does not go on."""
    problem = small_problem(seeds=(0, 1), epochs=60, patience=3, learning_rate=0.3)
    logs = []
    state = population.fit(problem, on_epoch=lambda _, log: logs.append(log))
    best = np.array(state.best.epoch)
    assert len(logs) == best.max() + 4 < 60
    again = population.fit(problem, jax.tree.map(np.array, state), on_epoch=pytest.fail)
    identical(again.best, state.best)
    # Nor does one that ended while the other did not: it is what it would be alone.
    first = int(best.argmin())
    assert best[first] < best.max()
    alone = population.fit(replace(problem, keys=problem.keys[first : first + 1]))
    same = identical if jax.default_backend() == "cpu" else close
    for name in ("best", "params", "optimizer", "recovery"):
        same(one_model(getattr(state, name), first), one_model(getattr(alone, name), 0))
    rows = [row for epoch, log in enumerate(logs) for row in history_rows(problem, epoch, log)]
    epochs = [row["epoch"] for row in rows if row["seed"] == problem.keys[first].seed]
    assert epochs == list(range(best[first] + 4))
    assert len({float(log.valid_nll[first]) for log in logs[best[first] + 4 :]}) == 1
