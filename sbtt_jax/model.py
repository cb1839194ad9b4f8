"""The sequential autoencoder: spike counts with holes in, firing rates without holes out.

    counts, observed                      trial x bin x neuron
      -> encoder, bidirectional GRU       both final states
      -> linear                           the decoder's initial condition, one a trial
      -> decoder, autonomous GRU          its state after each bin (no input but its own past)
      -> linear                           log-rates

Everything that a trial's rates can know passes through its initial condition, so that dynamics,
not smoothing, fill the holes. Zhu, Sedler et al. 2021 (arXiv 2111.00070).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num

from sbtt_jax import gru
from sbtt_jax.losses import poisson_nll_sum

REFINEMENT_RATE = 0.1  # standard deviations of the prior that a step of refinement goes at most


class Inference(NamedTuple):
    """What the model says of each trial."""

    lograte: Float[Array, "trial bin neuron"]  # natural log of expected counts per bin
    latent: Float[Array, "trial bin latent"]  # decoder state (or its projection) after each bin
    ic: Float[Array, "trial decoder"]  # the decoder's initial state


def uniform(bound: float) -> nnx.Initializer:
    """Initialiser uniform in +-bound, PyTorch's default with bound 1/sqrt(size)."""
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
        """As `gru` has them, gates beneath each other."""
        return gru.Weights(
            None if self.input_kernel is None else self.input_kernel.T,
            self.input_bias[...],
            self.hidden_kernel.T,
            self.hidden_bias[...],
        )


class Linear(nnx.Linear):
    """A linear layer that starts uniform in +-1/sqrt(fan in), bias included."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        draw = uniform(inputs**-0.5)
        super().__init__(inputs, outputs, kernel_init=draw, bias_init=draw, rngs=rngs)


class SequentialAutoencoder(nnx.Module):
    """The model of selective backpropagation through time.

    Args:
      neurons: how many neurons a bin has.
      encoder_size: GRU units in each direction of the encoder.
      decoder_size: GRU units of the decoder.
      latent_size: size of a linear bottleneck between decoder and readout; none if None.
      segment: bins that the GRUs run over at a time, of which the derivative keeps nothing but the
        state at their beginning; all at once if None.
      dropout: probability of dropping a unit before and after the initial condition's linear layer.
      input_scaling: divide each trial's input by its observed fraction, so that its size does not
        depend on how many neurons were sampled.
      mask_input: hand the encoder the mask beside the counts, so that it can tell a missing sample
        from a silent one.
      refinement_steps: steps by which `infer` improves what the encoder says; none if 0.
      refinement_scale: how far from the encoder's initial condition the refined one is expected.
      rngs: source of the initial weights.
    """

    def __init__(
        self,
        neurons: int,
        *,
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
        self.forward_encoder = GRU(inputs, encoder_size, rngs=rngs)
        self.backward_encoder = GRU(inputs, encoder_size, rngs=rngs)
        self.ic_linear = Linear(2 * encoder_size, decoder_size, rngs=rngs)
        self.decoder = GRU(0, decoder_size, rngs=rngs)
        self.bottleneck = Linear(decoder_size, latent_size, rngs=rngs) if latent_size else None
        self.readout = Linear(latent_size or decoder_size, neurons, rngs=rngs)
        self.segment = segment
        self.dropout = nnx.Dropout(dropout)
        self.input_scaling, self.mask_input = input_scaling, mask_input
        self.refinement_steps, self.refinement_scale = refinement_steps, refinement_scale

    def __call__(
        self,
        counts: Num[Array, "trial bin neuron"],
        observed: Bool[Array, "trial bin neuron"],
        lengths: Int[Array, " trial"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
        dropout: Float[Array, ""] | None = None,
    ) -> Inference:
        """Infer every neuron's rate in every bin of each trial from the observed counts.

        Counts where `observed` is false are never read, whatever stands there. `lengths` are the
        bins of each trial where some are padded at the end: the encoder does not run over padding,
        and what is inferred there means nothing. Dropout is applied where `rngs` is given
        (training) and not otherwise (evaluation), at the rate `dropout`, which may be traced, or
        the model's own where that is None.
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
        dropout: Float[Array, ""] | None = None,
    ) -> Float[Array, "trial decoder"]:
        """Each trial's initial condition."""
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
        else:  # each trial is read to its own end, and backward from there; padding comes after
            final = jnp.maximum(lengths, 1) - 1
            order = (final - jnp.arange(bins)[:, None]) % bins  # bin trial
            backward = jnp.take_along_axis(inputs, order[:, None], axis=0)

        def read(weights, inputs):
            last, states = gru.unroll(weights, inputs, rest, bins, self.segment)
            return last.T if lengths is None else states[final, :, jnp.arange(len(final))]

        ways = self.forward_encoder.weights, self.backward_encoder.weights
        last, first = gru.side_by_side(read, ways, (inputs, backward))  # trial encoder
        summary = self._drop(jnp.concatenate([last, first], axis=-1), rngs, dropout)
        return self._drop(self.ic_linear(summary), rngs, dropout)

    def decode(
        self, ic: Float[Array, "trial decoder"], bins: int
    ) -> Float[Array, "trial bin latent"]:
        """Latents that the dynamics unroll from initial conditions, without further input."""
        _, states = gru.unroll(self.decoder.weights, None, ic.T, bins, self.segment)
        states = states.transpose(2, 0, 1)  # trial bin decoder
        return states if self.bottleneck is None else self.bottleneck(states)

    def generate(self, ic: Float[Array, "trial decoder"], bins: int) -> Inference:
        """What follows from initial conditions: all of a trial's latents and log-rates."""
        latent = self.decode(ic, bins)  # trial bin latent
        return Inference(self.readout(latent), latent, ic)

    def infer(
        self,
        counts: Num[Array, "trial bin neuron"],
        observed: Bool[Array, "trial bin neuron"],
        lengths: Int[Array, " trial"] | None = None,
    ) -> Inference:
        """What a trained model says of trials: as a call without `rngs`, after refinement."""
        ic = self.encode(counts, observed, lengths)
        if self.refinement_steps:
            ic = self.refine(ic, counts, observed)
        return self.generate(ic, bins=counts.shape[1])

    def refine(
        self,
        ic: Float[Array, "trial decoder"],
        counts: Num[Array, "trial bin neuron"],
        observed: Bool[Array, "trial bin neuron"],
    ) -> Float[Array, "trial decoder"]:
        """Initial conditions moved towards those most probable by the observed counts.

        One encoder serves all trials, and so is exact for none. From its word, a few steps of Adam
        go towards the largest posterior of each trial by itself: Poisson likelihood of its observed
        counts, and a Gaussian prior about the encoder's initial condition, `refinement_scale` its
        standard deviation in each unit. Semi-amortized inference: Kim et al. 2018 (arXiv
        1802.02550).
        """

        def negative_log_posterior(shift):
            lograte = self.generate(ic + self.refinement_scale * shift, counts.shape[1]).lograte
            nll, _ = poisson_nll_sum(lograte, counts, observed)
            return nll + (shift**2).sum() / 2

        def improve(carry, _):
            shift, memory = carry
            step, memory = adam.update(jax.grad(negative_log_posterior)(shift), memory)
            return (shift + step, memory), None

        adam = optax.adam(REFINEMENT_RATE)
        start = jnp.zeros_like(ic)
        (shift, _), _ = lax.scan(improve, (start, adam.init(start)), length=self.refinement_steps)
        return ic + self.refinement_scale * shift

    def _drop(
        self, x: Float[Array, "trial unit"], rngs: nnx.Rngs | None, rate: Float[Array, ""] | None
    ) -> Float[Array, "trial unit"]:
        if rngs is not None and rate is not None:  # nnx.Dropout asks for one known at compile time
            kept = jax.random.bernoulli(rngs.dropout(), 1 - rate, x.shape)
            return jnp.where(kept, x / (1 - rate), 0)
        return self.dropout(x, deterministic=rngs is None, rngs=rngs)
