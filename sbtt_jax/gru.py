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

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

UNROLL = 10  # bins in a turn of an accelerator's loops: fewer kernels, but a larger program


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
    projected: Float[Array, "*bin_or_none three_hidden trial_or_1"],
    state: Float[Array, "*bin hidden trial"],
) -> tuple[Float[Array, "*bin hidden trial"], tuple[Float[Array, "*bin _ trial"], ...]]:
    """One bin: the next state, and what the derivative needs (r above z, n, a_n)."""
    hidden = jnp.einsum("gh,...hb->...gb", weights.hidden_kernel, state)
    hidden = hidden + weights.hidden_bias[:, None]
    both = 2 * state.shape[-2]
    rz = jax.nn.sigmoid(projected[..., :both, :] + hidden[..., :both, :])
    r, z = jnp.split(rz, 2, axis=-2)
    a_n = hidden[..., both:, :]
    n = jnp.tanh(projected[..., both:, :] + r * a_n)
    return n + z * (state - n), (rz, n, a_n)


def unroll(
    weights: Weights,
    inputs: Float[Array, "bin input trial"] | None,
    initial: Float[Array, "hidden trial"],
    bins: int,
    segment: int | None = None,
) -> tuple[Float[Array, "hidden trial"], Float[Array, "bin hidden trial"]]:
    """The state after `bins` bins, and those after each of them (as `lax.scan` returns them).

    With `segment`, that many bins at a time: the derivative keeps one state a segment and runs each
    again, so that memory for all else is that of a single segment; this is worth its third more
    time where trials are long. Chen et al. 2016 (arXiv 1604.06174).
    """
    if segment is None:
        return _unroll(weights, inputs, initial, bins)
    count = -(-bins // segment)
    if inputs is not None:  # what pads the last segment comes after all that is asked for
        inputs = jnp.pad(inputs, [(0, count * segment - bins), (0, 0), (0, 0)])
        inputs = inputs.reshape(count, segment, *inputs.shape[1:])

    @jax.checkpoint
    def advance(state, inputs):
        return _unroll(weights, inputs, state, segment)

    states = lax.scan(advance, initial, inputs, length=count)[1]
    states = states.reshape(count * segment, *initial.shape)[:bins]
    return states[-1], states


def side_by_side(
    read: Callable[[Weights, Array], Array], weights: Sequence[Weights], inputs: Sequence[Array]
) -> list[Array]:
    """What `read`, which unrolls, makes of several weights and inputs, each alike in shape.

    A GPU gets one loop for all of them, which takes it hardly longer than one for each.
    """
    if _by_bin():
        return [read(*one) for one in zip(weights, inputs, strict=True)]
    stacked = jax.tree.map(lambda *all_: jnp.stack(all_), *zip(weights, inputs, strict=True))
    return list(jax.vmap(read)(*stacked))


# The derivative is written out below, in two ways. It gives the numbers that differentiating a scan
# of `step` would, in less than half the time on a CPU.
@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _unroll(weights, inputs, initial, bins):
    return _unroll_forward(weights, inputs, initial, bins)[0]


def _unroll_forward(weights, inputs, initial, bins):
    forward = _forward_by_bin if _by_bin() else _forward_at_once
    return forward(weights, inputs, initial, bins)


def _with_symbolic_zeros(weights, inputs, initial, bins):
    values = jax.tree.map(lambda argument: argument.value, (weights, inputs, initial))
    return _unroll_forward(*values, bins)


def _unroll_backward(bins, residuals, d_out):
    # An encoder is asked for its last state alone, a decoder for all: what is not asked for is no
    # array of zeros here, but nothing.
    d_last, d_states = (None if isinstance(d, SymbolicZero) else d for d in d_out)
    backward = _backward_by_bin if _by_bin() else _backward_at_once
    return backward(residuals, d_last, d_states)


_unroll.defvjp(_with_symbolic_zeros, _unroll_backward, symbolic_zeros=True)


def _by_bin() -> bool:
    """Whether to go the first of the two ways below; either is right on any device.

    The default backend chooses, and not `lax.platform_dependent`, which has both traced at every
    start and one thrown away.
    """
    # Devices that share trials would have to add up their sums in every bin, if taken by bin.
    shared = jax.sharding.get_abstract_mesh().auto_axes
    return jax.default_backend() == "cpu" and not shared


# The way for a CPU: each product in the loop, where its factors are in the cache.


def _forward_by_bin(weights, inputs, initial, bins):
    # Inputs and states are kept as the derivative of the weights asks for them: with the one, and
    # the state before a bin at that bin. Made so there, they would be copied once more.
    if inputs is not None:
        inputs = _with_one(inputs)

    def advance(before, inputs):
        projected = project(weights, None if inputs is None else inputs[:-1])
        after, gates = step(weights, projected, before)
        return after, (_with_one(before), gates)

    last, (before, gates) = lax.scan(advance, initial, inputs, length=bins)
    states = jnp.concatenate([before[1:, :-1], last[None]])
    return (last, states), (weights, inputs, initial, before, gates)


def _backward_by_bin(residuals, d_last, d_states):
    weights, inputs, initial, before, gates = residuals
    # Transposed here, since a product with a transposed factor takes a CPU half as long again.
    transposed = weights.hidden_kernel.T

    def retreat(carry, x):
        d, (for_inputs, for_states) = carry
        inputs, d_here, before, gates = x
        if d_here is not None:
            d = d + d_here
        r, z, *by = _derivatives(before[:-1], gates)
        d_r, d_z, d_n = (d * by_gate for by_gate in by)
        d_hidden = jnp.concatenate([d_r, d_z, d_n * r])
        d_inputs = None
        if inputs is None:  # r and z have the same derivatives at both sides
            for_inputs += d_n
        else:
            d_projected = jnp.concatenate([d_r, d_z, d_n])
            for_inputs += inputs @ d_projected.T
            d_inputs = weights.input_kernel.T @ d_projected
        for_states += before @ d_hidden.T
        return (d * z + transposed @ d_hidden, (for_inputs, for_states)), d_inputs

    start = jnp.zeros_like(initial) if d_last is None else d_last
    width = weights.hidden_bias.size
    of_inputs = initial.shape if inputs is None else (inputs.shape[1], width)
    sums = tuple(jnp.zeros(shape, start.dtype) for shape in (of_inputs, (before.shape[1], width)))
    (d_initial, (for_inputs, for_states)), d_inputs = lax.scan(
        retreat, (start, sums), (inputs, d_states, before, gates), reverse=True
    )
    if inputs is None:
        d_kernel = None
        d_bias = jnp.concatenate([for_states[-1, : -len(initial)], for_inputs.sum(1)])
    else:
        d_kernel, d_bias = for_inputs[:-1].T, for_inputs[-1]
    return Weights(d_kernel, d_bias, for_states[:-1].T, for_states[-1]), d_inputs, d_initial


def _with_one(x: Float[Array, "*bin unit trial"]) -> Float[Array, "*bin unit_and_one trial"]:
    """A bias is the weight of one more unit, which is always one."""
    return jnp.concatenate([x, jnp.ones_like(x[..., :1, :])], axis=-2)


# The way for a GPU, to which a bin is a few kernels too small to fill it, one waiting for another:
# two in each direction, and all that need not wait for the bin before at once, outside of the loop.


def _forward_at_once(weights, inputs, initial, bins):
    projected = project(weights, inputs)

    def advance(before, x):
        after, _ = step(weights, projected if inputs is None else x, before)
        return after, after

    xs = None if inputs is None else projected
    last, states = lax.scan(advance, initial, xs, length=bins, unroll=UNROLL)
    return (last, states), (weights, inputs, initial, states)


def _backward_at_once(residuals, d_last, d_states):
    weights, inputs, initial, states = residuals
    before = jnp.concatenate([initial[None], states[:-1]])
    _, gates = step(weights, project(weights, inputs), before)
    r, z, by_r, by_z, by_n = _derivatives(before, gates)
    by_hidden = jnp.concatenate([by_r, by_z, by_n * r], axis=1)

    def retreat(d, x):
        d_here, z, by_hidden = x
        if d_here is not None:
            d = d + d_here
        return d * z + weights.hidden_kernel.T @ (by_hidden * jnp.tile(d, (3, 1))), d

    start = jnp.zeros_like(initial) if d_last is None else d_last
    d_initial, d = lax.scan(retreat, start, (d_states, z, by_hidden), reverse=True, unroll=UNROLL)
    d_hidden = by_hidden * jnp.tile(d, (1, 3, 1))
    d_projected = jnp.concatenate([d_hidden[:, : 2 * len(initial)], by_n * d], axis=1)
    d_kernel = d_inputs = None
    if inputs is not None:
        d_kernel = jnp.einsum("tgb,tib->gi", d_projected, inputs)
        d_inputs = jnp.einsum("gi,tgb->tib", weights.input_kernel, d_projected)
    d_weights = Weights(
        d_kernel,
        d_projected.sum((0, 2)),
        jnp.einsum("tgb,thb->gh", d_hidden, before),
        d_hidden.sum((0, 2)),
    )
    return d_weights, d_inputs, d_initial


def _derivatives(before, gates):
    """Reset and update gates, and the derivatives of a bin's state by the arguments of the three
    gates, unit by unit."""
    rz, n, a_n = gates
    r, z = jnp.split(rz, 2, axis=-2)
    by_n = (1 - z) * (1 - n * n)
    return r, z, by_n * a_n * r * (1 - r), (before - n) * z * (1 - z), by_n
