"""All bins of a GRU as one GPU kernel per direction.

In a loop of XLA's, each bin is two or three kernels that wait for the ones before, a microsecond or
two apiece. Here one program per tile of trials keeps weights and state on the chip through all
bins; models and directions under vmap are more programs beside it. `gru.step` has the equations.

Here trials come first and units last, and gates have an axis of their own, so that what is written
is what matrix products outside read; sizes are those of `padded`. Written in Pallas for its Triton
backend.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

TILE = 16  # trials of one program; tensor cores take no fewer at a time
LARGEST = 128  # units whose weights fit a multiprocessor of compute capability 9.0
INTERPRET = False  # run the same programs on a CPU, slowly

States = Float[Array, "trial bin unit"]
Gates = Float[Array, "trial bin four unit"]


def padded(hidden: int, trials: int) -> tuple[int, int]:
    """Units and trials that the kernels take: a power of two, and whole tiles."""
    return max(16, pl.next_power_of_2(hidden)), -(-trials // TILE) * TILE


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
    inputs: Float[Array, "trial bin three unit"] | None,
    initial: Float[Array, "trial unit"],
    bins: int,
) -> tuple[Float[Array, "trial bin_and_1 unit"], Gates]:
    """The initial state and those after every bin; and r, z, n and a_n in every bin.

    kernel: each gate's, from unit to gate. inputs: of the gates, without bias; None: none.
    """
    trials, size = initial.shape
    three = range(3)

    def gru_forward(kernel_ref, input_bias_ref, hidden_bias_ref, initial_ref, *refs):
        *inputs_ref, states_ref, gates_ref = refs
        u_r, u_z, u_n = (kernel_ref[gate] for gate in three)
        b_r, b_z, b_n = (input_bias_ref[gate][None] for gate in three)
        c_r, c_z, c_n = (hidden_bias_ref[gate][None] for gate in three)

        def read(bin_):
            return [ref[:, bin_, gate] for ref in inputs_ref for gate in three]

        def advance(bin_, carry):
            h, x = carry
            # Asked for a bin ahead, so that no product waits for memory.
            later = read(jnp.minimum(bin_ + 1, bins - 1))
            x_r, x_z, x_n = x or (0, 0, 0)
            a_n = jnp.dot(h, u_n) + c_n
            r = _sigmoid(x_r + (b_r + c_r) + jnp.dot(h, u_r))
            z = _sigmoid(x_z + (b_z + c_z) + jnp.dot(h, u_z))
            n = _tanh(x_n + b_n + r * a_n)
            h = n + z * (h - n)
            states_ref[:, bin_ + 1] = h
            for gate, value in enumerate((r, z, n, a_n)):
                gates_ref[:, bin_, gate] = value
            return h, later

        h = initial_ref[...]
        states_ref[:, 0] = h
        lax.fori_loop(0, bins, advance, (h, read(0)))

    shapes = [(trials, bins + 1, size), (trials, bins, 4, size)]
    tiled = [initial] if inputs is None else [initial, inputs]
    return _call(gru_forward, [kernel, input_bias, hidden_bias], tiled, shapes)


def backward(
    transposed: Float[Array, "three unit unit"],
    states: Float[Array, "trial bin_and_1 unit"],
    gates: Gates,
    d_states: States | None,
    d_last: Float[Array, "trial unit"],
) -> tuple[Gates, Float[Array, "trial unit"]]:
    """Derivatives by the arguments of r, z and n and by a_n in every bin; by the initial state.

    transposed: each gate's kernel from gate to unit. states, gates: as of `forward`.
    d_states: by the states after every bin; None: zero. d_last: by the last of them once more.
    """
    trials, bins, _, size = gates.shape
    given = [] if d_states is None else [d_states]

    def gru_backward(kernel_ref, d_last_ref, states_ref, gates_ref, *refs):
        *d_states_ref, d_gates_ref, d_initial_ref = refs
        u_r, u_z, u_n = (kernel_ref[gate] for gate in range(3))

        def read(bin_):
            return [
                *(gates_ref[:, bin_, gate] for gate in range(4)),
                *(ref[:, bin_] for ref in (states_ref, *d_states_ref)),
            ]

        def retreat(count, carry):
            d, (r, z, n, a_n, before, *d_here) = carry
            bin_ = bins - 1 - count
            earlier = read(jnp.maximum(bin_ - 1, 0))
            d = sum(d_here, d)
            d_n = d * (1 - z) * (1 - n * n)
            d_r = d_n * a_n * r * (1 - r)
            d_z = d * (before - n) * z * (1 - z)
            d_a_n = d_n * r
            for gate, value in enumerate((d_r, d_z, d_n, d_a_n)):
                d_gates_ref[:, bin_, gate] = value
            return d * z + jnp.dot(d_r, u_r) + jnp.dot(d_z, u_z) + jnp.dot(d_a_n, u_n), earlier

        start = d_last_ref[...], read(bins - 1)
        d_initial_ref[...] = lax.fori_loop(0, bins, retreat, start)[0]

    shapes = [gates.shape, (trials, size)]
    return _call(gru_backward, [transposed], [d_last, states, gates, *given], shapes)


def _call(program, whole, tiled, shapes):
    """Run `program` for every tile of the first axis of the arrays `tiled` and of the results."""

    def everything(shape):
        return pl.BlockSpec(shape, lambda tile: (0,) * len(shape))

    def tile_of(shape):
        return pl.BlockSpec((TILE, *shape[1:]), lambda tile: (tile, *(0,) * (len(shape) - 1)))

    units = whole[0].shape[-1]
    return pl.pallas_call(
        program,
        grid=(len(tiled[0]) // TILE,),
        in_specs=[*(everything(a.shape) for a in whole), *(tile_of(a.shape) for a in tiled)],
        out_specs=[tile_of(shape) for shape in shapes],
        out_shape=[jax.ShapeDtypeStruct(shape, tiled[0].dtype) for shape in shapes],
        compiler_params=triton.CompilerParams(num_warps=max(4, units // 16), num_stages=1),
        interpret=INTERPRET,
    )(*whole, *tiled)
