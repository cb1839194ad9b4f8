"""The gated recurrent unit as pure functions: weights and inputs in, states out.

Gates follow the PyTorch convention, which keeps two biases. With input projections x_r, x_z, x_n
(each W x + b) and the hidden product (a_r, a_z, a_n) = h U + c,

    r = sigmoid(x_r + a_r)        reset gate
    z = sigmoid(x_z + a_z)        update gate
    n = tanh(x_n + r * a_n)       candidate; its hidden bias sits inside the product with r
    h' = (1 - z) n + z h

after Cho et al. 2014 (arXiv 1406.1078).
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

T = TypeVar("T")  # arrays, or nothing


class Gates(NamedTuple):
    """One array a gate: the loop reads three arrays much faster than it splits one."""

    reset: Float[Array, "*time trial hidden"]
    update: Float[Array, "*time trial hidden"]
    candidate: Float[Array, "*time trial hidden"]


def project(
    inputs: Float[Array, "*time trial input"],
    kernel: Float[Array, "input three_hidden"],
    bias: Float[Array, " three_hidden"],
) -> Gates:
    """Input side of the three gates, for all bins in one product outside the loop."""
    rows = _rows(inputs)
    gates = zip(jnp.split(kernel, 3, axis=-1), jnp.split(bias, 3), strict=True)
    return Gates(*((rows @ w + b).reshape(*inputs.shape[:-1], -1) for w, b in gates))


def _rows(x: Float[Array, "*time trial unit"]) -> Float[Array, "time_trial unit"]:
    """All bins of all trials beneath each other: of a product over both axes, XLA's CPU compiler
    would copy both factors first, and of one over rows neither, which halves its time."""
    return x.reshape(-1, x.shape[-1])


def step(
    projected: Gates,
    kernel: Float[Array, "hidden three_hidden"],
    bias: Float[Array, " three_hidden"],
    state: Float[Array, "trial hidden"],
) -> tuple[Float[Array, "trial hidden"], tuple[Float[Array, "trial hidden"], ...]]:
    """One bin: the next state, and (r, z, n, a_n), which the gradient needs."""
    a_r, a_z, a_n = jnp.split(state @ kernel + bias, 3, axis=-1)
    r = jax.nn.sigmoid(projected.reset + a_r)
    z = jax.nn.sigmoid(projected.update + a_z)
    n = jnp.tanh(projected.candidate + r * a_n)
    return n + z * (state - n), (r, z, n, a_n)


@jax.custom_vjp
def unroll(
    projected: Gates,
    kernel: Float[Array, "hidden three_hidden"],
    bias: Float[Array, " three_hidden"],
    initial: Float[Array, "trial hidden"],
) -> Float[Array, "time trial hidden"]:
    """States after each bin, from `project`ed inputs [time, trial, hidden] and an initial state.

    The derivative is written out below: its loop carries only the product that must be
    sequential, and the weight gradients are one product over all bins after it. This takes about
    four fifths of the time of differentiating the scan, and gives the same numbers.
    """

    def advance(state, x):
        state, _ = step(x, kernel, bias, state)
        return state, state

    return lax.scan(advance, initial, projected)[1]


def _unroll_forward(projected, kernel, bias, initial):
    def advance(state, x):
        following, (r, z, n, a_n) = step(x, kernel, bias, state)
        # dh'/d(x_n), d(x_r), d(x_z), d(a_n) and d(h) past the gates, while all is at hand.
        by_n = (1 - z) * (1 - n * n)
        by_gates = by_n, by_n * a_n * r * (1 - r), (state - n) * z * (1 - z), by_n * r, z
        return following, (following, by_gates)

    _, (states, by_gates) = lax.scan(advance, initial, projected)
    return states, (kernel, initial, states, by_gates)


def _unroll_backward(residuals, d_states):
    kernel, initial, states, (by_n, *by_others) = residuals

    def retreat(d_later, x):
        d_here, by_r, by_z, by_a_n, z = x
        d = d_later + d_here
        d_hidden = jnp.concatenate([d * by_r, d * by_z, d * by_a_n], axis=-1)
        return d * z + d_hidden @ kernel.T, (d, d_hidden)

    d_initial, (d, d_hidden) = lax.scan(
        retreat, jnp.zeros_like(initial), (d_states, *by_others), reverse=True
    )
    d_r, d_z, _ = jnp.split(d_hidden, 3, axis=-1)  # time trial hidden, each
    before = jnp.concatenate([initial[None], states[:-1]])
    d_kernel = _rows(before).T @ _rows(d_hidden)
    return Gates(d_r, d_z, d * by_n), d_kernel, d_hidden.sum((0, 1)), d_initial


unroll.defvjp(_unroll_forward, _unroll_backward)


def in_segments(
    run: Callable[[Float[Array, "trial hidden"], T], Float[Array, "time trial hidden"]],
    initial: Float[Array, "trial hidden"],
    inputs: T,
    bins: int,
    segment: int,
) -> Float[Array, "time trial hidden"]:
    """What `run(initial, inputs)` gives, `segment` bins at a time.

    `run` takes a state and inputs (arrays with time first) to the states after each bin. The
    derivative keeps one state a segment and runs each again, so that memory for all else is that
    of a single segment; this is worth its third more time where trials are long. Chen et al. 2016
    (arXiv 1604.06174).
    """
    count = -(-bins // segment)

    def cut(x):  # what pads the last segment comes after all that is asked for
        x = jnp.pad(x, [(0, count * segment - bins)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(count, segment, *x.shape[1:])

    @jax.checkpoint
    def advance(state, x):
        states = run(state, x)
        return states[-1], states

    states = lax.scan(advance, initial, jax.tree.map(cut, inputs), length=count)[1]
    return states.reshape(count * segment, *initial.shape)[:bins]
