"""Rates from a posterior over trajectories.

Each training trial's trajectory, decoded from what the encoder inferred about it, is a draw from
the prior that the model has learned. For any trial, each of them has a likelihood: that of the
trial's observed values, were this its trajectory. Weighed by it, they are the trial's posterior.
Trials that share dynamics help each other, without a label that says which.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Num

from sbtt_jax.model.autoencoder import Inference, Mask
from sbtt_jax.observations import Observation, is_linear, linear_nll, output_of, predicted

BLOCK = 256  # trajectories that are weighed at a time

Values = Num[Array, "trial bin neuron"]
LogLikelihoods = Float[Array, "trial trajectory"]


def log_likelihoods(
    observation: Observation,
    outputs: Float[Array, "trajectory bin output"],
    values: Values,
    observed: Mask,
) -> LogLikelihoods:
    """Of each trial's observed values (nats) under each trajectory, up to a constant per trial."""
    if not is_linear(observation):

        def likelihoods(trial):
            values, observed = trial
            nll = observation.nll(outputs, jnp.where(observed, values, observation.fill))
            return -jnp.where(observed, nll, 0).sum((1, 2))

        return lax.map(likelihoods, (values, observed))
    # Sums over points are products of matrices then.
    base, slope = (x.reshape(len(outputs), -1) for x in linear_nll(observation, outputs))
    shown = observed.reshape(len(observed), -1)
    values = jnp.where(shown, values.reshape(shown.shape), 0).astype(base.dtype)
    with jax.default_matmul_precision("highest"):  # sums of many terms, then exponentiated
        return -(shown.astype(base.dtype) @ base.T + values @ slope.T)


def log_marginal(log_likelihood: LogLikelihoods) -> Float[Array, " trial"]:
    """Log of the mean likelihood of each trial over the trajectories."""
    return jax.nn.logsumexp(log_likelihood, axis=1) - jnp.log(log_likelihood.shape[1])


def expected(
    observation: Observation,
    outputs: Float[Array, "trajectory bin output"],
    values: Values,
    observed: Mask,
    log_prior: float | Float[Array, "*trial trajectory"] = 0.0,
) -> tuple[Float[Array, "trial bin output"], Float[Array, "trial bin neuron"]]:
    """The mean of what trajectories predict, as `observations.predicted` has it, each weighed by
    its likelihood and prior, and the variance of the rates among them."""
    likelihoods = log_likelihoods(observation, outputs, values, observed)
    weights = jax.nn.softmax(likelihoods + log_prior, axis=1)
    rates = observation.mean(outputs)
    mean, square = jnp.tensordot(weights, rates, 1), jnp.tensordot(weights, rates**2, 1)
    variance = jnp.maximum(square - mean**2, 0)
    return jnp.tensordot(weights, predicted(observation, outputs), 1), variance


def infer(
    observation: Observation, trajectories: Inference, values: Values, observed: Mask
) -> Inference:
    """Means, and variances of rates, of each trial's posterior over trajectories.

    trajectories: decoded from the initial conditions of the training trials.

    A block of them is weighed at a time, so that memory beside them is that of one block.
    """
    count = len(trajectories.ic)
    blocks = -(-count // BLOCK)

    def in_blocks(x):
        x = jnp.pad(x, [(0, blocks * BLOCK - count), *[(0, 0)] * (x.ndim - 1)])
        return x.reshape(blocks, BLOCK, *x.shape[1:])

    source = jax.tree.map(in_blocks, trajectories)

    def block_likelihoods(block):
        return log_likelihoods(observation, block.output, values, observed)

    likelihoods = lax.map(block_likelihoods, source)  # block trial trajectory
    inside = (jnp.arange(blocks * BLOCK) < count).reshape(blocks, 1, BLOCK)
    weights = jax.nn.softmax(jnp.where(inside, likelihoods, -jnp.inf), axis=(0, 2))

    def means(block, weight):
        square = observation.mean(block.output) ** 2
        terms = predicted(observation, block.output), square, block.latent, block.ic
        return jax.tree.map(lambda x: jnp.tensordot(weight, x, 1), terms)

    def add(sums, block):
        return jax.tree.map(jnp.add, sums, means(*block)), None

    none = jax.eval_shape(means, *jax.tree.map(lambda x: x[0], (source, weights)))
    none = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), none)
    (expected, square, latent, ic), _ = lax.scan(add, none, (source, weights))
    variance = jnp.maximum(square - expected[..., : square.shape[-1]] ** 2, 0)
    return Inference(output_of(observation, expected), latent, ic, variance=variance)
