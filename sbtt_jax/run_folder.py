"""A run folder: what train.py writes and evaluate.py reads.

config.yaml     every setting
history.csv     a row per model and epoch
history.png
checkpoints/    best and newest states
evaluation/     metrics.csv, rates.h5, figures
"""

import csv
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sbtt_jax import config
from sbtt_jax.config import Settings
from sbtt_jax.errors import InputError


class HistoryRow(NamedTuple):
    """One model after one epoch: nats a point, and R2 where true rates are known (else NaN)."""

    bandwidth: int
    seed: int
    epoch: int
    train_nll: float
    valid_nll: float
    train_r2: float
    valid_r2: float
    heldout_nll: float


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

    def check(self, settings: Settings, *, resume: bool, overwrite: bool) -> None:
        """Refuse to write a run of these settings where that would lose or mix up another.

        Raises:
          InputError: saying which option is missing or too many, or which settings differ.
        """
        if resume and overwrite:
            raise InputError("--resume and --overwrite exclude each other; give one of them")
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: is a file; give a folder for the run")
        there = self.config.exists()
        if resume and not there:
            raise InputError(f"{self.path}: holds no run to resume; leave --resume out")
        if there and not (resume or overwrite):
            raise InputError(
                f"{self.path}: holds a run already; --resume goes on with it, "
                "--overwrite replaces it"
            )
        if resume:
            differing = _differences(self.settings().model_dump(), settings.model_dump())
            if differing:
                raise InputError(
                    f"{self.path}: was begun with other settings: {'; '.join(differing)}"
                )

    def begin(self, settings: Settings, *, overwrite: bool) -> None:
        """Write the settings; with `overwrite`, remove first what a run wrote, and nothing else."""
        if overwrite:
            for folder in (self.checkpoints, self.evaluation):
                shutil.rmtree(folder, ignore_errors=True)
            for file in (self.history, self.history_figure, self.config):
                file.unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        with whole(self.config) as part:
            part.write_text(config.dump(settings), encoding="utf-8")

    def read_history(self) -> list[HistoryRow]:
        """All whole rows of history.csv; a last line cut short is left out."""
        if not self.history.exists():
            return []
        rows = []
        with self.history.open(newline="") as file:
            for row in csv.DictReader(file):
                if None not in row.values():
                    numbers = [float(row[name] or "nan") for name in HistoryRow._fields]
                    rows.append(HistoryRow(*(int(n) for n in numbers[:3]), *numbers[3:]))
        return rows

    @contextmanager
    def writing_history(self, epochs_done: int) -> Iterator[Any]:
        """A function that appends rows to history.csv, after those of the epochs already done."""
        kept = [row for row in self.read_history() if row.epoch < epochs_done]
        write_csv(self.history, HistoryRow._fields, kept)
        with self.history.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")

            def append(rows: Sequence[HistoryRow]) -> None:
                writer.writerows([_cell(value) for value in row] for row in rows)
                file.flush()

            yield append


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes `path` only once everything is written."""
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[int | float]]) -> None:
    """A table; NaN, which stands for unknown, is left empty."""
    with whole(path) as part, part.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([_cell(value) for value in row] for row in rows)


def _cell(value: int | float) -> str:
    if isinstance(value, int):
        return str(value)
    return "" if np.isnan(value) else f"{value:.6g}"


def _differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    found = []
    for name in old:
        if isinstance(old[name], dict):
            found += _differences(old[name], new[name], f"{prefix}{name}.")
        elif old[name] != new[name]:
            found.append(f"{prefix}{name} was {old[name]}, now {new[name]}")
    return found
