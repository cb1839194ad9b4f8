"""Fitted models, and ensembles of them: rates, and how good they are."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from sbtt_jax.data import labels, problem, recording, windows
from sbtt_jax.data.dataset import Dataset
from sbtt_jax.errors import InputError
from sbtt_jax.grid import ModelKey
from sbtt_jax.model import intervals, metrics
from sbtt_jax.model.inference import Infer, Prior, infer_all, infer_with_variance
from sbtt_jax.run import notices, provenance, restore
from sbtt_jax.run.baselines import score_baselines
from sbtt_jax.run.files import Row
from sbtt_jax.run.restore import Trained
from sbtt_jax.run.scores import JUDGED, interval, view
from sbtt_jax.run.sessions import infer_session


class Rates(NamedTuple):
    """What a fitted model infers about each trial; NaN after a trial's end.

    For a session without trials, arrays have no axis of trials, but for `initial_states`, which are
    those of the windows that it is cut into.
    """

    rates: Float[np.ndarray, "*trial bin neuron"]  # spikes/s; of what is no count, expected values
    # State of the dynamics after each bin, or with model.latent_size its factors (`model.factors`).
    latents: Float[np.ndarray, "*trial bin latent"]
    initial_states: Float[np.ndarray, "trial unit"]  # of the dynamics
    inferred_inputs: Float[np.ndarray, "*trial bin input"] | None  # None if the model has none
    time: Float[np.ndarray, " bin"]  # seconds; where each bin begins
    unit_id: Shaped[np.ndarray, " neuron"]  # what the recording calls each neuron, or its number
    unit: str = "spikes/s"  # of the rates
    trial: Int[np.ndarray, " trial"] | None = None  # its number in the recording; None of a session
    condition: Shaped[np.ndarray, " trial"] | None = None  # of each trial, if known
    # Of an `Ensemble`: standard deviation of the rates' error, and ends of an interval.
    sd: Float[np.ndarray, "*trial bin neuron"] | None = None
    low: Float[np.ndarray, "*trial bin neuron"] | None = None
    high: Float[np.ndarray, "*trial bin neuron"] | None = None

    def to_xarray(self) -> Any:
        """The same as an `xarray.Dataset`, with named axes, times, neurons, conditions and units.

        Raises InputError if xarray is not installed.
        """
        try:
            import xarray
        except ImportError:
            raise InputError("to_xarray needs xarray; pip install xarray") from None
        trial = ("trial",) * (self.rates.ndim == 3)
        axes = {"rates": (*trial, "time", "neuron"), "latents": (*trial, "time", "latent")}
        axes |= {"initial_states": (*trial, "unit")} if trial else {}
        axes |= {"inferred_inputs": (*trial, "time", "input")}
        axes |= {name: axes["rates"] for name in ("sd", "low", "high")}
        units = {name: {"units": self.unit} for name in ("rates", "sd", "low", "high")}
        arrays = {
            name: (names, values, units.get(name, {}))
            for name, names in axes.items()
            if (values := getattr(self, name)) is not None
        }
        where = {"time": ("time", self.time, {"units": "s"}), "neuron": self.unit_id}
        where |= {} if self.trial is None else {"trial": self.trial}
        where |= {} if self.condition is None else {"condition": ("trial", self.condition)}
        return xarray.Dataset(arrays, where)


class Score(NamedTuple):
    """How well a fitted model predicts what it was not shown, in bits per spike above each neuron's
    mean (`metrics.bits_per_spike`), per sample of what is no count; NaN if there is too little."""

    bits_per_spike: float
    low: float  # ends of its 95% interval, by a bootstrap over trials
    high: float
    trials: int  # that it is of
    # By name, the same of what one would have done without a model; see `baselines.BASELINES`.
    baselines: dict[str, float]


@dataclass(frozen=True, eq=False, repr=False)
class Fitted(Trained):
    """A trained model of a recording. It holds its own weights, so it can be pickled and copied.

    settings: every setting it was trained with.
    model: the network, at its epoch of least validation loss; `params` has its weights.
    epoch: that epoch, counted from 0; `nll` has its loss.
    prior: what it needs of the training trials to infer others; None if nothing.
    history: its rows of history.csv, one mapping per epoch.
    """

    history: list[Row]
    prior: Prior | None
    _key: ModelKey
    _provenance: Mapping[str, Any]

    @property
    def status(self) -> str:
        """ "ok", or "failed" if training gave the model up because its numbers were not finite."""
        return "failed" if any(row["status"] == "failed" for row in self.history) else "ok"

    def __repr__(self) -> str:
        width = self.settings.data.bin_width
        failed = ", failed" if self.status == "failed" else ""
        what = f"{self.neurons} neurons, bins of {1000 * width:g} ms, epoch {self.epoch}"
        return f"Fitted({what}{failed})"

    def infer(self, spikes: Any, *, condition: Any = None) -> Rates:
        """Rates of every neuron in every bin of each trial, observed or not.

        spikes: counts, trial x bin x neuron, NaN where not observed, or anything else that `fit`
          takes. A trial ends at its last bin with any sample. Neurons are those of the fit; ones
          that data.drop_neurons names are left out of the rates.
        condition: as of `fit`; rates may rest on the trials of that condition then.

        Neurons with names are put in the order of the fit; those of the fit that are not there
        count as never observed, others are left out, and a warning says so.

        Raises InputError if these are not whole spike counts, of other neurons than were fitted, or
        in bins of another width.
        """
        return self._infer(self._told(spikes, condition))[0]

    def score(self, spikes: Any, *, condition: Any = None) -> Score:
        """How well the model predicts points that it is not shown, as evaluate.py judges it.

        spikes, condition: the recording that the model was fitted to, as it was given to `fit`:
          scores are of points of its validation trials that chose nothing, beside those of simple
          baselines. Of any other, all trials are scored, which a warning says.

        Raises InputError as `infer` does, and if the fit held out no points to report on.
        """
        return _score([self], spikes, condition)

    def _told(self, spikes: Any, condition: Any) -> Dataset:
        """Trials to infer, with warnings of what is unlikely about them."""
        data = self._read(spikes, condition)
        unlikely = notices.unlikely_counts(data, self.settings.model.distribution)
        stack = self.prior and self.prior.stack
        unsaid = *notices.unsaid(data, self._provenance), *notices.of_conditions(data, stack)
        for note in (*data.notes, *unlikely, *unsaid):
            warnings.warn(note, stacklevel=3)
        return data

    def _read(self, spikes: Any, condition: Any, *, judged: bool = False) -> Dataset:
        """A recording as the fit read its own; InputError if its neurons are others.

        judged: whether to take it for the recording of the fit, if it is that one.
        """
        how = problem.reading(self.settings)
        source = spikes if isinstance(spikes, str | Path) else "array"

        def read(dropped: Sequence[int], **changes: Any) -> Dataset:
            own = how | {"drop_neurons": dropped} | changes
            return recording.of(spikes, {"condition": condition}, **own)

        if judged:
            data = provenance.read_judged(read, self.settings.data, self._provenance, source)
        else:
            as_it_is = partial(read, learn=False, drop_unobserved_trials=False)
            own = how["drop_neurons"], self._provenance, source
            data = provenance.read_in_order(as_it_is, *own)
        if data.neurons != self.neurons:
            dropped = len(data.dropped_neurons)
            there, expected = data.neurons + dropped, self.neurons + dropped
            fitted = f"the model was fitted to {expected}"
            raise InputError(f"{source}: spikes has {there} neurons; {fitted}")
        return data

    def _infer(self, data: Dataset, infer: Infer = infer_all) -> tuple[Rates, np.ndarray | None]:
        """Rates, and their variance, which is whole by `infer_with_variance`."""
        width, session = data.bin_width, data.session
        scale, unit = self.settings.model.distribution.shown(width)
        axes = {"time": data.times, "unit_id": data.unit_ids}
        if session is not None:
            length = windows.window_bins(self.settings.data.chop, width)
            seen = session, session.observed, length, self.prior
            inferred = infer_session(self.model, *seen, infer=infer)
            rates = inferred.output * scale
        else:
            axes["trial"] = data.trial_numbers
            seen = data.counts, data.input(data.observed), data.lengths
            axes["condition"] = data.conditions_of(np.arange(len(data.counts)))
            own = {"prior": self.prior, "condition": axes["condition"]}
            inferred = infer(self.model, *seen, **own)
            rates = self.settings.model.distribution.mean(inferred.output) * scale
        found = Rates(rates, inferred.latent, inferred.ic, inferred.inputs, **axes, unit=unit)
        return found, None if inferred.variance is None else inferred.variance * scale**2

    def save(self, folder: str | Path) -> None:
        """Write a run folder of this model, which `load` and evaluate.py read; the latter with
        `--data FILE`, if the model was not fitted to a file.

        Raises InputError if the folder holds a run already, SaveError if it cannot be written to.
        """
        own = {"history": self.history, "provenance": self._provenance, "prior": self.prior}
        restore.export(folder, self.settings, {self._key: self}, **own)


@dataclass(frozen=True)
class Ensemble:
    """Models of the same neurons, fitted with different seeds, whose mean is better than each and
    whose spread says how sure it is::

        models = [sbtt_jax.fit(spikes, seed=seed, data={"seed": 0}) for seed in range(3)]
        ensemble = sbtt_jax.Ensemble(models)
        inferred = ensemble.infer(spikes)
        inferred.rates, inferred.low, inferred.high

    models: at least three. One model does not know what another seed would have made of the same
      data, so intervals of its own would be far too narrow.

    Raises InputError if they are fewer, or not of the same neurons, bin width, observation model
    and different seeds.
    """

    models: Any  # of `Fitted`

    def __post_init__(self):
        models = tuple(self.models) if isinstance(self.models, Iterable) else (None,)
        if not all(isinstance(one, Fitted) for one in models):
            raise InputError("an ensemble is of several fitted models, as sbtt_jax.fit returns")
        object.__setattr__(self, "models", models)
        if len(models) < intervals.MODELS:
            raise InputError("an interval takes at least three models, fitted with different seeds")
        seeds = [one._key.seed for one in models]
        if len(set(seeds)) < len(seeds):
            same = f"models have the seeds {', '.join(map(str, seeds))}"
            raise InputError(f"{same}; an interval takes models of different seeds")
        for what, of in {
            "neurons": lambda one: one.neurons,
            "bin_width": lambda one: one.settings.data.bin_width,
            "data.drop_neurons": lambda one: frozenset(one.settings.data.drop_neurons),
            "model.observation": lambda one: one.settings.model.distribution,
        }.items():
            if len({of(one) for one in models}) > 1:
                raise InputError(f"models differ in {what}; they may differ in seeds alone")

    def infer(
        self, spikes: Any, interval: float = intervals.LEVEL, *, condition: Any = None
    ) -> Rates:
        """The mean of the models' rates, its standard deviation `sd`, and the ends `low` and `high`
        of intervals that hold true rates with this probability; the rest is of the first model.

        spikes, condition: as of `Fitted.infer`.

        Raises InputError as `Fitted.infer` does, and if `interval` is not between 0 and 1 or the
        models were fitted to different neurons. Neurons are in the order of the first model.
        """
        if not 0 < interval < 1:
            raise InputError(f"interval is {interval}; give a probability between 0 and 1")
        data = self.models[0]._told(spikes, condition)
        first, spread = None, None
        for model in self.models:
            try:
                own = provenance.in_order(data, model._provenance)
            except ValueError:
                raise InputError("models were fitted to different neurons") from None
            inferred, variance = model._infer(own, infer_with_variance)
            first = inferred if first is None else first
            order = labels.order_of(inferred.unit_id, first.unit_id.tolist())
            if -1 in order:
                raise InputError("models were fitted to different neurons")
            both = (None if v is None else v[..., order] for v in (inferred.rates, variance))
            spread = intervals.add(spread, *both)
        is_signed = self.models[0].settings.model.distribution.is_signed
        mean, *rest = intervals.bounds(spread, interval, is_signed=is_signed)
        return first._replace(rates=mean, **dict(zip(("sd", "low", "high"), rest, strict=True)))

    def score(self, spikes: Any, *, condition: Any = None) -> Score:
        """`Fitted.score` of the mean of the models' rates.

        Raises InputError as that does, and if models have splits of their own, since some would
        have been trained on what is scored.
        """

        def judged(one):
            own = one.settings.data
            points = own.seed, own.holdout_fraction, own.pattern, own.block_length
            counts = one._provenance.get("data", {}).get("counts")
            return *points, one.settings.train.folds, one._key.bandwidth, counts

        if len({judged(one) for one in self.models}) > 1:
            remedy = "fit them with one split, sbtt_jax.fit(..., seed=seed, data={'seed': 0})"
            raise InputError(f"models were fitted to different splits or recordings; {remedy}")
        return _score(self.models, spikes, condition)


def _score(models: Sequence[Fitted], spikes: Any, condition: Any) -> Score:
    """`Fitted.score` of the mean of the rates of models that are judged at the same points."""
    first = models[0]
    if not first.settings.data.holdout_fraction:
        raise InputError("data.holdout_fraction is 0, so no points are held out to score")
    data, begun = first._read(spikes, condition, judged=True), first._provenance
    counts = begun.get("data", {}).get("counts")
    is_other = counts != provenance.fingerprint(data)["counts"]
    if is_other:
        data = windows.all_judged(data, first.settings.data.chop)
        all_ = (
            f"not the recording that the model was fitted to, or not split like it (by condition, "
            f"if fit was given that), so all {len(data.counts)} trials are scored; of trials that "
            "it was trained on, scores are too good"
        )
        observation = first.settings.model.distribution
        stack = first.prior and first.prior.stack
        others = *notices.of_other(data, observation, begun), *notices.of_conditions(data, stack)
        for note in (all_, *others):
            warnings.warn(note, stacklevel=3)
    seen = view(first.settings, data, first._key.bandwidth)
    blind = np.mean([seen.blind(one.model, one.prior) for one in models], axis=0)
    by_trial = seen.heldout_by_trial(blind)
    simple = {} if is_other else {row["baseline"]: row[JUDGED] for row in score_baselines(seen)}
    return Score(metrics.per_spike(*by_trial), *interval(*by_trial), len(data.judged), simple)
