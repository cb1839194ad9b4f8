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
from absl import logging
from etils import epy

from sbtt_jax.errors import InputError, SaveError
from sbtt_jax.run import processes
from sbtt_jax.training import devices
from sbtt_jax.training.epoch import Best, ModelState, Params, Recovery
from sbtt_jax.training.optimizer import Hyperparameters

with epy.lazy_imports():  # when first used, so that the start of training does not wait for it
    import orbax.checkpoint as ocp

KEPT = 2  # checkpoints
MAX_COMPRESSION = 100  # random weights hardly compress; a header that claims far more is wrong
OVERHEAD_BYTES = 2**18  # of a checkpoint besides its arrays, rounded up

# What the folder of a checkpoint holds; one that was being written or removed has some of it.
PARTS = {"best", "rest", "sums", "_CHECKPOINT_METADATA", "commit_success.txt"}
TEMPORARY = ".orbax-checkpoint-tmp"  # ends its name, or those of its parts, while it is written

Shapes = dict[tuple[str, ...], tuple[tuple[int, ...], np.dtype]]  # of arrays, by their paths

# What Orbax logs of damage is raised too, and said once.
logging.get_absl_logger().addFilter(lambda record: "orbax" not in record.pathname)


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


def save(folder: Path, epochs: int, state: ModelState | Best) -> None:
    """Write the state after `epochs` epochs; keep the checkpoint before it, remove older ones.

    state: of all models, stacked; their best weights alone can be evaluated, not resumed.

    Of several processes, the first writes. Raises SaveError if the disk is full or read-only; what
    was there before still is.
    """
    items = {"best": state._asdict()}
    if isinstance(state, ModelState):
        items = {"best": state.best._asdict(), "rest": _rest(state)}
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
            args = {name: ocp.args.StandardSave(item) for name, item in items.items()}
            args["sums"] = ocp.args.JsonSave({name: _sums(item) for name, item in items.items()})
            with _manager(folder, clean=True) as manager:
                if epochs in manager.all_steps():  # a damaged one, which resuming skipped
                    manager.delete(epochs)
                manager.save(epochs, args=ocp.args.Composite(**args), force=True)
        except (OSError, ValueError) as error:  # ValueError is how TensorStore reports it
            raise SaveError(f"{folder / str(epochs)}: {_reason(error)}") from error


def epochs_saved(folder: Path) -> list[int]:
    """The epochs done at each checkpoint, newest first."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted((int(n) for n in names if n.isascii() and n.isdigit()), reverse=True)


def written(folder: Path) -> list[Path]:
    """The checkpoints in a folder that `save` wrote, whole or not: numbered, and with nothing in
    them that it does not write."""

    def final(path: Path) -> str:
        return path.name.partition(TEMPORARY)[0]

    there = [path for path in folder.glob("[0-9]*") if final(path).isdigit() and path.is_dir()]
    return [path for path in there if {final(part) for part in path.iterdir()} <= PARTS]


def resume(folder: Path, like: ModelState) -> tuple[ModelState, list[str]]:
    """The state of the newest intact checkpoint, and what is wrong with newer ones.

    like: a stacked state of the same shapes, returned if there is no checkpoint yet. Its
      hyperparameters are taken over: those are settings, and part of a checkpoint only where they
      are tuned.

    Raises InputError if no checkpoint is intact, or all keep the best weights only.
    """
    problems = []
    for epochs in epochs_saved(folder):
        try:
            if not (folder / str(epochs) / "rest").is_dir():
                only = "keeps the best weights only, which evaluate.py reads; it cannot be resumed"
                raise InputError(f"{folder / str(epochs)}: {only}")
            best = Best(**_restore(folder, epochs, "best", like.best._asdict()))
            rest = _restore(folder, epochs, "rest", _rest(like))
        except InputError as error:
            problems.append(str(error))
            continue
        rest["recovery"] = Recovery(**rest["recovery"])
        if "values" in rest:
            rest["values"] = Hyperparameters(**rest["values"])
        return like._replace(**rest, best=best), problems
    if problems:
        raise InputError(f"{'; '.join(problems)}; no checkpoint is intact: --overwrite starts over")
    return like, []


def _rest(state: ModelState) -> dict[str, Any]:
    rest = state._asdict() | {"recovery": state.recovery._asdict()}
    del rest["best"]
    if state.parent is None:
        del rest["values"], rest["parent"]
    else:
        rest["values"] = state.values._asdict()
    return rest


def restore_best(
    folder: Path, weights: Callable[[Shapes], tuple[Params, int]], epochs: int | None = None
) -> Best:
    """The best epochs of all models, stacked, from one checkpoint or the newest.

    weights: from the shapes that the checkpoint describes to those that one model's weights should
      have and the number of models.

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
    wrong = None
    for number in dict.fromkeys((there[0] if epochs is None else epochs, *there)):
        try:
            params, models = weights(_shapes(folder, number, "best"))
            nll, epoch = jax.ShapeDtypeStruct((), np.float32), jax.ShapeDtypeStruct((), np.int32)
            stacked = jax.tree.map(
                lambda leaf, n=models: leaf.update(shape=(n, *leaf.shape)),
                Best(params, nll, epoch)._asdict(),
            )
            best = Best(**_restore(folder, number, "best", stacked))
        except InputError as error:
            wrong = wrong or error
            continue
        if wrong is None:
            return best
        raise InputError(
            f"{wrong}; the checkpoint after {number} epochs is intact: evaluate.py reads it "
            f"with --checkpoint {number}, and train.py --resume continues from it"
        )
    raise wrong


def _described(tree: Any) -> Shapes:
    arrays = ocp.tree.to_flat_dict(tree).items()
    return {path: (tuple(array.shape), np.dtype(array.dtype)) for path, array in arrays}


def _shapes(folder: Path, epochs: int, name: str) -> Shapes:
    """Shape and dtype of every array of an item, without reading them."""
    item = folder / str(epochs) / name
    try:
        tree = ocp.StandardCheckpointHandler().metadata(item.resolve())
        shapes = _described(getattr(tree, "tree", tree))
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
    expected, found = _described(like), _shapes(folder, epochs, name)
    for path in sorted(expected.keys() | found.keys()):
        if expected.get(path) != found.get(path):
            raise InputError(
                f"{item}: is of other settings: {'.'.join(path)} is {_words(found.get(path))}, and "
                f"config.yaml asks for {_words(expected.get(path))}"
            )
    try:
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
        args = {name: ocp.args.StandardRestore(zeros)}
        # Older versions had no sums; what they left of a run is not resumed.
        if has_sums := name == "rest" or (folder / str(epochs) / "sums").is_dir():
            args["sums"] = ocp.args.JsonRestore()
        with _manager(folder) as manager:
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
    return {".".join(path): hashlib.sha256(array.tobytes()).hexdigest() for path, array in arrays}


def _words(array: tuple[tuple[int, ...], np.dtype] | None) -> str:
    if array is None:
        return "nothing"
    return f"{' x '.join(map(str, array[0])) or 'a single'} {array[1]}"


def _reason(error: Exception) -> str:
    strerror = error.strerror if isinstance(error, OSError) else None
    return strerror or " ".join(str(error).split())[:300] or type(error).__name__
