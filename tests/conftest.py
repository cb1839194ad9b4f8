import contextlib
import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest

from sbtt_jax.config import DataSettings, ModelSettings, Settings, TrainSettings
from sbtt_jax.data.dataset import Dataset
from sbtt_jax.data.problem import Problem, prepare
from sbtt_jax.run import checkpoints
from sbtt_jax.training import devices, population

# Compiling is most of the suite's time: what one test compiles, all others find in this folder,
# including other workers and the commands.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
_shortest = "jax_persistent_cache_min_compile_time_secs"
jax.config.update(_shortest, float(os.environ.setdefault(_shortest.upper(), "0.05")))

# Two devices, as on a machine with two cores, so that placing models on devices is tested.
devices.use_cores(2)

ROOT = Path(__file__).parent.parent
REFERENCE = Path(os.environ.get("SBTT_REFERENCE", ROOT.parent / "shared" / "reference"))


@pytest.fixture(scope="session")
def reference():
    """The folder with the published program's weights and training trace."""
    if not (REFERENCE / "forward.npz").exists():
        pytest.skip(f"the published program's arrays are not in {REFERENCE}")
    return REFERENCE


@contextlib.contextmanager
def compilations():
    """A list, to which an event is added for each program that is compiled or loaded."""
    events = []

    def count(event, _, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(count)


SMALL = ModelSettings(encoder_size=6, decoder_size=7)


# For sbtt_jax.fit, with `spikes`.
FIT = {
    "bin_width": 0.01,
    "model": {"encoder_size": 5, "decoder_size": 6},
    "train": {"epochs": 3, "warmup_epochs": 1},
}


@pytest.fixture(scope="module")
def spikes():
    """30 trials of 8 bins and 4 neurons, two fifths missing; one trial ends early."""
    rng = np.random.default_rng(0)
    spikes = rng.poisson(rng.gamma(2.0, 0.5, (30, 8, 4))).astype(float)
    spikes[rng.random(spikes.shape) < 0.4] = np.nan
    spikes[:, -1, 0] = 0
    spikes[3, 5:] = np.nan
    return spikes


def small_data(seed=0):
    """22 trials of 9 bins and 5 neurons, which train in a blink."""
    rng = np.random.default_rng(seed)
    rates = rng.gamma(2.0, 0.4, (22, 9, 5)).astype(np.float32)
    counts = rng.poisson(rates).astype(np.uint8)
    train, valid = np.split(np.arange(22), [17])
    return Dataset(counts, np.ones(counts.shape, bool), train, valid, 0.02, rates)


def write(path, data):
    """A data set as an HDF5 recording: NaN where not observed, true rates in counts/bin."""
    with h5py.File(path, "w") as file:
        file["conversion_factor"], file["bin_width"] = 1.0, data.bin_width
        for name in ("train", "valid"):
            trials = getattr(data, name)
            file[f"{name}_data"] = np.where(data.observed, data.counts, np.nan)[trials]
            file[f"{name}_truth"] = data.rates[trials]


def save(path, arrays, **how):
    """Arrays as a file; `how` (such as chunks) applies to HDF5, and makes NPZ compressed."""
    if path.suffix == ".npz":
        (np.savez_compressed if how else np.savez)(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for key, value in arrays.items():
                file.create_dataset(key, data=value, **(how if np.ndim(value) else {}))
    return path


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickled object was executed",))


def small_problem(
    data=None, *, bandwidths=(3,), seeds=(0,), holdout=0.3, model=SMALL, **train
) -> Problem:
    """The small data, or others, as a problem; `train` as in `quick`."""
    settings = Settings(
        bandwidths=bandwidths,
        seeds=seeds,
        data=DataSettings(holdout_fraction=holdout),
        model=model,
        train=quick(**train),
    )
    return prepare(settings, small_data() if data is None else data)


def quick(**settings):
    """Training settings for the small data: 3 epochs in batches of 8, so 8 + 8 + 1 trials."""
    return TrainSettings(**{"epochs": 3, "batch_size": 8, "learning_rate": 1e-2, **settings})


def train_small(problem, epochs=None, vmap=None, state=None):
    """Final states, stacked by model, and the logs of every epoch, stacked, on the host."""
    state = population.begin(problem) if state is None else state
    mesh, advance = compiled(problem, vmap)
    state, masks, trials = population.place(mesh, state, problem.masks, problem.trials)
    logs = []
    for _ in range(epochs or problem.train.epochs):
        state, log = advance(state, masks, trials)
        logs.append(jax.tree.map(np.array, log))
    return jax.tree.map(np.array, state), jax.tree.map(lambda *a: np.stack(a), *logs)


_compiled = {}


def compiled(problem, vmap=None):
    """The devices and the compiled epoch of a problem, shared by problems of the same settings."""
    key = len(problem.keys), problem.neurons, problem.model, problem.train, vmap
    if key not in _compiled:
        mesh = devices.model_mesh(len(problem.keys), problem.train.data_devices)
        _compiled[key] = mesh, population.compile_epoch(mesh, problem, vmap)
    return _compiled[key]


def one_model(tree, i):
    """The i-th model of a stacked state."""
    return jax.tree.map(lambda leaf: leaf[i], tree)


def identical(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b, rtol=1e-4, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


QUICK = "JAX_DISABLE_MOST_OPTIMIZATIONS"
# For `python` and `call`: compile as this process does, to the same bits.
AS_HERE = {name: value for name, value in os.environ.items() if name == QUICK}


def python(*arguments, cwd=ROOT, **environment):
    """What `subprocess` takes to run Python on a command line of this checkout, such as
    `python("train.py", "--help")`, with lines of any length, and with all of JAX's optimizations,
    as users run it."""
    other = "COLUMNS", "LINES", QUICK
    inherited = {name: value for name, value in os.environ.items() if name not in other}
    env = inherited | {"JAX_PLATFORMS": "cpu", "MPLBACKEND": "agg"} | environment
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return {"args": [sys.executable, *map(str, arguments)], "cwd": cwd, "env": env} | pipes


def call(*arguments, timeout=None, **how):
    return subprocess.run(**python(*arguments, **how), timeout=timeout)


def smoke(**changes):
    """The settings of configs/smoke.yaml, with some of them changed, as `config.updated` does."""
    from sbtt_jax import config, recipes

    return config.updated(recipes.load(ROOT / "configs" / "smoke.yaml"), **changes)


# A run of a second: one model, 6 epochs.
TINY_DATA = {"conditions": 4, "trials_per_condition": 5, "bins": 8}
TINY = ["--config", "configs/smoke.yaml", "--bandwidths", "3"]
TINY += [f"--data.{name}={value}" for name, value in TINY_DATA.items()]


def csv_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def saved(run):
    """The epochs of the newest checkpoint, and the SHA-256 sums of all its arrays."""
    newest = checkpoints.epochs_saved(run / "checkpoints")[0]
    return newest, (run / "checkpoints" / str(newest) / "sums" / "metadata").read_text()


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made but not drawn, which takes most of the time of an evaluation: for those of a
    run whose figures another test has drawn."""
    from sbtt_jax.run import page, plots

    for module in (page, plots):
        monkeypatch.setattr(module, "png", lambda figure, dpi: b"")


@pytest.fixture
def command(capsys, monkeypatch):
    """A function that runs a command in this process, as the shell would, and gives its exit
    status, standard output and standard error: `command(cli.train, "--out", folder)`."""
    from sbtt_jax import cli, output

    jax.devices()  # which commands can no longer change then

    monkeypatch.setattr(output.messages, "propagate", True)  # is set back afterwards

    def run(main, *arguments):
        monkeypatch.chdir(ROOT)
        capsys.readouterr()
        status = cli.status(main, list(map(str, arguments)))
        return (status, *capsys.readouterr())

    return run
