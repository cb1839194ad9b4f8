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
from jax.custom_derivatives import SymbolicZero
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
) -> tuple[Float[Array, "hidden trial"], tuple[Float[Array, "_ trial"], ...]]:
    """One bin: the next state, and what the derivative needs (r above z, n, a_n)."""
    hidden = weights.hidden_kernel @ state + weights.hidden_bias[:, None]
    both = 2 * len(state)
    rz = jax.nn.sigmoid(projected[:both] + hidden[:both])
    r, z = jnp.split(rz, 2)
    a_n = hidden[both:]
    n = jnp.tanh(projected[both:] + r * a_n)
    return n + z * (state - n), (rz, n, a_n)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def unroll(
    weights: Weights,
    inputs: Float[Array, "bin input trial"] | None,
    initial: Float[Array, "hidden trial"],
    bins: int,
) -> tuple[Float[Array, "hidden trial"], Float[Array, "bin hidden trial"]]:
    """The state after `bins` bins, and those after each of them (as `lax.scan` returns them).

    The derivative is written out below. It gives the numbers that differentiating a scan of `step`
    would, in less than half the time on a CPU.
    """
    return _unroll_forward(weights, inputs, initial, bins)[0]


def _unroll_forward(weights, inputs, initial, bins):
    return _forward(weights, inputs, initial, bins=bins, by_bin=jax.default_backend() == "cpu")


def _with_symbolic_zeros(weights, inputs, initial, bins):
    values = jax.tree.map(lambda argument: argument.value, (weights, inputs, initial))
    return _unroll_forward(*values, bins)


def _unroll_backward(bins, residuals, d_out):
    # An encoder is asked for its last state alone, a decoder for all: what is not asked for is no
    # array of zeros here, but nothing.
    d_last, d_states = (None if isinstance(d, SymbolicZero) else d for d in d_out)
    # Devices that share trials would have to add up their sums in every bin, if taken by bin.
    shared = bool(jax.sharding.get_abstract_mesh().auto_axes)
    by_bin = jax.default_backend() == "cpu" and not shared
    return _backward(residuals, d_last, d_states, by_bin=by_bin)


unroll.defvjp(_with_symbolic_zeros, _unroll_backward, symbolic_zeros=True)


# `by_bin` says where products are taken that need not wait for the bin before: in the loop, where
# a CPU has their factors in its cache, or for all bins at once outside of it, where a GPU has
# enough to do at a time. Either is right on any device. The default backend chooses, and not
# `lax.platform_dependent`, which has both traced at every start and one thrown away.


def _forward(weights, inputs, initial, *, bins, by_bin=False):
    all_projected = None if by_bin or inputs is None else project(weights, inputs)
    # Inputs and states are kept as the derivative of the weights asks for them: with the one, and
    # the state before a bin at that bin. Made so there, they would be copied once more.
    if inputs is not None:
        inputs = _with_one(inputs)

    def advance(before, x):
        inputs, projected = x
        if projected is None:
            projected = project(weights, None if inputs is None else inputs[:-1])
        after, gates = step(weights, projected, before)
        return after, (_with_one(before), gates)

    last, (before, gates) = lax.scan(advance, initial, (inputs, all_projected), length=bins)
    states = jnp.concatenate([before[1:, :-1], last[None]])
    return (last, states), (weights, inputs, initial, before, gates)


def _backward(residuals, d_last, d_states, *, by_bin=False):
    weights, inputs, initial, before, gates = residuals
    # Transposed here, since a product with a transposed factor takes a CPU half as long again.
    transposed = weights.hidden_kernel.T

    def retreat(d, x):
        d_here, (rz, n, a_n), before = x
        r, z = jnp.split(rz, 2)
        if d_here is not None:
            d = d + d_here
        d_n = d * (1 - z) * (1 - n * n)
        d_z = d * (before[:-1] - n) * z * (1 - z)
        d_r = d_n * a_n * r * (1 - r)
        d_hidden = jnp.concatenate([d_r, d_z, d_n * r])
        d_projected = d_n if inputs is None else jnp.concatenate([d_r, d_z, d_n])
        return d * z + transposed @ d_hidden, (d_projected, d_hidden)

    def products(inputs, before, d_projected, d_hidden):
        """For the weights of inputs and of states, summed over bins, and for the inputs."""
        for_states = _product(before, d_hidden)
        if inputs is None:  # r and z have the same derivatives at both sides
            return (d_projected.reshape(-1, *initial.shape).sum(0), for_states), None
        d_inputs = jnp.einsum("gi,...gb->...ib", weights.input_kernel, d_projected)
        return (_product(inputs, d_projected), for_states), d_inputs

    def retreat_and_sum(carry, x):
        d, sums = carry
        d, d_gates = retreat(d, x[1:])
        new, d_inputs = products(x[0], x[-1], *d_gates)
        return (d, jax.tree.map(jnp.add, sums, new)), d_inputs

    start = jnp.zeros_like(initial) if d_last is None else d_last
    xs = d_states, gates, before
    if by_bin:
        width = weights.hidden_bias.size
        of_inputs = initial.shape if inputs is None else (inputs.shape[1], width)
        sums = [jnp.zeros(shape, start.dtype) for shape in (of_inputs, (before.shape[1], width))]
        (d_initial, sums), d_inputs = lax.scan(
            retreat_and_sum, (start, tuple(sums)), (inputs, *xs), reverse=True
        )
    else:
        d_initial, d_gates = lax.scan(retreat, start, xs, reverse=True)
        sums, d_inputs = products(inputs, before, *d_gates)

    for_inputs, for_states = sums
    if inputs is None:
        d_kernel = None
        d_bias = jnp.concatenate([for_states[-1, : -len(initial)], for_inputs.sum(1)])
    else:
        d_kernel, d_bias = for_inputs[:-1].T, for_inputs[-1]
    return Weights(d_kernel, d_bias, for_states[:-1].T, for_states[-1]), d_inputs, d_initial


def _with_one(x: Float[Array, "*bin unit trial"]) -> Float[Array, "*bin unit_and_one trial"]:
    """A bias is the weight of one more unit, which is always one."""
    return jnp.concatenate([x, jnp.ones_like(x[..., :1, :])], axis=-2)


def _product(
    x: Float[Array, "*bin unit trial"], d: Float[Array, "*bin gate trial"]
) -> Float[Array, "unit gate"]:
    """Summed over bins and trials."""
    axes = (*range(x.ndim - 2), x.ndim - 1)
    return jnp.tensordot(x, d, (axes, axes))


def in_segments(
    weights: Weights,
    inputs: Float[Array, "bin input trial"] | None,
    initial: Float[Array, "hidden trial"],
    bins: int,
    segment: int,
) -> tuple[Float[Array, "hidden trial"], Float[Array, "bin hidden trial"]]:
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
        return unroll(weights, inputs, state, segment)

    states = lax.scan(advance, initial, inputs, length=count)[1]
    states = states.reshape(count * segment, *initial.shape)[:bins]
    return states[-1], states
