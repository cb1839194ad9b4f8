"""Models of the published PyTorch program, brought over with their weights.

    python -m sbtt_jax.convert CKPT... --bandwidths 29 25 ... --out RUN

PyTorch keeps a weight as output x input with the gates reset, update, candidate stacked; here it
is input x output, the gates in the same order. So a weight is transposed and nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from jaxtyping import Float

from sbtt_jax import checkpoints, command_line, config, training
from sbtt_jax.errors import InputError
from sbtt_jax.model import SequentialAutoencoder
from sbtt_jax.run_folder import RunFolder

# PyTorch's name of each weight: ours, and whether it is transposed.
NAMES = {
    "ic_linear.weight": ("ic_linear.kernel", True),
    "ic_linear.bias": ("ic_linear.bias", False),
    "readout.weight": ("readout.kernel", True),
    "readout.bias": ("readout.bias", False),
}
for _theirs, _ours in {
    "encoder.{}_l0": "forward_encoder",
    "encoder.{}_l0_reverse": "backward_encoder",
    "decoder.{}_l0": "decoder",
}.items():
    NAMES |= {
        _theirs.format("weight_ih"): (f"{_ours}.input_kernel", True),
        _theirs.format("weight_hh"): (f"{_ours}.hidden_kernel", True),
        _theirs.format("bias_ih"): (f"{_ours}.input_bias", False),
        _theirs.format("bias_hh"): (f"{_ours}.hidden_bias", False),
    }

# The published decoder's only input is a constant zero, so these weights never have an effect and
# have no counterpart here: they are dropped one way and are zeros the other way.
WITHOUT_EFFECT = "decoder.weight_ih_l0"
del NAMES[WITHOUT_EFFECT]


def from_pytorch(weights: Mapping[str, Float[np.ndarray, "..."]]) -> SequentialAutoencoder:
    """A model from arrays by their PyTorch names; sizes and dtype are the arrays' own.

    Raises:
      InputError: an array is missing, is not known, or has another shape than the others ask for.
    """
    missing = NAMES.keys() - weights.keys()
    unknown = weights.keys() - NAMES.keys() - {WITHOUT_EFFECT}
    if missing or unknown:
        lists = (("missing", missing), ("not known", unknown))
        said = [f"{what}: {', '.join(sorted(names))}" for what, names in lists if names]
        raise InputError(f"weights of another model; {'; '.join(said)}")
    neurons, decoder_size = weights["readout.weight"].shape
    model = SequentialAutoencoder(
        neurons,
        encoder_size=weights["encoder.weight_hh_l0"].shape[-1],
        decoder_size=decoder_size,
        rngs=nnx.Rngs(0),
    )
    for theirs, (ours, transposed) in NAMES.items():
        value = np.asarray(weights[theirs])
        value = value.T if transposed else value
        layer, name = _place(model, ours)
        expected = getattr(layer, name).shape
        if value.shape != expected:
            raise InputError(f"{theirs} is {value.shape}; the other weights ask for {expected}")
        setattr(layer, name, nnx.Param(jnp.asarray(value)))
    return model


def to_pytorch(model: SequentialAutoencoder) -> dict[str, Float[np.ndarray, "..."]]:
    """The model's weights as arrays by their PyTorch names, exactly as `from_pytorch` takes them.

    Raises:
      InputError: the model has parts that the published program does not have.
    """
    if model.bottleneck is not None or model.mask_input or model.input_scaling:
        raise InputError("latent_size, mask_input and input_scaling have no counterpart in PyTorch")
    weights = {}
    for theirs, (ours, transposed) in NAMES.items():
        value = np.asarray(getattr(*_place(model, ours))[...])
        weights[theirs] = value.T if transposed else value
    bias = weights["decoder.bias_ih_l0"]
    return weights | {WITHOUT_EFFECT: np.zeros((bias.size, 1), bias.dtype)}


def _place(model: SequentialAutoencoder, name: str) -> tuple[nnx.Module, str]:
    layer, parameter = name.split(".")
    return getattr(model, layer), parameter


def write_run(
    out: str | Path, trained: Mapping[int, tuple[SequentialAutoencoder, int]], dropout: float
) -> None:
    """A run folder of models by bandwidth, each with the epoch that it was kept at.

    Raises:
      InputError: `out` holds a run, or the models differ in size.
    """
    models = [model for model, _ in trained.values()]
    sizes = {
        (m.readout.out_features, m.ic_linear.in_features // 2, m.ic_linear.out_features)
        for m in models
    }
    if len(sizes) > 1:
        raise InputError("the checkpoints hold models of different sizes; convert them one by one")
    neurons, encoder_size, decoder_size = sizes.pop()
    settings = config.check(
        {
            "bandwidths": list(trained),
            "data": {"neurons": neurons},
            "model": {
                "encoder_size": encoder_size,
                "decoder_size": decoder_size,
                "dropout": dropout,
            },
        }
    )
    folder = RunFolder(out)
    folder.check(settings, resume=False, overwrite=False)
    state = training.begin([0] * len(models), neurons, 1, settings.model, settings.train)
    params = jax.tree.map(lambda *leaves: np.stack(leaves), *(nnx.state(m) for m in models))
    epochs = np.array([epoch for _, epoch in trained.values()], np.int32)
    state = state._replace(
        params=params, epoch=epochs + 1, best=state.best._replace(params=params, epoch=epochs)
    )
    folder.begin(settings, overwrite=False)
    checkpoints.save(folder.checkpoints, int(epochs.max()) + 1, state)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a Lightning checkpoint holds; nothing in it is executed.

    Raises:
      InputError: PyTorch is not installed, or the file is no checkpoint of plain tensors, numbers
        and texts.
    """
    try:
        import torch
    except ImportError:
        raise InputError(
            "reading PyTorch checkpoints needs PyTorch: pip install torch, then run this again"
        ) from None
    try:
        # weights_only: of all that a pickle can say, only tensors and plain values are obeyed.
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # torch raises whatever the damage leads to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: not a checkpoint that can be read safely: {reason}") from None
    if not (isinstance(checkpoint, dict) and isinstance(checkpoint.get("state_dict"), dict)):
        raise InputError(f"{path}: no state_dict in it; expected a Lightning checkpoint")
    return checkpoint


def _found(checkpoint: Mapping[str, Any], name: str) -> Any:
    """A hyperparameter of the model or of the data that a checkpoint records, or None."""
    for group in ("hyper_parameters", "datamodule_hyper_parameters"):
        values = checkpoint.get(group)
        if isinstance(values, dict) and values.get(name) is not None:
            return values[name]
    return None


@dataclass
class Arguments:
    """Make a run folder of checkpoints of the published PyTorch program, for evaluate.py."""

    checkpoints: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CKPT...")]
    """Lightning checkpoints (.ckpt), a model each."""
    out: str
    """Run folder to write."""
    bandwidths: tuple[int, ...] = ()
    """Neurons observed by each model, in the order of the checkpoints, where these do not say."""


def main(argv: Sequence[str]) -> int:
    given = command_line.parse(Arguments, argv, prog="python -m sbtt_jax.convert")
    if not given.checkpoints:
        raise InputError("no checkpoint given; name at least one .ckpt file")
    if given.bandwidths and len(given.bandwidths) != len(given.checkpoints):
        raise InputError(
            f"--bandwidths has {len(given.bandwidths)} values for {len(given.checkpoints)} "
            "checkpoints; give one for each"
        )
    trained: dict[int, tuple[SequentialAutoencoder, int]] = {}
    dropout = 0.0
    for i, path in enumerate(given.checkpoints):
        checkpoint = read_checkpoint(path)
        bandwidth = given.bandwidths[i] if given.bandwidths else _found(checkpoint, "bandwidth")
        if not isinstance(bandwidth, int):
            raise InputError(f"{path}: does not say its bandwidth; add --bandwidths")
        if bandwidth in trained:
            raise InputError(f"{path}: a second model of bandwidth {bandwidth}; give one of each")
        weights = {k: np.asarray(v) for k, v in checkpoint["state_dict"].items()}
        try:
            trained[bandwidth] = from_pytorch(weights), int(checkpoint.get("epoch", 0))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        dropout = float(_found(checkpoint, "dropout") or 0.0)
    write_run(given.out, trained, dropout)
    print(f"wrote {given.out}; now: python evaluate.py {given.out}")
    return 0


if __name__ == "__main__":
    command_line.run(main)
