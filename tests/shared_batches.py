"""Epochs of a small problem on 8 simulated devices, for test_devices.py, in a process of its own:
how many devices there are cannot be changed once JAX has looked.

Prints, as JSON, the largest difference that sharing a batch makes to losses and to weights.
"""

import json
import os

# Compiling is most of the time here.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"

import jax
import numpy as np
from conftest import SMALL, quick, small_problem

from sbtt_jax import devices, training

HIDING = {"coordinated_dropout": 0.3, "coordinated_dropout_whole": 0.3, "average_decay": 0.9}
CASES = {
    # Batches of 8, 8 and 1 trials; of 5 in validation, which the devices share unequally.
    "plain": ({}, SMALL, False, (2,)),
    "ragged": (HIDING, SMALL.model_copy(update={"input_scaling": True}), True, (4,)),
}


def train(settings, model, ragged, data_devices):
    trials, masks = small_problem(models=2)
    if ragged:
        lengths = np.random.default_rng(4).integers(3, 10, len(trials.counts)).astype(np.int32)
        real = (np.arange(9) < lengths[:, None])[..., None]
        masks = jax.tree.map(lambda mask: mask & real, masks)
        trials = trials._replace(lengths=lengths)
    settings = quick(**settings, data_devices=data_devices)
    state = training.begin([0, 1], 5, 17, model, settings)
    mesh = devices.model_mesh(2, data_devices)
    assert dict(mesh.shape) == {"model": 2, "data": data_devices}
    advance = training.compile_epoch(mesh, 5, 17, model, settings)
    state, masks, trials = training.place(mesh, state, masks, trials)
    logs = []
    for _ in range(settings.epochs):
        state, log = advance(state, masks, trials)
        logs.append(jax.tree.map(np.asarray, log))
    return logs, jax.tree.map(np.asarray, state.params)


def difference(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.float64(x) - np.float64(y)).max()) for x, y in pairs)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    found = {}
    for name, (settings, model, ragged, several) in CASES.items():
        alone = train(settings, model, ragged, 1)
        for data_devices in several:
            shared = train(settings, model, ragged, data_devices)
            found[f"{name}, {data_devices} devices"] = [
                difference(*pair) for pair in zip(alone, shared, strict=True)
            ]
    print(json.dumps(found))
