"""Inference with a trained model: initial conditions refined on each trial, trials in batches."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Int, Num

from sbtt_jax.model import factors, posterior, stacking
from sbtt_jax.model.autoencoder import Code, Counts, Inference, Lengths, Mask
from sbtt_jax.model.autoencoder import SequentialAutoencoder as Model
from sbtt_jax.model.factors import Factors
from sbtt_jax.model.stacking import Conditions, Identities, Stack
from sbtt_jax.observations import masked_nll, output_of, predicted

REFINEMENT_RATE = 0.1  # largest step of refinement, in standard deviations of the prior
BATCH_SIZE = 128  # trials that each device infers at a time
POSTERIOR_BATCH_SIZE = 2048  # the same, that a posterior weighs trajectories for


Infer = Callable[..., Inference]  # `infer_all` or `infer_with_variance`


class Prior(NamedTuple):
    """What the training trials tell about others; None where a model does not need it."""

    ic: Float[np.ndarray, "trajectory decoder"] | None = None  # theirs, for a posterior
    own: float = 0.0  # weight, beside the posterior, of what the encoder infers about a trial
    stack: Stack | None = None
    factors: Factors | None = None

    @property
    def weights(self) -> list[float]:
        """How much each of `stacking.ESTIMATES` counts in the rates."""
        if self.stack is not None:
            return self.stack.weights.tolist()
        own = 1.0 if self.ic is None else self.own
        return [own, 1 - own, *[0.0] * len(stacking.SIMPLE)]


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


def _compiled(function: Callable) -> Callable:
    """`function` of a model, jitted. (`nnx.jit` returns a model's weights too, and puts them where
    the trials are: what comes next would be another program.)"""

    @partial(jax.jit, static_argnums=0, static_argnames="bins")
    def of_state(graph, state, *arrays, **bins):
        return function(nnx.merge(graph, state), *arrays, **bins)

    return lambda model, *arrays, **bins: of_state(*nnx.split(model), *arrays, **bins)


# Few programs, which all models of a run and all that is asked of them share.
_encode, _refine, _generate = map(_compiled, (Model.encode, refine, Model.generate))
_weigh = jax.jit(posterior.infer, static_argnums=0)


def infer(model: Model, counts: Counts, observed: Mask, lengths: Lengths = None) -> Inference:
    """What a trained model infers about trials: a call without dropout, after refinement."""
    code = _encode(model, counts, observed, lengths)
    code = _refine(model, code, counts, observed) if model.refinement_steps else code
    return _generate(model, code, bins=counts.shape[1])


def infer_all(
    model: Model,
    counts: Num[np.ndarray, "trial bin neuron"],
    observed: Bool[np.ndarray, "trial bin neuron"],
    lengths: Int[np.ndarray, " trial"] | None = None,
    *,
    prior: Prior | None = None,
    condition: Conditions = None,
    identity: Identities | None = None,
    with_variance: bool = False,
    batch_size: int = BATCH_SIZE,
) -> Inference:
    """`infer` for any number of trials, as NumPy arrays in their order.

    lengths: bins of each trial, if some are padded at the end, where all but `ic` is NaN.
    prior: with `ic`, inference is `posterior.infer` instead, or a mean of both; with a `stack`,
      rates are `stacking.combined`; with `factors`, latents are those, and rates follow no others.
    condition: of each trial, if known; of use to a stack alone.
    identity: of each trial, by `stacking.identities`, if more was observed of it; of the same use.
    with_variance: whether the rates of a stack come with their variance.
    batch_size: trials that each device infers at a time.
    """
    prior = prior or Prior()
    if prior.factors is not None:
        model = factors.project(model, prior.factors)
    if prior.ic is None or prior.own:
        inference = _by_batch(partial(infer, model), batch_size, counts, observed, lengths)
    if prior.ic is not None and prior.own < 1:

        def decode(ic):
            return _generate(model, Code(ic), bins=counts.shape[1])

        weigh = partial(_weigh, model.observation, _by_batch(decode, batch_size, prior.ic))
        at_once = min(POSTERIOR_BATCH_SIZE, math.ceil(len(counts) / jax.local_device_count()))
        other = _by_batch(weigh, at_once, counts, observed)
        inference = mixed(model, prior.own, inference, other) if prior.own else other
    if prior.stack is not None:
        own = inference.output, counts, observed, condition, identity
        output, variance = stacking.combined(model, prior.stack, *own, with_variance=with_variance)
        inference = inference._replace(output=output, variance=variance)
    if prior.factors is not None:
        inference = inference._replace(latent=prior.factors(inference.latent))
    if lengths is not None:
        padding = np.arange(counts.shape[1]) >= lengths[:, None]
        for array in jax.tree.leaves(inference._replace(ic=None)):
            array[padding] = np.nan
    return inference


def infer_with_variance(
    model: Model,
    counts: Num[np.ndarray, "trial bin neuron"],
    observed: Bool[np.ndarray, "trial bin neuron"],
    lengths: Int[np.ndarray, " trial"] | None = None,
    *,
    prior: Prior | None,
    condition: Conditions = None,
) -> Inference:
    """`infer_all`, whose variance has all that a model can tell of its error.

    With factors, the square of what leaving out others changes: models agree on few factors without
    being right about them. With a stack, whose network gives no variance, that of rates that are
    inferred from one half of the observed points or the other, about those from all of them. Trials
    are inferred twice or three times then.
    """

    if prior is None:
        return infer_all(model, counts, observed, lengths)
    identity = None if prior.stack is None else stacking.identities(counts, observed)

    def inferred(observed=observed, prior=prior, **more) -> Inference:
        how = {"prior": prior, "condition": condition, "identity": identity}
        return infer_all(model, counts, observed, lengths, **how, **more)

    found, others = inferred(with_variance=True), []
    if prior.factors is not None and factors.project(model, prior.factors) is not model:
        others = [(1.0, inferred(prior=prior._replace(factors=None)))]
    if prior.stack is not None:
        half = np.random.default_rng(0).random(observed.shape[1:]) < 0.5
        others += [(0.5, inferred(observed & points)) for points in (half, ~half)]
    rates, variance = model.observation.mean(found.output), found.variance
    for weight, other in others:
        apart = weight * (model.observation.mean(other.output) - rates) ** 2
        variance = apart if variance is None else variance + apart
    return found._replace(variance=variance)


def mixed(model: Model, share: float, own: Inference, other: Inference) -> Inference:
    """The mean of two inferences, of expected values, latents and initial conditions, with this
    weight of the first; its variance is that of the second, and that between them."""
    first, second = (predicted(model.observation, one.output) for one in (own, other))
    apart = (first - second)[..., : model.neurons] ** 2
    return Inference(
        output_of(model.observation, share * first + (1 - share) * second),
        share * own.latent + (1 - share) * other.latent,
        share * own.ic + (1 - share) * other.ic,
        variance=(1 - share) * other.variance + share * (1 - share) * apart,
    )


def encode_all(
    model: Model,
    counts: Num[np.ndarray, "trial bin neuron"],
    observed: Bool[np.ndarray, "trial bin neuron"],
    lengths: Int[np.ndarray, " trial"] | None = None,
) -> Float[np.ndarray, "trial decoder"]:
    """The initial condition that the encoder infers for each trial."""
    trials = counts, observed, lengths
    return _by_batch(lambda *batch: _encode(model, *batch).ic, BATCH_SIZE, *trials)


def _by_batch(function: Callable, batch_size: int, *arrays: np.ndarray | None) -> Any:
    """`function` of so many trials per device at a time, its results joined, as NumPy arrays.

    Of fewer trials, a quarter as many at a time, or a quarter of that: each size is a program.
    """
    devices, count = jax.local_devices(), len(arrays[0])
    by_trial = NamedSharding(Mesh(devices, ("trial",)), PartitionSpec("trial"))
    while 0 < count <= batch_size // 4 * len(devices):
        batch_size //= 4
    size = batch_size * len(devices)

    whole = None
    for start in range(0, count, size):
        # The last batch is filled up with the last trial, so that one program serves all.
        rows = np.minimum(np.arange(start, start + size), count - 1)
        given = jax.tree.map(lambda array, rows=rows: array[rows], arrays)
        part = jax.tree.map(np.asarray, function(*jax.device_put(given, by_trial)))
        if whole is None:  # filled as parts come, for they may be large
            whole = jax.tree.map(lambda own: np.empty((count, *own.shape[1:]), own.dtype), part)
        for every, own in zip(*map(jax.tree.leaves, (whole, part)), strict=True):
            every[start : start + size] = own[: count - start]
    return whole
