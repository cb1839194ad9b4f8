"""Results of the published program on its own Lorenz data, to compare a run's with.

Zhu, Sedler et al., "Deep inference of latent dynamics with spatio-temporal super-resolution using
selective backpropagation through time", NeurIPS 2021 (arXiv 2111.00070), and its demo.
"""

from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from sbtt_jax.config import LORENZ_SIZES, DataSettings, Settings
from sbtt_jax.data.arrays import ASSUMED_BIN_WIDTH

BIN_WIDTH = 0.02  # seconds
CITATION = "Zhu, Sedler et al. 2021"


class Level(NamedTuple):
    """One model at its epoch of least validation loss."""

    bandwidth: int
    missing_fraction: float
    epoch: int
    valid_nll: float  # nats per observed point
    train_nll: float
    r2: float  # against true rates, averaged over neurons, and a mean over validation batches


LEVELS = (
    Level(29, 0.000, 957, 0.3720, 0.3754, 0.911),
    Level(25, 0.138, 975, 0.3707, 0.3753, 0.908),
    Level(20, 0.310, 988, 0.3727, 0.3780, 0.891),
    Level(15, 0.483, 988, 0.3705, 0.3745, 0.888),
    Level(10, 0.655, 997, 0.3760, 0.3733, 0.852),
    Level(5, 0.828, 999, 0.3792, 0.3708, 0.757),
    Level(3, 0.897, 998, 0.3833, 0.3669, 0.590),
    Level(2, 0.931, 986, 0.3677, 0.3427, 0.339),
)


class Curve(NamedTuple):
    """Validation R2 of one model against epoch (from 0), every 25 epochs, at first more often."""

    epoch: Float[np.ndarray, " epoch"]
    valid_r2: Float[np.ndarray, " epoch"]


def history() -> dict[int, Curve]:
    """The published training histories, by bandwidth."""
    path = Path(__file__).with_name("published_history.csv")
    table = np.loadtxt(path, delimiter=",", skiprows=1)
    return {int(b): Curve(*table[table[:, 0] == b, 1:].T) for b in np.unique(table[:, 0])}


def is_published_set(settings: Settings) -> bool:
    """Whether the published results are comparable: a Lorenz set of the same sizes and pattern."""
    of_a_set, published = attrgetter(*LORENZ_SIZES, "path", "pattern"), DataSettings()
    width = settings.data.bin_width or ASSUMED_BIN_WIDTH
    return of_a_set(settings.data) == of_a_set(published) and width == BIN_WIDTH
