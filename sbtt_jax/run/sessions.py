"""Rates of a session without trials: inferred in overlapping windows, merged along its time."""

import numpy as np

from sbtt_jax.data import windows
from sbtt_jax.data.dataset import Session
from sbtt_jax.model.autoencoder import Inference, SequentialAutoencoder
from sbtt_jax.model.inference import Infer, Prior, infer_all


def infer_session(
    model: SequentialAutoencoder,
    session: Session,
    observed: np.ndarray,
    length: int,
    prior: Prior | None = None,
    *,
    infer: Infer = infer_all,
) -> Inference:
    """What a model infers about a session; arrays have bins where those of trials have trials and
    bins, NaN in long gaps. `output` has expected values, which can be averaged. Initial conditions
    are those of the windows.

    observed: bin x neuron, the points that may be input. length: bins of a window.
    infer: the windows; `infer_with_variance` where somebody asks for the variance.
    """
    starts, lengths = session.starts, session.lengths
    own = [windows.cut(v, starts, starts + lengths, length) for v in (session.counts, observed)]
    inferred = infer(model, *own, lengths.astype(np.int32), prior=prior)

    def merged(values):
        return None if values is None else windows.merge(values, starts, lengths, len(observed))

    mean = merged(model.observation.mean(inferred.output))
    rest = merged(inferred.inputs), merged(inferred.variance)
    return Inference(mean, merged(inferred.latent), inferred.ic, *rest)
