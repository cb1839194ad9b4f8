"""The sequential autoencoder: spike counts with holes in, firing rates without holes out.

    counts, observed                      trial x bin x neuron
      -> encoder, bidirectional GRU       both final states
      -> linear                           the decoder's initial condition, one per trial
      -> decoder, autonomous GRU          its state after each bin, driven by nothing but its past
      -> linear                           readout: log-rates, for Poisson observations

All that is inferred about a trial passes through its initial condition, so that dynamics, not
smoothing, fill the holes. Zhu, Sedler et al. 2021 (arXiv 2111.00070). docs/model.md has the
equations.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Num

from sbtt_jax.model import gru
from sbtt_jax.observations import OBSERVATIONS, Observation


class Inference(NamedTuple):
    """What the model infers about each trial."""

    output: Float[Array, "trial bin output"]  # readout; Poisson: log of expected counts per bin
    latent: Float[Array, "trial bin latent"]  # decoder state (or its projection) after each bin
    ic: Float[Array, "trial decoder"]  # the decoder's initial condition


def uniform(bound: float) -> nnx.Initializer:
    """Uniform in +-bound, PyTorch's default with bound 1/sqrt(size)."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


class GRU(nnx.Module):
    """Weights of one GRU; `inputs=0` makes it autonomous."""

    def __init__(self, inputs: int, hidden: int, *, rngs: nnx.Rngs):
        draw = uniform(hidden**-0.5)
        self.input_kernel = nnx.Param(draw(rngs.params(), (inputs, 3 * hidden))) if inputs else None
        self.input_bias = nnx.Param(draw(rngs.params(), (3 * hidden,)))
        self.hidden_kernel = nnx.Param(draw(rngs.params(), (hidden, 3 * hidden)))
        self.hidden_bias = nnx.Param(draw(rngs.params(), (3 * hidden,)))

    @property
    def weights(self) -> gru.Weights:
        """In the layout of `gru`, gates along the first axis."""
        return gru.Weights(
            None if self.input_kernel is None else self.input_kernel.T,
            self.input_bias[...],
            self.hidden_kernel.T,
            self.hidden_bias[...],
        )


class Linear(nnx.Linear):
    """A linear layer initialized uniformly in +-1/sqrt(fan in), bias included."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        draw = uniform(inputs**-0.5)
        super().__init__(inputs, outputs, kernel_init=draw, bias_init=draw, rngs=rngs)


class SequentialAutoencoder(nnx.Module):
    """The model of selective backpropagation through time.

    Args:
      neurons: number of neurons.
      observation: name of the observation model, a row of `observations.OBSERVATIONS`.
      encoder_size: GRU units in each direction of the encoder.
      decoder_size: GRU units of the decoder.
      latent_size: size of a linear bottleneck between decoder and readout; None: no bottleneck.
      segment: bins that the GRUs run at a time; the derivative keeps only the states between
        segments. None: all bins at once.
      dropout: probability of dropping a unit before and after the initial condition's linear layer.
      input_scaling: divide each trial's input by its observed fraction, so that its size does not
        depend on how many neurons were sampled.
      mask_input: give the encoder the mask beside the counts, so that it can tell a missing sample
        from a silent one.
      refinement_steps, refinement_scale: of `inference.refine`; 0 steps: no refinement.
      rngs: source of the initial weights.
    """

    def __init__(
        self,
        neurons: int,
        *,
        observation: str = "poisson",
        encoder_size: int = 50,
        decoder_size: int = 50,
        latent_size: int | None = None,
        segment: int | None = None,
        dropout: float = 0.1,
        input_scaling: bool = False,
        mask_input: bool = False,
        refinement_steps: int = 0,
        refinement_scale: float = 0.5,
        rngs: nnx.Rngs,
    ):
        inputs = neurons * (2 if mask_input else 1)
        self.neurons, self.observation_name = neurons, observation
        self.forward_encoder = GRU(inputs, encoder_size, rngs=rngs)
        self.backward_encoder = GRU(inputs, encoder_size, rngs=rngs)
        self.ic_linear = Linear(2 * encoder_size, decoder_size, rngs=rngs)
        self.decoder = GRU(0, decoder_size, rngs=rngs)
        self.bottleneck = Linear(decoder_size, latent_size, rngs=rngs) if latent_size else None
        outputs = neurons * self.observation.outputs
        self.readout = Linear(latent_size or decoder_size, outputs, rngs=rngs)
        self.segment, self.dropout = segment, dropout
        self.input_scaling, self.mask_input = input_scaling, mask_input
        self.refinement_steps, self.refinement_scale = refinement_steps, refinement_scale

    @property
    def observation(self) -> Observation:
        """The observation model."""
        return OBSERVATIONS[self.observation_name]

    def __call__(
        self,
        counts: Num[Array, "trial bin neuron"],
        observed: Bool[Array, "trial bin neuron"],
        lengths: Int[Array, " trial"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
        dropout: float | Float[Array, ""] | None = None,
    ) -> Inference:
        """Infer every neuron's rate in every bin of each trial from the observed counts.

        Counts where `observed` is false are never read. `lengths` are the bins of each trial, if
        some are padded at the end; what is inferred in the padding is meaningless. Dropout is
        active if `rngs` is given (training), at the rate `dropout`, which may be traced, or the
        model's own.
        """
        ic = self.encode(counts, observed, lengths, rngs=rngs, dropout=dropout)  # trial decoder
        return self.generate(ic, bins=counts.shape[1])

    def encode(
        self,
        counts: Num[Array, "trial bin neuron"],
        observed: Bool[Array, "trial bin neuron"],
        lengths: Int[Array, " trial"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
        dropout: float | Float[Array, ""] | None = None,
    ) -> Float[Array, "trial decoder"]:
        """Each trial's initial condition; arguments as of a call."""
        dtype = self.ic_linear.kernel.dtype
        bins = counts.shape[1]
        inputs = jnp.where(observed, counts, 0).astype(dtype)
        if self.input_scaling:
            share = observed.mean((1, 2), keepdims=True, dtype=dtype)
            if lengths is not None:
                share = share * bins / jnp.maximum(lengths, 1)[:, None, None]
            inputs = inputs / jnp.maximum(share, 1e-6)
        if self.mask_input:
            inputs = jnp.concatenate([inputs, observed.astype(dtype)], axis=-1)
        inputs = inputs.transpose(1, 2, 0)  # bin input trial
        rest = jnp.zeros((self.forward_encoder.hidden_kernel.shape[0], inputs.shape[2]), dtype)
        if lengths is None:
            backward = inputs[::-1]
        else:  # read each trial to its own end, and backward from there; padding comes last
            final = jnp.maximum(lengths, 1) - 1
            order = (final - jnp.arange(bins)[:, None]) % bins  # bin trial
            backward = jnp.take_along_axis(inputs, order[:, None], axis=0)

        def read(weights, inputs):
            last, states = gru.unroll(weights, inputs, rest, bins, self.segment)
            return last.T if lengths is None else states[final, :, jnp.arange(len(final))]

        directions = self.forward_encoder.weights, self.backward_encoder.weights
        last, first = gru.side_by_side(read, directions, (inputs, backward))  # trial encoder
        rate = self.dropout if dropout is None else dropout
        summary = _drop(jnp.concatenate([last, first], axis=-1), rngs, rate)
        return _drop(self.ic_linear(summary), rngs, rate)

    def decode(
        self, ic: Float[Array, "trial decoder"], bins: int
    ) -> Float[Array, "trial bin latent"]:
        """Latents that the dynamics unroll from initial conditions, without further input."""
        _, states = gru.unroll(self.decoder.weights, None, ic.T, bins, self.segment)
        states = states.transpose(2, 0, 1)  # trial bin decoder
        return states if self.bottleneck is None else self.bottleneck(states)

    def generate(self, ic: Float[Array, "trial decoder"], bins: int) -> Inference:
        """All that follows from initial conditions: latents and readout of every bin."""
        latent = self.decode(ic, bins)  # trial bin latent
        return Inference(self.readout(latent), latent, ic)


def _drop(
    x: Float[Array, "trial unit"], rngs: nnx.Rngs | None, rate: float | Float[Array, ""]
) -> Float[Array, "trial unit"]:
    # Not nnx.Dropout, whose rate must be known when the program is compiled.
    if rngs is None or (isinstance(rate, float | int) and rate == 0):
        return x
    kept = jax.random.bernoulli(rngs.dropout(), 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0)
