"""The gated recurrent unit as pure functions: weights and inputs in, states out.

Gates follow the PyTorch convention, which keeps two biases. With input projections x_r, x_z, x_n
(each W x + b) and hidden projections a_r, a_z, a_n (each U h + c),

    r = sigmoid(x_r + a_r)        reset gate
    z = sigmoid(x_z + a_z)        update gate
    n = tanh(x_n + r * a_n)       candidate; its hidden bias sits inside the product with r
    h' = (1 - z) n + z h

after Cho et al. 2014 (arXiv 1406.1078).

Trials are the last axis, so that each gate is a block of memory of its own: split from the others
along the last axis, gates cost a CPU more time than the products that they come from.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


class Weights(NamedTuple):
    """Kernels and biases with the gates beneath each other: reset, update, candidate."""

    input_kernel: Float[Array, "three_hidden input"] | None  # None: no input but the bias
    input_bias: Float[Array, " three_hidden"]
    hidden_kernel: Float[Array, "three_hidden hidden"]
    hidden_bias: Float[Array, " three_hidden"]


def project(
    weights: Weights, inputs: Float[Array, "*bin input trial"] | None
) -> Float[Array, "*bin three_hidden trial_or_1"]:
    """Input side of the three gates."""
    bias = weights.input_bias[:, None]
    if inputs is None:
        return bias
    return jnp.einsum("gi,...ib->...gb", weights.input_kernel, inputs) + bias


def step(
    weights: Weights,
    projected: Float[Array, "three_hidden trial_or_1"],
    state: Float[Array, "hidden trial"],
) -> tuple[Float[Array, "hidden trial"], tuple[Float[Array, "hidden trial"], ...]]:
    """One bin: the next state, and (r, z, n, a_n), which the gradient needs."""
    hidden = weights.hidden_kernel @ state + weights.hidden_bias[:, None]
    x_r, x_z, x_n = jnp.split(projected, 3)
    a_r, a_z, a_n = jnp.split(hidden, 3)
    r, z = jax.nn.sigmoid(x_r + a_r), jax.nn.sigmoid(x_z + a_z)
    n = jnp.tanh(x_n + r * a_n)
    return n + z * (state - n), (r, z, n, a_n)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def unroll(
    weights: Weights,
    inputs: Float[Array, "bin input trial"] | None,
    initial: Float[Array, "hidden trial"],
    bins: int,
) -> Float[Array, "bin hidden trial"]:
    """States after each of `bins` bins.

    The derivative is written out below. It gives the numbers that differentiating a scan of `step`
    would, in half the time on a CPU.
    """
    return _unroll_forward(weights, inputs, initial, bins)[0]


def _unroll_forward(weights, inputs, initial, bins):
    forward = partial(_forward, bins=bins)
    return lax.platform_dependent(
        weights, inputs, initial, cpu=partial(forward, by_bin=True), default=forward
    )


def _unroll_backward(bins, residuals, d_states):
    # Devices that share trials would have to add up their sums in every bin, if taken by bin.
    shared = bool(jax.sharding.get_abstract_mesh().auto_axes)
    cpu = partial(_backward, by_bin=not shared)
    return lax.platform_dependent(residuals, d_states, cpu=cpu, default=_backward)


unroll.defvjp(_unroll_forward, _unroll_backward)


# `by_bin` says where products are taken that need not wait for the bin before: in the loop, where
# a CPU has their factors in its cache, or for all bins at once outside of it, where a GPU has
# enough to do at a time.


def _forward(weights, inputs, initial, *, bins, by_bin=False):
    all_projected = None if by_bin or inputs is None else project(weights, inputs)

    def advance(state, x):
        inputs, projected = x
        if projected is None:
            projected = project(weights, inputs)
        following, (r, z, n, a_n) = step(weights, projected, state)
        # dh'/d(x_r), d(x_z), d(x_n), d(a_n) and d(h) past the gates, while all is at hand.
        by_n = (1 - z) * (1 - n * n)
        by_gates = by_n * a_n * r * (1 - r), (state - n) * z * (1 - z), by_n, by_n * r, z
        return following, (following, by_gates)

    _, (states, by_gates) = lax.scan(advance, initial, (inputs, all_projected), length=bins)
    return states, (weights, inputs, initial, states, by_gates)


def _backward(residuals, d_states, *, by_bin=False):
    weights, inputs, initial, states, by_gates = residuals
    before = jnp.concatenate([initial[None], states[:-1]])
    # Transposed here, since a product with a transposed factor takes a CPU half as long again.
    transposed = weights.hidden_kernel.T

    def retreat(d, x):
        d_here, (by_r, by_z, by_n, by_a_n, by_h) = x
        d = d + d_here
        d_r, d_z = d * by_r, d * by_z
        d_projected = jnp.concatenate([d_r, d_z, d * by_n])
        d_hidden = jnp.concatenate([d_r, d_z, d * by_a_n])
        return d * by_h + transposed @ d_hidden, (d_projected, d_hidden)

    def products(inputs, before, d_projected, d_hidden):
        d_input_kernel = d_inputs = None
        if inputs is not None:
            d_input_kernel = _product(d_projected, inputs)
            d_inputs = jnp.einsum("gi,...gb->...ib", weights.input_kernel, d_projected)
        return (d_input_kernel, _product(d_hidden, before)), d_inputs

    def retreat_and_sum(carry, x):
        d, sums = carry
        x, inputs, before = x
        d, d_gates = retreat(d, x)
        d_kernels, d_inputs = products(inputs, before, *d_gates)
        return (d, jax.tree.map(jnp.add, sums, (d_kernels, d_gates))), d_inputs

    last, xs = jnp.zeros_like(initial), (d_states, by_gates)
    if by_bin:
        kernels = weights.input_kernel, weights.hidden_kernel
        gates = jnp.zeros((weights.hidden_bias.size, initial.shape[1]), initial.dtype)
        start = last, (jax.tree.map(jnp.zeros_like, kernels), (gates, gates))
        (d_initial, (d_kernels, d_gates)), d_inputs = lax.scan(
            retreat_and_sum, start, (xs, inputs, before), reverse=True
        )
    else:
        d_initial, d_gates = lax.scan(retreat, last, xs, reverse=True)
        d_kernels, d_inputs = products(inputs, before, *d_gates)
    d_biases = [d.sum((*range(d.ndim - 2), -1)) for d in d_gates]
    d_weights = Weights(d_kernels[0], d_biases[0], d_kernels[1], d_biases[1])
    return d_weights, d_inputs, d_initial


def _product(
    d: Float[Array, "*bin gate trial"], x: Float[Array, "*bin unit trial"]
) -> Float[Array, "gate unit"]:
    """Summed over bins and trials."""
    axes = (*range(x.ndim - 2), x.ndim - 1)
    return jnp.tensordot(d, x, (axes, axes))


def in_segments(
    weights: Weights,
    inputs: Float[Array, "bin input trial"] | None,
    initial: Float[Array, "hidden trial"],
    bins: int,
    segment: int,
) -> Float[Array, "bin hidden trial"]:
    """What `unroll` gives, `segment` bins at a time.

    The derivative keeps one state a segment and runs each again, so that memory for all else is
    that of a single segment; this is worth its third more time where trials are long. Chen et al.
    2016 (arXiv 1604.06174).
    """
    count = -(-bins // segment)
    if inputs is not None:  # what pads the last segment comes after all that is asked for
        inputs = jnp.pad(inputs, [(0, count * segment - bins), (0, 0), (0, 0)])
        inputs = inputs.reshape(count, segment, *inputs.shape[1:])

    @jax.checkpoint
    def advance(state, inputs):
        states = unroll(weights, inputs, state, segment)
        return states[-1], states

    states = lax.scan(advance, initial, inputs, length=count)[1]
    return states.reshape(count * segment, *initial.shape)[:bins]
