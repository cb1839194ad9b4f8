"""The hardware: cores as devices, models dealt to devices, and what was compiled for them."""

import contextlib
import os

import jax
import numpy as np
import platformdirs
from jax.sharding import Mesh

SHARED_PRODUCTS = "xla_cpu_multi_thread_eigen"


def use_cores(models: int) -> None:
    """Let each CPU core be a device, as far as there are models to share out among them.

    Must be called before JAX is first used; later it changes nothing. Without effect on a GPU or
    TPU.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(RuntimeError):  # where JAX has its devices already
        jax.config.update("jax_num_cpu_devices", max(1, min(cores or 1, models)))
        if 1 < (cores or 1) <= models:
            # A core that has models of its own is not to wait for shares of others' products,
            # which costs a fifth of the time.
            given = os.environ.get("XLA_FLAGS", "")
            if SHARED_PRODUCTS not in given:
                os.environ["XLA_FLAGS"] = f"{given} --{SHARED_PRODUCTS}=false".strip()


def cache_compiled() -> None:
    """Keep compiled programs in the user's cache folder, so that a second start is quick.

    JAX_COMPILATION_CACHE_DIR names another folder.
    """
    if jax.config.jax_compilation_cache_dir is None:
        folder = platformdirs.user_cache_path("sbtt-jax") / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def model_mesh(models: int) -> Mesh:
    """The largest number of devices that the models divide among equally, as an axis "model"."""
    devices = jax.devices()
    share = max(n for n in range(1, len(devices) + 1) if models % n == 0)
    return Mesh(np.array(devices[:share]), ("model",))


def describe() -> str:
    """The devices in words, such as "2 x cpu" or "1 x NVIDIA H200"."""
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind}"
