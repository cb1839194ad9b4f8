import jax
import numpy as np
import pytest
from conftest import SMALL, quick, small_problem, train_small
from flax import nnx

from sbtt_jax import evaluation, metrics, training
from sbtt_jax.losses import poisson_nll


def identical(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def model_of(params, neurons=5):
    return nnx.merge(training.graph(neurons, SMALL), params)


def take(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


@pytest.mark.parametrize("settings", [{}, {"coordinated_dropout": 0.3, "average_decay": 0.9}])
def test_counts_at_missing_points_leave_no_trace(settings):
    trials, masks = small_problem(models=1)
    known = (masks.observed | masks.heldout)[0]
    noise = np.random.default_rng(9).integers(0, 255, known.shape, np.uint8)
    spoiled = trials._replace(counts=np.where(known, trials.counts, noise))
    assert (spoiled.counts != trials.counts).mean() > 0.2
    clean, spoiled = (train_small(t, masks, quick(**settings), [0]) for t in (trials, spoiled))
    identical(clean, spoiled)


def test_true_rates_steer_nothing():
    trials, masks = small_problem(models=1)
    blind = trials._replace(rates=None, train_variation=None, valid_variation=None)
    (with_rates, _), (without, log) = (train_small(t, masks, quick(), [0]) for t in (trials, blind))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), with_rates, without
    )
    assert log.valid_r2 is None


@pytest.mark.parametrize("settings", [{}, {"coordinated_dropout": 0.3, "schedule": "cosine"}])
def test_each_model_is_the_one_trained_alone(settings):
    """To the last bit, on a CPU: there, models take turns."""
    trials, masks = small_problem(models=4)
    seeds = [0, 0, 1, 2]
    together, log = train_small(trials, masks, quick(**settings), seeds)
    for i, seed in enumerate(seeds):
        alone, alone_log = train_small(trials, masks_of(masks, i), quick(**settings), [seed])
        same = identical if jax.default_backend() == "cpu" else close
        same(jax.tree.map(lambda a, i=i: a[:, i], log), take_log(alone_log))
        same(take(together, i), take(alone, 0))
    assert not np.allclose(
        together.params["readout"]["bias"][2], together.params["readout"]["bias"][3]
    )


def close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), a, b)


def take_log(log):
    return jax.tree.map(lambda values: values[:, 0], log)


def masks_of(masks, i):
    return jax.tree.map(lambda m: m[i : i + 1], masks)


def test_vmap_gives_what_taking_turns_gives():
    """The accelerator's way of advancing models, against the CPU's."""
    trials, masks = small_problem(models=4)
    turns, together = (
        train_small(trials, masks, quick(), [0, 1, 2, 3], vmap=vmap)[0] for vmap in (False, True)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        turns.params,
        together.params,
    )


def test_whole_trials_are_trained_on_as_they_are():
    """Where nothing is hidden and all points weigh alike, coordinated dropout is none."""
    trials, masks = small_problem()
    hiding = {"coordinated_dropout": 0.5, "coordinated_dropout_pass": 1.0}
    none, whole, some = (
        train_small(trials, masks, quick(**settings), [0, 1])[1].train_nll
        for settings in (
            {},
            hiding | {"coordinated_dropout_whole": 0.9999999},
            hiding | {"coordinated_dropout_whole": 0.5},
        )
    )
    np.testing.assert_allclose(whole, none, rtol=1e-5)
    assert not np.allclose(some, none, rtol=1e-3)


def test_same_seed_same_history():
    trials, masks = small_problem()
    settings = quick(coordinated_dropout=0.2)
    identical(*(train_small(trials, masks, settings, [3, 4]) for _ in range(2)))


def test_other_seed_other_history():
    trials, masks = small_problem(models=1)
    logs = [train_small(trials, masks, quick(), [seed])[1] for seed in (3, 4)]
    assert not np.allclose(logs[0].train_nll, logs[1].train_nll)


def test_validation_is_that_of_the_model_without_dropout():
    trials, masks = small_problem()
    state, log = train_small(trials, masks, quick(epochs=2), [0, 1])
    for i in range(2):
        net = model_of(take(state.params, i))
        valid, observed = trials.valid, masks.observed[i]
        rates = np.exp(evaluation.infer(net, trials.counts, observed).lograte)[valid]
        counts, heldout = trials.counts[valid], masks.heldout[i][valid]
        seen = metrics.poisson_nll(rates, counts, observed[valid])
        assert log.valid_nll[-1, i] == pytest.approx(seen, rel=1e-5)
        unseen = metrics.poisson_nll(rates, counts, heldout)
        assert log.heldout_nll[-1, i] == pytest.approx(unseen, rel=1e-5)
        r2 = metrics.r2(trials.rates[valid], rates)
        assert log.valid_r2[-1, i] == pytest.approx(r2, rel=1e-4)


@pytest.mark.parametrize("holdout", [False, True])
def test_best_epoch_is_kept(holdout):
    trials, masks = small_problem(holdout=holdout)
    # So large a step that the loss goes up and down.
    settings = quick(epochs=12, learning_rate=0.3)
    state, log = train_small(trials, masks, settings, [0, 1])
    judged = log.heldout_nll if holdout else log.valid_nll
    np.testing.assert_array_equal(state.best.epoch, judged.argmin(0))
    np.testing.assert_array_equal(state.best.nll, judged.min(0))
    assert (judged.argmin(0) < 11).any()
    for i, epoch in enumerate(judged.argmin(0)):
        then, _ = train_small(trials, masks, settings, [0, 1], epochs=epoch + 1)
        identical(take(state.best.params, i), take(then.params, i))


def test_every_trial_once_an_epoch_and_the_short_batch_kept():
    order = np.asarray(training.batches(jax.numpy.arange(17), 8))
    assert order.shape == (3, 8)
    np.testing.assert_array_equal(np.sort(order[order >= 0]), np.arange(17))
    assert (order == -1).sum() == 7
    # A batch larger than the set is the set, and takes no more room.
    assert training.batches(jax.numpy.arange(17), 10**9).shape == (1, 17)


def test_the_short_batch_weighs_as_a_batch_of_its_own():
    """17 trials in batches of 8 make three steps; filling up the last changes nothing."""
    trials, masks = small_problem(models=1)
    settings = quick(epochs=1)
    model = SMALL.model_copy(update={"dropout": 0.0})
    state, _ = train_small(trials, masks, settings, [0], model=model)

    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(np.uint32(0)), 1), 0)
    shuffled = np.asarray(jax.random.permutation(jax.random.split(key)[0], trials.train))
    net = training.build(5, model, 0)
    structure, params = nnx.split(net)
    expected = {path: np.asarray(w, np.float64) for path, w in flat(params).items()}
    moments = {path: (np.zeros_like(w), np.zeros_like(w)) for path, w in expected.items()}
    for step, batch in enumerate((shuffled[:8], shuffled[8:16], shuffled[16:]), start=1):

        def loss(params, batch=batch):
            seen = jax.numpy.asarray(masks.observed[0][batch])
            counts = jax.numpy.asarray(trials.counts[batch])
            return poisson_nll(nnx.merge(structure, params)(counts, seen).lograte, counts, seen)

        gradient = flat(jax.grad(loss)(params))
        for path, w in expected.items():
            # PyTorch's Adam: decay enters the gradient before the moments.
            g = np.asarray(gradient[path], np.float64) + settings.weight_decay * w
            m, v = moments[path]
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            moments[path] = m, v
            m_hat, v_hat = m / (1 - 0.9**step), v / (1 - 0.999**step)
            expected[path] = w - settings.learning_rate * m_hat / (np.sqrt(v_hat) + 1e-8)
        params = jax.tree.unflatten(
            jax.tree.structure(params), [jax.numpy.float32(w) for w in expected.values()]
        )
    for path, w in flat(take(state.params, 0)).items():
        # Adam turns rounding of a near-zero gradient into steps of up to the learning rate.
        assert np.mean(np.abs(w - expected[path]) < 1e-5) > 0.98, path


def flat(params):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}


def test_adamw_decays_the_weights_themselves():
    params = {"w": np.float32([2.0])}
    tx = training.optimizer(quick(optimizer="adamw", weight_decay=0.1, learning_rate=0.5), 1)
    updates, _ = tx.update({"w": np.float32([0.0])}, tx.init(params), params)
    assert float(updates["w"][0]) == pytest.approx(-0.5 * 0.1 * 2.0)


@pytest.mark.parametrize("settings", [{}, {"coordinated_dropout_pass": 0.5}])
def test_padding_behind_trials_changes_nothing(settings):
    """Trials of their own lengths, in arrays of 9 bins and of 14."""
    trials, masks = small_problem(models=1)
    lengths = np.random.default_rng(4).integers(3, 10, len(trials.counts)).astype(np.int32)
    real = (np.arange(9) < lengths[:, None])[..., None]
    masks = jax.tree.map(lambda mask: mask & real, masks)
    trials = trials._replace(lengths=lengths)
    model = SMALL.model_copy(update={"input_scaling": True})

    def padded(array, axis):
        widths = [(0, 5 if i == axis else 0) for i in range(array.ndim)]
        return np.pad(array, widths, constant_values=array.dtype.type(1))

    wide = trials._replace(counts=padded(trials.counts, 1), rates=padded(trials.rates, 1))
    nothing = np.zeros((1, 22, 5, 5), bool)
    wide_masks = jax.tree.map(lambda mask: np.concatenate([mask, nothing], axis=2), masks)
    (a, a_log), (b, b_log) = (
        train_small(t, m, quick(**settings), [0], model)
        for t, m in ((trials, masks), (wide, wide_masks))
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), a_log, b_log)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4), a.params, b.params
    )


def test_clipping_bounds_the_gradient_not_the_step():
    params = {"w": np.zeros(2, np.float32)}
    gradient = {"w": np.float32([30.0, 40.0])}
    tx = training.optimizer(quick(clip_norm=1.0, weight_decay=0.0), 1)
    _, state = tx.update(gradient, tx.init(params), params)
    first_moment = next(
        s.mu for s in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")
    )
    np.testing.assert_allclose(first_moment["w"], [0.06, 0.08], rtol=1e-5)


def test_warmup_and_cosine():
    settings = quick(epochs=10, schedule="cosine", warmup_epochs=2, weight_decay=0.0)
    params = {"w": np.zeros(1, np.float32)}
    tx = training.optimizer(settings, steps_per_epoch=5)
    state, steps = tx.init(params), []
    for _ in range(50):
        updates, state = tx.update({"w": np.ones(1, np.float32)}, state, params)
        steps.append(-float(updates["w"][0]))
    assert steps[0] == 0
    assert steps[5] == pytest.approx(settings.learning_rate / 2, rel=1e-3)
    assert steps[10] == pytest.approx(settings.learning_rate, rel=1e-3)
    assert steps[30] == pytest.approx(settings.learning_rate / 2, rel=1e-3)
    assert steps[49] < settings.learning_rate / 100
    assert np.argmax(steps) == 10


def test_averaged_weights_are_what_is_validated():
    trials, masks = small_problem(models=1)
    state, log = train_small(trials, masks, quick(average_decay=0.9), [0])
    net = model_of(take(state.average, 0))
    observed = masks.observed[0]
    rates = np.exp(evaluation.infer(net, trials.counts, observed).lograte)[trials.valid]
    nll = metrics.poisson_nll(rates, trials.counts[trials.valid], observed[trials.valid])
    assert log.valid_nll[-1, 0] == pytest.approx(nll, rel=1e-5)
    assert not np.allclose(state.average["readout"]["bias"], state.params["readout"]["bias"])


def test_learns_what_there_is_to_learn():
    """Two kinds of trials with opposite rates: the model tells them apart from half the points."""
    rng = np.random.default_rng(0)
    kind = np.arange(256) % 2
    ramp = np.linspace(0.2, 3.0, 10)
    rates = np.where(kind[:, None, None] == 0, ramp[:, None], ramp[::-1, None])
    rates = np.broadcast_to(rates, (256, 10, 5)).astype(np.float32)
    counts = rng.poisson(rates).astype(np.uint8)
    variation = ((rates - rates.mean((0, 1))) ** 2).sum((0, 1)) / 2
    trials = training.Trials(
        counts, rates, np.arange(128, dtype=np.int32), np.arange(128, 256, dtype=np.int32),
        variation, variation,
    )  # fmt: skip
    masks = training.Masks(rng.random((4, *counts.shape)) < 0.5, None)
    _, log = train_small(trials, masks, quick(epochs=20), [0, 1, 2, 3])
    assert (log.valid_r2[-1] > 0.75).all()
