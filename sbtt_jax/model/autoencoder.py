"""The sequential autoencoder: spike counts with holes in, firing rates without holes out.

    counts, observed                      trial x bin x neuron
      -> encoder, bidirectional GRU       both final states
      -> linear                           the decoder's initial condition, one per trial
      -> decoder, GRU                     its state after each bin, driven by nothing but its past
                                          and, if the model has them, inputs inferred for each bin
      -> linear                           readout: log-rates, for Poisson observations; if the model
                                          has it, what smoothing each neuron's own counts adds

Without inferred inputs, all that is inferred about a trial passes through its initial condition,
so that dynamics, not smoothing, fill the holes. Zhu, Sedler et al. 2021 (arXiv 2111.00070).
docs/model.md has the equations.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num

from sbtt_jax import observations
from sbtt_jax.model import gru
from sbtt_jax.model.smoothing import Smoothing
from sbtt_jax.observations import Observation

Counts = Num[Array, "trial bin neuron"]
Mask = Bool[Array, "trial bin neuron"]
Lengths = Int[Array, " trial"] | None
Latents = Float[Array, "trial bin latent"]
InitialConditions = Float[Array, "trial decoder"]
Inputs = Float[Array, "trial bin inferred"] | None
Output = Float[Array, "trial bin output"]
Units = Float[Array, "*trial_and_bin unit"]
Probability = float | Float[Array, ""]


class Code(NamedTuple):
    """What the encoder passes on about each trial, and all that the decoder is given."""

    ic: InitialConditions
    inputs: Inputs = None  # inferred for each bin; None if the model has none
    smoothed: Output | None = None  # added to the readout; None if the model smooths nothing


class Inference(NamedTuple):
    """What the model infers about each trial."""

    output: Output  # readout; Poisson: log of expected counts per bin
    latent: Latents  # the decoder's state, or its projection, after each bin
    ic: InitialConditions  # the decoder's
    inputs: Inputs = None  # of the decoder, inferred for each bin; None if the model has none
    # Of the expected values, as far as the model itself knows; None if it does not.
    variance: Float[Array, "trial bin neuron"] | None = None


def uniform(size: int) -> nnx.Initializer:
    """Uniform in +-1/sqrt(size), PyTorch's default."""
    ends = -(size**-0.5), size**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, *ends)


class GRU(nnx.Module):
    """Weights of one GRU; `inputs=0` makes it autonomous."""

    def __init__(self, inputs: int, hidden: int, *, rngs: nnx.Rngs):
        draw = uniform(hidden)
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
        draw = uniform(inputs)
        super().__init__(inputs, outputs, kernel_init=draw, bias_init=draw, rngs=rngs)


class Statistic(nnx.Variable):
    """A number about the training data that is part of a model and is not trained."""


class SequentialAutoencoder(nnx.Module):
    """The model of selective backpropagation through time.

    neurons: how many there are.
    segment: bins that the GRUs run at a time; the derivative keeps only the states between
      segments. None: all bins at once.
    rngs: source of the initial weights.

    Other arguments are the settings of the same names, `config.ModelSettings`.
    """

    def __init__(
        self,
        neurons: int,
        *,
        observation: str = "poisson",
        event_minimum: float = 0.0,
        noise: float | str | None = None,
        encoder_size: int = 50,
        decoder_size: int = 50,
        latent_size: int | None = None,
        rank: int | str | None = None,
        segment: int | None = None,
        dropout: float = 0.1,
        input_scaling: bool = False,
        mask_input: bool = False,
        refinement_steps: int = 0,
        refinement_scale: float = 0.5,
        bounded_ic: bool = False,
        posterior: bool = False,
        stacked: bool = False,
        inferred_inputs: int = 0,
        standardize: bool = False,
        smoothing: bool = False,
        rngs: nnx.Rngs,
    ):
        inputs = neurons * (2 if mask_input else 1)
        self.neurons, self.observation_name = neurons, observation
        self.event_minimum, self.noise = event_minimum, noise
        self.forward_encoder = GRU(inputs, encoder_size, rngs=rngs)
        self.backward_encoder = GRU(inputs, encoder_size, rngs=rngs)
        self.ic_linear = Linear(2 * encoder_size, decoder_size, rngs=rngs)
        self.decoder = GRU(inferred_inputs, decoder_size, rngs=rngs)
        both = 2 * encoder_size
        self.input_linear = Linear(both, inferred_inputs, rngs=rngs) if inferred_inputs else None
        self.bottleneck = Linear(decoder_size, latent_size, rngs=rngs) if latent_size else None
        outputs = neurons * self.observation.outputs
        self.readout = Linear(latent_size or decoder_size, outputs, rngs=rngs)
        if smoothing:  # training begins with what smoothing alone infers
            self.readout.kernel[...] = jnp.zeros_like(self.readout.kernel)
            self.readout.bias[...] = jnp.zeros_like(self.readout.bias)
        self.mean = Statistic(jnp.ones(neurons)) if standardize else None
        self.deviation = Statistic(jnp.ones(neurons)) if standardize else None
        self.smoothing = Smoothing(neurons, self.observation) if smoothing else None
        self.segment, self.dropout, self.rank = segment, dropout, rank
        self.input_scaling, self.mask_input = input_scaling, mask_input
        self.refinement_steps, self.refinement_scale = refinement_steps, refinement_scale
        self.bounded_ic, self.posterior, self.stacked = bounded_ic, posterior, stacked

    @property
    def observation(self) -> Observation:
        own = {"event_minimum": self.event_minimum, "noise": self.noise}
        return observations.of(self.observation_name, **own)

    def __call__(
        self, counts: Counts, observed: Mask, lengths: Lengths = None, **training: Any
    ) -> Inference:
        """Infer every neuron's rate in every bin of each trial; arguments as of `encode`."""
        return self.generate(self.encode(counts, observed, lengths, **training), counts.shape[1])

    def encode(
        self,
        counts: Counts,
        observed: Mask,
        lengths: Lengths = None,
        *,
        rngs: nnx.Rngs | None = None,
        dropout: Probability | None = None,
    ) -> Code:
        """What is inferred about each trial from the observed counts; others are never read.

        lengths: bins of each trial, if some are padded at the end; what is inferred there is
          meaningless.
        rngs, dropout: dropout is active if `rngs` is given (training), at the rate `dropout`, which
          may be traced, or the model's own.
        """
        dtype = self.ic_linear.kernel.dtype
        bins = counts.shape[1]
        counts = jnp.where(observed, counts, 0).astype(dtype)
        inputs, smoothed = counts, None
        if self.mean is not None:
            mean, deviation = lax.stop_gradient((self.mean[...], self.deviation[...]))
            inputs = jnp.where(observed, (counts - mean) / deviation, 0)
            if self.smoothing is not None:
                smoothed = self.smoothing(counts, observed, mean, deviation)
        if self.input_scaling:
            share = observed.mean((1, 2), keepdims=True, dtype=dtype)
            if lengths is not None:
                share = share * bins / jnp.maximum(lengths, 1)[:, None, None]
            inputs = inputs / jnp.maximum(share, 1e-6)
        if self.mask_input:
            inputs = jnp.concatenate([inputs, observed.astype(dtype)], axis=-1)
        inputs = inputs.transpose(1, 2, 0)  # bin input trial
        rest = jnp.zeros((self.forward_encoder.hidden_kernel.shape[0], inputs.shape[2]), dtype)
        if lengths is not None:
            final = jnp.maximum(lengths, 1) - 1
            order = (final - jnp.arange(bins)[:, None]) % bins  # bin trial

        def reverse(x):  # in time, each trial from its own end; padding comes last
            return x[::-1] if lengths is None else jnp.take_along_axis(x, order[:, None], axis=0)

        def at_end(last, states):
            return last.T if lengths is None else states[final, :, jnp.arange(len(final))]

        def read(weights, inputs):
            last, states = gru.unroll(weights, inputs, rest, bins, self.segment)
            return at_end(last, states) if self.input_linear is None else states

        directions = self.forward_encoder.weights, self.backward_encoder.weights
        ends = states = gru.side_by_side(read, directions, (inputs, reverse(inputs)))
        if self.input_linear is not None:
            ends = [at_end(each[-1], each) for each in states]
        rate = self.dropout if dropout is None else dropout
        summary = _drop(jnp.concatenate(ends, axis=-1), rngs, rate)  # trial encoder
        ic = self.ic_linear(summary)
        ic = jnp.tanh(ic) if self.bounded_ic else _drop(ic, rngs, rate)
        if self.input_linear is None:
            return Code(ic, None, smoothed)
        forward, backward = states  # bin encoder trial
        both = jnp.concatenate([forward, reverse(backward)], axis=1).transpose(2, 0, 1)
        return Code(ic, self.input_linear(_drop(both, rngs, rate)), smoothed)  # trial bin input

    def decode(self, ic: InitialConditions, bins: int, inputs: Inputs = None) -> Latents:
        """Latents that the dynamics unroll from initial conditions, driven by inputs, if any."""
        inputs = None if inputs is None else inputs.transpose(1, 2, 0)
        _, states = gru.unroll(self.decoder.weights, inputs, ic.T, bins, self.segment)
        states = states.transpose(2, 0, 1)  # trial bin decoder
        return states if self.bottleneck is None else self.bottleneck(states)

    def without_bottleneck(self) -> "SequentialAutoencoder":
        """The same model, whose latents are the decoder's whole state, and so is what it reads."""
        if self.bottleneck is None:
            return self
        whole, first, second = nnx.clone(self), self.bottleneck, self.readout
        units, outputs = first.kernel.shape[0], second.kernel.shape[1]
        whole.bottleneck = None
        whole.readout = nnx.eval_shape(lambda: Linear(units, outputs, rngs=nnx.Rngs(0)))
        kernel = jnp.asarray(second.kernel[...])
        if fixed := self.neurons * self.observation.constant:  # which are read from its bias
            kernel = kernel.at[:, -fixed:].set(0)
        whole.readout.kernel = nnx.Param(first.kernel[...] @ kernel)
        whole.readout.bias = nnx.Param(first.bias[...] @ kernel + second.bias[...])
        return whole

    def generate(self, code: Code, bins: int) -> Inference:
        """All that follows from what the encoder inferred: latents and readout of every bin."""
        latent = self.decode(code.ic, bins, code.inputs)
        # Bins first, as the GRU leaves them: latents of all trials are the factor of a product.
        output = self.readout(latent.swapaxes(0, 1)).swapaxes(0, 1)
        if fixed := self.neurons * self.observation.constant:
            same = jnp.broadcast_to(self.readout.bias[-fixed:], (*output.shape[:-1], fixed))
            output = jnp.concatenate([output[..., :-fixed], same], axis=-1)
        if code.smoothed is not None:
            output = output + code.smoothed
        if self.mean is not None:
            moments = lax.stop_gradient((self.mean[...], self.deviation[...]))
            output = self.scaled(output) + self.observation.from_moments(*moments)
        return Inference(output, latent, code.ic, code.inputs)

    def scaled(self, change: Output | np.ndarray) -> Output | np.ndarray:
        """What a change of the readout changes in the output: as much, but for means of signed
        values. In a model that smooths, those are read out in units of their deviations."""
        if self.smoothing is None or not self.observation.is_signed:
            return change
        xp, size = change.__array_namespace__(), self.neurons
        deviation = lax.stop_gradient(self.deviation[...])
        return xp.concat([change[..., :size] * deviation, change[..., size:]], axis=-1)


def _drop(x: Units, rngs: nnx.Rngs | None, rate: Probability) -> Units:
    # Not nnx.Dropout, whose rate must be known when the program is compiled.
    if rngs is None or (isinstance(rate, float | int) and rate == 0):
        return x
    kept = jax.random.bernoulli(rngs.dropout(), 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0)
