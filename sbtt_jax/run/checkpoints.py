"""Orbax checkpoints of a run: the best weights of each model, and all that resuming needs.

`FOLDER/EPOCHS/best` and `rest` together are the state of all models, stacked, after that many
epochs; evaluation needs `best` alone. `sums` has the SHA-256 sum of every array, which is compared
when the array is restored. Orbax's CheckpointManager makes a checkpoint appear whole or not at all
and keeps the newest two.
"""

import errno
import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epy

from sbtt_jax.errors import InputError, SaveError
from sbtt_jax.run import processes
from sbtt_jax.training import devices
from sbtt_jax.training.epoch import Best, ModelState, Params, Recovery

with epy.lazy_imports():  # when first used, so that the start of training does not wait for it
    import orbax.checkpoint as ocp

KEPT = 2  # checkpoints
MAX_COMPRESSION = 100  # random weights hardly compress; a header that claims far more is wrong
OVERHEAD_BYTES = 2**18  # of a checkpoint besides its arrays, rounded up


@contextmanager
def _manager(folder: Path, *, clean: bool = False) -> Iterator["ocp.CheckpointManager"]:
    """clean: first remove what a killed process left half written."""
    # Every process reads for itself and only the first one writes, so none waits for another here.
    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process_{own}"
    )
    options = ocp.CheckpointManagerOptions(
        max_to_keep=KEPT,
        create=False,
        cleanup_tmp_directories=clean,
        enable_async_checkpointing=False,
        multiprocessing_options=alone,
    )
    with ocp.CheckpointManager(folder.resolve(), options=options) as manager:
        yield manager


def save(folder: Path, epochs: int, state: ModelState) -> None:
    """Write the state after `epochs` epochs; keep the checkpoint before it, remove older ones.

    Of several processes, the first writes.

    Raises SaveError if the disk is full or read-only; what was there before still is.
    """
    _save(folder, epochs, {"best": state.best._asdict(), "rest": _rest(state)})


def save_best(folder: Path, epochs: int, best: Best) -> None:
    """Write the best weights of all models, stacked, without what only resuming needs.

    Raises SaveError as `save` does.
    """
    _save(folder, epochs, {"best": best._asdict()})


def _save(folder: Path, epochs: int, items: dict[str, Any]) -> None:
    items = devices.on_host(items)
    with processes.together():
        if not devices.is_main():
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Orbax would find out too, but in many words and from several threads.
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(items))
            if shutil.disk_usage(folder).free < size + OVERHEAD_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sums = {name: _sums(item) for name, item in items.items()}
            args = {name: ocp.args.StandardSave(item) for name, item in items.items()}
            with _manager(folder, clean=True) as manager:
                if epochs in manager.all_steps():  # a damaged one, which resuming skipped
                    manager.delete(epochs)
                args = ocp.args.Composite(**args, sums=ocp.args.JsonSave(sums))
                manager.save(epochs, args=args, force=True)
        except (OSError, ValueError) as error:  # ValueError is how TensorStore reports it
            raise SaveError(f"{folder / str(epochs)}: {_reason(error)}") from error


def epochs_saved(folder: Path) -> list[int]:
    """The epochs done at each checkpoint, newest first."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted((int(n) for n in names if n.isascii() and n.isdigit()), reverse=True)


def resume(folder: Path, like: ModelState) -> tuple[ModelState | None, list[str]]:
    """The state of the newest intact checkpoint, None if there is no checkpoint yet, and what is
    wrong with newer ones.

    like: a stacked state of the same shapes, whose hyperparameters are taken over: those are
      settings, and not part of a checkpoint.

    Raises InputError if no checkpoint is intact, or all keep the best weights only.
    """
    problems = []
    for epochs in epochs_saved(folder):
        if not (folder / str(epochs) / "rest").is_dir():
            problems.append(
                f"{folder / str(epochs)}: keeps the best weights only, which evaluate.py reads; it "
                "cannot be resumed"
            )
            continue
        try:
            best = Best(**_restore(folder, epochs, "best", like.best._asdict()))
            rest = _restore(folder, epochs, "rest", _rest(like))
        except InputError as error:
            problems.append(str(error))
            continue
        rest["recovery"] = Recovery(**rest["recovery"])
        return ModelState(**rest, best=best, values=like.values), problems
    if problems:
        raise InputError(f"{'; '.join(problems)}; no checkpoint is intact: --overwrite starts over")
    return None, problems


def _rest(state: ModelState) -> dict[str, Any]:
    values = state._asdict() | {"recovery": state.recovery._asdict()}
    return {name: values[name] for name in values if name not in ("best", "values")}


def restore_best(
    folder: Path, weights: Callable[[Mapping], tuple[Params, int]], epochs: int | None = None
) -> Best:
    """The best epochs of all models, stacked, from one checkpoint or the newest.

    weights: from shape and dtype of every array of the checkpoint, by path, to the shapes that one
      model's weights should have and the number of models.

    Raises InputError if there is no such checkpoint, or it is damaged or has other shapes, naming
    one that is intact, if any.
    """
    there = epochs_saved(folder)
    if not there:
        raise InputError(f"{folder}: holds no checkpoint yet")
    if epochs is not None and epochs not in there:
        raise InputError(
            f"{folder}: no checkpoint after {epochs} epochs; there are {', '.join(map(str, there))}"
        )

    def restored(epochs: int) -> Best:
        params, models = weights(_shapes(folder, epochs, "best"))
        scalar = jax.ShapeDtypeStruct((), np.float32), jax.ShapeDtypeStruct((), np.int32)
        stacked = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((models, *leaf.shape), leaf.dtype),
            Best(params, *scalar)._asdict(),
        )
        return Best(**_restore(folder, epochs, "best", stacked))

    chosen = there[0] if epochs is None else epochs
    try:
        return restored(chosen)
    except InputError as error:
        for other in there:
            if other != chosen:
                try:
                    restored(other)
                except InputError:
                    continue
                raise InputError(
                    f"{error}; the checkpoint after {other} epochs is intact: evaluate.py reads it "
                    f"with --checkpoint {other}, and train.py --resume continues from it"
                ) from None
        raise


Shapes = dict[tuple[str, ...], tuple[tuple[int, ...], np.dtype]]


def _shapes(folder: Path, epochs: int, name: str) -> Shapes:
    """Shape and dtype of every array of an item, without reading them."""
    item = folder / str(epochs) / name
    try:
        tree = ocp.StandardCheckpointHandler().metadata(item.resolve())
        arrays = ocp.tree.to_flat_dict(getattr(tree, "tree", tree))
        shapes = {path: (tuple(a.shape), np.dtype(a.dtype)) for path, a in arrays.items()}
        held = sum(file.stat().st_size for file in item.rglob("*") if file.is_file())
        claimed = sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes.values())
        if claimed > MAX_COMPRESSION * held:
            raise ValueError("claims more than it holds")
        return shapes
    except Exception as error:  # whatever a damaged description leads to
        raise InputError(f"{item}: damaged: {_reason(error)}") from error


def _restore(folder: Path, epochs: int, name: str, like: Mapping[str, Any]) -> dict[str, Any]:
    """An item of a checkpoint, verified. Orbax returns whatever shapes it finds, so they are
    compared first; nothing is allocated for what a description merely claims."""
    item = folder / str(epochs) / name
    expected = {
        path: (tuple(leaf.shape), np.dtype(leaf.dtype))
        for path, leaf in ocp.tree.to_flat_dict(like).items()
    }
    found = _shapes(folder, epochs, name)
    for path in sorted(expected.keys() | found.keys()):
        if expected.get(path) != found.get(path):
            raise InputError(
                f"{item}: is of other settings: {'.'.join(path)} is {_words(found.get(path))}, and "
                f"config.yaml asks for {_words(expected.get(path))}"
            )
    try:
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
        with _manager(folder) as manager:
            args = {name: ocp.args.StandardRestore(zeros)}
            # Older versions had none; what they left of a run is not resumed.
            if has_sums := name == "rest" or (folder / str(epochs) / "sums").is_dir():
                args["sums"] = ocp.args.JsonRestore()
            restored = manager.restore(epochs, args=ocp.args.Composite(**args))
        if has_sums and restored["sums"][name] != (sums := _sums(restored[name])):
            wrong = [path for path in sums if restored["sums"][name].get(path) != sums[path]]
            raise ValueError(f"{', '.join(wrong[:3])} not as written (SHA-256 sums differ)")
        return restored[name]
    except Exception as error:  # whatever damage leads to
        raise InputError(f"{item}: damaged: {_reason(error)}") from error


def _sums(item: Mapping[str, Any]) -> dict[str, str]:
    """The SHA-256 sum of every array, by its path."""
    arrays = ocp.tree.to_flat_dict(item).items()
    return {
        ".".join(path): hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        for path, array in arrays
    }


def _words(array: tuple[tuple[int, ...], np.dtype] | None) -> str:
    if array is None:
        return "nothing"
    return f"{' x '.join(map(str, array[0])) or 'a single'} {array[1]}"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:300] or type(error).__name__
