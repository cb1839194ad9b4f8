"""A run folder: what train.py writes and evaluate.py reads.

config.yaml     every setting, and where the numbers come from
history.csv     one row per model and epoch
history.png
prior.npz, stack.npz, factors.npz
                of a model from Python: what inference needs of the training trials, or some of it
tuning/         of a run that is tuned: which members are used, figures, and settings to train them
                again
checkpoints/    best and newest states
evaluation/     metrics.csv, rates.h5, figures
"""

import csv
import io
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import filelock
import numpy as np

from sbtt_jax import recipes
from sbtt_jax.config import Settings
from sbtt_jax.errors import InputError
from sbtt_jax.grid import ModelKey, swept
from sbtt_jax.model.factors import Factors
from sbtt_jax.model.inference import Prior
from sbtt_jax.model.stacking import Stack
from sbtt_jax.run import checkpoints, lineage
from sbtt_jax.run.files import GrowingCSV, atomic_write, saving, write_csv
from sbtt_jax.training.epoch import NUMBERS
from sbtt_jax.training.optimizer import Hyperparameters

# "retried": a number was not finite, so the epoch was undone and the next one takes smaller steps.
# "failed": given up after too many of those. Rows other than "ok" hold no numbers.
STATUSES = "ok", "retried", "failed"

# Settings that may change on resume. None of them changes training's numbers, except for rounding
# where several devices add up. train.epochs is one if neither the schedule nor marginal epochs
# depend on it and nothing is tuned, data.path if the fingerprint of the data is the same.
MAY_CHANGE = {
    "train.epochs", "train.checkpoint_every", "train.data_devices", "data.path",
    "model.refinement_steps", "model.refinement_scale", "model.posterior", "model.stacked",
    "model.rank",
}  # fmt: skip

# How history.csv begins.
HEADER = "bandwidth", "seed"
# Names of what an evaluation and a search write, but for exports, which have the recording's own.
# metrics.csv is removed last, since it tells what the folder is.
EVALUATED = (
    "ensemble.csv", "baselines.csv", "ideal_observers.csv", "rates.h5", "report.html",
    "bits_per_spike.png", "r2_vs_missing.png", "*_bandwidth_*.png", "metrics.csv",
)  # fmt: skip
TUNED = "winners.csv", "bandwidth_*_seed_*.png", "bandwidth_*_seed_*.yaml"


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.history = self.path / "history.csv"
        self.history_figure = self.path / "history.png"
        self.checkpoints = self.path / "checkpoints"
        self.tuning = self.path / "tuning"
        self.winners = self.tuning / "winners.csv"
        self.prior = self.path / "prior.npz"
        self.stack = self.path / "stack.npz"
        self.factors = self.path / "factors.npz"
        self._of_best = self.prior, self.stack, self.factors
        self.evaluation = self.path / "evaluation"

    def settings(self) -> Settings:
        """The settings that the run was trained with; raises InputError if there is no run here."""
        return self._load()[0]

    def provenance(self) -> dict[str, Any]:
        """What config.yaml records of the run's origin, if anything; raises as `settings`."""
        return self._load()[1]

    def _load(self) -> tuple[Settings, dict[str, Any]]:
        if self.config.is_file():
            return recipes.load_run(self.config)
        reason = "no run here (no config.yaml); give a folder that train.py wrote"
        raise InputError(f"{self.path}: {reason}")

    def check(
        self,
        settings: Settings,
        *,
        resume: bool = False,
        overwrite: bool = False,
        remedy: str = "--resume continues it, --overwrite replaces it",
    ) -> None:
        """Refuse to write a run of these settings where another would be lost or mixed up.

        remedy: what to do where there is a run already.

        Raises InputError, saying which option is missing or too many, what is here that no run
        wrote, or which settings differ.
        """
        if resume and overwrite:
            raise InputError("--resume and --overwrite exclude each other; give one of them")
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: is a file; give a folder for the run")
        if resume and not self.config.exists():
            raise InputError(f"{self.path}: holds no run to resume; leave --resume out")
        others = [] if resume or self._is_run() else [path.name for path in self._taken()]
        if others:
            reason = f"holds {', '.join(others)}, which no run wrote"
            raise InputError(f"{self.path}: {reason}; give another folder")
        if not (resume or overwrite) and any(self._taken()):
            raise InputError(f"{self.path}: holds a run already; {remedy}")
        if resume:
            may_change = MAY_CHANGE
            own = settings.train
            if own.schedule != "constant" or own.marginal_epochs or settings.tune:
                may_change = MAY_CHANGE - {"train.epochs"}
            begun, now = self.settings().model_dump(), settings.model_dump()
            if now["data"]["bin_width"] is None:  # what it was found to be then
                now["data"]["bin_width"] = begun["data"]["bin_width"]
            differing = _differences(begun, now)
            fixed = [line for name, line in differing if name not in may_change]
            if fixed:
                raise InputError(f"{self.path}: was begun with other settings: {'; '.join(fixed)}")

    def _taken(self) -> Iterator[Path]:
        """What is here of all that a run would replace, or take for its own."""
        files = self.config, self.history, self.history_figure, self.winners
        yield from (path for path in (*files, *self._of_best) if path.exists())
        if self.checkpoints.exists() and any(self.checkpoints.glob("*")):
            yield self.checkpoints

    def _is_run(self) -> bool:
        """Whether a run wrote what is here, by what its settings say of where they are from, by its
        history or by its checkpoints: any of them may be damaged, or not yet written."""
        with suppress(InputError):
            if self.provenance():
                return True
        header = ",".join(HEADER).encode()
        with suppress(OSError), self.history.open("rb") as file:
            if file.read(len(header)) == header:
                return True
        there = checkpoints.written(self.checkpoints)
        return any(any(checkpoint.glob("best*")) for checkpoint in there)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder if there is none, and keep other trainings out of it.

        The operating system releases the lock when a process dies. It holds among the processes of
        a host, and on most network file systems among hosts. Raises InputError if another training
        is writing here, SaveError if the folder cannot be made.
        """
        lock = filelock.FileLock(self.path / ".lock", timeout=0)
        with saving(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire()
            except filelock.Timeout:
                remedy = "wait for it to end, or give another folder"
                reason = f"another training is writing here; {remedy}"
                raise InputError(f"{self.path}: {reason}") from None
            except NotImplementedError:  # a file system without locks
                pass
        try:
            yield
        finally:
            lock.release()  # the file stays: deleting it could part two that wait for it

    def begin(
        self, settings: Settings, provenance: Mapping[str, Any] | None, *, overwrite: bool = False
    ) -> None:
        """Write the settings; with `overwrite`, first remove what a run wrote, and nothing else.

        Raises SaveError if the folder cannot be written to.
        """
        with saving(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if self._is_run():
                for file in (*self.path.glob(".*.part"), *self.evaluation.glob(".*.part")):
                    file.unlink(missing_ok=True)
                if overwrite:
                    self._remove()
            text = recipes.dump(settings, provenance)
            if not self.config.exists() or self.config.read_text(encoding="utf-8") != text:
                with atomic_write(self.config) as part:
                    part.write_text(text, encoding="utf-8")

    def _remove(self) -> None:
        """Remove what a run wrote, and folders that are empty then."""
        for checkpoint in checkpoints.written(self.checkpoints):
            shutil.rmtree(checkpoint)
        # Also what models that are gone inferred about other recordings.
        others = (file.parent for file in self.path.glob("evaluation_*/metrics.csv"))
        names = dict.fromkeys((self.evaluation, *others), EVALUATED) | {self.tuning: TUNED}
        for folder, patterns in names.items():
            for file in (file for pattern in patterns for file in folder.glob(pattern)):
                file.unlink()
        for folder in (self.checkpoints, *names):
            with suppress(OSError):  # not empty, or not there
                folder.rmdir()
        # The settings last: without them, the rest could be taken for another run's.
        for file in (self.history, self.history_figure, self.config):
            file.unlink(missing_ok=True)

    def forget_best(self) -> None:
        """Remove what was written of the best weights, which more training may replace: what
        `write_prior` kept, and which members are used.

        Raises SaveError if it cannot.
        """
        for path in (*self._of_best, self.winners):
            with saving(path):
                path.unlink(missing_ok=True)

    def write_prior(self, prior: Prior) -> None:
        """Keep what inference needs of the training trials; SaveError if it cannot."""
        contents = {
            self.prior: None if prior.ic is None else {"ic": prior.ic, "own": prior.own},
            self.stack: prior.stack and prior.stack.arrays,
            self.factors: prior.factors and prior.factors._asdict(),
        }
        for path, arrays in contents.items():
            if arrays is not None:
                with atomic_write(path) as part, part.open("wb") as file:
                    np.savez(file, **arrays)

    def read_prior(self) -> Prior | None:
        """What `write_prior` kept; None if it never did. InputError if a file is damaged."""
        found = {}
        for path, parts in (
            (self.prior, lambda arrays: {"ic": arrays["ic"], "own": float(arrays["own"])}),
            (self.stack, lambda arrays: {"stack": Stack.of_arrays(arrays)}),
            (self.factors, lambda arrays: {"factors": Factors(**arrays)}),
        ):
            if not path.exists():
                continue
            try:
                with np.load(path, allow_pickle=False) as arrays:
                    found |= parts(dict(arrays))
            except (OSError, ValueError, EOFError, KeyError, TypeError, BadZipFile) as error:
                raise InputError(f"{path}: {error}; copy it from the original again") from None
        return Prior(**found) if found else None

    def write_winners(self, chosen: Mapping[ModelKey, tuple]) -> None:
        """Keep which members are used of a run that is tuned, by named tuples whose first field is
        `member`; SaveError if it cannot."""
        with saving(self.winners):
            self.tuning.mkdir(exist_ok=True)
            write_csv(self.winners, [k.columns | one._asdict() for k, one in chosen.items()])

    def read_winners(self) -> dict[ModelKey, int]:
        """The member that is used of each population; none if `write_winners` did not say.

        Raises InputError if the file is damaged.
        """
        if not self.winners.exists():
            return {}
        try:
            with self.winners.open(newline="", encoding="utf-8") as file:
                rows = [ModelKey.of(row) for row in csv.DictReader(file)]
            return {key._replace(member=None): key.member for key in rows}
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"{self.winners}: is damaged ({error}); remove it") from None

    def read_history(self) -> list[dict[str, Any]]:
        """All whole rows of history.csv; a last line cut short is left out.

        Raises InputError if a row is damaged.
        """
        if not self.history.exists():
            return []
        text = self.history.read_bytes().decode("utf-8", errors="replace")
        rows, whole = [], io.StringIO(text[: text.rfind("\n") + 1])
        for line, row in enumerate(csv.DictReader(whole), start=2):
            try:
                status = row.get("status", "ok")  # missing in the first layout
                if status not in STATUSES:
                    raise ValueError(f"status {status!r}")
                numbers = {name: float(row[name] or "nan") for name in NUMBERS}
                first = {**ModelKey.of(row).columns, "epoch": int(row["epoch"])}
                if "member" in row:
                    first["parent"] = int(row["parent"])
                    numbers |= {name: float(row[name]) for name in Hyperparameters._fields}
                if "latent_size" in row:
                    numbers["latent_size"] = int(row["latent_size"])
            except (KeyError, ValueError, TypeError) as error:
                raise InputError(
                    f"{self.history}: line {line} is damaged ({error}); once the file is removed, "
                    "train.py --resume continues, and the epochs before have no history"
                ) from None
            rows.append({**first, **numbers, "status": status})
        return rows

    def history_of(self, keys: Iterable[ModelKey]) -> dict[ModelKey, list[dict[str, Any]]]:
        """The rows of history.csv of each of these models; those of others are left out.

        Of the models of a run that is tuned, those of the member that is used and, before it took
        over from another, of that one.
        """
        found: dict[ModelKey, list[dict[str, Any]]] = {key: [] for key in keys}
        chosen = self.read_winners()
        for key, members in lineage.populations(self.read_history()).items():
            if key in found:
                tuned = None not in members
                own = chosen.get(key)
                found[key] = lineage.as_of_one(members, own) if tuned else members[None]
        return found

    def failed(self) -> set[ModelKey]:
        """The models that were given up, by the history; if tuned, with all of their members."""
        last = {ModelKey.of(row): row["status"] for row in self.read_history()}
        fine = {key._replace(member=None) for key, status in last.items() if status != "failed"}
        return {key._replace(member=None) for key in last} - fine

    def writing_history(self, epochs_done: int, settings: Settings) -> GrowingCSV:
        """Begin history.csv, or continue it after the rows of the epochs already done.

        settings: of the run. Raises SaveError if it cannot be written to.
        """
        kept = [row for row in self.read_history() if row["epoch"] < epochs_done]
        which, values = [*HEADER, *swept(settings), "epoch"], NUMBERS
        if settings.tune:
            which = [*HEADER, "member", "epoch", "parent"]
            values = NUMBERS + Hyperparameters._fields
            if settings.model.latent_size:
                values += ("latent_size",)
        return GrowingCSV(self.history, kept, [*which, *values, "status"])


def _differences(old: dict, new: dict, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each setting that differs: its dotted name, and how in words."""
    for name, value in old.items():
        if isinstance(value, dict):
            yield from _differences(value, new[name], f"{prefix}{name}.")
        elif value != new[name]:
            yield prefix + name, f"{prefix}{name} was {value}, now {new[name]}"
