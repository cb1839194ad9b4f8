"""What the trained models of a run say of every trial, and how good that is."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple

import h5py
import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Int, Num
from matplotlib.figure import Figure
from tqdm import tqdm

from sbtt_jax import checkpoints, config, experiment, grid, metrics, plots, provenance, training
from sbtt_jax.config import Settings
from sbtt_jax.dataset import Dataset
from sbtt_jax.errors import InputError
from sbtt_jax.grid import ModelKey, Varied
from sbtt_jax.model import Inference, SequentialAutoencoder
from sbtt_jax.run_folder import RunFolder, whole, write_csv

BATCH_SIZE = 64  # trials that each device infers at a time
TRIALS_IN_FIGURE = 4
RATES = "spikes/s", "trial bin neuron"  # unit and axes of rates.h5


class Trained(NamedTuple):
    """A model with the weights of its best epoch."""

    model: SequentialAutoencoder
    epoch: int


class Score(NamedTuple):
    """One row of metrics.csv: validation trials only, NaN where a figure cannot be had.

    nll (nats a point) and bits_per_spike are over observed points, bits_per_spike_missing over
    points that the mask hid but the data set knows, bits_per_spike_heldout over the observed points
    that were held out, inferred without them. r2 is over all points, against true rates. status is
    "failed" for a model that training gave up because its numbers did not stay finite; its figures
    are of the best epoch before that (-1: of its first weights), and "ok" otherwise. In the file,
    varied is a column for each setting, after the seed.
    """

    bandwidth: int
    seed: int
    missing_fraction: float
    epoch: int
    nll: float
    r2: float
    r2_observed: float
    r2_missing: float
    bits_per_spike: float
    bits_per_spike_missing: float
    bits_per_spike_heldout: float = float("nan")
    status: str = "ok"
    varied: Varied = ()


class Ensemble(NamedTuple):
    """One row of ensemble.csv: the mean of the rates that models infer which differ in seed alone.

    Names mean what they do in `Score`; `models` is how many there are. Where one of them failed,
    there is no row.
    """

    bandwidth: int
    models: int
    missing_fraction: float
    nll: float
    r2: float
    r2_observed: float
    r2_missing: float
    bits_per_spike: float
    bits_per_spike_missing: float
    bits_per_spike_heldout: float = float("nan")
    varied: Varied = ()


@nnx.jit
def _forward(model: SequentialAutoencoder, counts, observed, lengths) -> Inference:
    return model.infer(counts, observed, lengths)


def infer(
    model: SequentialAutoencoder,
    counts: Num[np.ndarray, "trial bin neuron"],
    observed: Bool[np.ndarray, "trial bin neuron"],
    batch_size: int = BATCH_SIZE,
    *,
    lengths: Int[np.ndarray, " trial"] | None = None,
) -> Inference:
    """Log-rates, latents and initial conditions of all trials, as NumPy arrays, in their order.

    Counts are never read where `observed` is false. `lengths` are the bins of each trial where
    some are padded at the end; log-rates and latents are NaN there. Each device infers `batch_size`
    trials at a time.
    """
    devices = jax.local_devices()
    by_trial = NamedSharding(Mesh(devices, ("trial",)), PartitionSpec("trial"))
    size = min(batch_size, -(-len(counts) // len(devices))) * len(devices)

    def parts() -> Iterator[Inference]:
        for start in range(0, len(counts), size):
            # The last batch is filled up with its last trial: one compiled program serves all.
            rows = np.minimum(np.arange(start, start + size), len(counts) - 1)
            given = jax.tree.map(lambda array, rows=rows: array[rows], (counts, observed, lengths))
            batch = _forward(model, *jax.device_put(given, by_trial))
            yield Inference(*(np.asarray(part)[: len(counts) - start] for part in batch))

    inference = Inference(*(np.concatenate(part) for part in zip(*parts(), strict=True)))
    if lengths is not None:
        beyond = np.arange(counts.shape[1]) >= lengths[:, None]
        inference.lograte[beyond] = inference.latent[beyond] = np.nan
    return inference


def score(
    dataset: Dataset,
    observed: Bool[np.ndarray, "trial bin neuron"],
    inferred: Float[np.ndarray, "trial bin neuron"],
) -> dict[str, float]:
    """How good `inferred` rates (expected counts per bin, all trials) are, as `Score` names it."""
    valid = dataset.valid
    seen, known = observed[valid], dataset.observed[valid]
    real = np.broadcast_to(dataset.real[valid], seen.shape)
    counts, rates = dataset.counts[valid], np.where(real, inferred[valid], 0)
    r2 = dict.fromkeys(("all", "observed", "missing"), float("nan"))
    if dataset.rates is not None:
        true = dataset.rates[valid]
        r2 = {
            "all": metrics.r2(true, rates, real),
            "observed": metrics.r2(true, rates, seen),
            "missing": metrics.r2(true, rates, real & ~seen),
        }
    return {
        "missing_fraction": float(1 - seen.sum() / max(1, real.sum())),
        "nll": metrics.poisson_nll(rates, counts, seen),
        "r2": r2["all"],
        "r2_observed": r2["observed"],
        "r2_missing": r2["missing"],
        "bits_per_spike": metrics.bits_per_spike(rates, counts, seen),
        "bits_per_spike_missing": metrics.bits_per_spike(rates, counts, known & ~seen),
    }


def heldout_rates(
    dataset: Dataset,
    model: SequentialAutoencoder,
    observed: Bool[np.ndarray, "trial bin neuron"],
    heldout: Bool[np.ndarray, "valid_trial bin neuron"],
) -> Float[np.ndarray, "valid_trial bin neuron"]:
    """Expected counts per bin at the held-out points of the validation trials, inferred from the
    others; 0 elsewhere.

    The model has seen these points in no way, so that their likelihood is what to judge a model
    of a recording by.
    """
    valid = dataset.valid
    lengths = None if dataset.lengths is None else dataset.lengths[valid]
    inference = infer(model, dataset.counts[valid], observed[valid] & ~heldout, lengths=lengths)
    return np.where(heldout, np.exp(inference.lograte), 0)


def restore(
    run: str | Path, bandwidth: int | None = None, checkpoint: int | None = None
) -> dict[ModelKey, Trained]:
    """The trained models of a run by what sets them apart: all, or those of one bandwidth.

    `checkpoint` is the number of epochs after which one was written; the newest where None.

    Raises:
      InputError: `run` holds no run, no checkpoint yet, a damaged one, or no such bandwidth.
    """
    folder = RunFolder(run)
    settings = folder.settings()
    neurons = checkpoints.neurons(folder.checkpoints, checkpoint)
    keys = experiment.models(settings, neurons)
    # Shapes alone: what the settings claim is not allocated before the checkpoint bears it out.
    own = {key: grid.single(settings, key.varied).model for key in keys}
    fresh = nnx.eval_shape(lambda: training.build(neurons, own[keys[0]]))
    weights = nnx.state(fresh)
    best = checkpoints.restore_best(folder.checkpoints, weights, len(keys), checkpoint)
    trained = {
        key: Trained(nnx.merge(training.graph(neurons, own[key]), one.params), int(one.epoch))
        for key, one in zip(keys, best, strict=True)
        if bandwidth in (None, key.bandwidth)
    }
    if not trained:
        there = ", ".join(map(str, settings.bandwidths))
        raise InputError(f"{run}: has no bandwidth {bandwidth}; there are {there}")
    return trained


def evaluate(
    run: str | Path,
    *,
    data: str | None = None,
    out: str | Path | None = None,
    checkpoint: int | None = None,
) -> tuple[list[Score], list[Ensemble]]:
    """Restore every model of a run, infer all trials, and write tables, rates and figures.

    `data` is another recording than the run was trained on; `out` another folder than
    RUN/evaluation; `checkpoint` another than the newest. Returns the rows of metrics.csv and,
    where there are several seeds, those of ensemble.csv.

    Raises:
      InputError: `run` holds no run, or the recording does not fit it. Nothing is written then.
    """
    folder = RunFolder(run)
    settings = config.on_recording(folder.settings(), data)
    recorded = settings.data.path
    if data is None and recorded is not None and not Path(recorded).is_file():
        raise InputError(
            f"{recorded}: no such file, and {run} was trained on it; say where it is now with "
            "--data FILE"
        )
    recording = experiment.load_data(settings)
    trained = restore(run, checkpoint=checkpoint)
    if (neurons := next(iter(trained.values())).model.readout.out_features) != recording.neurons:
        raise InputError(
            f"{run}: was trained on {neurons} neurons; {settings.data.path or 'the data set'} has "
            f"{recording.neurons}"
        )
    if data is None and provenance.other_data(
        folder.provenance(), provenance.fingerprint(recording)
    ):
        print(f"{run}: its data are no longer those that it was trained on", file=sys.stderr)
    failed = folder.failed()
    out = folder.evaluation if out is None else Path(out)
    out.mkdir(parents=True, exist_ok=True)

    scores, ensembles = [], []
    with whole(out / "rates.h5") as part, h5py.File(part, "w") as file:
        _describe_trials(file, recording)
        bandwidths = dict.fromkeys(key.bandwidth for key in trained)
        for bandwidth in tqdm(bandwidths, unit="bandwidth", desc="evaluating"):
            here = {key: one for key, one in trained.items() if key.bandwidth == bandwidth}
            rows, means = _evaluate_bandwidth(settings, recording, here, failed, file, out)
            scores += rows
            ensembles += means
    varied = grid.lists(settings)
    write_csv(out / "metrics.csv", Score, scores, varied)
    (out / "ensemble.csv").unlink(missing_ok=True)
    if ensembles:
        write_csv(out / "ensemble.csv", Ensemble, ensembles, varied)
    if recording.rates is not None:
        figure = plots.r2_vs_missing(
            [s._asdict() for s in scores],
            ensembles=[e._asdict() for e in ensembles],
            published=experiment.is_published_set(settings),
            ceiling=ceiling(settings, recording) if settings.data.path is None else None,
        )
        plots.save(figure, out / "r2_vs_missing.png")
    return scores, ensembles


def _evaluate_bandwidth(
    settings: Settings,
    recording: Dataset,
    trained: Mapping[ModelKey, Trained],
    failed: Set[ModelKey],
    file: h5py.File,
    out: Path,
) -> tuple[list[Score], list[Ensemble]]:
    """Scores of one bandwidth's models and of the means over seeds of their rates, which go to
    `file`; the first one's figure goes to `out`."""
    bandwidth = next(iter(trained)).bandwidth
    observed = experiment.observed_at(settings, recording, bandwidth)
    heldout = None
    if settings.data.holdout_fraction:
        heldout = experiment.held_out(settings, recording, bandwidth, observed)

    scores, ensembles = [], []
    for varied in dict.fromkeys(key.varied for key in trained):
        seeds = {key: one for key, one in trained.items() if key.varied == varied}
        summed, summed_heldout = 0.0, 0.0
        for key, (model, epoch) in seeds.items():
            inference = infer(model, recording.counts, observed, lengths=recording.lengths)
            rates = np.exp(inference.lograte)  # expected counts per bin
            unseen = None if heldout is None else heldout_rates(recording, model, observed, heldout)
            numbers = score(recording, observed, rates) | _foretold(recording, unseen, heldout)
            status = "failed" if key in failed else "ok"
            scores.append(Score(**key._asdict(), epoch=epoch, status=status, **numbers))
            group = file.create_group(f"{_group(bandwidth, varied)}/seed_{key.seed}")
            _write_inference(group, recording.bin_width, inference)
            if len(scores) == 1:
                figure = _rates_figure(recording, observed, rates, scores[0])
                plots.save(figure, out / f"rates_bandwidth_{bandwidth:02d}.png")
            if len(seeds) > 1:
                summed = summed + rates
                summed_heldout = None if unseen is None else summed_heldout + unseen
        if len(seeds) == 1 or seeds.keys() & failed:
            continue

        mean = summed / len(seeds)
        unseen = None if heldout is None else summed_heldout / len(seeds)
        numbers = score(recording, observed, mean) | _foretold(recording, unseen, heldout)
        ensembles.append(Ensemble(bandwidth, len(seeds), **numbers, varied=varied))
        group = file.create_group(f"{_group(bandwidth, varied)}/ensemble")
        _write_array(group, "rates", mean / recording.bin_width, *RATES)
    return scores, ensembles


def _group(bandwidth: int, varied: Varied) -> str:
    """Where rates.h5 has the models that differ in seed alone, a level for each setting."""
    settings = (f"{name}_{grid.shown(value)}" for name, value in varied)
    return "/".join([f"bandwidth_{bandwidth:02d}", *settings])


def _foretold(
    dataset: Dataset,
    rates: Float[np.ndarray, "valid_trial bin neuron"] | None,
    heldout: Bool[np.ndarray, "valid_trial bin neuron"] | None,
) -> dict[str, float]:
    """How well held-out points are foretold, where there are any."""
    if rates is None or heldout is None:
        return {}
    counts = dataset.counts[dataset.valid]
    return {"bits_per_spike_heldout": metrics.bits_per_spike(rates, counts, heldout)}


def ceiling(settings: Settings, generated: Dataset) -> dict[int, float]:
    """The R2 that Bayes' rule reaches on a generated set's validation trials, by bandwidth.

    It knows the true rates of every condition, which a model has to learn, and the observed counts.
    """
    valid = generated.valid
    counts, true = generated.counts[valid], generated.rates[valid]
    patterns = np.unique(generated.rates, axis=0)

    def best(bandwidth: int) -> float:
        observed = experiment.observed_at(settings, generated, bandwidth)[valid]
        return metrics.r2(true, metrics.bayes_rates(patterns, counts, observed))

    return {bandwidth: best(bandwidth) for bandwidth in settings.bandwidths}


def table(scores: Sequence[Score], ensembles: Sequence[Ensemble] = ()) -> str:
    """The scores as text for people: a line a model, then a line a mean over seeds."""
    varied = [name for name, _ in scores[0].varied]
    settings = {name: lambda s, n=name: grid.shown(dict(s.varied)[n]) for name in varied}
    seed, epoch = {"seed": lambda s: f"{s.seed}"}, {"epoch": lambda s: f"{s.epoch}"}
    lines = _lines(scores, seed | settings | epoch)
    if ensembles:
        lines += ["", "Mean of the rates that all seeds infer:"]
        lines += _lines(ensembles, settings | {"models": lambda s: f"{s.models}"})
    return "\n".join(lines)


def _lines(scores: Sequence[Score | Ensemble], own: Mapping[str, Callable]) -> list[str]:
    columns = {
        "bandwidth": lambda s: f"{s.bandwidth}",
        **own,
        "missing": lambda s: f"{s.missing_fraction:.1%}",
        "NLL": lambda s: f"{s.nll:.4f}",
        "R2": lambda s: _known(s.r2),
        "R2 observed": lambda s: _known(s.r2_observed),
        "R2 missing": lambda s: _known(s.r2_missing),
        "bits/spike": lambda s: _known(s.bits_per_spike),
        "bits/spike missing": lambda s: _known(s.bits_per_spike_missing),
        "bits/spike held out": lambda s: _known(s.bits_per_spike_heldout),
    }
    if any(getattr(s, "status", "ok") != "ok" for s in scores):
        columns["status"] = lambda s: s.status
    rows = [list(columns)] + [[cell(s) for cell in columns.values()] for s in scores]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    return ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows]


def _known(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"


def _describe_trials(file: h5py.File, data: Dataset) -> None:
    split = np.full(len(data.counts), "train", dtype=object)
    split[data.valid] = "valid"
    lengths = data.counts.shape[1] if data.lengths is None else data.lengths
    trial_index = np.arange(len(split)) if data.trial_index is None else data.trial_index
    neuron_index = np.arange(data.neurons) if data.neuron_index is None else data.neuron_index
    for name, values, meaning in (
        ("split", split.astype("S5"), "train or valid"),
        ("trial_index", trial_index, "number of each trial in the recording"),
        ("length", np.full(len(split), lengths), "bins of each trial; NaN is written after them"),
        ("neuron_index", neuron_index, "number of each neuron in the recording"),
        ("dropped_trials", np.array(data.dropped_trials, int), "trials left out"),
        ("dropped_neurons", np.array(data.dropped_neurons, int), "neurons left out"),
    ):
        file.create_dataset(name, data=values).attrs["meaning"] = meaning
    file.attrs["bin_width"] = data.bin_width
    file.attrs["bin_width_unit"] = "s"


def _write_inference(group: h5py.Group, bin_width: float, inference: Inference) -> None:
    _write_array(group, "rates", np.exp(inference.lograte) / bin_width, *RATES)
    _write_array(group, "latents", inference.latent, "1", "trial bin latent")
    _write_array(group, "initial_states", inference.ic, "1", "trial unit")


def _write_array(group: h5py.Group, name: str, values: np.ndarray, unit: str, axes: str) -> None:
    item = group.create_dataset(name, data=values)  # compressed, it would be as large
    item.attrs["unit"], item.attrs["axes"] = unit, axes


def _rates_figure(data: Dataset, observed: np.ndarray, rates: np.ndarray, score: Score) -> Figure:
    rows = np.linspace(0, len(data.valid) - 1, TRIALS_IN_FIGURE).astype(int)
    shown = data.valid[np.unique(rows)]
    return plots.rates(
        data.counts[shown],
        observed[shown],
        None if data.rates is None else data.rates[shown],
        rates[shown],
        bin_width=data.bin_width,
        trials=(shown if data.trial_index is None else data.trial_index[shown]).tolist(),
        bandwidth=score.bandwidth,
        r2=None if np.isnan(score.r2) else score.r2,
    )
