"""Inference with a trained model: initial conditions refined on each trial, trials in batches."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Int, Num

from sbtt_jax.model import posterior, stacking
from sbtt_jax.model.autoencoder import Code, Counts, Inference, Lengths, Mask
from sbtt_jax.model.autoencoder import SequentialAutoencoder as Model
from sbtt_jax.model.stacking import Conditions, Stack
from sbtt_jax.observations import masked_nll

# What the training trials tell about others: their initial conditions, for a posterior, or what
# stacked estimates need of them.
Prior = Float[np.ndarray, "trajectory decoder"] | Stack

REFINEMENT_RATE = 0.1  # largest step of refinement, in standard deviations of the prior
BATCH_SIZE = 64  # trials that each device infers at a time
POSTERIOR_BATCH_SIZE = 1024  # the same, by a posterior


def infer(model: Model, counts: Counts, observed: Mask, lengths: Lengths = None) -> Inference:
    """What a trained model infers about trials: a call without dropout, after refinement."""
    code = model.encode(counts, observed, lengths)
    code = refine(model, code, counts, observed) if model.refinement_steps else code
    return model.generate(code, counts.shape[1])


def refine(model: Model, code: Code, counts: Counts, observed: Mask) -> Code:
    """Move initial conditions toward their posterior modes.

    One encoder serves all trials, so it is exact for none. From its estimate, a few Adam steps
    follow the posterior of each trial: the likelihood of its observed counts, and a Gaussian prior
    around that estimate with standard deviation `refinement_scale` in each unit. Semi-amortized
    inference: Kim et al. 2018 (arXiv 1802.02550).
    """

    def moved(shift):
        return code._replace(ic=code.ic + model.refinement_scale * shift)

    def negative_log_posterior(shift):
        output = model.generate(moved(shift), counts.shape[1]).output
        nll, _ = masked_nll(model.observation, output, counts, observed)
        return nll + (shift**2).sum() / 2

    def improve(carry, _):
        shift, memory = carry
        step, memory = adam.update(jax.grad(negative_log_posterior)(shift), memory)
        return (shift + step, memory), None

    adam, shift = optax.adam(REFINEMENT_RATE), jnp.zeros_like(code.ic)
    (shift, _), _ = lax.scan(improve, (shift, adam.init(shift)), length=model.refinement_steps)
    return moved(shift)


_infer = nnx.jit(infer)
_infer_posterior = nnx.jit(posterior.infer)
_encode = nnx.jit(lambda model, *trials: model.encode(*trials).ic)


def infer_all(
    model: Model,
    counts: Num[np.ndarray, "trial bin neuron"],
    observed: Bool[np.ndarray, "trial bin neuron"],
    lengths: Int[np.ndarray, " trial"] | None = None,
    *,
    prior: Prior | None = None,
    condition: Conditions = None,
    batch_size: int = BATCH_SIZE,
) -> Inference:
    """`infer` for any number of trials, as NumPy arrays in their order.

    lengths: bins of each trial, if some are padded at the end, where all but `ic` is NaN.
    prior: `encode_all` of the training trials, for `posterior.infer` instead; or a `Stack`, for
      `stacking.combined` rates.
    condition: of each trial, if known; of use to a `Stack` alone.
    batch_size: trials that each device infers at a time.
    """
    if prior is None or isinstance(prior, Stack):
        inference = _by_batch(partial(_infer, model), batch_size, counts, observed, lengths)
        if prior is not None:
            own = inference.output, counts, observed, condition
            output, variance = stacking.combined(model, prior, *own)
            inference = inference._replace(output=output, variance=variance)
    else:  # decoding the prior costs as much for one trial as for many
        whole = partial(_infer_posterior, model, prior)
        inference = _by_batch(whole, POSTERIOR_BATCH_SIZE, counts, observed)
    if lengths is not None:
        padding = np.arange(counts.shape[1]) >= lengths[:, None]
        for array in jax.tree.leaves(inference._replace(ic=None)):
            array[padding] = np.nan
    return inference


def encode_all(
    model: Model,
    counts: Num[np.ndarray, "trial bin neuron"],
    observed: Bool[np.ndarray, "trial bin neuron"],
    lengths: Int[np.ndarray, " trial"] | None = None,
) -> Prior:
    """The initial condition that the encoder infers for each trial."""
    return _by_batch(partial(_encode, model), BATCH_SIZE, counts, observed, lengths)


def _by_batch(function: Callable, batch_size: int, *arrays: np.ndarray | None) -> Any:
    """`function` of so many trials per device at a time, its results joined, as NumPy arrays."""
    devices, count = jax.local_devices(), len(arrays[0])
    by_trial = NamedSharding(Mesh(devices, ("trial",)), PartitionSpec("trial"))
    size = min(batch_size, math.ceil(count / len(devices))) * len(devices)

    def parts() -> Iterator[Any]:
        for start in range(0, count, size):
            # The last batch is filled up with the last trial, so that one program serves all.
            rows = np.minimum(np.arange(start, start + size), count - 1)
            given = jax.tree.map(lambda array, rows=rows: array[rows], arrays)
            batch = function(*jax.device_put(given, by_trial))
            yield jax.tree.map(lambda part, start=start: np.asarray(part)[: count - start], batch)

    return jax.tree.map(lambda *part: np.concatenate(part), *parts())
