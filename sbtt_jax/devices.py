"""The hardware: cores as devices, models dealt to devices, and what was compiled for them."""

import contextlib
import os

import jax
import numpy as np
import platformdirs
from jax.sharding import Mesh

from sbtt_jax.errors import InputError

# What XLA's compiler for CPUs is to leave: its tiled emitter, which is slow with rows whose length
# is no multiple of 16, and unrolled loops, which copy rows of 64 numbers one by one. Without both,
# a training step takes a tenth less time and is compiled in a quarter less.
PLAIN_LOOPS = (
    "--xla_backend_extra_options=xla_cpu_disable_tiled_emitter,xla_cpu_disable_loop_unrolling"
)
# A core that has work of its own is not to wait for shares of others' products, which costs a
# fifth of the time.
OWN_PRODUCTS = "--xla_cpu_multi_thread_eigen=false"


def use_cores(models: int | None = None) -> None:
    """Let each CPU core be a device, as far as there are models to share out among them if any
    number is given, and have programs compiled to suit.

    Must be called before JAX is first used; later it changes nothing. Without effect on a GPU or
    TPU.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    shares = cores if models is None else models
    with contextlib.suppress(RuntimeError):  # where JAX has its devices already
        jax.config.update("jax_num_cpu_devices", max(1, min(cores, shares)))
        flags = [PLAIN_LOOPS, *([OWN_PRODUCTS] if 1 < cores <= shares else [])]
        given = os.environ.get("XLA_FLAGS", "")
        new = [flag for flag in flags if flag.split("=")[0] not in given]  # the user's word counts
        os.environ["XLA_FLAGS"] = " ".join([given, *new]).strip()


def cache_compiled() -> None:
    """Keep compiled programs in the user's cache folder, so that a second start is quick.

    JAX_COMPILATION_CACHE_DIR names another folder.
    """
    if jax.config.jax_compilation_cache_dir is None:
        folder = platformdirs.user_cache_path("sbtt-jax") / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def model_mesh(models: int, data_devices: int = 1) -> Mesh:
    """Devices in two axes: "model", to which the models are dealt, and "data", which share the
    trials of each batch.

    "model" has the largest number of devices that the models divide among equally. Of several
    processes, each gives as many devices as the others, and those that share a batch stand in one
    process where they can.

    Raises:
      InputError: there are not so many devices, or the processes cannot give equally many.
    """
    processes = jax.process_count()
    local = min(len(jax.local_devices(process_index=p)) for p in range(processes))
    shares = [
        n
        for n in range(1, models + 1)
        if models % n == 0
        and n * data_devices <= processes * local
        and n * data_devices % processes == 0
    ]
    if not shares and data_devices > processes * local:
        raise InputError(
            f"train.data_devices is {data_devices}, and JAX has {describe()}; give at most "
            f"{processes * local}"
        )
    if not shares:
        raise InputError(
            f"{models} models, each on {data_devices} devices (train.data_devices), cannot be "
            f"dealt to {processes} processes equally; start another number of processes, or give "
            "more models or another train.data_devices"
        )
    each = shares[-1] * data_devices // processes
    chosen = [d for p in range(processes) for d in jax.local_devices(process_index=p)[:each]]
    return Mesh(np.array(chosen).reshape(shares[-1], data_devices), ("model", "data"))


def describe() -> str:
    """The devices in words, such as "2 x cpu" or "1 x NVIDIA H200"."""
    devices = jax.devices()
    among = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{len(devices)} x {devices[0].device_kind}{among}"
