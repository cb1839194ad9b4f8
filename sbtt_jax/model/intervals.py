"""How sure rates are: the spread of several models' rates, and what each leaves open by itself.

Models that differ in seed alone disagree where the data do not decide, which a single model does
not know of (deep ensembles: Lakshminarayanan et al. 2017, arXiv 1612.01474). To that is added the
variance that each infers, such as that of its posterior. A few models tell their spread only
roughly, so bounds are wider than those of a normal distribution, by Student's t.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Values = Float[np.ndarray, "*place neuron"]

LEVEL = 0.9
MODELS = 3  # that an interval takes, at least


class Spread(NamedTuple):
    """Sums over the models so far, for `bounds`."""

    models: int
    mean: Values
    deviation: Values  # sum of squared deviations from the mean
    within: Values | float  # sum of the models' own variances


class Interval(NamedTuple):
    """Rates with what is known of their error: standard deviation, and bounds."""

    mean: Values
    sd: Values
    low: Values
    high: Values


def add(spread: Spread | None, rates: Values, variance: Values | None) -> Spread:
    """The spread with one more model (Welford 1962), or of the first one.

    variance: of the rates, as the model infers it; None if it infers none.
    """
    own = 0.0 if variance is None else variance
    if spread is None:
        return Spread(1, rates, np.zeros_like(rates), own)
    models, shift = spread.models + 1, rates - spread.mean
    mean = spread.mean + shift / models
    deviation = spread.deviation + shift * (rates - mean)
    return Spread(models, mean, deviation, spread.within + own)


def bounds(spread: Spread, level: float = LEVEL, *, is_signed: bool = False) -> Interval:
    """The mean of the models' rates, its standard deviation, and an interval that holds the true
    rate with probability `level`.

    is_signed: whether rates may be below 0; otherwise the interval is that of a lognormal
      distribution of this mean and standard deviation.

    Models of one kind err alike, so the true rate is taken to be as far from them as they are from
    each other: the variance is the mean of the models' own, and (1 + 1/m) times the variance
    between m models. That has m - 1 degrees of freedom; those of the sum are Satterthwaite's
    (1946). Raises ValueError if there are fewer than `MODELS`, of which the spread says too little.
    """
    from scipy.stats import t  # importing sbtt_jax does not wait for it

    count, mean = spread.models, spread.mean
    if count < MODELS:
        raise ValueError("an interval takes at least three models, which differ in seed")
    between = (1 + 1 / count) * spread.deviation / (count - 1)
    total = between + spread.within / count
    share = np.divide(between, total, out=np.zeros_like(total), where=total > 0)
    shares = np.linspace(0, 1, 101)  # a quantile of t for each place would take long
    freedom = (count - 1) / np.maximum(shares, 1e-3) ** 2
    quantile = np.interp(share, shares, t.ppf((1 + level) / 2, freedom)).astype(mean.dtype)
    sd = np.sqrt(total)
    if is_signed:
        return Interval(mean, sd, mean - quantile * sd, mean + quantile * sd)
    tiny = np.finfo(mean.dtype).tiny
    deviation = np.sqrt(np.log1p((sd / np.maximum(mean, tiny)) ** 2))  # of the logarithm
    middle = mean * np.exp(-(deviation**2) / 2)
    spread_by = np.exp(quantile * deviation)
    return Interval(mean, sd, middle / spread_by, middle * spread_by)


def coverage(interval: Interval, true: Values, where: np.ndarray) -> float:
    """The share of true values inside the interval, at the points where `where` is true."""
    inside = (interval.low <= true) & (true <= interval.high)
    return float(inside[where].mean()) if where.any() else float("nan")
