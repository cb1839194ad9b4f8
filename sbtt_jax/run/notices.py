"""What a user should know about a run's result that no number says by itself."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import numpy as np

from sbtt_jax.data import labels
from sbtt_jax.data.dataset import Dataset
from sbtt_jax.data.problem import Problem, listed
from sbtt_jax.grid import ModelKey
from sbtt_jax.model.stacking import ESTIMATES, Stack
from sbtt_jax.observations import Observation
from sbtt_jax.run.files import Row
from sbtt_jax.run.provenance import Record
from sbtt_jax.run.scores import JUDGED, UNTUNED, WEIGHTS
from sbtt_jax.training import tuning

FEW_STEPS = 500
SMALLEST_RATE, LARGEST_RATE = 0.01, 500.0  # spikes/s, mean over neurons
LONGEST_TRIAL, LONGEST_SESSION, WIDEST_BIN = 600.0, 86_400.0, 1.0  # seconds
FEW_SPIKES = 50  # too few to judge what counts are multiples of
ZEROS = 20  # expected, of which there is not one
ENDS = 0.1  # of the trials: as many that end in silence are said to
NEEDS = {  # settings, and what has to be on for them to have an effect
    "data.overlap": "data.chop",
    "model.refinement_scale": "model.refinement_steps",
    "train.coordinated_dropout_pass": "train.coordinated_dropout",
    "train.coordinated_dropout_whole": "train.coordinated_dropout",
    "train.folds": "data.holdout_fraction",
    "train.input_penalty": "model.inferred_inputs",
    "train.marginal_rate": "train.marginal_epochs",
}
AXES = "are the axes trial x bin x neuron, and is bin_width right?"
OVERFIT = 0.5  # of what the validation loss had fallen by: how much it rose again


def best_baselines(baselines: Sequence[Row]) -> list[Row]:
    """The baseline of each bandwidth that predicts held-out points best."""
    groups = groupby(baselines, lambda row: row["bandwidth"])
    return [
        max(rows, key=lambda row: np.nan_to_num(row[JUDGED], nan=-np.inf)) for _, rows in groups
    ]


def better_baselines(
    models: Sequence[Row], baselines: Sequence[Row], observation: Observation
) -> list[str]:
    """A line for every bandwidth at which a baseline is better than the models."""
    lines, unit = [], f"bits/{observation.words.per}"
    stacked = any(WEIGHTS[0] in row for row in models)
    first = "" if stacked else "stacked rates, inferred inputs, "
    for simple in best_baselines(baselines):
        bandwidth, name = simple["bandwidth"], simple["baseline"]
        model = np.mean([row[JUDGED] for row in models if row["bandwidth"] == bandwidth])
        if round(simple[JUDGED], 3) > round(model, 3):
            lines.append(
                f"bandwidth {bandwidth}: {name} predicts held-out points better "
                f"({simple[JUDGED]:.3f} {unit}) than the models ({model:.3f} on average); "
                f"{first}more epochs, trials or neurons per bin may help"
            )
    return lines


def no_gain(models: Sequence[Row], observation: Observation) -> list[str]:
    """A line for every model that tuning did not improve."""
    lines, unit = [], f"bits/{observation.words.per}"
    for row in models:
        before, after = row.get(UNTUNED, -np.inf), row[JUDGED]
        if before == after:
            lines.append(
                f"{ModelKey.of(row)}: has the settings that tuning began with, since none was "
                "better by more than chance"
            )
        elif before > after:
            lines.append(
                f"{ModelKey.of(row)}: the settings that tuning began with predict held-out points "
                f"better ({before:.3f} {unit}) than those it found ({after:.3f}); with few "
                "validation trials that may be chance, and the former are the safer choice"
            )
    return lines


def of_weights(models: Sequence[Row]) -> list[str]:
    """A line on what rates are a mean of, if not the network's own, for bandwidths alike."""
    lines: dict[str, list[int]] = {}
    for bandwidth, rows in groupby(models, lambda row: row["bandwidth"]):
        weights = np.array([[row.get(name, np.nan) for name in WEIGHTS] for row in rows]).mean(0)
        if not np.isfinite(weights).all() or weights[0] == 1:
            continue
        parts = [
            f"{weight:.0%} {name.replace('_', ' ')}"
            for name, weight in zip(ESTIMATES, weights, strict=True)
            if weight
        ]
        text = f"rates are a weighted mean, {', '.join(parts)}"
        if len(parts) == 1:
            text = f"rates are those of {ESTIMATES[weights.argmax()].replace('_', ' ')} alone"
        lines.setdefault(text, []).append(bandwidth)
    return [
        f"bandwidth{'s' * (len(where) > 1)} {', '.join(map(str, where))}: {text}"
        for text, where in lines.items()
    ]


def of_training(history: Mapping[ModelKey, Sequence[Row]], steps: int | None) -> list[str]:
    """Lines on how training went.

    history: rows of history.csv by model. steps: optimizer steps per epoch, if known.
    """
    lines = []
    for key, rows in history.items():
        if not rows:  # a converted model has none
            continue
        column = "heldout_nll" if np.isfinite(rows[-1]["heldout_nll"]) else "valid_nll"
        loss = np.array([row[column] for row in rows])
        if any(row["status"] == "failed" for row in rows) or not np.isfinite(loss).any():
            lines.append(f"{key}: given up, because its numbers did not stay finite")
            continue
        best = int(np.nanargmin(loss))
        if steps is not None and steps * len(rows) < FEW_STEPS and best == len(rows) - 1:
            lines.append(
                f"{key}: only {steps * len(rows)} optimizer steps, and still improving; more "
                "epochs (train.epochs) or steps (train.steps_per_epoch) may help"
            )
        first, *_, last = loss[np.isfinite(loss)][[0, -1]]
        if last - loss[best] > OVERFIT * (first - loss[best]) > 0:
            lines.append(
                f"{key}: overfitted after epoch {best} of 0 to {len(rows) - 1}, "
                "whose weights were kept; more trials, or a smaller model, may help"
            )
    return lines


def of_settings(problem: Problem) -> list[str]:
    """Lines on settings without an effect, and on a search that ends before any member could learn
    from another."""
    whole = tuning.program(problem.settings)  # with all values that they come to have
    lines, lasts = [], tuning.generation(problem.steps)
    for name, needed in NEEDS.items():
        (group, own), (other, condition) = (dotted.split(".") for dotted in (name, needed))
        value, among = getattr(getattr(whole, group), own), getattr(whole, other)
        default = type(getattr(whole, group)).model_fields[own].default
        if value != default and not np.any(getattr(among, condition) or 0):
            lines.append(f"{name} has no effect without {needed}")
    if whole.tune and problem.train.epochs <= lasts:
        lines.append(
            f"the search ends before its second generation, which begins after {lasts} epochs "
            f"(train.epochs is {problem.train.epochs})"
        )
    return lines


def split_in_words(data: Dataset) -> str:
    """How many trials are for what, such as "30 training and 10 validation trials"."""
    names = {"train": "training", "valid": "validation", "test": "test"}
    counts = {name: data.split.count(name) for name in names}
    *some, last = (f"{counts[name]} {names[name]}" for name in names if counts[name])
    what = "trials" if data.session is None else "windows"
    return f"{', '.join(some)}{' and ' if some else ''}{last} {what}"


def silent(data: Dataset, observation: Observation) -> list[str]:
    """A line on neurons of which every observed value is 0."""
    zero = ~((data.counts != 0) & data.observed).any((0, 1)) & data.observed.any((0, 1))
    which = data.neuron_numbers[zero].tolist()
    if not which:
        return []
    many = f"{len(which)} neuron{'s' * (len(which) > 1)}"
    nothing = "without a spike" if observation.is_count else "of zeros alone"
    return [f"{many} {nothing} where observed, numbered from 0: {listed(which)}"]


def of_other(data: Dataset, observation: Observation, begun: Record) -> Iterator[str]:
    """What is to be known of data that a model did not train on. begun: its provenance."""
    yield from data.notes
    yield from unlikely_counts(data, observation)
    yield from unsaid(data, begun)


def unsaid(data: Dataset, begun: Record) -> Iterator[str]:
    """What data do not say that a model has to know: which points are never input, which neurons
    they have, or anything at all about a trial."""
    if data.given is None and begun.get("only_predicted"):
        yield (
            "the model was trained with neurons or bins that are only predicted, and nothing says "
            "here which (given); all that is observed is input"
        )
    names = None if data.unit_id is None else labels.ids(data.unit_id)
    if (
        begun.get("data")
        and "unit_id" not in begun
        and names not in (None, list(range(data.neurons)))
    ):
        those = "those that the model was trained on have none"
        yield f"neurons have names, and {those}; they are taken in the order of the data"
    nothing = np.flatnonzero(~data.observed.any((1, 2))).tolist()
    if nothing and data.given is None:  # otherwise they may be there to be predicted
        some = listed(data.trial_numbers[nothing].tolist())
        many = f"{len(nothing)} trials" if len(nothing) > 1 else "1 trial"
        yield f"nothing is observed in {many}, of which no rates are inferred: {some}"


def of_conditions(data: Dataset, stack: Stack | None) -> Iterator[str]:
    """A line on trials of no condition that a model knows, if its rates are partly a PSTH's."""
    if stack is None or not stack.uses("psth"):
        return
    count = len(data.counts)
    condition = data.conditions_of(np.arange(count))
    known = 0 if condition is None else int(stack.psth.among(condition)[0].sum())
    if known < count:
        names = listed(stack.psth.conditions.tolist())
        yield (
            f"{known} of {count} trials are of a condition that the model knows ({names}); in the "
            "others the network stands in for the mean of a condition"
        )


def unlikely(data: Dataset, observation: Observation) -> Iterator[str]:
    """What looks as if axes, units or values were others than they were taken for."""
    trials, bins, neurons = data.counts.shape
    seconds = bins * data.bin_width
    checked = {
        f"{neurons} neurons are more than {trials} trials x {bins} bins": neurons > trials * bins,
        f"bins are {data.bin_width:g} s wide": data.bin_width >= WIDEST_BIN,
        f"trials last {seconds:g} s": data.session is None and seconds > LONGEST_TRIAL,
    }
    for what, unlikely in checked.items():
        if unlikely:
            yield f"unlikely: {what}; {AXES}"
    whole = 0 if data.session is None else len(data.session.counts) * data.bin_width
    if whole > LONGEST_SESSION:
        asked = "are its times in seconds, and is bin_width right?"
        yield f"unlikely: the session lasts {whole:g} s; {asked}"
    yield from unlikely_counts(data, observation)


def unlikely_counts(data: Dataset, observation: Observation) -> Iterator[str]:
    """What looks as if counts were none, or of another unit; nothing if they are not counts."""
    known, points = data.observed.sum(), data.inside.sum() * data.neurons
    if not (observation.is_count and known):
        return
    mean = data.counts.mean(where=data.observed, dtype=np.float64)
    rate, few = mean / data.bin_width, known * mean < FEW_SPIKES
    if rate > LARGEST_RATE:
        yield f"unlikely: {rate:.3g} spikes/s on average is much; {AXES}"
    if rate < SMALLEST_RATE:
        yield f"unlikely: {rate:.3g} spikes/s on average is little; {AXES}"
    if not few and (step := _step(data)) > 1:
        yield f"unlikely: every count is a multiple of {step}; are these counts, or rates?"
    zeros = known * np.exp(-mean)  # of Poisson counts of this mean
    if known < points and zeros > ZEROS and data.counts.min(where=data.observed, initial=1):
        missing = f"{1 - known / points:.1%} are not observed"
        yield f"unlikely: no count is 0, and {missing}; does NaN stand for 0?"
    trials = len(data.counts)
    if data.session is None and (silent := _silent_ends(data)) > ENDS * trials:
        ends = f"{silent} of {trials} trials end in bins without a spike, where others have many"
        yield f"unlikely: {ends}; were they padded with 0? NaN says that a trial has ended"


def _silent_ends(data: Dataset) -> int:
    """How many trials end in bins without a spike that have `ZEROS` in an average trial."""
    many = data.counts.sum(0, dtype=np.float64) / np.maximum(data.observed.sum(0), 1)
    silent = 0
    for counts, observed in zip(data.counts, data.observed, strict=True):
        end = 1 + np.flatnonzero(counts.any(1)).max(initial=-1)
        silent += many[end:].sum(where=observed[end:]) > ZEROS
    return int(silent)


def _step(data: Dataset) -> int:
    """The greatest number that all counts are multiples of."""
    step = 0
    for trial in data.counts:
        if (step := math.gcd(step, int(np.gcd.reduce(trial, axis=None)))) == 1:
            break
    return step
