from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import close
from scipy.special import expit as sigmoid

from sbtt_jax.model import gru, gru_kernel

# More bins than an accelerator takes per iteration, and no multiple of it.
TIME, TRIALS, INPUTS, HIDDEN = 2 * gru.UNROLL + 3, 3, 4, 5


@pytest.fixture(params=["by_bin", "at_once", "in_kernel"], autouse=True)
def way(request, monkeypatch):
    """A CPU takes the first, a GPU one of the others; each must be right on any device."""
    monkeypatch.setattr(gru, "_by_bin", lambda: request.param == "by_bin")
    monkeypatch.setattr(gru, "_in_kernel", lambda: request.param == "in_kernel")
    monkeypatch.setattr(gru_kernel, "INTERPRET", jax.default_backend() == "cpu")


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    shapes = {
        "inputs": (TIME, INPUTS, TRIALS),
        "input_kernel": (INPUTS, 3 * HIDDEN),
        "input_bias": 3 * HIDDEN,
        "kernel": (HIDDEN, 3 * HIDDEN),
        "bias": 3 * HIDDEN,
        "initial": (HIDDEN, TRIALS),
    }
    return {n: jnp.asarray(rng.normal(0, 0.6, shape), "float32") for n, shape in shapes.items()}


def parts(w, has_inputs=True):
    weights = gru.Weights(*(w[n].T for n in ("input_kernel", "input_bias", "kernel", "bias")))
    if has_inputs:
        return weights, w["inputs"], w["initial"]
    return weights._replace(input_kernel=None), None, w["initial"]


unroll = partial(gru.unroll, bins=TIME)


def plain_scan(weights, inputs, initial, bins=TIME):
    """The same from the one-bin function, differentiated by JAX itself."""
    projected = gru.project(weights, inputs)

    def advance(state, x):
        state, _ = gru.step(weights, projected if x is None else x, state)
        return state, state

    return jax.lax.scan(advance, initial, None if inputs is None else projected, bins)


def python_loop(w):
    """The textbook equations, a bin at a time, in float64."""
    w = {name: np.asarray(value, np.float64) for name, value in w.items()}
    h, states = w["initial"].T, []
    for inputs in w["inputs"]:
        x = np.split(inputs.T @ w["input_kernel"] + w["input_bias"], 3, axis=1)
        a = np.split(h @ w["kernel"] + w["bias"], 3, axis=1)
        r, z = sigmoid(x[0] + a[0]), sigmoid(x[1] + a[1])
        h = (1 - z) * np.tanh(x[2] + r * a[2]) + z * h
        states.append(h.T)
    return np.stack(states)


def test_states_are_those_of_the_textbook_loop(weights):
    np.testing.assert_allclose(unroll(*parts(weights))[1], python_loop(weights), atol=1e-6)


@pytest.mark.parametrize("has_inputs", [True, False])
@pytest.mark.parametrize("asked", ["last", "states", "both"])
def test_written_out_gradient_is_that_of_the_plain_scan(weights, asked, has_inputs):
    """An encoder needs the last state alone, a decoder, which has no inputs, all states."""
    # A different weight on each state, so that no error can cancel over bins.
    scale = jnp.arange(1.0, 1 + TIME * TRIALS * HIDDEN).reshape(TIME, HIDDEN, TRIALS) / 50

    def gradient(run):
        def loss(w):
            last, states = run(*parts(w, has_inputs))
            of_last = jnp.cos(last).sum() if asked != "states" else 0
            return of_last + ((jnp.sin(states) * scale).sum() if asked != "last" else 0)

        return jax.jit(jax.grad(loss))(weights)

    close(gradient(unroll), gradient(plain_scan), rtol=2e-5, atol=3e-6)  # of up to 14


@pytest.mark.parametrize(("inputs", "segment"), [(0, None), (7, 4)])
def test_several_models_of_more_trials_and_units_than_a_tile(inputs, segment):
    rng, models, bins, hidden, trials = np.random.default_rng(1), 2, 6, 20, 19

    def drawn(*shape):
        return jnp.asarray(rng.normal(0, 0.3, (models, *shape)), "float32")

    kernel, x = None, None
    if inputs:
        kernel, x = drawn(3 * hidden, inputs), drawn(bins, inputs, trials)
    shapes = (3 * hidden,), (3 * hidden, hidden), (3 * hidden,)
    given = gru.Weights(kernel, *(drawn(*shape) for shape in shapes)), x, drawn(hidden, trials)

    def gradient(run):
        def loss(*one):
            last, states = run(*one)
            return jnp.cos(last).sum() + jnp.sin(3 * states).sum()

        arguments = (0, 1, 2) if inputs else (0, 2)
        return jax.jit(jax.vmap(jax.grad(loss, arguments)))(*given)

    found = gradient(partial(gru.unroll, bins=bins, segment=segment))
    close(found, gradient(partial(plain_scan, bins=bins)), rtol=1e-4, atol=1e-5)
