"""What models of one bandwidth see of a data set, and how good the rates they infer are."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from sbtt_jax.config import Settings
from sbtt_jax.data.dataset import Dataset, Mask, Trials
from sbtt_jax.data.problem import (
    Folds,
    JudgedMask,
    ValidMask,
    heldout_at,
    observed_at,
    session_observed_at,
)
from sbtt_jax.model import factors, metrics
from sbtt_jax.model.autoencoder import Inference, SequentialAutoencoder
from sbtt_jax.model.inference import Infer, Prior, infer_all
from sbtt_jax.model.metrics import PerTrial
from sbtt_jax.model.stacking import ESTIMATES, MAX_TRAJECTORIES
from sbtt_jax.observations import Observation, predicted
from sbtt_jax.run.files import Row
from sbtt_jax.run.sessions import infer_session

# Expected counts per bin; if the observation model has more parameters, they follow, as
# `observations.predicted` has them.
Rates = Float[np.ndarray, "trial bin output"]
ScoredRates = Float[np.ndarray, "scored_trial bin output"]
ValidRates = Float[np.ndarray, "valid_trial bin output"]
JudgedRates = Float[np.ndarray, "judged_trial bin output"]

JUDGED = "bits_per_spike_heldout"
UNTUNED = f"{JUDGED}_untuned"  # of the member with the settings that a search began with
WEIGHTS = tuple(f"weight_{name}" for name in ESTIMATES)  # of what is stacked
ENDS = f"{JUDGED}_low", f"{JUDGED}_high"
LACKING = 4  # parts of the neurons, of which one at a time is hidden
COVERAGE = "interval_coverage"  # share of true rates inside the 90% interval of several seeds
HEADINGS = {  # of scores in a table for people, in which the interval has no columns of its own
    "missing_fraction": "missing",
    "nll": "NLL",
    "r2": "R2",
    "r2_observed": "R2 observed",
    "r2_missing": "R2 missing",
    "bits_per_spike": "bits/spike",
    "bits_per_spike_missing": "bits/spike missing",
    JUDGED: "bits/spike held out (95% interval)",
    UNTUNED: "before tuning",
    "latent_r2": "R2 latents",
    COVERAGE: "true rates in 90% interval",
    "co_bps": "co-bps",
    "fp_bps": "fp-bps",
}
FORMATS = dict.fromkeys(HEADINGS, ".3f")
FORMATS |= {"missing_fraction": ".1%", "nll": ".4f", COVERAGE: ".1%"}


class Pass(NamedTuple):
    """One of the passes over the validation trials that choose epochs and parameters."""

    shown: ValidMask
    hidden: ValidMask  # and choose


class View(NamedTuple):
    """A data set as the models of one bandwidth see it.

    observed: the points that they have, of all trials.
    folds, reporting: the points of the validation trials that choose epochs and parameters, by the
      pass in which they are hidden, and those of the judged trials to report on, which choose
      nothing; as of `problem.heldout_at`, None if there are none.
    """

    settings: Settings
    data: Dataset
    bandwidth: int
    observed: Mask
    folds: Folds | None
    reporting: JudgedMask | None

    @property
    def observation(self) -> Observation:
        return self.settings.model.distribution

    @property
    def unit(self) -> tuple[float, str]:
        """As of `Observation.shown`."""
        return self.observation.shown(self.data.bin_width)

    @property
    def given(self) -> Mask:
        """The points of all trials that are given as input."""
        return self.data.input(self.observed)

    @property
    def scored(self) -> Trials:
        """The trials that scores are of, in order."""
        data = self.data
        return np.sort(data.judged) if data.given is None else np.union1d(data.judged, data.valid)

    @property
    def shown(self) -> JudgedMask:
        """The points of the judged trials that are given and not reported on."""
        return self.given[self.data.judged] & ~self.reporting

    @property
    def _shown_to_choose(self) -> ValidMask:
        """The points of the validation trials that are given and not reported on."""
        return self.shown if self.data.test is None else self.given[self.data.valid]

    def passes(self) -> list[Pass]:
        """Those in which points choose; none if nothing is held out to choose by."""
        if self.folds is None:
            return []
        folds = range(1, self.settings.train.folds + 1)
        return self._hiding(self.folds == fold for fold in folds)

    def lacking(self) -> list[Pass]:
        """Passes that hide all there is of some neurons from the validation trials, of each neuron
        in one of them; none if nothing is held out to choose by."""
        if self.folds is None:
            return []
        shown, neurons = self._shown_to_choose, np.arange(self.data.neurons)
        return self._hiding(shown & (neurons % LACKING == part) for part in range(LACKING))

    def _hiding(self, every: Iterable[ValidMask]) -> list[Pass]:
        """A pass for each of these masks that hides anything."""
        shown = self._shown_to_choose
        return [Pass(shown & ~hidden, hidden) for hidden in every if hidden.any()]

    def hidden(
        self, estimates: Callable[..., list[ValidRates]], passes: Sequence[Pass] | None = None
    ) -> tuple[list[ValidRates], np.ndarray, ValidMask]:
        """What `estimates(counts, shown, lengths)` say of the validation trials where each pass, or
        each of some, hides points; the counts of those trials, and where that is."""
        passes = self.passes() if passes is None else passes
        counts, _, lengths = self.of(self.data.valid, self.given[self.data.valid])
        every: list[ValidRates] = []
        for one in passes:
            found = estimates(counts, one.shown, lengths)
            where = np.tile(one.hidden, self.observation.outputs)
            every = [np.where(where, *pair) for pair in zip(found, every or found, strict=True)]
        return every, counts, np.any([one.hidden for one in passes], axis=0)

    def infer(
        self, model: SequentialAutoencoder, prior: Prior | None = None, infer: Infer = infer_all
    ) -> tuple[Inference, Rates, JudgedRates | None]:
        """What a model infers about all trials, its rates, and the rates of the judged trials
        inferred without the held-out points; `prior` as of `priors.learn`."""
        everything = np.arange(len(self.data.counts))
        how = {"prior": prior, "condition": self.data.conditions_of(everything)}
        inference = infer(model, *self.of(everything, self.given), **how)
        rates = predicted(model.observation, inference.output)
        return inference, rates, self.blind(model, prior)

    def blind(self, model: SequentialAutoencoder, prior: Prior | None = None) -> JudgedRates | None:
        """Rates of the judged trials that a model infers without the held-out points."""
        if self.reporting is None:
            return None
        judged = self.data.judged
        how = {"prior": prior, "condition": self.data.conditions_of(judged)}
        shown = infer_all(model, *self.of(judged, self.shown), **how)
        return predicted(model.observation, shown.output)

    def mapped_latents(
        self, model: SequentialAutoencoder, prior: Prior | None = None
    ) -> Float[np.ndarray, "judged_trial bin true_latent"]:
        """The true latents of the judged trials as a linear map of the decoder's states has them,
        before any bottleneck; the map is learned from training trials."""
        data = self.data
        some = data.train[:: math.ceil(len(data.train) / MAX_TRAJECTORIES)]
        trials = np.concatenate([some, data.judged])
        if prior is not None and prior.factors is not None:
            model = factors.project(model, prior.factors)
        own = self.of(trials, self.given[trials])
        trajectories = prior and Prior(prior.ic, prior.own)
        states = infer_all(model.without_bottleneck(), *own, prior=trajectories).latent
        known, asked = np.split(states, [len(some)])
        return metrics.linear_map(known, data.latents[some], asked)

    def infer_session(
        self, model: SequentialAutoencoder, prior: Prior | None = None, infer: Infer = infer_all
    ) -> Inference | None:
        """What a model infers about the whole session; None if the data have trials."""
        session = self.data.session
        if session is None:
            return None
        seen = session_observed_at(self.settings, session, self.bandwidth)
        length = self.data.counts.shape[1]
        return infer_session(model, session, seen, length, prior, infer=infer)

    def of(self, trials: Trials, observed: Mask) -> tuple[np.ndarray, Mask, np.ndarray | None]:
        """Counts, these points of them, and lengths of trials, as `infer_all` takes them."""
        lengths = self.data.lengths
        return self.data.counts[trials], observed, None if lengths is None else lengths[trials]

    def score(self, inferred: ScoredRates, blind: JudgedRates | None) -> dict[str, float]:
        """Scores of rates over the judged trials; NaN where unknown.

        inferred: rates of the `scored` trials. blind: rates of the judged trials, inferred without
          the held-out points.

        missing_fraction: fraction of points that the model did not have.
        nll (nats per point), bits_per_spike: over observed points.
        bits_per_spike_missing: over points that the mask hid but the data set knows.
        bits_per_spike_heldout: over the held-out points that are reported; _low and _high are the
          ends of its `interval`.
        r2, r2_observed, r2_missing: against true rates over all, observed and missing points.
        co_bps, fp_bps: if some points are never input: bits per spike over those of them in bins
          that are (co-smoothing), and over the bins that are not (forward prediction), as the
          Neural Latents Benchmark defines them; over the validation trials if nothing is known of
          them in test trials, and there over those that choose nothing. Pei, Ye et al. 2021 (arXiv
          2109.04463), section 3.
        """
        data, judged = self.data, self.data.judged
        seen, known, counts = self.observed[judged], data.observed[judged], data.counts[judged]
        own = inferred[np.searchsorted(self.scored, judged)]
        rates = np.where(data.inside[judged], own, 0)
        inside = np.broadcast_to(data.inside[judged], seen.shape)
        observation = self.observation

        def r2(where: JudgedMask) -> float:
            own = rates[..., : data.neurons]
            return np.nan if data.rates is None else metrics.r2(data.rates[judged], own, where)

        def bits(rates: JudgedRates, where: JudgedMask) -> float:
            return metrics.bits_per_spike(rates, counts, where, observation)

        heldout, ends = np.nan, (np.nan, np.nan)
        if blind is not None:
            by_trial = self.heldout_by_trial(blind)
            heldout, ends = metrics.per_spike(*by_trial), interval(*by_trial)
        return {
            "missing_fraction": float(1 - seen.sum() / max(1, inside.sum())),
            "nll": metrics.nll(rates, counts, seen, observation),
            "r2": r2(inside),
            "r2_observed": r2(seen),
            "r2_missing": r2(inside & ~seen),
            "bits_per_spike": bits(rates, seen),
            "bits_per_spike_missing": bits(rates, known & ~seen),
            JUDGED: heldout,
            **dict(zip(ENDS, ends, strict=True)),
            **self._of_predicted(inferred),
        }

    def heldout_by_trial(self, blind: JudgedRates) -> tuple[PerTrial, PerTrial]:
        """`metrics.bits_by_trial` at the held-out points that are reported."""
        counts = self.data.counts[self.data.judged]
        return metrics.bits_by_trial(blind, counts, self.reporting, self.observation)

    def _of_predicted(self, inferred: ScoredRates) -> dict[str, float]:
        """Scores over the points that are never input, if there are any; of validation trials,
        over those that choose nothing."""
        data, scores = self.data, {}
        free = True if self.folds is None else self.folds == 0
        for name, which in zip(("co_bps", "fp_bps"), data.only_predicted, strict=False):
            trials, where = data.judged, self.observed[data.judged] & which
            if data.test is None:
                where &= free
            elif not where.any():
                trials, where = data.valid, self.observed[data.valid] & which & free
            rates = inferred[np.searchsorted(self.scored, trials)]
            own = rates, data.counts[trials], where
            scores[name] = metrics.bits_per_spike(*own, self.observation)
        return scores


def heading(name: str, observation: Observation) -> str:
    """A column of a table for people."""
    return HEADINGS.get(name, name).replace("spike", observation.words.per)


def cell_text(row: Row, name: str) -> str:
    """A score, or another column of a row, in a table for people; "-" if unknown."""
    value, how = row.get(name, np.nan), FORMATS.get(name, "")
    text = "-" if value != value else format(value, how)
    if name == JUDGED and row[ENDS[0]] == row[ENDS[0]]:
        text += " ({} to {})".format(*(format(row[end], how) for end in ENDS))
    return text


def interval(bits: PerTrial, spikes: PerTrial) -> tuple[float, float]:
    """The 95% interval of bits per spike, or of a difference in it, by a bootstrap over trials.

    bits, spikes: as of `metrics.bits_by_trial`. Percentiles of the quotient of sums over 2,000
    draws of as many trials, with replacement (Efron and Tibshirani 1993, section 13.3); draws
    without a spike are left out. NaN if fewer than two trials have spikes.
    """
    from scipy.stats import bootstrap  # importing sbtt_jax does not wait for it

    if (spikes > 0).sum() < 2:
        return np.nan, np.nan
    found = bootstrap(
        (bits, spikes),
        lambda bits, spikes, axis: np.stack([bits.sum(axis), spikes.sum(axis)]),
        n_resamples=2000,
        paired=True,
        method="percentile",
        random_state=0,
    )
    bits, spikes = found.bootstrap_distribution
    low, high = np.percentile(bits[spikes > 0] / spikes[spikes > 0], (2.5, 97.5))
    return float(low), float(high)


def view(settings: Settings, data: Dataset, bandwidth: int) -> View:
    """What models of this bandwidth see, by the settings of their run."""
    observed, heldout = observed_at(settings, data, bandwidth), (None, None)
    if settings.data.holdout_fraction:
        heldout = heldout_at(settings, data, bandwidth, observed)
    return View(settings, data, bandwidth, observed, *heldout)
