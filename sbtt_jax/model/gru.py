"""The gated recurrent unit as pure functions: weights and inputs in, states out.

Gates follow the PyTorch convention, which keeps two biases. With input projections x_r, x_z, x_n
(each W x + b) and hidden projections a_r, a_z, a_n (each U h + c),

    r = sigmoid(x_r + a_r)        reset gate
    z = sigmoid(x_z + a_z)        update gate
    n = tanh(x_n + r * a_n)       candidate; its hidden bias sits inside the product with r
    h' = (1 - z) n + z h

after Cho et al. 2014 (arXiv 1406.1078).

Trials are the last axis, so that each gate is one block of memory. Gates split along the last axis
would cost a CPU more time than the matrix products they come from.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from sbtt_jax.model import gru_kernel

UNROLL = 10  # bins per iteration of an accelerator's loops: fewer kernels, a larger program


class Weights(NamedTuple):
    """Kernels and biases, gates stacked along the first axis: reset, update, candidate."""

    input_kernel: Float[Array, "three_hidden input"] | None  # None: no input but the bias
    input_bias: Float[Array, " three_hidden"]
    hidden_kernel: Float[Array, "three_hidden hidden"]
    hidden_bias: Float[Array, " three_hidden"]


def project(
    weights: Weights, inputs: Float[Array, "*bin input trial"] | None
) -> Float[Array, "*bin three_hidden trial_or_1"]:
    """Input projections of the three gates."""
    bias = weights.input_bias[:, None]
    if inputs is None:
        return bias
    return jnp.einsum("gi,...ib->...gb", weights.input_kernel, inputs) + bias


def step(
    weights: Weights,
    projected: Float[Array, "*bin_or_none three_hidden trial_or_1"],
    state: Float[Array, "*bin hidden trial"],
) -> tuple[Float[Array, "*bin hidden trial"], tuple[Float[Array, "*bin _ trial"], ...]]:
    """One bin: the next state, and what the derivative needs (r stacked on z, n, a_n)."""
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
    """The state after the last bin, and the states after every bin, as `lax.scan` returns them.

    With `segment`, the derivative keeps one state per that many bins and recomputes the rest: the
    memory of one segment, for a third more time. Chen et al. 2016 (arXiv 1604.06174).
    """
    if segment is None:
        return _unroll(weights, inputs, initial, bins)
    segment = min(segment, bins)
    count = -(-bins // segment)
    if inputs is not None:  # padding of the last segment comes after all bins that are returned
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
    """`read`, which unrolls, applied to several weights and inputs of equal shapes.

    On a GPU they share one loop, which takes hardly longer than a loop for one.
    """
    if _by_bin():
        return [read(*one) for one in zip(weights, inputs, strict=True)]
    stacked = jax.tree.map(lambda *all_: jnp.stack(all_), *zip(weights, inputs, strict=True))
    return list(jax.vmap(read)(*stacked))


# The derivative is written out below, in two ways. It gives the same numbers as differentiating a
# scan of `step`, in less than half the time on a CPU.
@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _unroll(weights, inputs, initial, bins):
    return _unroll_forward(weights, inputs, initial, bins)[0]


def _unroll_forward(weights, inputs, initial, bins):
    forward, _ = _way(weights)
    return forward(weights, inputs, initial, bins)


def _with_symbolic_zeros(weights, inputs, initial, bins):
    values = jax.tree.map(lambda argument: argument.value, (weights, inputs, initial))
    return _unroll_forward(*values, bins)


def _unroll_backward(bins, residuals, d_out):
    # None instead of zeros for what is not used: all states of an encoder but the last.
    d_last, d_states = (None if isinstance(d, SymbolicZero) else d for d in d_out)
    _, backward = _way(residuals[0])
    return backward(residuals, d_last, d_states)


_unroll.defvjp(_with_symbolic_zeros, _unroll_backward, symbolic_zeros=True)


def _way(weights: Weights):
    """Which of the three ways below to take; all are correct on any device.

    The default backend decides, not `lax.platform_dependent`, which traces all at every start.
    """
    if _by_bin():
        return _forward_by_bin, _backward_by_bin
    if _in_kernel() and weights.hidden_kernel.shape[-1] <= gru_kernel.LARGEST:
        return _forward_in_kernel, _backward_in_kernel
    return _forward_at_once, _backward_at_once


def _by_bin() -> bool:
    # Devices that share trials would have to add up their sums in every bin.
    return jax.default_backend() == "cpu" and not _trials_are_shared()


def _in_kernel() -> bool:
    # Compiled for, and tested on, GPUs of this kind: H100, H200.
    capability = getattr(jax.devices()[0], "compute_capability", None)
    single = not jax.config.jax_enable_x64 and not _trials_are_shared()
    return capability == "9.0" and single


def _trials_are_shared() -> bool:
    return bool(jax.sharding.get_abstract_mesh().auto_axes)


# The way for a CPU: all products inside the loop, where their factors are in the cache.


def _forward_by_bin(weights, inputs, initial, bins):
    # Inputs and states are kept as the derivative of the weights needs them: with a unit that is
    # always one, and with each bin's preceding state. Arranged later, they would be copied again.
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
    # Transposed once: a product with a transposed factor takes a CPU 1.5 times as long.
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
        if inputs is None:  # r and z have the same derivative by both projections
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
    """A bias is the weight of one more unit that is always one."""
    return jnp.concatenate([x, jnp.ones_like(x[..., :1, :])], axis=-2)


# The way for accelerators, where a bin is a few tiny kernels that wait for each other: two kernels
# per bin in each direction, and everything that does not depend on the previous bin outside of the
# loop.


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


# The way for GPUs on which it was tested: all bins in one kernel.


def _forward_in_kernel(weights, inputs, initial, bins):
    projected = None
    if inputs is not None:
        projected = jnp.einsum("gi,tib->gtb", weights.input_kernel, inputs)
    states, saved = gru_kernel.forward(
        weights.hidden_kernel, weights.input_bias, weights.hidden_bias, projected, initial, bins
    )
    after = states[:, 1:].swapaxes(0, 1)
    return (after[-1], after), (weights, inputs, states, saved)


def _backward_in_kernel(residuals, d_last, d_states):
    weights, inputs, states, saved = residuals
    hidden = len(states)
    d_gates, d_initial = gru_kernel.backward(
        weights.hidden_kernel.T,
        states,
        saved,
        None if d_states is None else d_states.swapaxes(0, 1),
        jnp.zeros_like(states[:, 0]) if d_last is None else d_last,
    )

    def of_inputs(x):  # by the arguments of r, z and n
        return x[:, : 3 * hidden]

    def of_states(x):  # by the arguments of r and z, and by a_n
        return jnp.concatenate([x[:, : 2 * hidden], x[:, 3 * hidden :]], axis=1)

    # One product for all weights. A bias is the weight of one more unit that is always one.
    before = states[:, :-1]
    factors = [before, jnp.ones_like(before[:1])]
    d_inputs = None
    if inputs is not None:
        factors.append(inputs.swapaxes(0, 1))
        d_inputs = jnp.einsum("gi,gtb->tib", weights.input_kernel, d_gates[: 3 * hidden])
    d = jnp.einsum("ftb,gtb->fg", jnp.concatenate(factors), d_gates)
    from_states, from_one, from_inputs = jnp.split(d, [hidden, hidden + 1])
    d_weights = Weights(
        None if inputs is None else of_inputs(from_inputs).T,
        of_inputs(from_one)[0],
        of_states(from_states).T,
        of_states(from_one)[0],
    )
    return d_weights, d_inputs, d_initial


def _derivatives(before, gates):
    """The gates r and z, and the derivatives of a bin's state by the arguments of r, z and n."""
    rz, n, a_n = gates
    r, z = jnp.split(rz, 2, axis=-2)
    by_n = (1 - z) * (1 - n * n)
    return r, z, by_n * a_n * r * (1 - r), (before - n) * z * (1 - z), by_n
