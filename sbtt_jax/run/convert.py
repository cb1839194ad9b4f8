"""Models of the published PyTorch program, converted with their weights.

PyTorch stores a weight as output x input, with the gates reset, update, candidate stacked; here it
is input x output, with the gates in the same order. So weights are transposed and nothing else.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from sbtt_jax import config
from sbtt_jax.errors import InputError
from sbtt_jax.grid import ModelKey, settings_of
from sbtt_jax.model.autoencoder import SequentialAutoencoder
from sbtt_jax.run.restore import Trained, export

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

# The published decoder's only input is a constant zero, so these weights have no effect and no
# counterpart here: they are dropped in one direction and are zeros in the other.
WITHOUT_EFFECT = "decoder.weight_ih_l0"
del NAMES[WITHOUT_EFFECT]


def from_pytorch(weights: Mapping[str, Float[np.ndarray, "..."]]) -> SequentialAutoencoder:
    """A model from arrays by their PyTorch names; sizes and dtype are those of the arrays.

    Raises InputError if an array is missing, unknown, or has another shape than the others ask for.
    """
    missing = NAMES.keys() - weights.keys()
    unknown = weights.keys() - NAMES.keys() - {WITHOUT_EFFECT}
    if missing or unknown:
        lists = (("missing", missing), ("unknown", unknown))
        texts = [f"{what}: {', '.join(sorted(names))}" for what, names in lists if names]
        raise InputError(f"weights of another model; {'; '.join(texts)}")
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
    """The model's weights as arrays by their PyTorch names, as `from_pytorch` takes them.

    Raises InputError if the model has parts that the published program lacks.
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
    out: str | Path, models: Mapping[int, tuple[SequentialAutoencoder, int]], dropout: float
) -> None:
    """A run folder of models by bandwidth, each with the epoch that it was kept at.

    Raises InputError if `out` holds a run, or the models differ in size.
    """
    sizes = {
        (m.neurons, m.ic_linear.in_features // 2, m.ic_linear.out_features)
        for m, _ in models.values()
    }
    if len(sizes) > 1:
        raise InputError("the checkpoints hold models of different sizes; convert them one by one")
    neurons, encoder_size, decoder_size = sizes.pop()
    sizes = {"encoder_size": encoder_size, "decoder_size": decoder_size}
    settings = config.check(
        {
            "bandwidths": list(models),
            "data": {"neurons": neurons},
            "model": {**sizes, "dropout": dropout},
        }
    )
    trained = {}
    for bandwidth, (model, epoch) in models.items():
        key, params = ModelKey(bandwidth, 0), jax.tree.map(np.asarray, nnx.state(model))
        trained[key] = Trained(settings_of(settings, key), params, float("nan"), epoch)
    export(out, settings, trained)


def convert(out: str | Path, checkpoints: Sequence[str], bandwidths: Sequence[int] = ()) -> None:
    """A run folder of Lightning checkpoints, whose bandwidths are given where they do not say.

    Raises InputError, naming the checkpoint that is wrong, or as `write_run`.
    """
    if not checkpoints:
        raise InputError("no checkpoint given; name at least one .ckpt file")
    if bandwidths and len(bandwidths) != len(checkpoints):
        raise InputError(
            f"--bandwidths has {len(bandwidths)} values for {len(checkpoints)} checkpoints; give "
            "one for each"
        )
    models: dict[int, tuple[SequentialAutoencoder, int]] = {}
    dropout = 0.0
    for i, path in enumerate(checkpoints):
        checkpoint = read_checkpoint(path)
        bandwidth = bandwidths[i] if bandwidths else _recorded(checkpoint, "bandwidth")
        if not isinstance(bandwidth, int):
            raise InputError(f"{path}: does not state its bandwidth; add --bandwidths")
        if bandwidth in models:
            raise InputError(f"{path}: a second model of bandwidth {bandwidth}; give one of each")
        weights = {k: np.asarray(v) for k, v in checkpoint["state_dict"].items()}
        try:
            models[bandwidth] = from_pytorch(weights), int(checkpoint.get("epoch", 0))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        dropout = float(_recorded(checkpoint, "dropout") or 0.0)
    write_run(out, models, dropout)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a Lightning checkpoint holds; nothing in it is executed.

    Raises InputError if PyTorch is not installed, or the file is no checkpoint of plain tensors,
    numbers and texts.
    """
    try:
        import torch
    except ImportError:
        raise InputError(
            "reading PyTorch checkpoints needs PyTorch: pip install torch, then run this again"
        ) from None
    try:
        # weights_only: of all that a pickle can contain, only tensors and plain values are loaded.
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # torch raises whatever the damage leads to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: not a checkpoint that can be read safely: {reason}") from None
    if not (isinstance(checkpoint, dict) and isinstance(checkpoint.get("state_dict"), dict)):
        raise InputError(f"{path}: no state_dict in it; expected a Lightning checkpoint")
    return checkpoint


def _recorded(checkpoint: Mapping[str, Any], name: str) -> Any:
    """A hyperparameter of the model or of the data that a checkpoint records, or None."""
    for group in ("hyper_parameters", "datamodule_hyper_parameters"):
        values = checkpoint.get(group)
        if isinstance(values, dict) and values.get(name) is not None:
            return values[name]
    return None
