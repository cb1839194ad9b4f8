"""Orbax checkpoints of a run: the best weights of each model, and all that resuming needs.

`FOLDER/EPOCHS/best` and `FOLDER/EPOCHS/rest` are together the state of all models, stacked, after
that many epochs. Orbax writes a checkpoint under another name and renames it once it is whole.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from sbtt_jax.errors import InputError
from sbtt_jax.training import Best, ModelState, Params


def save(folder: Path, epochs: int, state: ModelState) -> None:
    """Write the state after `epochs` epochs; the checkpoint before it stays, older ones go."""
    items = {"best": state.best._asdict(), "rest": state._replace(best=None)._asdict()}
    items = jax.tree.map(np.asarray, items)  # on the host: they restore on any device
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    with ocp.CheckpointManager(folder.resolve(), options=options) as manager:
        arguments = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        manager.save(epochs, args=ocp.args.Composite(**arguments), force=True)


def newest(folder: Path) -> int | None:
    """Epochs done at the newest checkpoint; None where there is none."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=None)


def neurons(folder: Path) -> int:
    """How many neurons the models of the newest checkpoint read out.

    Raises:
      InputError: there is no checkpoint.
    """
    best = ocp.StandardCheckpointHandler().metadata(_newest(folder) / "best")
    return best["params"]["readout"]["bias"]["value"].shape[-1]


def resume(folder: Path, like: ModelState) -> ModelState:
    """The newest state, with the shapes of the stacked state `like`.

    Raises:
      InputError: there is no checkpoint, or one of other shapes.
    """
    items = _restore(folder, best=like.best._asdict(), rest=like._replace(best=None)._asdict())
    return ModelState(**items["rest"])._replace(best=Best(**items["best"]))


def restore_best(folder: Path, weights: Params, models: int) -> list[Best]:
    """Each model at its best epoch, in the order of the run.

    `weights` gives the shapes of one model's weights, such as `nnx.state` of a fresh one.

    Raises:
      InputError: there is no checkpoint, or one of other shapes.
    """
    one = Best(weights, np.float32(0), np.int32(0))._asdict()
    stacked = jax.tree.map(lambda leaf: np.zeros((models, *leaf.shape), leaf.dtype), one)
    best = Best(**_restore(folder, best=stacked)["best"])
    return [jax.tree.map(lambda leaf: leaf[i], best) for i in range(models)]  # noqa: B023


def _restore(folder: Path, **like: Any) -> dict[str, Any]:
    checkpoint = _newest(folder)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return {
                name: checkpointer.restore(checkpoint / name, jax.tree.map(np.asarray, item))
                for name, item in like.items()
            }
    except (ValueError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{checkpoint}: cannot be restored: {reason[:300]}") from error


def _newest(folder: Path) -> Path:
    epochs = newest(folder)
    if epochs is None:
        raise InputError(f"{folder}: holds no checkpoint yet")
    return folder.resolve() / str(epochs)
