"""Inference with a trained model: initial conditions refined on each trial, trials in batches."""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Num

from sbtt_jax.model.autoencoder import Inference, SequentialAutoencoder
from sbtt_jax.observations import masked_nll

REFINEMENT_RATE = 0.1  # largest step of refinement, in standard deviations of the prior
BATCH_SIZE = 64  # trials that each device infers at a time


def infer(
    model: SequentialAutoencoder,
    counts: Num[Array, "trial bin neuron"],
    observed: Bool[Array, "trial bin neuron"],
    lengths: Int[Array, " trial"] | None = None,
) -> Inference:
    """What a trained model infers about trials: a call without dropout, after refinement."""
    ic = model.encode(counts, observed, lengths)
    if model.refinement_steps:
        ic = refine(model, ic, counts, observed)
    return model.generate(ic, bins=counts.shape[1])


def refine(
    model: SequentialAutoencoder,
    ic: Float[Array, "trial decoder"],
    counts: Num[Array, "trial bin neuron"],
    observed: Bool[Array, "trial bin neuron"],
) -> Float[Array, "trial decoder"]:
    """Move initial conditions toward their posterior modes.

    One encoder serves all trials, so it is exact for none. Starting from its estimate, a few Adam
    steps follow the posterior of each trial: the likelihood of its observed counts, and a Gaussian
    prior around the encoder's estimate with standard deviation `refinement_scale` in each unit.
    Semi-amortized inference: Kim et al. 2018 (arXiv 1802.02550).
    """

    def negative_log_posterior(shift):
        output = model.generate(ic + model.refinement_scale * shift, counts.shape[1]).output
        nll, _ = masked_nll(model.observation, output, counts, observed)
        return nll + (shift**2).sum() / 2

    def improve(carry, _):
        shift, memory = carry
        step, memory = adam.update(jax.grad(negative_log_posterior)(shift), memory)
        return (shift + step, memory), None

    adam = optax.adam(REFINEMENT_RATE)
    start = jnp.zeros_like(ic)
    (shift, _), _ = lax.scan(improve, (start, adam.init(start)), length=model.refinement_steps)
    return ic + model.refinement_scale * shift


_infer = nnx.jit(infer)


def infer_all(
    model: SequentialAutoencoder,
    counts: Num[np.ndarray, "trial bin neuron"],
    observed: Bool[np.ndarray, "trial bin neuron"],
    lengths: Int[np.ndarray, " trial"] | None = None,
    *,
    batch_size: int = BATCH_SIZE,
) -> Inference:
    """`infer` for any number of trials, as NumPy arrays in their order.

    lengths: bins of each trial, if some are padded at the end; the readout and latents are NaN
      there.
    batch_size: trials that each device infers at a time.
    """
    devices = jax.local_devices()
    by_trial = NamedSharding(Mesh(devices, ("trial",)), PartitionSpec("trial"))
    size = min(batch_size, math.ceil(len(counts) / len(devices))) * len(devices)

    def parts() -> Iterator[Inference]:
        for start in range(0, len(counts), size):
            # The last batch is filled up with the last trial, so that one program serves all.
            rows = np.minimum(np.arange(start, start + size), len(counts) - 1)
            given = jax.tree.map(lambda array, rows=rows: array[rows], (counts, observed, lengths))
            batch = _infer(model, *jax.device_put(given, by_trial))
            yield Inference(*(np.asarray(part)[: len(counts) - start] for part in batch))

    inference = Inference(*(np.concatenate(part) for part in zip(*parts(), strict=True)))
    if lengths is not None:
        padding = np.arange(counts.shape[1]) >= lengths[:, None]
        inference.output[padding] = inference.latent[padding] = np.nan
    return inference
