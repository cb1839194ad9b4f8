"""Masked Poisson likelihood: only observed neuron-timepoints contribute, in value and gradient."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Num


def poisson_nll_sum(
    lograte: Num[Array, "*points"], counts: Num[Array, "*points"], observed: Bool[Array, "*points"]
) -> tuple[Num[Array, ""], Num[Array, ""]]:
    """Summed Poisson negative log-likelihood, exp(lograte) - count * lograte, and its points.

    `lograte` is the natural log of expected counts per bin; the constant log(count!) is left out,
    as in the paper. Whatever stands at unobserved points (NaN and infinities included) is replaced
    before any arithmetic, so that neither value nor gradient can see it. Zhu, Sedler et al. 2021
    (arXiv 2111.00070), section 3.
    """
    lograte = jnp.where(observed, lograte, 0.0)
    counts = jnp.where(observed, counts, 0)
    nll = jnp.where(observed, jnp.exp(lograte) - counts * lograte, 0.0)
    return nll.sum(), observed.sum()


def poisson_nll(
    lograte: Num[Array, "*points"], counts: Num[Array, "*points"], observed: Bool[Array, "*points"]
) -> Num[Array, ""]:
    """Mean Poisson negative log-likelihood over observed points (nats); 0 where there are none."""
    total, points = poisson_nll_sum(lograte, counts, observed)
    return total / jnp.maximum(points, 1)
