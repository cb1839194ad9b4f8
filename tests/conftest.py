import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

from sbtt_jax import training
from sbtt_jax.config import ModelSettings, TrainSettings
from sbtt_jax.devices import model_mesh, use_cores

# Compiling is most of the suite's time: what one test has compiled, the others find here, those of
# other workers too, and train.py and evaluate.py.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

# Two devices, as a run on two cores has, so that dealing models to devices is what is tested.
use_cores(2)

ROOT = Path(__file__).parent.parent
REFERENCE = Path(os.environ.get("SBTT_REFERENCE", ROOT.parent / "shared" / "reference"))


@pytest.fixture(scope="session")
def reference():
    """The folder with the published program's weights and training trace."""
    if not (REFERENCE / "forward.npz").exists():
        pytest.skip(f"the published program's arrays are not in {REFERENCE}")
    return REFERENCE


SMALL = ModelSettings(encoder_size=6, decoder_size=7)


def small_problem(models=2, holdout=True, seed=0):
    """Trials and masks of a set small enough to train in a blink: 22 trials, 9 bins, 5 neurons."""
    rng = np.random.default_rng(seed)
    rates = rng.gamma(2.0, 0.4, (22, 9, 5)).astype(np.float32)
    counts = rng.poisson(rates).astype(np.uint8)
    train, valid = np.split(np.arange(22, dtype=np.int32), [17])
    observed = rng.random((models, *counts.shape)) < 0.6
    heldout = ~observed & (rng.random(observed.shape) < 0.3)
    heldout[:, train] = False

    def variation(trials):
        return ((rates[trials] - rates[trials].mean((0, 1))) ** 2).sum((0, 1))

    trials = training.Trials(counts, rates, train, valid, variation(train), variation(valid))
    return trials, training.Masks(observed, heldout if holdout else None)


def train_small(trials, masks, settings, seeds, model=SMALL, epochs=None, vmap=None, varied=None):
    """Final states and the log of every epoch, on the host. `varied`: see `training.begin`."""
    neurons, train_trials = trials.counts.shape[2], len(trials.train)
    state = training.begin(seeds, neurons, train_trials, model, settings, varied)
    mesh, advance = _compiled(len(seeds), neurons, train_trials, model, settings, vmap)
    state, masks, trials = training.place(mesh, state, masks, trials)
    logs = []
    for _ in range(epochs or settings.epochs):
        state, log = advance(state, masks, trials)
        logs.append(jax.tree.map(np.asarray, log))
    return jax.tree.map(np.asarray, state), jax.tree.map(lambda *a: np.stack(a), *logs)


@functools.cache
def _compiled(models, *sizes_and_settings):
    mesh = model_mesh(models)
    return mesh, training.compile_epoch(mesh, *sizes_and_settings)


def quick(**settings):
    """Training settings for a small problem: 3 epochs in batches of 8, so 8 + 8 + 1 trials."""
    return TrainSettings(**{"epochs": 3, "batch_size": 8, "learning_rate": 1e-2, **settings})


def call(*arguments, cwd=ROOT, timeout=None):
    """Run a command line of this checkout, such as `call("train.py", "--help")`, to its end, with
    lines as long as it likes."""
    size = {"COLUMNS", "LINES"}  # of the terminal that the tests themselves were started in
    environment = {name: value for name, value in os.environ.items() if name not in size}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=timeout,
        env=environment | {"JAX_PLATFORMS": "cpu", "MPLBACKEND": "agg"},
    )
