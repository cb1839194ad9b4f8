"""Is it the same model? Published weights and training steps, here and in the published program.

    python -m benchmarks.parity --folder FOLDER

FOLDER holds forward.npz and training.npz with the published program's arrays. Prints the largest
differences.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sbtt_jax import cli, convert
from sbtt_jax.config import ModelSettings, Settings, TrainSettings
from sbtt_jax.data.dataset import Dataset
from sbtt_jax.data.problem import prepare
from sbtt_jax.errors import InputError
from sbtt_jax.model.autoencoder import SequentialAutoencoder
from sbtt_jax.observations import POISSON, masked_nll
from sbtt_jax.training import devices, epoch, population

BANDWIDTHS = (29, 25, 20, 15, 10, 5, 3, 2)


@dataclass
class Arguments:
    """Compare this program with the published one, number for number."""

    folder: Path = Path(__file__).parent.parent.parent / "shared" / "reference"
    """Folder with the published program's arrays, forward.npz and training.npz."""


def part(arrays: np.lib.npyio.NpzFile, prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): arrays[k] for k in arrays.files if k.startswith(prefix)}


def forward(folder: Path, dtype: type) -> Iterator[tuple[int, float, float]]:
    """For each bandwidth, the largest difference in log-rates, and the difference in loss."""
    arrays = np.load(folder / "forward.npz")
    for bandwidth in BANDWIDTHS:
        level = part(arrays, f"{bandwidth:02d}/")
        weights = part(arrays, f"{bandwidth:02d}/weights/")
        with jax.enable_x64(dtype == np.float64):
            model = convert.from_pytorch({k: v.astype(dtype) for k, v in weights.items()})
            observed = jnp.asarray(~np.isnan(level["input"]))
            counts = jnp.asarray(level["input"].astype(dtype))
            lograte = _logrates(model, counts, observed)
            assert lograte.dtype == dtype
            nll, points = masked_nll(POISSON, lograte, counts, observed)
            loss = float(nll / points)
            difference = np.abs(np.asarray(lograte) - level["logrates"]).max()
        yield bandwidth, float(difference), abs(loss - float(level["loss"]))


_logrates = nnx.jit(lambda model, counts, observed: model(counts, observed).output)


def train(folder: Path) -> dict[str, np.ndarray]:
    """Differences over the 25 training steps: first gradient, each loss, every final weight."""
    arrays = np.load(folder / "training.npz")
    batches = arrays["batches"]
    steps, size, bins, neurons = batches.shape
    flat = batches.reshape(steps * size, bins, neurons)
    observed = ~np.isnan(flat)
    counts = np.where(observed, flat, 0).astype(np.uint8)
    order = np.arange(len(flat), dtype=np.int32).reshape(steps, size)

    settings = Settings(
        bandwidths=(), model=ModelSettings(dropout=0.0), train=TrainSettings(batch_size=size)
    )
    # A batch is an epoch of its own here, so that the step is the one that training takes.
    problem = prepare(settings, Dataset(counts, observed, order[0], order[0][:1], 0.02))
    start = nnx.state(convert.from_pytorch(part(arrays, "initial/")))
    stacked = jax.tree.map(lambda leaf: np.asarray(leaf)[None], start)
    state = population.begin(problem)
    state = state._replace(params=stacked, best=state.best._replace(params=stacked))
    mesh = devices.model_mesh(1)
    state, masks, trials = population.place(mesh, state, problem.masks, problem.trials)
    advance = population.compile_epoch(mesh, problem)
    losses, first_gradient = [], None
    for batch in order:
        state, log = advance(state, masks, trials._replace(train=jnp.asarray(batch)))
        losses.append(float(log.train_nll[0]))
        if first_gradient is None:
            # Adam's first moment is a tenth of the first gradient, decay included.
            moment = next(s.mu for s in state.optimizer if hasattr(s, "mu"))
            first_gradient = jax.tree.map(
                lambda m, w: np.asarray(m)[0] / 0.1 - problem.train.weight_decay * w, moment, start
            )
    ours = {
        "first_gradient": _pytorch_names(first_gradient),
        "final": _pytorch_names(jax.tree.map(lambda leaf: leaf[0], state.params)),
    }
    found = {"losses": np.abs(np.array(losses) - arrays["losses"])}
    for name, weights in ours.items():
        theirs = part(arrays, f"{name}/")
        difference = [
            np.abs(weights[k] - theirs[k]).ravel() for k in theirs if k != convert.WITHOUT_EFFECT
        ]
        found[name] = np.concatenate(difference)
    return found


def _pytorch_names(params: nnx.State) -> dict[str, np.ndarray]:
    return to_pytorch(
        nnx.merge(epoch.graph(29, ModelSettings()), jax.tree.map(jnp.asarray, params))
    )


def to_pytorch(model: SequentialAutoencoder) -> dict[str, np.ndarray]:
    """The model's weights by their PyTorch names, as `convert.from_pytorch` takes them; zeros where
    the published program has weights without effect."""
    if model.bottleneck is not None or model.mask_input or model.input_scaling:
        raise InputError("latent_size, mask_input and input_scaling have no counterpart in PyTorch")
    weights = {
        theirs: np.asarray(getattr(getattr(model, layer), ours)[...]).T
        for theirs, (layer, ours) in convert.NAMES.items()
    }
    bias = weights["decoder.bias_ih_l0"]
    return weights | {convert.WITHOUT_EFFECT: np.zeros((bias.size, 1), bias.dtype)}


def main(argv: Sequence[str]) -> int:
    folder = cli.parse(Arguments, argv, prog="python -m benchmarks.parity").folder
    for name in ("forward.npz", "training.npz"):
        if not (folder / name).is_file():
            rule = "give the folder with the published program's arrays"
            raise InputError(f"{folder / name}: no such file; {rule}")
    single, double = (list(forward(folder, dtype)) for dtype in (np.float32, np.float64))
    print("| bandwidth | log-rates, float32 | loss, float32 | log-rates, float64 |")
    print("| --- | --- | --- | --- |")
    for (bandwidth, rates, loss), (_, exact, _) in zip(single, double, strict=True):
        print(f"| {bandwidth} | {rates:.1e} | {loss:.1e} | {exact:.1e} |")
    found = train(folder)
    print("\n| 25 training steps | largest difference | 99.9% below |")
    print("| --- | --- | --- |")
    names = {"first_gradient": "first gradient", "losses": "losses", "final": "final weights"}
    for key, name in names.items():
        print(f"| {name} | {found[key].max():.1e} | {np.quantile(found[key], 0.999):.1e} |")
    return 0


if __name__ == "__main__":
    cli.run(main)
