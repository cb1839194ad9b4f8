"""Models of the published PyTorch program: python -m sbtt_jax.convert CKPT... --out RUN

PyTorch stores a weight as output x input, with the gates reset, update, candidate stacked; here it
is input x output, with the gates in the same order. So weights are transposed and nothing else.
"""

import math
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

from sbtt_jax import cli, config
from sbtt_jax.errors import InputError
from sbtt_jax.grid import ModelKey, settings_of
from sbtt_jax.model.autoencoder import SequentialAutoencoder
from sbtt_jax.output import messages, program
from sbtt_jax.run.restore import Trained, export

# PyTorch's name of each weight: our layer, and the weight's name in it.
KINDS = {"weight_ih": "input_kernel", "weight_hh": "hidden_kernel"}
KINDS |= {"bias_ih": "input_bias", "bias_hh": "hidden_bias"}
GRUS = {"encoder.{}_l0": "forward_encoder", "encoder.{}_l0_reverse": "backward_encoder"}
GRUS |= {"decoder.{}_l0": "decoder"}
NAMES = {name.format(kind): (GRUS[name], KINDS[kind]) for name in GRUS for kind in KINDS}
for _layer in ("ic_linear", "readout"):
    NAMES |= {f"{_layer}.weight": (_layer, "kernel"), f"{_layer}.bias": (_layer, "bias")}

# The published decoder's only input is a constant zero, so these weights have no effect and no
# counterpart here.
WITHOUT_EFFECT = "decoder.weight_ih_l0"
del NAMES[WITHOUT_EFFECT]


def from_pytorch(weights: Mapping[str, Float[np.ndarray, "..."]]) -> SequentialAutoencoder:
    """A model from arrays by their PyTorch names; sizes and dtype are those of the arrays.

    Raises InputError if an array is missing, unknown, or has another shape than the others ask for.
    """
    wrong = {
        "missing": NAMES.keys() - weights.keys(),
        "unknown": weights.keys() - NAMES.keys() - {WITHOUT_EFFECT},
    }
    if texts := [f"{what}: {', '.join(sorted(names))}" for what, names in wrong.items() if names]:
        raise InputError(f"weights of another model; {'; '.join(texts)}")
    neurons, decoder_size = weights["readout.weight"].shape
    model = SequentialAutoencoder(
        neurons,
        encoder_size=weights["encoder.weight_hh_l0"].shape[-1],
        decoder_size=decoder_size,
        rngs=nnx.Rngs(0),
    )
    for theirs, (name, ours) in NAMES.items():
        layer, value = getattr(model, name), np.asarray(weights[theirs]).T
        expected = getattr(layer, ours).shape
        if value.shape != expected:
            asked = f"the other weights ask for {expected[::-1]}"
            raise InputError(f"{theirs} is {value.T.shape}; {asked}")
        setattr(layer, ours, nnx.Param(jnp.asarray(value)))
    return model


def write_run(
    out: str | Path, models: Mapping[int, tuple[SequentialAutoencoder, int]], dropout: float
) -> None:
    """A run folder of models by bandwidth, each with the epoch that it was kept at.

    Raises InputError if `out` holds a run, or the models differ in size.
    """
    linear = [(model.neurons, model.ic_linear) for model, _ in models.values()]
    sizes = {(neurons, layer.in_features // 2, layer.out_features) for neurons, layer in linear}
    if len(sizes) > 1:
        raise InputError("the checkpoints hold models of different sizes; convert them one by one")
    neurons, encoder, decoder = sizes.pop()
    own = {"encoder_size": encoder, "decoder_size": decoder, "dropout": dropout}
    values = {"bandwidths": list(models), "data": {"neurons": neurons}, "model": own}
    settings = config.check(values)
    trained = {}
    for bandwidth, (model, epoch) in models.items():
        key = ModelKey(bandwidth, 0)
        params = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
        trained[key] = Trained(settings_of(settings, key), params, math.nan, epoch)
    export(out, settings, trained)


def convert(out: str | Path, checkpoints: Sequence[str], bandwidths: Sequence[int] = ()) -> None:
    """A run folder of Lightning checkpoints, whose bandwidths are given where they do not say.

    Raises InputError, naming the checkpoint that is wrong, or as `write_run`.
    """
    if not checkpoints:
        raise InputError("no checkpoint given; name at least one .ckpt file")
    if bandwidths and len(bandwidths) != len(checkpoints):
        given = f"{len(bandwidths)} values for {len(checkpoints)} checkpoints"
        raise InputError(f"--bandwidths has {given}; give one for each")
    models, dropout = {}, 0.0
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
        raise InputError("reading checkpoints needs PyTorch: pip install torch") from None
    try:
        # weights_only: of all that a pickle can contain, only tensors and plain values are loaded.
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # torch raises whatever the damage leads to
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: not a checkpoint that can be read safely: {reason}") from None
    if not (isinstance(checkpoint, dict) and isinstance(checkpoint.get("state_dict"), dict)):
        raise InputError(f"{path}: no state_dict in it; expected a Lightning checkpoint")
    return checkpoint


def _recorded(checkpoint: Mapping[str, Any], name: str) -> Any:
    """A hyperparameter of the model or of the data that a checkpoint records, or None."""
    groups = (checkpoint.get(f"{of}hyper_parameters") for of in ("", "datamodule_"))
    values = (group.get(name) for group in groups if isinstance(group, dict))
    return next((value for value in values if value is not None), None)


@dataclass
class Arguments:
    """Make a run folder from checkpoints of the published PyTorch program, for evaluate.py."""

    checkpoints: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CKPT...")]
    """Lightning checkpoints (.ckpt), one model each."""
    out: str
    """Run folder to write."""
    bandwidths: tuple[int, ...] = ()
    """Neurons observed by each model, in the order of the checkpoints, if these do not say."""


def main(argv: Sequence[str]) -> int:
    given = cli.parse(Arguments, argv, prog=program("convert"))
    convert(given.out, given.checkpoints, given.bandwidths)
    messages.info(f"wrote {given.out}; now: {program('evaluate', str(given.out))}")
    return 0


if __name__ == "__main__":
    cli.run(main)
