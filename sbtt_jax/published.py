"""The published results of selective backpropagation through time, to compare with.

Zhu, F., Sedler, A., et al. "Deep inference of latent dynamics with spatio-temporal
super-resolution using selective backpropagation through time", NeurIPS 2021, arXiv 2111.00070.

R2 is the coefficient of determination of inferred against true rates, each neuron's own averaged
uniformly over neurons, on the validation trials at the epoch of least validation loss. The
published figure is a mean over validation batches; over all validation trials at once it differs
in the third decimal.

NLL is the mean of rate - count * log(rate) over observed points, in nats. It depends on the
counts that were drawn: two Lorenz sets of the same statistics differ by 0.01 even under their
true rates, so these NLLs are no yardstick for another set. R2 is one.
"""

from typing import NamedTuple

CITATION = (
    'Zhu, F., Sedler, A., et al. "Deep inference of latent dynamics with spatio-temporal '
    'super-resolution using selective backpropagation through time", NeurIPS 2021, '
    "arXiv 2111.00070"
)
SHORT_CITATION = "Zhu, Sedler et al. 2021"

NEURONS = 29


class PublishedResult(NamedTuple):
    """One published model: how much it observed, when it was best, and how good it was then.

    bandwidth: neurons observed per bin, of NEURONS.
    missing_fraction: of all neuron-timepoints, 0 to 1.
    best_epoch: the one of least validation loss, of 1,000, counted from 0.
    valid_nll, train_nll: nats per observed point.
    r2: of inferred against true rates, validation trials.
    """

    bandwidth: int
    missing_fraction: float
    best_epoch: int
    valid_nll: float
    train_nll: float
    r2: float


RESULTS = (
    PublishedResult(29, 0.000, 957, 0.3720, 0.3754, 0.911),
    PublishedResult(25, 0.138, 975, 0.3707, 0.3753, 0.908),
    PublishedResult(20, 0.310, 988, 0.3727, 0.3780, 0.891),
    PublishedResult(15, 0.483, 988, 0.3705, 0.3745, 0.888),
    PublishedResult(10, 0.655, 997, 0.3760, 0.3733, 0.852),
    PublishedResult(5, 0.828, 999, 0.3792, 0.3708, 0.757),
    PublishedResult(3, 0.897, 998, 0.3833, 0.3669, 0.590),
    PublishedResult(2, 0.931, 986, 0.3677, 0.3427, 0.339),
)
