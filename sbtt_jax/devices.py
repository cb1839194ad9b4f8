"""The hardware: CPU cores as devices, and models dealt to devices."""

import contextlib
import os

import jax
import numpy as np
from jax.sharding import Mesh


def use_cores(models: int) -> None:
    """Let each CPU core be a device, as far as there are models to share out among them.

    Must be called before JAX is first used; later it changes nothing. Without effect on a GPU or
    TPU.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(RuntimeError):  # where JAX has its devices already
        jax.config.update("jax_num_cpu_devices", max(1, min(cores or 1, models)))


def model_mesh(models: int) -> Mesh:
    """The largest number of devices that the models divide among equally, as an axis "model"."""
    devices = jax.devices()
    share = max(n for n in range(1, len(devices) + 1) if models % n == 0)
    return Mesh(np.array(devices[:share]), ("model",))


def describe() -> str:
    """The devices in words, such as "2 x cpu" or "1 x NVIDIA H200"."""
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind}"
