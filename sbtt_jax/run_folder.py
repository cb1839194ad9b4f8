"""A run folder: what train.py writes and evaluate.py reads.

config.yaml     every setting, and where the numbers come from
history.csv     a row per model and epoch
history.png
checkpoints/    best and newest states
evaluation/     metrics.csv, rates.h5, figures
"""

import csv
import errno
import fcntl
import io
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from sbtt_jax import config, grid
from sbtt_jax.config import ModelSettings, Settings, TrainSettings
from sbtt_jax.errors import InputError, SaveError
from sbtt_jax.grid import ModelKey, Varied

Status = Literal["ok", "retried", "failed"]

# Settings that a run may be resumed with other values of: none of them changes training's numbers,
# but for the rounding of those that several devices add up.
# train.epochs is one where the schedule does not depend on it; data.path, where the fingerprint
# of the data is the same.
FREE = {
    "train.epochs", "train.checkpoint_every", "train.data_devices", "data.path",
    "model.refinement_steps", "model.refinement_scale",
}  # fmt: skip


class HistoryRow(NamedTuple):
    """One model after one epoch: nats a point, and R2 where true rates are known (else NaN).

    status: "ok"; "retried" where a number was not finite, so that the epoch was undone and the
    next one takes smaller steps; "failed" from where that came to nothing. Without "ok", all
    numbers are NaN. In the file, `varied` is a column for each setting, after the seed.
    """

    bandwidth: int
    seed: int
    epoch: int
    train_nll: float
    valid_nll: float
    train_r2: float
    valid_r2: float
    heldout_nll: float
    status: Status = "ok"
    varied: Varied = ()

    @property
    def key(self) -> ModelKey:
        return ModelKey(self.bandwidth, self.seed, self.varied)


NUMBERS = ("train_nll", "valid_nll", "train_r2", "valid_r2", "heldout_nll")


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.history = self.path / "history.csv"
        self.history_figure = self.path / "history.png"
        self.checkpoints = self.path / "checkpoints"
        self.evaluation = self.path / "evaluation"

    def settings(self) -> Settings:
        """The settings that the run was trained with.

        Raises:
          InputError: there is no run here.
        """
        if not self.config.is_file():
            raise InputError(
                f"{self.path}: no run here (no config.yaml); give a folder of train.py"
            )
        return config.load(self.config)

    def provenance(self) -> dict[str, Any]:
        """What config.yaml records of the run's making; empty for a run from before that.

        Raises:
          InputError: config.yaml cannot be read.
        """
        return config.provenance(self.config)

    def check(self, settings: Settings, *, resume: bool, overwrite: bool) -> None:
        """Refuse to write a run of these settings where that would lose or mix up another.

        Raises:
          InputError: saying which option is missing or too many, or which settings differ.
        """
        if resume and overwrite:
            raise InputError("--resume and --overwrite exclude each other; give one of them")
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: is a file; give a folder for the run")
        if resume and not self.config.exists():
            raise InputError(f"{self.path}: holds no run to resume; leave --resume out")
        there = any(p.exists() for p in (self.config, self.history, self.checkpoints))
        if there and not (resume or overwrite):
            raise InputError(
                f"{self.path}: holds a run already; --resume goes on with it, "
                "--overwrite replaces it"
            )
        if resume:
            free = FREE - ({"train.epochs"} if settings.train.schedule != "constant" else set())
            free -= set() if self.provenance() else {"data.path"}
            differing = _differences(self.settings().model_dump(), settings.model_dump())
            fixed = [line for name, line in differing.items() if name not in free]
            if fixed:
                raise InputError(f"{self.path}: was begun with other settings: {'; '.join(fixed)}")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Make the folder, where there is none, and keep other trainings out of it.

        The lock is the operating system's, which lets go of it when a process dies. It is one
        among the processes of a host, and on most network file systems among hosts.

        Raises:
          InputError: another training is writing here.
          SaveError: the folder cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            folder = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise SaveError(f"{error.filename or self.path}: {error.strerror}") from error
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(folder)
            raise InputError(
                f"{self.path}: another training is writing here; wait for its end, or give another "
                "folder"
            ) from None
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            os.close(folder)

    def begin(
        self,
        settings: Settings,
        provenance: dict[str, Any] | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        """Write the settings; with `overwrite`, remove first what a run wrote, and nothing else.

        Raises:
          SaveError: the folder cannot be written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if overwrite:
                for folder in (self.checkpoints, self.evaluation):
                    if folder.is_dir():
                        shutil.rmtree(folder)
                # The settings last: without them, what is left could pass for another run's.
                for file in (self.history, self.history_figure, self.config):
                    file.unlink(missing_ok=True)
            for leftover in (*self.path.glob(".*.part"), *self.evaluation.glob(".*.part")):
                leftover.unlink(missing_ok=True)
            text = config.dump(settings, provenance)
            if not self.config.exists() or self.config.read_text(encoding="utf-8") != text:
                with whole(self.config) as part:
                    part.write_text(text, encoding="utf-8")
        except OSError as error:
            raise SaveError(f"{error.filename or self.path}: {error.strerror}") from error

    def read_history(self) -> list[HistoryRow]:
        """All whole rows of history.csv; a last line cut short is left out.

        Raises:
          InputError: a row is no row of a history.
        """
        if not self.history.exists():
            return []
        text = self.history.read_bytes().decode("utf-8", errors="replace")
        text = text[: text.rfind("\n") + 1]
        return [self._history_row(i, r) for i, r in enumerate(csv.DictReader(io.StringIO(text)))]

    def _history_row(self, index: int, row: dict[str, str]) -> HistoryRow:
        try:
            which = [int(row[name]) for name in ("bandwidth", "seed", "epoch")]
            numbers = [float(row[name] or "nan") for name in NUMBERS]
            settings = ModelSettings.model_fields | TrainSettings.model_fields
            varied = tuple((name, float(row[name])) for name in row if name in settings)
            status = row.get("status", "ok")  # not in the first layout
            if status not in get_args(Status):
                raise ValueError(f"status {status!r}")
            return HistoryRow(*which, *numbers, status, varied)
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(
                f"{self.history}: line {index + 2} is damaged ({error}); with the file removed, "
                "train.py --resume goes on, and the epochs before have no history"
            ) from None

    def failed(self) -> set[ModelKey]:
        """The models that were given up, by the history."""
        return {row.key for row in self.read_history() if row.status == "failed"}

    @contextmanager
    def writing_history(self, epochs_done: int, varied: Iterable[str] = ()) -> Iterator["History"]:
        """Begin history.csv, or go on with it after the rows of the epochs already done.

        `varied` names the settings that differ between models.

        Raises:
          SaveError: it cannot be written to.
        """
        kept = [row for row in self.read_history() if row.epoch < epochs_done]
        try:
            write_csv(self.history, HistoryRow, kept, varied)
            file = self.history.open("ab", buffering=0)
        except OSError as error:
            raise SaveError(f"{self.history}: {error.strerror}") from error
        with file:
            yield History(self.history, file)


class History:
    """Rows on their way to history.csv. Those that the disk would not take wait here."""

    def __init__(self, path: Path, file: io.FileIO):
        self.path, self.file = path, file
        self.waiting = b""

    def append(self, rows: Sequence[HistoryRow]) -> None:
        """Write rows, after those that may still wait.

        Raises:
          SaveError: they could not be written, wait, and have left no trace in the file.
        """
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(map(_cells, rows))
        self.waiting += text.getvalue().encode()
        size = self.file.seek(0, os.SEEK_END)
        try:
            if self.file.write(self.waiting) < len(self.waiting):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self.file.truncate(size)
            raise SaveError(f"{self.path}: {error.strerror}") from error
        self.waiting = b""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes `path` only once everything is written."""
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_csv(
    path: Path, kind: type[tuple], rows: Sequence[tuple], varied: Iterable[str] = ()
) -> None:
    """A table of rows of one kind of named tuple; NaN, which stands for unknown, is left empty.

    A field `varied` is a column for each of the settings that are named so, after those that say
    which model a row is of.
    """
    names = [name for name in kind._fields if name != "varied"]
    at = _first_after_model(names)
    with whole(path) as part, part.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*names[:at], *varied, *names[at:]])
        writer.writerows(map(_cells, rows))


def _first_after_model(names: Sequence[str]) -> int:
    return next(i for i, name in enumerate(names) if name not in ("bandwidth", "seed"))


def _cells(row: tuple) -> list[str]:
    values = row._asdict()
    varied = [grid.shown(value) for _, value in values.pop("varied")]  # read back as they were
    at = _first_after_model(list(values))
    cells = [_cell(value) for value in values.values()]
    return [*cells[:at], *varied, *cells[at:]]


def _cell(value: int | float | str) -> str:
    if isinstance(value, int | str):
        return str(value)
    return "" if np.isnan(value) else f"{value:.6g}"


def _differences(old: dict, new: dict, prefix: str = "") -> dict[str, str]:
    """Each setting that differs, by its dotted name, in words."""
    found = {}
    for name in old:
        if isinstance(old[name], dict):
            found |= _differences(old[name], new[name], f"{prefix}{name}.")
        elif old[name] != new[name]:
            found[prefix + name] = f"{prefix}{name} was {old[name]}, now {new[name]}"
    return found
