"""What the trained models of a run say of every trial, and how good that is."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import jax
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int, Num
from matplotlib.figure import Figure
from tqdm import tqdm

from sbtt_jax import checkpoints, config, experiment, metrics, plots, provenance, training
from sbtt_jax.config import Settings
from sbtt_jax.dataset import Dataset
from sbtt_jax.errors import InputError
from sbtt_jax.experiment import ModelKey
from sbtt_jax.model import Inference, SequentialAutoencoder
from sbtt_jax.run_folder import RunFolder, whole, write_csv

TRIALS_IN_FIGURE = 4


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
    are of the best epoch before that (-1: of its first weights), and "ok" otherwise.
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


@nnx.jit
def _forward(model: SequentialAutoencoder, counts, observed, lengths) -> Inference:
    return model(counts, observed, lengths)


def infer(
    model: SequentialAutoencoder,
    counts: Num[np.ndarray, "trial bin neuron"],
    observed: Bool[np.ndarray, "trial bin neuron"],
    batch_size: int = 256,
    *,
    lengths: Int[np.ndarray, " trial"] | None = None,
) -> Inference:
    """Log-rates, latents and initial conditions of all trials, as NumPy arrays, in their order.

    Counts are never read where `observed` is false. `lengths` are the bins of each trial where
    some are padded at the end; log-rates and latents are NaN there.
    """

    def parts() -> Iterator[Inference]:
        for start in range(0, len(counts), batch_size):
            rows = slice(start, start + batch_size)
            own = None if lengths is None else lengths[rows]
            yield jax.tree.map(np.asarray, _forward(model, counts[rows], observed[rows], own))

    inference = Inference(*(np.concatenate(part) for part in zip(*parts(), strict=True)))
    if lengths is not None:
        beyond = np.arange(counts.shape[1]) >= lengths[:, None]
        inference.lograte[beyond] = inference.latent[beyond] = np.nan
    return inference


def score(
    dataset: Dataset,
    observed: Bool[np.ndarray, "trial bin neuron"],
    inferred: Float[np.ndarray, "trial bin neuron"],
    *,
    bandwidth: int,
    seed: int,
    epoch: int,
    bits_per_spike_heldout: float = float("nan"),
    status: str = "ok",
) -> Score:
    """How good the `inferred` rates (expected counts per bin, all trials) of one model are."""
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
    return Score(
        bandwidth=bandwidth,
        seed=seed,
        missing_fraction=float(1 - seen.sum() / max(1, real.sum())),
        epoch=epoch,
        nll=metrics.poisson_nll(rates, counts, seen),
        r2=r2["all"],
        r2_observed=r2["observed"],
        r2_missing=r2["missing"],
        bits_per_spike=metrics.bits_per_spike(rates, counts, seen),
        bits_per_spike_missing=metrics.bits_per_spike(rates, counts, known & ~seen),
        bits_per_spike_heldout=bits_per_spike_heldout,
        status=status,
    )


def heldout_bits_per_spike(
    settings: Settings,
    dataset: Dataset,
    key: ModelKey,
    model: SequentialAutoencoder,
    observed: Bool[np.ndarray, "trial bin neuron"],
) -> float:
    """Bits per spike at the held-out points of the validation trials, inferred from the others.

    The likelihood of points that the model has seen in no way, and so the figure to judge a model
    of a recording by. NaN where the settings hold out none.
    """
    if not settings.data.holdout_fraction:
        return float("nan")
    heldout = experiment.held_out(settings, dataset, key.bandwidth, observed)
    valid = dataset.valid
    lengths = None if dataset.lengths is None else dataset.lengths[valid]
    inference = infer(model, dataset.counts[valid], observed[valid] & ~heldout, lengths=lengths)
    rates = np.where(heldout, np.exp(inference.lograte), 0)
    return metrics.bits_per_spike(rates, dataset.counts[valid], heldout)


def restore(
    run: str | Path, bandwidth: int | None = None, checkpoint: int | None = None
) -> dict[ModelKey, Trained]:
    """The trained models of a run by (bandwidth, seed): all, or those of one bandwidth.

    `checkpoint` is the number of epochs after which one was written; the newest where None.

    Raises:
      InputError: `run` holds no run, no checkpoint yet, a damaged one, or no such bandwidth.
    """
    folder = RunFolder(run)
    settings = folder.settings()
    neurons = checkpoints.neurons(folder.checkpoints, checkpoint)
    keys = experiment.models(settings, neurons)
    # Shapes alone: what the settings claim is not allocated before the checkpoint bears it out.
    fresh = nnx.eval_shape(lambda: training.build(neurons, settings.model))
    structure, weights = nnx.split(fresh)
    best = checkpoints.restore_best(folder.checkpoints, weights, len(keys), checkpoint)
    trained = {
        key: Trained(nnx.merge(structure, one.params), int(one.epoch))
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
) -> list[Score]:
    """Restore every model of a run, infer all trials, and write table, rates and figures.

    `data` is another recording than the run was trained on; `out` another folder than
    RUN/evaluation; `checkpoint` another than the newest. Returns the rows of metrics.csv.

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

    scores = []
    with whole(out / "rates.h5") as part, h5py.File(part, "w") as file:
        _describe_trials(file, recording)
        for key, (model, epoch) in tqdm(trained.items(), unit="model", desc="evaluating"):
            observed = experiment.observed_at(settings, recording, key.bandwidth)
            inference = infer(model, recording.counts, observed, lengths=recording.lengths)
            rates = np.exp(inference.lograte)  # expected counts per bin
            heldout = heldout_bits_per_spike(settings, recording, key, model, observed)
            scores.append(
                score(
                    recording,
                    observed,
                    rates,
                    epoch=epoch,
                    bits_per_spike_heldout=heldout,
                    status="failed" if key in failed else "ok",
                    **key._asdict(),
                )
            )
            _write_inference(file, key, recording.bin_width, inference)
            if key.seed == settings.seeds[0]:
                figure = _rates_figure(recording, observed, rates, scores[-1])
                plots.save(figure, out / f"rates_bandwidth_{key.bandwidth:02d}.png")
    write_csv(out / "metrics.csv", Score._fields, scores)
    if recording.rates is not None:
        figure = plots.r2_vs_missing(
            [s._asdict() for s in scores],
            published=experiment.is_published_set(settings),
            ceiling=ceiling(settings, recording) if settings.data.path is None else None,
        )
        plots.save(figure, out / "r2_vs_missing.png")
    return scores


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


def table(scores: Sequence[Score]) -> str:
    """The scores as text, a line a model, for people."""
    columns = {
        "bandwidth": lambda s: f"{s.bandwidth}",
        "seed": lambda s: f"{s.seed}",
        "missing": lambda s: f"{s.missing_fraction:.1%}",
        "epoch": lambda s: f"{s.epoch}",
        "NLL": lambda s: f"{s.nll:.4f}",
        "R2": lambda s: _known(s.r2),
        "R2 observed": lambda s: _known(s.r2_observed),
        "R2 missing": lambda s: _known(s.r2_missing),
        "bits/spike": lambda s: _known(s.bits_per_spike),
        "bits/spike missing": lambda s: _known(s.bits_per_spike_missing),
        "bits/spike held out": lambda s: _known(s.bits_per_spike_heldout),
    }
    if any(s.status != "ok" for s in scores):
        columns["status"] = lambda s: s.status
    rows = [list(columns)] + [[cell(s) for cell in columns.values()] for s in scores]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    lines = ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(lines)


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


def _write_inference(
    file: h5py.File, key: ModelKey, bin_width: float, inference: Inference
) -> None:
    group = file.create_group(f"bandwidth_{key.bandwidth:02d}/seed_{key.seed}")
    for name, values, unit, axes in (
        ("rates", np.exp(inference.lograte) / bin_width, "spikes/s", "trial bin neuron"),
        ("latents", inference.latent, "1", "trial bin latent"),
        ("initial_states", inference.ic, "1", "trial unit"),
    ):
        item = group.create_dataset(name, data=values, compression="gzip", compression_opts=1)
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
