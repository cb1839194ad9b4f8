"""All bins of a GRU as one GPU kernel per direction.

In a loop of XLA's, each bin is two or three kernels that wait for the ones before, a microsecond or
two apiece. Here one program per tile of trials keeps weights and state on the chip through all
bins; models and directions under vmap are more programs beside it. `gru.step` has the equations.

Gates have an axis of their own, and sizes are those of `padded`. Written in Pallas for its Triton
backend.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

TILE = 16  # trials of one program; tensor cores take no fewer at a time
LARGEST = 128  # units whose weights fit a multiprocessor of compute capability 9.0
INTERPRET = False  # run the same programs on a CPU, slowly

Sequence = Float[Array, "bin unit trial"]
GatesSequence = Float[Array, "bin three unit trial"]


class Gates(NamedTuple):
    """What the derivative needs of every bin."""

    r: Sequence
    z: Sequence
    n: Sequence
    a_n: Sequence


def padded(hidden: int, trials: int) -> tuple[int, int]:
    """Units and trials that the kernels take: a power of two, and whole tiles."""
    return max(16, pl.next_power_of_2(hidden)), -(-trials // TILE) * TILE


def forward(
    kernel: Float[Array, "three unit unit"],
    bias: Float[Array, "three unit 1"],
    projected: Float[Array, "*bin three unit trial_or_1"],
    initial: Float[Array, "unit trial"],
    bins: int,
) -> tuple[Float[Array, "bin_and_1 unit trial"], Gates]:
    """The initial state and those after every bin, and the gates.

    projected: inputs of the gates; without an axis of bins, the same in all of them.
    """
    autonomous = projected.ndim == 3
    size, trials = initial.shape

    def gru_forward(kernel_ref, bias_ref, projected_ref, initial_ref, states_ref, *gate_refs):
        u_r, u_z, u_n = (kernel_ref[gate] for gate in range(3))
        b_r, b_z, b_n = (bias_ref[gate] for gate in range(3))

        def read(bin_):
            return [projected_ref[gate if autonomous else (bin_, gate)] for gate in range(3)]

        def advance(bin_, carry):
            state, (x_r, x_z, x_n) = carry
            # Asked for a bin ahead, so that no product waits for memory.
            later = carry[1] if autonomous else read(jnp.minimum(bin_ + 1, bins - 1))
            a_n = jnp.dot(u_n, state) + b_n
            r = jax.nn.sigmoid(x_r + jnp.dot(u_r, state) + b_r)
            z = jax.nn.sigmoid(x_z + jnp.dot(u_z, state) + b_z)
            n = jnp.tanh(x_n + r * a_n)
            state = n + z * (state - n)
            states_ref[bin_ + 1] = state
            for ref, value in zip(gate_refs, (r, z, n, a_n), strict=True):
                ref[bin_] = value
            return state, later

        initial = initial_ref[...]
        states_ref[0] = initial
        lax.fori_loop(0, bins, advance, (initial, read(0)))

    shapes = [(bins + 1, size, trials)] + [(bins, size, trials)] * 4
    weights = [kernel, bias, projected] if autonomous else [kernel, bias]
    tiled = [initial] if autonomous else [projected, initial]
    states, *gates = _call(gru_forward, weights, tiled, shapes)
    return states, Gates(*gates)


def backward(
    transposed: Float[Array, "three unit unit"],
    states: Float[Array, "bin_and_1 unit trial"],
    gates: Gates,
    d_states: Sequence | None,
    d_last: Float[Array, "unit trial"],
) -> tuple[GatesSequence, GatesSequence, Float[Array, "unit trial"]]:
    """Derivatives by what each gate sees of the inputs and of the state, and by the initial state.

    transposed: the kernel, each gate's block transposed. states, gates: as of `forward`.
    d_states: by the states after every bin; None: zero. d_last: by the last of them once more.
    """
    bins, size, trials = gates.r.shape
    by_bin = [*gates, *([] if d_states is None else [d_states])]

    def gru_backward(kernel_ref, d_last_ref, states_ref, *refs):
        by_bin_refs, (d_projected_ref, d_hidden_ref, d_initial_ref) = refs[:-3], refs[-3:]
        u_r, u_z, u_n = (kernel_ref[gate] for gate in range(3))

        def read(bin_):
            return [ref[bin_] for ref in (states_ref, *by_bin_refs)]

        def retreat(count, carry):
            d, (before, r, z, n, a_n, *d_here) = carry
            bin_ = bins - 1 - count
            earlier = read(jnp.maximum(bin_ - 1, 0))
            d = sum(d_here, d)
            d_n = d * (1 - z) * (1 - n * n)
            d_r = d_n * a_n * r * (1 - r)
            d_z = d * (before - n) * z * (1 - z)
            d_a_n = d_n * r
            for gate, value in enumerate((d_r, d_z, d_n)):
                d_projected_ref[bin_, gate] = value
            for gate, value in enumerate((d_r, d_z, d_a_n)):
                d_hidden_ref[bin_, gate] = value
            d = d * z + jnp.dot(u_r, d_r) + jnp.dot(u_z, d_z) + jnp.dot(u_n, d_a_n)
            return d, earlier

        d_initial_ref[...] = lax.fori_loop(0, bins, retreat, (d_last_ref[...], read(bins - 1)))[0]

    shapes = [(bins, 3, size, trials)] * 2 + [(size, trials)]
    return _call(gru_backward, [transposed], [d_last, states, *by_bin], shapes)


def _call(program, whole, tiled, shapes):
    """Run `program` for every tile of the last axis of the arrays `tiled` and of the results."""

    def everything(shape):
        return pl.BlockSpec(shape, lambda tile: (0,) * len(shape))

    def tile_of(shape):
        return pl.BlockSpec((*shape[:-1], TILE), lambda tile: (*(0,) * (len(shape) - 1), tile))

    return pl.pallas_call(
        program,
        grid=(tiled[0].shape[-1] // TILE,),
        in_specs=[*(everything(a.shape) for a in whole), *(tile_of(a.shape) for a in tiled)],
        out_specs=[tile_of(shape) for shape in shapes],
        out_shape=[jax.ShapeDtypeStruct(shape, tiled[0].dtype) for shape in shapes],
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=INTERPRET,
    )(*whole, *tiled)


WARPS = 4
