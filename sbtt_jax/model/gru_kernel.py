"""All bins of a GRU as one GPU kernel per direction.

In a loop of XLA's, each bin is two or three kernels that wait for the ones before, a microsecond or
two apiece. Here one program per tile of trials keeps weights and state on the chip through all
bins; models and directions under vmap are more programs beside it. `gru.step` has the equations.

Units come first and trials last. Then each warp of a program reads and writes the units that its
tensor core computes, so that warps wait for each other only for the factors of the next product.
Between them are the bins, so that sums over all bins and trials outside are matrix products as the
arrays are. Arrays are as long as they need to be: what a program computes beyond their units and
trials, which tensor cores take a fixed number of, is zero and stays on the chip.

Written in Pallas for its Triton backend.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

TILE = 8  # trials of one program; tensor cores take no fewer at a time
UNROLL = 2  # bins per iteration, for which weights are read from shared memory once
LARGEST = 128  # units whose weights fit a multiprocessor of compute capability 9.0
INTERPRET = False  # run the same programs on a CPU, slowly

Bias = Float[Array, " three_unit"]
State = Float[Array, "unit trial"]
States = Float[Array, "unit bin trial"]
Saved = Float[Array, "tile bin four_unit tile_trial"]  # all of a program's bin side by side


# Without divisions, each of which takes longer than all the rest; to about 1e-7.


def _sigmoid(x):
    return lax.square(lax.rsqrt(1 + jnp.exp(-x)))


def _tanh(x):
    small = jnp.exp(-2 * abs(x))
    size = (1 - small) * lax.square(lax.rsqrt(1 + small))
    return jnp.where(x < 0, -size, size)


def forward(
    kernel: Float[Array, "three_unit unit"],
    input_bias: Bias,
    hidden_bias: Bias,
    inputs: Float[Array, "three_unit bin trial"] | None,
    initial: State,
    bins: int,
) -> tuple[Float[Array, "unit bin_and_1 trial"], Saved]:
    """The initial state and those after every bin; and r, z, n and a_n of all, for `backward`.

    kernel, inputs: of the gates r, z, n, one row per unit of the gate. inputs: without bias, or
    None.
    """
    size, trials = initial.shape

    def gru_forward(kernel_ref, input_bias_ref, hidden_bias_ref, initial_ref, *refs):
        *inputs_ref, states_ref, saved_ref = refs
        part = _part(size, trials)
        u_r, u_z, u_n = (_kernel(kernel_ref, part, gate) for gate in range(3))
        b_r, b_z, b_n = (_read(input_bias_ref, part, gate) for gate in range(3))
        c_r, c_z, c_n = (_read(hidden_bias_ref, part, gate) for gate in range(3))

        def read(bin_):
            return [_read(ref, part, gate, bin_) for ref in inputs_ref for gate in range(3)]

        def advance(bin_, h, x):
            x_r, x_z, x_n = x or (0, 0, 0)
            a_n = jnp.dot(u_n, h) + c_n
            r = _sigmoid(x_r + (b_r + c_r) + jnp.dot(u_r, h))
            z = _sigmoid(x_z + (b_z + c_z) + jnp.dot(u_z, h))
            n = _tanh(x_n + b_n + r * a_n)
            h = n + z * (h - n)
            _write(states_ref, h, part, 0, bin_ + 1)
            for gate, value in enumerate((r, z, n, a_n)):
                _write(saved_ref, value, part, gate, bin_)
            return h

        h = _read(initial_ref, part)
        _write(states_ref, h, part, 0, 0)
        _for_every_bin(bins, read, advance, h)

    given = [kernel, input_bias, hidden_bias, initial, inputs]
    saved = pl.cdiv(trials, TILE), bins, 4 * size, TILE
    return _call(gru_forward, size, trials, given, (size, bins + 1, trials), saved)


def backward(
    transposed: Float[Array, "unit three_unit"],
    states: Float[Array, "unit bin_and_1 trial"],
    saved: Saved,
    d_states: States | None,
    d_last: State,
) -> tuple[Float[Array, "four_unit bin trial"], State]:
    """Derivatives by the arguments of r, z and n and by a_n in every bin; by the initial state.

    transposed: the kernel. states, saved: of `forward`. d_states: by the states after every bin;
    None: zero. d_last: by the last of them once more.
    """
    size, more, trials = states.shape
    bins = more - 1

    def gru_backward(transposed_ref, d_last_ref, saved_ref, *refs):
        *states_ref, d_gates_ref, d_initial_ref = refs  # states and, if given, their derivatives
        part = _part(size, trials)
        u_r, u_z, u_n = (_kernel(transposed_ref, part, gate, 1) for gate in range(3))

        def read(count):
            bin_ = bins - 1 - count
            gates = (_read(saved_ref, part, gate, bin_) for gate in range(4))
            return *gates, *(_read(ref, part, 0, bin_) for ref in states_ref)

        def retreat(count, d, given):
            r, z, n, a_n, before, *d_here = given
            by_n = (1 - z) * (1 - n * n)
            by_r, by_z = by_n * a_n * r * (1 - r), (before - n) * z * (1 - z)
            d = sum(d_here, d)
            d_r, d_z, d_n, d_a_n = d * by_r, d * by_z, d * by_n, d * (by_n * r)
            for gate, value in enumerate((d_r, d_z, d_n, d_a_n)):
                _write(d_gates_ref, value, part, gate, bins - 1 - count)
            # Subtracted, since products that are added up are made one after the other.
            return d * z + jnp.dot(u_z, d_z) - jnp.dot(u_r, -d_r) - jnp.dot(u_n, -d_a_n)

        d_initial = _for_every_bin(bins, read, retreat, _read(d_last_ref, part))
        _write(d_initial_ref, d_initial, part)

    given = [transposed, d_last, saved, states, d_states]
    return _call(gru_backward, size, trials, given, (4 * size, bins, trials), (size, trials))


class _Part(NamedTuple):
    """The part of all units and trials that a program computes, units first."""

    size: int  # units that there are
    tile: Array
    unit: Array
    trial: Array  # of the tile
    inside: Array  # which of these units and trials there are


def _part(size: int, trials: int) -> _Part:
    tile, unit, trial = pl.program_id(0), jnp.arange(_units(size))[:, None], jnp.arange(TILE)[None]
    inside = jnp.broadcast_to(unit < size, (unit.size, TILE))
    if trials % TILE:
        inside &= tile * TILE + trial < trials
    return _Part(size, tile, unit, trial, inside)


def _units(size: int) -> int:
    """How many a program computes; a tensor core takes 16 at a time."""
    return max(16, pl.next_power_of_2(size))


def _kernel(ref, part: _Part, gate, axis=0):
    """That of one gate, whose units are along `axis`; zero beyond them."""
    index = [part.unit, part.unit.T]
    inside = (index[0] < part.size) & (index[1] < part.size)
    index[axis] += gate * part.size
    return triton.load(ref.at[*index], mask=inside, other=0)


def _place(ref, part: _Part, gate, bin_):
    """Where this part of an array is, and what of it there is."""
    unit, trial = gate * part.size + part.unit, part.tile * TILE + part.trial
    match len(ref.shape):
        case 1:
            return ref.at[unit], part.unit < part.size
        case 2:
            return ref.at[unit, trial], part.inside
        case 3:
            return ref.at[unit, bin_, trial], part.inside
        case _:
            return ref.at[part.tile, bin_, unit, part.trial], part.inside


def _read(ref, part: _Part, gate=0, bin_=0):
    place, inside = _place(ref, part, gate, bin_)
    return triton.load(place, mask=inside, other=0)


def _write(ref, value, part: _Part, gate=0, bin_=0):
    place, inside = _place(ref, part, gate, bin_)
    triton.store(place, value, mask=inside)


def _for_every_bin(bins, read, advance, state):
    """The last `state = advance(count, state, read(count))`."""

    def one(count, carry):
        state, given = carry
        # Asked for a bin ahead, so that no product waits for memory.
        later = read(jnp.minimum(count + 1, bins - 1))
        return advance(count, state, given), later

    def several(count, carry):
        for each in range(UNROLL):
            carry = one(UNROLL * count + each, carry)
        return carry

    carry = lax.fori_loop(0, bins // UNROLL, several, (state, read(0)))
    rest = bins % UNROLL
    return (lax.fori_loop(bins - rest, bins, one, carry) if rest else carry)[0]


def _call(program, size, trials, given, *shapes):
    """Run `program` for every tile of the trials."""
    given = [x for x in given if x is not None]
    return pl.pallas_call(
        program,
        grid=(pl.cdiv(trials, TILE),),
        out_shape=[jax.ShapeDtypeStruct(shape, given[0].dtype) for shape in shapes],
        compiler_params=triton.CompilerParams(num_warps=_units(size) // 16, num_stages=1),
        interpret=INTERPRET,
    )(*given)
