"""Orbax checkpoints of a run: the best weights of each model, and all that resuming needs.

`FOLDER/EPOCHS/best`, `rest` and `recovery` are together the state of all models, stacked, after
that many epochs. `FOLDER/EPOCHS/SHA256SUMS` lists the SHA-256 sum of every file beside it, as
`sha256sum -c` reads it, and is compared before anything is restored. A checkpoint is written under
another name, sums and all, and renamed once it is on the disk: half of one is never found.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epy

from sbtt_jax import processes
from sbtt_jax.errors import InputError, SaveError
from sbtt_jax.training import Best, ModelState, Params, Recovery

with epy.lazy_imports():  # when it is first needed: no start of training waits for it
    import orbax.checkpoint as ocp

SUMS = "SHA256SUMS"
# Weights are random numbers, which hardly compress; a header that claims far more lies.
MOST_COMPRESSED = 100
# Bytes of a checkpoint beside its arrays, rounded up.
OVERHEAD = 2**18


def save(folder: Path, epochs: int, state: ModelState) -> None:
    """Write the state after `epochs` epochs; the checkpoint before it stays, all others go.

    Of several processes, each writes what lies on its devices, and the first does the rest; the
    folder must be one that all of them see.

    Raises:
      SaveError: the disk is full or cannot be written to; what was there before still is.
    """
    items = _items(state)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(items))
    if not processes.several():
        items = jax.tree.map(np.asarray, items)  # on the host: they restore on any device
    checkpoint, part = folder / str(epochs), folder / f".{epochs}.part"
    first = processes.first()
    with _saving(checkpoint, part):
        if first:
            folder.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(folder)
            _require_room(folder, size)
    with _saving(checkpoint, part), _checkpointer(jax.process_count()) as checkpointer:
        for name, item in items.items():
            checkpointer.save((part / name).resolve(), item)
            checkpointer.wait_until_finished()
    with _saving(checkpoint, part):
        if first:
            _seal(part, checkpoint)
    if first:
        before = [e for e in _epochs(folder) if e < epochs]
        for other in _epochs(folder):
            if other not in (epochs, max(before, default=epochs)):
                _remove(folder / str(other))


@contextmanager
def _saving(checkpoint: Path, part: Path) -> Iterator[None]:
    """A step of saving, after which all processes know whether each of them got through it."""
    with processes.as_one():
        try:
            yield
        # The second is how TensorStore says that of a file, and the third is how a process says
        # that another did not come.
        except (OSError, ValueError, jax.errors.JaxRuntimeError) as error:
            if processes.first():
                shutil.rmtree(part, ignore_errors=True)
            raise SaveError(f"{checkpoint}: {_reason(error)}") from error


def _checkpointer(count: int) -> "ocp.StandardCheckpointer":
    """Orbax for `count` processes that save together, or for one that restores by itself.

    It is told who takes part even if all do: then none waits without end for one that failed.
    """
    own = jax.process_index()
    members = {own} if count == 1 else set(range(count))
    options = ocp.options.MultiprocessingOptions(
        primary_host=min(members), active_processes=members
    )
    return ocp.StandardCheckpointer(multiprocessing_options=options)


def newest(folder: Path) -> int | None:
    """Epochs done at the newest checkpoint; None where there is none."""
    return max(_epochs(folder), default=None)


class Whole(NamedTuple):
    """The newest checkpoint that is as it was written, and what is wrong with those after it."""

    epochs: int | None
    damaged: list[str]


def newest_whole(folder: Path) -> Whole:
    """Look for a checkpoint to go on from, newest first; `epochs` is None where there is none."""
    damaged = []
    for epochs in sorted(_epochs(folder), reverse=True):
        problem = damage(folder / str(epochs))
        if problem is None:
            return Whole(epochs, damaged)
        damaged.append(f"{folder / str(epochs)}: {problem}")
    return Whole(None, damaged)


def damage(checkpoint: Path) -> str | None:
    """Which file of a checkpoint is not as it was written, in words; None where all are.

    A checkpoint without sums, from before there were any, can only be checked for being there.
    """
    sums = checkpoint / SUMS
    if not sums.exists():
        return None if (checkpoint / "best").is_dir() else "best is missing"
    try:
        *lines, end = sums.read_text(encoding="ascii").split("\n")
        if end or not lines:
            raise ValueError("the last line is not whole")
        listed = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
        there = _files(checkpoint)
        for name in sorted(listed.keys() | there.keys()):
            if name not in there:
                return f"{name} is missing"
            if name not in listed:
                return f"{name} is not listed in {SUMS}"
            if _sha256(there[name]) != listed[name]:
                return f"{name} is not as it was written (its SHA-256 sum differs)"
    except ValueError:
        return f"{SUMS} is cut short or damaged"
    except OSError as error:
        return f"cannot be read: {_reason(error)}"
    return None


def neurons(folder: Path, epochs: int | None = None) -> int:
    """How many neurons the models of a checkpoint, or of the newest one, read out.

    Raises:
      InputError: there is no such checkpoint, or it is damaged.
    """
    checkpoint = _checkpoint(folder, epochs)
    described = _described(checkpoint / "best")
    size = sum(file.stat().st_size for file in _files(checkpoint / "best").values())
    claimed = sum(int(np.prod(shape, dtype=object)) * 4 for shape, _ in described.values())
    bias = described.get(("params", "readout", "bias", "value"))
    if bias is None or not bias[0] or claimed > MOST_COMPRESSED * size:
        raise InputError(f"{checkpoint}: best does not hold the weights of a model")
    return bias[0][-1]


def resume(folder: Path, epochs: int, like: ModelState) -> ModelState:
    """The state after `epochs` epochs, with the shapes of the stacked state `like`.

    Raises:
      InputError: there is no such checkpoint, or it is damaged, or of other shapes, or was kept
        for its best weights only.
    """
    checkpoint = _checkpoint(folder, epochs)
    if not (checkpoint / "rest").is_dir():
        raise InputError(
            f"{checkpoint}: keeps the best weights only, which evaluate.py reads; it cannot be "
            "resumed"
        )
    items = _items(like)
    if not (checkpoint / "recovery").is_dir():  # from before there was any
        del items["recovery"]
    items = _restore(checkpoint, items)
    recovery = Recovery(**items["recovery"]) if "recovery" in items else like.recovery
    rest = items["rest"] | {"best": Best(**items["best"]), "recovery": recovery}
    return ModelState(**rest, varied=like.varied)


def restore_best(
    folder: Path, weights: Params, models: int, epochs: int | None = None
) -> list[Best]:
    """Each model at its best epoch, in the order of the run, from a checkpoint or the newest one.

    `weights` gives the shapes of one model's weights, such as `nnx.state` of a fresh one or what
    `nnx.eval_shape` makes of it.

    Raises:
      InputError: there is no such checkpoint, or it is damaged or of other shapes.
    """
    one = Best(weights, jax.ShapeDtypeStruct((), np.float32), jax.ShapeDtypeStruct((), np.int32))
    stacked = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((models, *leaf.shape), leaf.dtype), one._asdict()
    )
    best = Best(**_restore(_checkpoint(folder, epochs), {"best": stacked})["best"])
    return [jax.tree.map(lambda leaf: leaf[i], best) for i in range(models)]  # noqa: B023


def copy_best(folder: Path, out: Path) -> None:
    """The best weights of the newest checkpoint as a checkpoint of their own in `out`.

    Raises:
      InputError: there is no checkpoint, or it is damaged.
      SaveError: `out` cannot be written to.
    """
    checkpoint = _checkpoint(folder, None)
    part = out / f".{checkpoint.name}.part"
    try:
        shutil.copytree(checkpoint / "best", part / "best")
        _seal(part, out / checkpoint.name)
    except OSError as error:
        raise SaveError(f"{out}: {_reason(error)}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _items(state: ModelState) -> dict[str, dict[str, Any]]:
    """What a checkpoint consists of; evaluation needs the first item alone. Settings are not part
    of it: they stand in config.yaml."""
    rest = state._replace(best=None)._asdict()
    recovery, _ = rest.pop("recovery"), rest.pop("varied")
    return {"best": state.best._asdict(), "rest": rest, "recovery": recovery._asdict()}


def _epochs(folder: Path) -> list[int]:
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return [int(name) for name in names if name.isascii() and name.isdigit()]


def _checkpoint(folder: Path, epochs: int | None) -> Path:
    """The checkpoint asked for, once its sums are seen to be right."""
    there = sorted(_epochs(folder), reverse=True)
    if not there:
        raise InputError(f"{folder}: holds no checkpoint yet")
    if epochs is not None and epochs not in there:
        raise InputError(
            f"{folder}: no checkpoint after {epochs} epochs; there are {', '.join(map(str, there))}"
        )
    checkpoint = folder / str(there[0] if epochs is None else epochs)
    if (problem := damage(checkpoint)) is None:
        return checkpoint
    others = [e for e in there if str(e) != checkpoint.name and damage(folder / str(e)) is None]
    offer = "there is no other to go back to"
    if others:
        offer = (
            f"the one after {others[0]} epochs is whole: evaluate.py reads it with --checkpoint "
            f"{others[0]}, and train.py --resume goes on from it"
        )
    raise InputError(f"{checkpoint}: {problem}; {offer}")


Described = dict[tuple[str, ...], tuple[tuple[int, ...], np.dtype]]


def _described(item: Path) -> Described:
    """Shape and dtype of every array that an item of a checkpoint says it holds."""
    try:
        tree = ocp.StandardCheckpointHandler().metadata(item.resolve())
        arrays = ocp.tree.to_flat_dict(getattr(tree, "tree", tree))
        return {path: (tuple(a.shape), np.dtype(a.dtype)) for path, a in arrays.items()}
    except Exception as error:  # whatever a damaged description leads to
        raise InputError(f"{item}: cannot be restored: {_reason(error)}") from error


def _restore(checkpoint: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Items of a checkpoint. Orbax hands out whatever shapes it finds, so these are compared
    first; nothing is allocated for what a description merely claims."""
    restored = {}
    for name, like in wanted.items():
        expected = {
            path: (tuple(leaf.shape), np.dtype(leaf.dtype))
            for path, leaf in ocp.tree.to_flat_dict(like).items()
        }
        found = _described(checkpoint / name)
        for path in sorted(expected.keys() | found.keys()):
            if expected.get(path) != found.get(path):
                raise InputError(
                    f"{checkpoint}: {name} is of other settings: {'.'.join(path)} is "
                    f"{_array(found.get(path))}, and config.yaml asks for "
                    f"{_array(expected.get(path))}"
                )
        try:
            with _checkpointer(1) as checkpointer:
                like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
                restored[name] = checkpointer.restore((checkpoint / name).resolve(), like)
        except Exception as error:  # whatever damage to a checkpoint without sums leads to
            raise InputError(f"{checkpoint}: cannot be restored: {_reason(error)}") from error
    return restored


def _array(described: tuple[Sequence[int], np.dtype] | None) -> str:
    if described is None:
        return "nothing"
    shape, dtype = described
    return f"{' x '.join(map(str, shape)) or 'a single'} {dtype}"


def _files(folder: Path) -> dict[str, Path]:
    """Every file of a checkpoint by its relative name, the sums themselves left out."""
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if not p.is_dir()}
    files.pop(SUMS, None)
    return files


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(part: Path, checkpoint: Path) -> None:
    """Add the sums, see everything onto the disk, and give the checkpoint its name."""
    files = _files(part)
    lines = [f"{_sha256(path)}  {name}\n" for name, path in sorted(files.items())]
    (part / SUMS).write_text("".join(lines), encoding="ascii")
    for path in (*part.rglob("*"), part):
        _sync(path)
    if checkpoint.exists():  # a damaged one, which resuming passed over
        _remove(checkpoint)
    part.rename(checkpoint)
    _sync(checkpoint.parent)


def _sync(path: Path) -> None:
    """Wait until a file or a folder's entries are on the disk, where the system can say so."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(checkpoint: Path) -> None:
    """Take a checkpoint out of sight at once, then delete it."""
    old = checkpoint.with_name(f".{checkpoint.name}.old")
    try:
        checkpoint.rename(old)
    except OSError:
        return  # it is only in the way of tidiness; the next save tries again
    shutil.rmtree(old, ignore_errors=True)


def _require_room(folder: Path, size: int) -> None:
    """Raise OSError where the disk will not hold so many bytes of arrays: Orbax would find out
    too, but in many words and from several threads."""
    if shutil.disk_usage(folder).free < size + OVERHEAD:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _remove_leftovers(folder: Path) -> None:
    """What a kill left of checkpoints being written or deleted."""
    for path in folder.iterdir():
        hidden = path.name.startswith(".") and path.suffix in (".part", ".old")
        if hidden or ".orbax-checkpoint-tmp" in path.name:
            shutil.rmtree(path, ignore_errors=True)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:300] or type(error).__name__
