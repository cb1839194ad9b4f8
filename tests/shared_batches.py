"""Epochs of a small problem on 8 simulated devices, for test_devices.py. In a process of its own,
because the number of devices cannot change once JAX has started.

Prints, as JSON, the largest difference that sharing a batch makes to losses and to weights.
"""

import json
import os

# Compiling is most of the time here.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"

from dataclasses import replace

import jax
import numpy as np
from conftest import SMALL, compiled, small_data, small_problem, train_small

HIDING = {"coordinated_dropout": 0.3, "coordinated_dropout_whole": 0.3, "average_decay": 0.9}
ENDS = np.random.default_rng(4).integers(3, 10, (22, 1, 1))
RAGGED = np.broadcast_to(np.arange(9)[:, None] < ENDS, (22, 9, 5))

# Settings, and how many devices share a batch of 8, 8 and 1 trials; of 5 in validation.
SCALING = {"model": SMALL.model_copy(update={"input_scaling": True})}
CASES = {
    "plain, 2 devices": ({}, 2),
    "ragged, 4 devices": ({"data": replace(small_data(), observed=RAGGED)} | SCALING | HIDING, 4),
}


def train(settings, data_devices):
    problem = small_problem(seeds=(0, 1), data_devices=data_devices, **settings)
    assert dict(compiled(problem)[0].shape) == {"model": 2, "data": data_devices}
    state, logs = train_small(problem)
    return logs, state.params


def difference(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.float64(x) - np.float64(y)).max()) for x, y in pairs)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    found = {}
    for name, (settings, several) in CASES.items():
        alone, shared = train(settings, 1), train(settings, several)
        found[name] = [difference(*pair) for pair in zip(alone, shared, strict=True)]
    print(json.dumps(found))
