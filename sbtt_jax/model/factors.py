"""Latents as factors: along the directions in which they move rates most.

A readout makes the same of latents if they are mixed and it unmixes them, so a model's own latents
are in no order and on no scale. Factors are their principal components as the readout sees them:
coordinates of its deviation from the mean along orthonormal directions over neurons, ordered by
variance. For Poisson observations they are in natural-log units.

Rates of a population often follow fewer factors than a readout can fit, and what it fits beyond
them is noise. `project` leaves it out.
"""

from typing import NamedTuple

import numpy as np
from flax import nnx
from jaxtyping import Float

from sbtt_jax.model.autoencoder import SequentialAutoencoder as Model

Latents = Float[np.ndarray, "*trial_and_bin latent"]


class Factors(NamedTuple):
    """The affine map from latents to factors, and what a factor of 1 adds to the readout."""

    center: Float[np.ndarray, " latent"]
    kernel: Float[np.ndarray, "latent factor"]
    directions: Float[np.ndarray, "output factor"]  # orthonormal

    def __call__(self, latents: Latents) -> Float[np.ndarray, "*trial_and_bin factor"]:
        return (latents - self.center) @ self.kernel

    @property
    def rank(self) -> int:
        return self.kernel.shape[1]

    def first(self, rank: int) -> "Factors":
        """Those of most variance."""
        return Factors(self.center, self.kernel[:, :rank], self.directions[:, :rank])


def learn(model: Model, latents: Latents) -> Factors:
    """The factors of latents under a model's readout; points that are NaN are left out.

    There are as many as latents, or as outputs that vary, if those are fewer.
    """
    points = latents.reshape(-1, latents.shape[-1])
    points = points[np.isfinite(points).all(1)].astype(np.float64)
    center, kernel = points.mean(0), _kernel(model).astype(np.float64)
    covariance = (points - center).T @ (points - center) / len(points)
    _, directions = np.linalg.eigh(kernel.T @ covariance @ kernel)  # of ascending variance
    directions = directions[:, ::-1][:, : _count(model)]
    # Either sign would do; the largest weight is positive, so that it is the same every time.
    largest = np.abs(directions).argmax(0)
    directions *= np.sign(directions[largest, np.arange(directions.shape[1])])
    parts = center, kernel @ directions, directions
    return Factors(*(part.astype(np.float32) for part in parts))


def projected(
    model: Model, factors: Factors, output: Float[np.ndarray, "trial bin output"], latents: Latents
) -> Float[np.ndarray, "trial bin output"]:
    """What a model's output is once `project` has left out all other factors."""
    kernel = _kernel(model)
    onto = factors.directions @ factors.directions.T
    return output + model.scaled((latents - factors.center) @ (kernel @ onto - kernel))


def project(model: Model, factors: Factors) -> Model:
    """The model whose readout follows these factors alone, and is at its mean in all others; the
    same model if there are no others."""
    if factors.rank == _count(model):
        return model
    kernel, bias = _kernel(model), np.asarray(model.readout.bias)
    mean = bias + factors.center @ kernel
    onto = factors.directions @ factors.directions.T
    changed = nnx.clone(model)
    # New parameters: assigning to the old ones would write into the arrays of a restored model.
    changed.readout.kernel = nnx.Param(kernel @ onto)
    changed.readout.bias = nnx.Param(mean + (bias - mean) @ onto)
    return changed


def _kernel(model: Model) -> np.ndarray:
    """The readout's, 0 where it reads constants from its bias."""
    kernel, varying = np.array(model.readout.kernel), _varying(model)
    kernel[:, varying:] = 0
    return kernel


def _varying(model: Model) -> int:
    return model.neurons * (model.observation.outputs - model.observation.constant)


def _count(model: Model) -> int:
    return min(model.readout.kernel.shape[0], _varying(model))
