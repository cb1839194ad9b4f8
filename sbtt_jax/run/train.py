"""Training with a run folder around it: history, checkpoints, and what a user is told."""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from sbtt_jax import grid
from sbtt_jax.config import Settings
from sbtt_jax.data.dataset import Dataset
from sbtt_jax.data.problem import Problem, prepare, read
from sbtt_jax.errors import InputError, SaveError
from sbtt_jax.grid import ModelKey
from sbtt_jax.output import messages
from sbtt_jax.run import checkpoints, lineage, notices, processes, provenance, restore, winners
from sbtt_jax.run.files import GrowingCSV, Row
from sbtt_jax.run.folder import RunFolder
from sbtt_jax.training import devices, population, tuning
from sbtt_jax.training.epoch import NUMBERS, EpochLog, ModelState

# Seconds for which a finished run whose last files could not be written waits for the disk.
PATIENCE = 600


class Outcome(NamedTuple):
    """How training ended.

    stopped: what `stop` returned, 0 if it never asked to stop.
    failed: the models that were given up.
    """

    stopped: int
    failed: list[ModelKey]


def train(
    settings: Settings,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    stop: Callable[[], int] = lambda: 0,
    data: Dataset | None = None,
    on_epoch: Callable[[Row], bool | None] | None = None,
    verbose: bool = True,
) -> Outcome:
    """Train every model of the settings and write the run folder `out`.

    stop: asked after every epoch; anything but 0, such as a signal's number, ends training with a
      checkpoint.
    data: to train on, instead of what the settings name.
    on_epoch: called after every epoch with the last model's row of history.csv, or the best
      member's if models are tuned; training ends where it returns true.
    verbose: whether to tell what is trained and show a progress bar.

    A model whose numbers stop being finite is retried from its last good state with smaller steps,
    and given up after `epoch.RETRIES` more such epochs in a row. A file that cannot be written is
    tried again after every epoch.

    Raises InputError, with nothing written, if the data cannot be used, `out` holds a run and
    neither `resume` nor `overwrite` is given, the run to resume has other settings or data or no
    intact checkpoint, or another training is writing there; SaveError if `out` cannot be written
    to, or still could not when training was done.
    """
    folder = RunFolder(out)
    folder.check(settings, resume=resume, overwrite=overwrite)
    there = checkpoints.epochs_saved(folder.checkpoints)
    data = read(settings) if data is None else data
    record, begun = provenance.record(data), {}
    if resume:
        begun = folder.provenance()
        # Before its checkpoints, or the data, are called wrong.
        provenance.require_current(folder.path, begun)
        provenance.require_same(begun, record)
    problem = prepare(settings, data)
    settings, keys = problem.settings, problem.keys
    mesh = devices.model_mesh(len(keys), problem.train.data_devices)
    state = population.begin(problem)
    notes = []
    if resume:
        state, problems = _resumed(folder, settings, state)
        record, notes = provenance.resumed(begun, record, int(state.epoch[0]))
        notes = [*(f"{folder.path}: {note}" for note in notes), *problems]
    done = int(state.epoch[0])
    _require_same(settings, record, done)

    for line in (*notes, *announcement(problem)) if verbose and devices.is_main() else ():
        messages.info(line)
    history, how = None, {"unit": "epoch", "postfix": "compiling"}
    if not (verbose and devices.is_main()):
        how["disable"] = True
    with ExitStack() as stack:
        with processes.together():
            if devices.is_main():
                stack.enter_context(folder.lock())
                # Another training may have begun, and ended, while this one read its data.
                folder.check(settings, resume=resume, overwrite=overwrite)
                if resume and there != checkpoints.epochs_saved(folder.checkpoints):
                    meanwhile = "another training has continued this run meanwhile"
                    raise InputError(f"{folder.path}: {meanwhile}; give the command again")
                folder.forget_best()
                folder.begin(settings, record, overwrite=overwrite)
                history = folder.writing_history(done, settings)
                stack.enter_context(closing(history.file))
        bar = stack.enter_context(tqdm(total=settings.train.all_epochs, initial=done, **how))
        recorder = _Recorder(folder, history, problem, done, stop, bar, on_epoch)
        state = population.fit(problem, state, mesh=mesh, on_epoch=recorder)
        if not recorder.stopped():
            end_early(bar)
        recorder.finish(state)
    best, failed = devices.on_host((state.best, state.recovery.failed))
    found, stopped = tuning.populations(keys), recorder.stopped()  # all processes ask
    with processes.together():
        if devices.is_main():
            trained = restore.unstack(best, {key: grid.settings_of(settings, key) for key in keys})
            if settings.tune and not stopped:
                folder.write_winners(winners.choose(settings, problem.data, trained))
            used = restore.winners(trained, (), folder.read_winners())
            restore.draw_history(folder, settings, {key: one.epoch for key, one in used.items()})
    if not stopped:  # and not one epoch was sound
        failed = failed | (best.epoch < 0)
    return Outcome(stopped, [key for key, own in found.items() if failed[own].all()])


def end_early(bar: tqdm) -> None:
    """Let a progress bar show that what was done is all: a notebook calls the rest a failure."""
    if not bar.disable and bar.n < bar.total:
        done, begun = bar.n, bar.start_t
        bar.reset(total=done)
        bar.start_t = begun
        bar.update(done)


@dataclass
class _Recorder:
    """Records every epoch: history, checkpoints when due, progress. Called by `population.fit`."""

    folder: RunFolder
    history: GrowingCSV | None  # in the process that writes
    problem: Problem
    done: int  # epochs
    stop: Callable[[], int]
    bar: tqdm
    on_epoch: Callable[[Row], bool | None] | None = None
    unsaved: SaveError | None = None
    signal: int = 0

    def __call__(self, state: ModelState, log: EpochLog) -> bool:
        epoch, settings = self.done, self.problem.train
        self.done += 1
        self.bar.set_postfix_str(progress(self.problem.keys, log), refresh=False)
        self.bar.update()
        for key, lost, failed in zip(self.problem.keys, log.lost, log.failed, strict=True):
            if lost:
                then = "given up" if failed else "undone, continuing with smaller steps"
                _say(f"{key}: numbers not finite in epoch {epoch}; {then}")
        if log.done.all() and not log.failed.all() and self.done < settings.all_epochs:
            _say(f"done: no smaller validation loss in {settings.patience} epochs", messages.info)
        rows = history_rows(self.problem, epoch, log)
        enough = self.on_epoch is not None and self.on_epoch(lineage.leading(rows))
        last = enough or self.stopped() or self.done == settings.all_epochs or log.done.all()
        due = last or self.done % settings.checkpoint_every == 0
        before = self.unsaved
        self._save(rows, state if due or before else None)
        if self.unsaved and not before:
            _say(f"not saved: {self.unsaved}; trying again after each epoch")
        return bool(last)

    def stopped(self) -> int:
        """What `stop` says, or said, in this process or another."""
        if not self.signal:
            said = map(int, processes.gather(str(self.stop())))
            self.signal = next(filter(None, said), 0)
        return self.signal

    def finish(self, state: ModelState) -> None:
        """Wait for the disk if something is still not saved.

        Raises SaveError if it still is not after `PATIENCE` seconds, or the user stopped waiting.
        """
        if not self.unsaved:
            return
        _say(f"not saved: {self.unsaved}; trying again for {PATIENCE} s, Ctrl-C gives up")
        for _ in range(PATIENCE):
            if self.stopped() or not self.unsaved:
                break
            time.sleep(1)
            self._save([], state)
        if self.unsaved:
            kept = max(checkpoints.epochs_saved(self.folder.checkpoints), default=0)
            raise SaveError(
                f"{self.unsaved}; {kept} of {self.done} epochs are saved, and --resume continues "
                "from there"
            )

    def _save(self, rows: Sequence[Row], state: ModelState | None) -> None:
        self.unsaved = None
        try:
            with processes.together():
                if self.history is not None:
                    self.history.append(rows)
            if state is not None:
                checkpoints.save(self.folder.checkpoints, self.done, state)
        except SaveError as error:
            self.unsaved = error


def history_rows(problem: Problem, epoch: int, log: EpochLog) -> list[Row]:
    """The rows of history.csv that an epoch's log makes; none of models that were done before."""
    rows = []
    for i, key in enumerate(problem.keys):
        if log.ended[i] and not log.failed[i]:
            continue
        status = "failed" if log.failed[i] else "retried" if log.lost[i] else "ok"
        first, numbers = {**key.columns, "epoch": epoch}, dict.fromkeys(NUMBERS, math.nan)
        if status == "ok":
            values = {name: getattr(log, name) for name in NUMBERS}
            numbers |= {name: float(v[i]) for name, v in values.items() if v is not None}
        if log.parent is not None:
            begins = tuning.begins(problem, epoch)
            first["parent"] = problem.keys[log.parent[i]].member if begins else key.member
            numbers |= {name: float(v[i]) for name, v in log.values._asdict().items()}
        if log.latent_size is not None:
            numbers["latent_size"] = int(log.latent_size[i])
        rows.append({**first, **numbers, "status": status})
    return rows


def _resumed(
    folder: RunFolder, settings: Settings, beginning: ModelState
) -> tuple[ModelState, list[str]]:
    """The state to continue from, and what to tell of damaged checkpoints."""
    newest = max(checkpoints.epochs_saved(folder.checkpoints), default=0)
    if newest > settings.train.all_epochs:
        done = f"{folder.path} has {newest} epochs done; give that many or more"
        raise InputError(f"train.epochs is {settings.train.epochs}, and {done}")
    state, problems = checkpoints.resume(folder.checkpoints, beginning)
    then = f"continuing from the checkpoint after {int(state.epoch[0])} epochs"
    return state, [f"{problem}; {then}" for problem in problems]


def _require_same(settings: Settings, record: provenance.Record, done: int) -> None:
    """Refuse to start if processes differ in what they would train: they would wait for each other
    forever, or mix up models."""
    what = hashlib.sha256(repr((settings, record["data"], done)).encode()).hexdigest()
    if len(set(processes.gather(what))) > 1:
        raise InputError(
            "the processes have different settings, data or checkpoints; start all with the same "
            "command, on files and a run folder that all of them see"
        )


def announcement(problem: Problem) -> list[str]:
    """What is about to be trained, in words."""
    settings, data, keys = problem.settings, problem.data, problem.keys
    source = settings.data.path or f"Lorenz set, seed {settings.data.seed}"
    lengths = "" if data.lengths is None else f"{data.lengths.min()} to "
    lists = {"bandwidths": dict.fromkeys(key.bandwidth for key in keys), "seeds": settings.seeds}
    lists |= grid.swept(settings)
    how = f"; of {settings.tune} each, the best" if settings.tune else ""
    texts = (f"{name} {', '.join(map(grid.short, values))}" for name, values in lists.items())
    return [
        *data.notes,
        *notices.unlikely(data, settings.model.distribution),
        *notices.of_settings(problem),
        f"{source}: {notices.split_in_words(data)} of "
        f"{lengths}{data.counts.shape[1]} bins x {data.neurons} neurons",
        f"training {len(keys)} model{'s' * (len(keys) > 1)} on {devices.describe()}: "
        f"{'; '.join(texts)}{how}",
    ]


def progress(keys: Sequence[ModelKey], log: EpochLog) -> str:
    """Validation NLL and R2 of the first and the last model, of members the best."""
    texts, levels = [], list(tuning.populations(keys).items())
    for key, members in levels if len(levels) < 2 else (levels[0], levels[-1]):
        i = min(members, key=lambda i: np.nan_to_num(log.valid_nll[i], nan=np.inf))
        columns = key.columns.items()
        level = ", ".join(f"{name} {value}" for name, value in columns if name != "seed")
        r2 = "" if log.valid_r2 is None else f" R2 {log.valid_r2[i]:.3f}"
        texts.append(f"{level}: NLL {log.valid_nll[i]:.4f}{r2}")
    return ", ".join(texts)


def _say(line: str, how: Callable[[str], None] = messages.warning) -> None:
    if devices.is_main():
        how(line)
