import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from sbtt_jax import gru

# No multiple of the bins that an accelerator takes in a turn, and more.
TIME, TRIALS, INPUTS, HIDDEN = 2 * gru.UNROLL + 3, 3, 4, 5


@pytest.fixture(params=[True, False], ids=["by_bin", "at_once"], autouse=True)
def way(request, monkeypatch):
    """A CPU goes the first, a GPU the second; either must be right on any device."""
    monkeypatch.setattr(gru, "_by_bin", lambda: request.param)


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(0, 0.6, shape), jnp.float32)

    return {
        "inputs": draw(TIME, INPUTS, TRIALS),
        "input_kernel": draw(INPUTS, 3 * HIDDEN),
        "input_bias": draw(3 * HIDDEN),
        "kernel": draw(HIDDEN, 3 * HIDDEN),
        "bias": draw(3 * HIDDEN),
        "initial": draw(HIDDEN, TRIALS),
    }


def parts(w):
    names = "input_kernel", "input_bias", "kernel", "bias"
    return gru.Weights(*(w[name].T for name in names)), w["inputs"], w["initial"]


def unroll(w):
    return gru.unroll(*parts(w), TIME)[1]


def plain_scan(w):
    """The same states from the one-bin function, differentiated by JAX itself."""
    weights, inputs, initial = parts(w)

    def advance(state, x):
        state, _ = gru.step(weights, x, state)
        return state, state

    return jax.lax.scan(advance, initial, gru.project(weights, inputs))[1]


def python_loop(w):
    """The textbook equations, a trial and a bin at a time, in float64."""
    w = {name: np.asarray(value, np.float64) for name, value in w.items()}

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    states = np.zeros((TIME, HIDDEN, TRIALS))
    for trial in range(TRIALS):
        h = w["initial"][:, trial]
        for t in range(TIME):
            x = w["inputs"][t, :, trial] @ w["input_kernel"] + w["input_bias"]
            a = h @ w["kernel"] + w["bias"]
            gate = [slice(i * HIDDEN, (i + 1) * HIDDEN) for i in range(3)]
            r = sigmoid(x[gate[0]] + a[gate[0]])
            z = sigmoid(x[gate[1]] + a[gate[1]])
            n = np.tanh(x[gate[2]] + r * a[gate[2]])
            h = (1 - z) * n + z * h
            states[t, :, trial] = h
    return states


def test_states_are_those_of_the_textbook_loop(weights):
    np.testing.assert_allclose(unroll(weights), python_loop(weights), atol=1e-6)


def test_gradient_against_finite_differences(weights):
    with jax.enable_x64(True):
        exact = {name: jnp.asarray(np.asarray(w), jnp.float64) for name, w in weights.items()}

        def loss(w):
            return (unroll(jax.tree.map(jnp.asarray, w)) ** 2).sum()

        check_grads(loss, (exact,), order=1, modes=["rev"])


def test_written_out_gradient_is_that_of_the_plain_scan(weights):
    def loss(run):
        # A different weight on each state, so that no error can cancel over bins.
        scale = jnp.arange(1.0, 1 + TIME * TRIALS * HIDDEN).reshape(TIME, HIDDEN, TRIALS) / 50
        return lambda w: (jnp.sin(run(w)) * scale).sum()

    ours, plain = jax.grad(loss(unroll))(weights), jax.grad(loss(plain_scan))(weights)
    for name in weights:
        np.testing.assert_allclose(ours[name], plain[name], rtol=2e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("asked", ["last", "both"])
def test_gradient_through_the_last_state(weights, asked):
    """Alone, as of an encoder, and beside the others."""

    def loss(last, states):
        return jnp.sin(last).sum() + (jnp.cos(states).sum() if asked == "both" else 0)

    def plain(w):
        states = plain_scan(w)
        return loss(states[-1], states)

    ours = jax.grad(lambda w: loss(*gru.unroll(*parts(w), TIME)))(weights)
    for name, expected in jax.grad(plain)(weights).items():
        np.testing.assert_allclose(ours[name], expected, rtol=2e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("asked", ["last", "states", "both"])
def test_gradient_without_inputs(weights, asked):
    def loss(run):
        def of(w):
            own = w["input_bias"], w["kernel"], w["bias"]
            last, states = run(gru.Weights(None, *(each.T for each in own)), w["initial"])
            of_last = jnp.sin(last).sum() if asked != "states" else 0
            return of_last + (jnp.cos(states).sum() if asked != "last" else 0)

        return jax.grad(of)(weights)

    def plain(w, initial):
        def advance(state, _):
            state, _ = gru.step(w, gru.project(w, None), state)
            return state, state

        return jax.lax.scan(advance, initial, length=TIME)

    ours = loss(lambda w, initial: gru.unroll(w, None, initial, TIME))
    for name, expected in loss(plain).items():
        np.testing.assert_allclose(ours[name], expected, rtol=2e-5, atol=1e-6, err_msg=name)
