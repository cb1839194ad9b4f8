"""An experiment: from settings to data, masks and a trained run folder."""

import hashlib
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from tqdm import tqdm

from sbtt_jax import (
    checkpoints,
    config,
    dataset,
    devices,
    grid,
    masking,
    processes,
    provenance,
    training,
)
from sbtt_jax.config import DataSettings, Settings
from sbtt_jax.dataset import Dataset
from sbtt_jax.errors import InputError, SaveError
from sbtt_jax.grid import ModelKey, models
from sbtt_jax.run_folder import NUMBERS, History, HistoryRow, RunFolder

# Seconds for which a finished run whose last files could not be written waits for the disk.
PATIENCE = 600


def load_data(settings: Settings) -> Dataset:
    """The recording that the settings name, or the Lorenz set that they describe.

    Raises:
      InputError: the recording cannot be read, or has fewer neurons than a bandwidth asks for.
    """
    data = settings.data
    if data.path is None:
        if not settings.bandwidths:
            raise InputError(
                "bandwidths is empty, which needs a recording; give one with --data FILE, or "
                "bandwidths such as 29"
            )
        if max(settings.bandwidths) > data.neurons:
            raise InputError(
                f"bandwidths has {max(settings.bandwidths)}, and data.neurons is {data.neurons}; "
                "no more neurons can be observed than there are"
            )
        return dataset.from_lorenz(
            data.seed,
            data.valid_fraction,
            data.bin_width,
            conditions=data.conditions,
            trials_per_condition=data.trials_per_condition,
            bins=data.bins,
            neurons=data.neurons,
        )
    recording = dataset.read(data.path, **reading(settings))
    _check_bandwidths(settings, recording)
    return recording


def _check_bandwidths(settings: Settings, recording: Dataset) -> None:
    if max(settings.bandwidths, default=1) > recording.neurons:
        raise InputError(
            f"bandwidths has {max(settings.bandwidths)}, and {settings.data.path} holds "
            f"{recording.neurons} neurons; give fewer, or --bandwidths with none behind it for "
            "the recording as it is"
        )


def reading(settings: Settings) -> dict[str, Any]:
    """How a recording is read, as arguments of `dataset.read` and `dataset.from_arrays`."""
    names = (
        "bin_width", "rates_unit", "valid_fraction", "seed",
        "drop_neurons", "drop_unobserved_trials",
    )  # fmt: skip
    return {name: getattr(settings.data, name) for name in names}


def observed_at(
    settings: Settings, data: Dataset, bandwidth: int
) -> Bool[np.ndarray, "trial bin neuron"]:
    """Which points a model of this bandwidth has; missing in the recording stays missing."""
    chosen = masking.observe(
        settings.data.pattern,
        data.counts.shape,
        bandwidth,
        (settings.data.seed, bandwidth),
        block_length=settings.data.block_length,
    )
    chosen &= data.observed
    return chosen


def observation_masks(
    settings: Settings, data: Dataset, keys: Sequence[ModelKey]
) -> training.Masks:
    """All models' masks, stacked, without the points that are held out of input and training.

    Raises:
      InputError: a bandwidth leaves a neuron without a sample in the training trials, or the
        validation trials have too few observed points to hold any out.
    """
    shape = (len(keys), *data.counts.shape)
    observed = np.empty(shape, bool)
    heldout = np.zeros(shape, bool) if settings.data.holdout_fraction else None
    for bandwidth in dict.fromkeys(key.bandwidth for key in keys):
        mask = observed_at(settings, data, bandwidth)
        if neurons := dataset.unobserved(mask, data.train)[1]:
            raise InputError(
                f"at bandwidth {bandwidth}, nothing is observed of {_numbers('neuron', neurons)} "
                "in training trials; give a larger bandwidth or another data.seed"
            )
        models_here = [i for i, key in enumerate(keys) if key.bandwidth == bandwidth]
        if heldout is not None:
            held = held_out(settings, data, bandwidth, mask)
            if not held.any():
                raise InputError(
                    f"at bandwidth {bandwidth}, the validation trials have "
                    f"{mask[data.valid].sum()} observed points, and data.holdout_fraction "
                    f"{settings.data.holdout_fraction:g} holds out none; raise it, or "
                    "data.valid_fraction"
                )
            mask[data.valid] &= ~held
            for i in models_here:
                heldout[i, data.valid] = held
        for i in models_here:
            observed[i] = mask
    return training.Masks(observed, heldout)


def held_out(
    settings: Settings,
    data: Dataset,
    bandwidth: int,
    observed: Bool[np.ndarray, "trial bin neuron"],
) -> Bool[np.ndarray, "valid_trial bin neuron"]:
    """Which of the points observed at this bandwidth are held out, in the validation trials.

    Validation trials are never trained on, so that points held out there cost training nothing.
    """
    rng = np.random.default_rng((settings.data.seed, bandwidth, 1))
    drawn = rng.random((len(data.valid), *observed.shape[1:])) < settings.data.holdout_fraction
    return observed[data.valid] & drawn


def check_trainable(settings: Settings, data: Dataset) -> None:
    """Refuse data with a trial or neuron of which there is no sample to learn from.

    Raises:
      InputError: naming them, and the setting that drops them; or a bandwidth above the neurons.
    """
    _check_bandwidths(settings, data)
    trials, neurons = dataset.unobserved(data.observed, data.train)
    if trials:
        numbers = trials if data.trial_index is None else data.trial_index[trials].tolist()
        raise InputError(
            f"{settings.data.path}: nothing is observed in {_numbers('trial', numbers)}; "
            "--data.drop_unobserved_trials drops such trials"
        )
    if neurons:
        numbers = neurons if data.neuron_index is None else data.neuron_index[neurons].tolist()
        numbers = sorted({*numbers, *data.dropped_neurons})
        raise InputError(
            f"{settings.data.path}: nothing is observed of {_numbers('neuron', numbers)} in "
            f"training trials; --data.drop_neurons {' '.join(map(str, numbers))} drops such neurons"
        )


def _numbers(what: str, numbers: list[int]) -> str:
    """Such as "neuron 3" or "neurons 3, 7"; of many, the first few."""
    shown = ", ".join(map(str, numbers[:10]))
    rest = f" and {len(numbers) - 10} more" if len(numbers) > 10 else ""
    return f"{what}{'s' if len(numbers) > 1 else ''} {shown}{rest}"


def _trials(data: Dataset) -> training.Trials:
    def variation(trials):
        rates, real = data.rates[trials].astype(np.float64), data.real[trials]
        mean = rates.sum((0, 1)) / real.sum()  # behind a trial's end, rates are 0
        return (real * (rates - mean) ** 2).sum((0, 1)).astype(np.float32)

    known = data.rates is not None
    return training.Trials(
        data.counts,
        data.rates.astype(np.float32) if known else None,
        data.train.astype(np.int32),
        data.valid.astype(np.int32),
        variation(data.train) if known else None,
        variation(data.valid) if known else None,
        data.lengths,
    )


def train(
    settings: Settings,
    out: str | Path,
    *,
    data: Dataset | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> signal.Signals | None:
    """Train every model of the settings and write the run folder `out`.

    `data` is what they are trained on, where that is not what the settings name.
    SIGINT and SIGTERM end it after the epoch in hand, with a checkpoint; the signal is returned.
    A model whose numbers stop being finite is tried again from its last good state, with smaller
    steps, and given up after `training.RETRIES` epochs in a row; `RunFolder.failed` names those.
    A file that cannot be written is tried again after every epoch; training goes on meanwhile.

    Raises:
      InputError: the data cannot be used, or `out` holds a run and neither `resume` nor
        `overwrite` is given, or the run to resume has other settings or data, or no checkpoint
        that is whole, or another training is writing there. Nothing is written then.
      SaveError: `out` cannot be written to, or still could not when training was done.
    """
    folder = RunFolder(out)
    folder.check(settings, resume=resume, overwrite=overwrite)
    data = load_data(settings) if data is None else data
    check_trainable(settings, data)
    settings = config.with_bin_width(settings, data.bin_width)  # a recording may say its own
    keys = models(settings, data.neurons)
    first = grid.single(settings, keys[0].varied)
    sizes = data.neurons, len(data.train), first.model, first.train
    # NumPy draws masks on one core while JAX makes a program of its own to draw weights.
    with ThreadPoolExecutor(1) as beside:
        drawn = beside.submit(observation_masks, settings, data, keys)
        state = training.begin([key.seed for key in keys], *sizes, grid.stacked(keys))
        masks = drawn.result()
    record = provenance.record(data)
    done = 0
    if resume:
        state, done = _newest_state(folder, state, settings)
        record, notes = provenance.resumed(folder.provenance(), record, done)
        for note in notes:
            print(f"{folder.path}: {note}")
    mesh = devices.model_mesh(len(keys), settings.train.data_devices)
    _require_same(settings, record, done)

    print(_announcement(settings, data, keys))
    epochs = range(done, settings.train.epochs)
    if state.recovery.failed.all():
        epochs = range(done, done)
    state, masks, trials = training.place(mesh, state, masks, _trials(data))
    advance = training.compile_epoch(mesh, *sizes)
    with (
        _StopSignals() as received,
        _writing(folder, settings, record, done, overwrite=overwrite) as history,
        tqdm(
            total=epochs.stop, initial=done, unit="epoch", postfix="compiling",
            disable=not processes.first(),
        ) as bar,
    ):  # fmt: skip
        if processes.several():  # the devices of one do not wait while another compiles for long
            advance = advance.lower(state, masks, trials).compile()
            processes.share()
        unsaved: SaveError | None = None
        for epoch in epochs:
            state, log = advance(state, masks, trials)
            log = processes.on_host(log)
            bar.set_postfix_str(_progress(keys, log), refresh=False)
            bar.update()
            for line in _losses(keys, epoch, log):
                _say(line)

            rows = _history_rows(keys, epoch, log)
            last = bool(_stop(received)) or epoch + 1 == epochs.stop or log.failed.all()
            due = last or (epoch + 1) % settings.train.checkpoint_every == 0
            before = unsaved
            unsaved = _write(history, rows, folder, epoch + 1, state if due or before else None)
            if unsaved and not before:
                _say(f"not saved: {unsaved}; trying again each epoch")
            if last:
                break
        if unsaved:
            _say(f"not saved: {unsaved}; make room: trying again for {PATIENCE} s, Ctrl-C gives up")
            for _ in range(PATIENCE):
                if _stop(received) or not unsaved:
                    break
                time.sleep(1)
                unsaved = _write(history, [], folder, epoch + 1, state)
    if unsaved:
        kept = checkpoints.newest(folder.checkpoints) or 0
        raise SaveError(
            f"{unsaved}; {kept} of {epoch + 1} epochs are saved, and train.py --resume goes on "
            "from there"
        )
    best = dict(zip(keys, processes.on_host(state.best.epoch).tolist(), strict=True))
    with processes.as_one():
        if processes.first():
            _draw_history(folder, best, published=is_published_set(settings))
    return _stop(received)


def _require_same(settings: Settings, record: provenance.Record, done: int) -> None:
    """Refuse to start where processes differ in what they would train: they would wait for each
    other's epochs without end, or mix up models."""
    what = hashlib.sha256(repr((settings, record["data"], done)).encode()).hexdigest()
    if len(set(processes.share(what))) > 1:
        raise InputError(
            "the processes have different settings, data or checkpoints before them; start all "
            "with the same command, on files and a run folder that all of them see"
        )


def _stop(received: Sequence[signal.Signals]) -> signal.Signals | None:
    """The signal that this process or another has received, if one has."""
    said = processes.share(str(int(received[0])) if received else "")
    return next((signal.Signals(int(number)) for number in said if number), None)


@contextmanager
def _writing(
    folder: RunFolder, settings: Settings, record: provenance.Record, done: int, *, overwrite: bool
) -> Iterator[History | None]:
    """For the process that writes, a run folder of its own, begun, and its history."""
    with ExitStack() as stack:
        with processes.as_one():
            history = None
            if processes.first():
                stack.enter_context(folder.alone())
                folder.begin(settings, record, overwrite=overwrite)
                rows = folder.writing_history(done, grid.lists(settings))
                history = stack.enter_context(rows)
        yield history


def _say(line: str) -> None:
    if processes.first():
        tqdm.write(line, file=sys.stderr)


def _newest_state(
    folder: RunFolder, beginning: training.ModelState, settings: Settings
) -> tuple[training.ModelState, int]:
    """The state to go on from and its epochs: of the newest checkpoint that is whole, or the
    beginning where the run was stopped before its first."""
    newest = checkpoints.newest_whole(folder.checkpoints)
    if newest.epochs is None:
        if newest.damaged:
            raise InputError(
                f"{'; '.join(newest.damaged)}; no checkpoint is whole: --overwrite begins again"
            )
        return beginning, 0
    if newest.epochs > settings.train.epochs:
        raise InputError(
            f"train.epochs is {settings.train.epochs}, and {folder.path} has {newest.epochs} "
            "epochs behind it; give that many or more"
        )
    state = checkpoints.resume(folder.checkpoints, newest.epochs, beginning)
    for problem in newest.damaged:
        print(f"{problem}; going on from the checkpoint after {newest.epochs} epochs")
    return state, newest.epochs


def _write(
    history: History | None,
    rows: Sequence[HistoryRow],
    folder: RunFolder,
    epochs: int,
    state: training.ModelState | None,
) -> SaveError | None:
    """Append to the history and, given a state, save it; what could not be written, if so."""
    try:
        with processes.as_one():
            if history is not None:
                history.append(rows)
        if state is not None:
            checkpoints.save(folder.checkpoints, epochs, state)
    except SaveError as error:
        return error
    return None


def is_published_set(settings: Settings) -> bool:
    """Whether the published results may stand beside these: a Lorenz set of the same sizes."""
    sizes = (
        "path",
        "conditions",
        "trials_per_condition",
        "bins",
        "neurons",
        "bin_width",
        "pattern",
    )
    published = DataSettings()
    return all(getattr(settings.data, name) == getattr(published, name) for name in sizes)


class _StopSignals:
    """Collects SIGINT and SIGTERM instead of dying of them; a second one is obeyed at once."""

    def __enter__(self) -> list[signal.Signals]:
        received: list[signal.Signals] = []

        def note(number: int, frame: object) -> None:
            received.append(signal.Signals(number))
            self._restore()

        self.before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
        return received

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def _history_rows(keys: Sequence[ModelKey], epoch: int, log: training.EpochLog) -> list[HistoryRow]:
    rows = []
    for i, key in enumerate(keys):
        status = "failed" if log.failed[i] else "retried" if log.lost[i] else "ok"
        values = [getattr(log, name) for name in NUMBERS]
        known = [status == "ok" and v is not None for v in values]
        numbers = [float(v[i]) if k else float("nan") for k, v in zip(known, values, strict=True)]
        rows.append(HistoryRow(key.bandwidth, key.seed, epoch, *numbers, status, key.varied))
    return rows


def _losses(keys: Sequence[ModelKey], epoch: int, log: training.EpochLog) -> list[str]:
    """A line for each model whose epoch was undone."""
    lines = []
    for i, key in enumerate(keys):
        if log.lost[i]:
            then = "given up" if log.failed[i] else "undone, and going on with smaller steps"
            lines.append(f"{key}: numbers not finite in epoch {epoch}; {then}")
    return lines


def _draw_history(folder: RunFolder, best: dict[ModelKey, int], *, published: bool) -> None:
    # Only now, so that no start of training waits for Matplotlib.
    from sbtt_jax import plots

    history: dict[ModelKey, list[HistoryRow]] = {key: [] for key in best}
    for row in folder.read_history():
        if row.key in history:
            history[row.key].append(row)
    curves = []
    for key, epoch in best.items():
        rows = history[key]
        columns = {n: np.array([getattr(r, n) for r in rows]) for n in ("epoch", *NUMBERS)}
        curves.append(plots.Curve(**key._asdict(), **columns, best_epoch=epoch))
    plots.save(plots.history(curves, published=published), folder.history_figure)


def _announcement(settings: Settings, data: Dataset, keys: Sequence[ModelKey]) -> str:
    source = settings.data.path or f"Lorenz set, seed {settings.data.seed}"
    many = f"{len(keys)} models" if len(keys) > 1 else "1 model"
    lengths = "" if data.lengths is None else f"{data.lengths.min()} to "
    varied = "".join(
        f"; {name} {', '.join(map(grid.shown, values))}"
        for name, values in grid.lists(settings).items()
    )
    return "".join(f"{note}\n" for note in data.notes) + (
        f"{source}: {len(data.train)} training and {len(data.valid)} validation trials of "
        f"{lengths}{data.counts.shape[1]} bins x {data.neurons} neurons\n"
        f"training {many} on {devices.describe()}: "
        f"bandwidths {', '.join(str(b) for b in dict.fromkeys(k.bandwidth for k in keys))}; "
        f"seeds {', '.join(map(str, settings.seeds))}{varied}"
    )


def _progress(keys: Sequence[ModelKey], log: training.EpochLog) -> str:
    """Validation NLL and R2 of the first and the last model, named without its seed."""
    texts = []
    for i in dict.fromkeys((0, len(keys) - 1)):
        level = grid.described([("bandwidth", keys[i].bandwidth), *keys[i].varied])
        text = f"{level}: NLL {log.valid_nll[i]:.4f}"
        if log.valid_r2 is not None:
            text += f" R2 {log.valid_r2[i]:.3f}"
        texts.append(text)
    return ", ".join(texts)
