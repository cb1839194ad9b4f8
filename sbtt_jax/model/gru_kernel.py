"""All bins of a GRU as one GPU kernel per direction.

In a loop of XLA's, each bin is two or three kernels that wait for the ones before, a microsecond or
two apiece. Here one program per tile of trials keeps weights and state on the chip through all
bins; models and directions under vmap are more programs beside it. `gru.step` has the equations.

Units come first and the trials of a tile last. Then each warp of a program reads and writes the
units that its tensor core computes, so that warps wait for each other only for the factors of the
next product. Between them are tiles and bins, so that a program's bins are neighbors in memory, and
so that sums over all bins and trials outside are matrix products as the arrays are.

Written in Pallas for its Triton backend.
"""

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

State = Float[Array, "unit tile tile_trial"]
States = Float[Array, "unit tile bin tile_trial"]
Gates = Float[Array, "four unit tile bin tile_trial"]
Saved = Float[Array, "tile bin four unit tile_trial"]


def units(hidden: int) -> int:
    """Units that the kernels take: a power of two. Those that are added do nothing."""
    return max(16, pl.next_power_of_2(hidden))


def tiled(
    x: Float[Array, "*bin unit trial"], units: int | None = None
) -> Float[Array, "padded_unit tile *bin tile_trial"]:
    """Trials in whole tiles, and up to so many units; what is added is zero."""
    *bins, size, trials = x.shape
    added = (units or size) - size, -trials % TILE
    x = jnp.pad(x, [*((0, 0) for _ in bins), *((0, more) for more in added)])
    x = x.reshape(*bins, x.shape[-2], -1, TILE)
    return jnp.moveaxis(x, 0, 2) if bins else x


def flat(
    x: Float[Array, "padded_unit tile *bin tile_trial"], hidden: int, trials: int
) -> Float[Array, "*bin unit trial"]:
    """The first so many units and trials of what is tiled."""
    x = jnp.moveaxis(x, 2, 0) if x.ndim > 3 else x
    return x.reshape(*x.shape[:-2], -1)[..., :hidden, :trials]


# Without divisions, each of which takes longer than all the rest; to about 1e-7.


def _sigmoid(x):
    return lax.square(lax.rsqrt(1 + jnp.exp(-x)))


def _tanh(x):
    small = jnp.exp(-2 * abs(x))
    size = (1 - small) * lax.square(lax.rsqrt(1 + small))
    return jnp.where(x < 0, -size, size)


def forward(
    kernel: Float[Array, "three unit unit"],
    input_bias: Float[Array, "three unit"],
    hidden_bias: Float[Array, "three unit"],
    inputs: Float[Array, "three unit tile bin tile_trial"] | None,
    initial: State,
    bins: int,
) -> tuple[Float[Array, "unit tile bin_and_1 tile_trial"], Saved]:
    """The initial state and those after every bin; and r, z, n and a_n of all, for `backward`.

    kernel: each gate's, one row per unit of the gate. inputs: of the gates, without bias; or None.
    """
    size, tiles, _ = initial.shape
    three = range(3)

    def gru_forward(kernel_ref, input_bias_ref, hidden_bias_ref, initial_ref, *refs):
        *inputs_ref, states_ref, saved_ref = refs
        u_r, u_z, u_n = (kernel_ref[gate] for gate in three)
        b_r, b_z, b_n = (input_bias_ref[gate][:, None] for gate in three)
        c_r, c_z, c_n = (hidden_bias_ref[gate][:, None] for gate in three)

        def read(bin_):
            return [ref[gate, :, bin_] for ref in inputs_ref for gate in three]

        def advance(bin_, h, x):
            x_r, x_z, x_n = x or (0, 0, 0)
            a_n = jnp.dot(u_n, h) + c_n
            r = _sigmoid(x_r + (b_r + c_r) + jnp.dot(u_r, h))
            z = _sigmoid(x_z + (b_z + c_z) + jnp.dot(u_z, h))
            n = _tanh(x_n + b_n + r * a_n)
            h = n + z * (h - n)
            states_ref[:, bin_ + 1] = h
            for gate, value in enumerate((r, z, n, a_n)):
                saved_ref[bin_, gate] = value
            return h

        h = initial_ref[...]
        states_ref[:, 0] = h
        _for_every_bin(bins, read, advance, h)

    shapes = [(size, tiles, bins + 1, TILE), (tiles, bins, 4, size, TILE)]
    given = [(initial, 1)] if inputs is None else [(initial, 1), (inputs, 2)]
    whole = [kernel, input_bias, hidden_bias]
    return _call(gru_forward, tiles, whole, given, zip(shapes, (1, 0), strict=True))


def backward(
    transposed: Float[Array, "three unit unit"],
    states: Float[Array, "unit tile bin_and_1 tile_trial"],
    saved: Saved,
    d_states: States | None,
    d_last: State,
) -> tuple[Gates, State]:
    """Derivatives by the arguments of r, z and n and by a_n in every bin; by the initial state.

    transposed: each gate's kernel, one column per unit of the gate. states, saved: of `forward`.
    d_states: by the states after every bin; None: zero. d_last: by the last of them once more.
    """
    tiles, bins, _, size, _ = saved.shape

    def gru_backward(kernel_ref, d_last_ref, saved_ref, *refs):
        *states_ref, d_gates_ref, d_initial_ref = refs  # states and, if given, their derivatives
        u_r, u_z, u_n = (kernel_ref[gate] for gate in range(3))

        def read(count):
            bin_ = bins - 1 - count
            return *(saved_ref[bin_, gate] for gate in range(4)), *(r[:, bin_] for r in states_ref)

        def retreat(count, d, given):
            r, z, n, a_n, before, *d_here = given
            by_n = (1 - z) * (1 - n * n)
            by_r, by_z = by_n * a_n * r * (1 - r), (before - n) * z * (1 - z)
            d = sum(d_here, d)
            d_r, d_z, d_n, d_a_n = d * by_r, d * by_z, d * by_n, d * (by_n * r)
            for gate, value in enumerate((d_r, d_z, d_n, d_a_n)):
                d_gates_ref[gate, :, bins - 1 - count] = value
            # Subtracted, since products that are added up are made one after the other.
            return d * z + jnp.dot(u_z, d_z) - jnp.dot(u_r, -d_r) - jnp.dot(u_n, -d_a_n)

        d_initial_ref[...] = _for_every_bin(bins, read, retreat, d_last_ref[...])

    given = [(d_last, 1), (saved, 0), (states, 1)]
    if d_states is not None:
        given.append((d_states, 1))
    shapes = [(4, size, tiles, bins, TILE), d_last.shape]
    return _call(gru_backward, tiles, [transposed], given, zip(shapes, (2, 1), strict=True))


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


def _call(program, tiles, whole, given, results):
    """Run `program` for every tile.

    whole: arrays that each gets whole. given: arrays, and the axis of their tiles. results: shapes,
    and the axis of their tiles.
    """

    def everything(shape):
        return pl.BlockSpec(shape, lambda tile: (0,) * len(shape))

    def tile_of(shape, axis):
        block = (*shape[:axis], None, *shape[axis + 1 :])
        return pl.BlockSpec(
            block, lambda tile: tuple(tile * (n == axis) for n in range(len(shape)))
        )

    results = list(results)
    return pl.pallas_call(
        program,
        grid=(tiles,),
        in_specs=[*(everything(x.shape) for x in whole), *(tile_of(x.shape, n) for x, n in given)],
        out_specs=[tile_of(*one) for one in results],
        out_shape=[jax.ShapeDtypeStruct(shape, given[0][0].dtype) for shape, _ in results],
        # A tensor core takes 16 units at a time.
        compiler_params=triton.CompilerParams(num_warps=whole[0].shape[-1] // 16, num_stages=1),
        interpret=INTERPRET,
    )(*whole, *(x for x, _ in given))
