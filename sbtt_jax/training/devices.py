"""The hardware: cores as devices, models on devices, several processes, compiled programs."""

import contextlib
import itertools
import os
from typing import Any

import jax
import numpy as np
import platformdirs
from etils import epy
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from sbtt_jax.errors import InputError

with epy.lazy_imports():
    import orbax.checkpoint as ocp

# Without the tiled emitter of XLA's CPU backend (slow for rows whose length is no multiple of 16)
# and its loop unrolling (copies rows of 64 numbers one by one), a training step takes a tenth less
# time and compiles in three quarters of it.
PLAIN_LOOPS = (
    "--xla_backend_extra_options=xla_cpu_disable_tiled_emitter,xla_cpu_disable_loop_unrolling"
)
# Sharing matrix products costs cores that have models of their own a fifth of the time.
OWN_PRODUCTS = "--xla_cpu_multi_thread_eigen=false"

BARRIER_SECONDS = 3600  # how long processes wait for a slower one; dead ones are noticed earlier

_barriers = itertools.count()


def use_cores(models: int | None = None) -> None:
    """Make each CPU core a device, up to the number of models if given, and set XLA's flags for it.

    Once JAX has been used, and on a GPU or TPU, it changes nothing.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    shares = cores if models is None else models
    with contextlib.suppress(RuntimeError):  # JAX has its devices already
        jax.config.update("jax_num_cpu_devices", max(1, min(cores, shares)))
        flags = [PLAIN_LOOPS, *([OWN_PRODUCTS] if 1 < cores <= shares else [])]
        given = os.environ.get("XLA_FLAGS", "")
        new = [flag for flag in flags if flag.split("=")[0] not in given]  # the user's flags win
        os.environ["XLA_FLAGS"] = " ".join([given, *new]).strip()


def cache_compiled() -> None:
    """Keep compiled programs in the user's cache folder, or that of JAX_COMPILATION_CACHE_DIR, so
    that the next start is quick; those that take half a second to compile, if JAX is not told
    otherwise."""
    if jax.config.jax_compilation_cache_dir is None:
        folder = platformdirs.user_cache_path("sbtt-jax") / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(folder))
    shortest = "jax_persistent_cache_min_compile_time_secs"
    if shortest.upper() not in os.environ:  # the user's setting wins
        jax.config.update(shortest, 0.5)


def model_mesh(models: int, data_devices: int = 1) -> Mesh:
    """Devices along two axes: "model", as many as divide the models equally, and "data", which
    share the trials of each batch.

    Of several processes, each gives the same number of devices, and those that share a batch are in
    one process if possible.

    Raises InputError if there are too few devices, or the processes cannot give equally many.
    """
    processes = jax.process_count()
    most = processes * min(len(jax.local_devices(process_index=p)) for p in range(processes))
    if data_devices > most:
        has = f"train.data_devices is {data_devices}, and JAX has {describe()}"
        raise InputError(f"{has}; give at most {most}")
    divisors = (n for n in range(1, min(models, most // data_devices) + 1) if models % n == 0)
    shares = [n for n in divisors if n * data_devices % processes == 0]
    if not shares:
        raise InputError(
            f"{models} models, each on {data_devices} devices (train.data_devices), cannot be "
            f"divided equally among {processes} processes; start another number of processes, or "
            "give more models or another train.data_devices"
        )
    each = shares[-1] * data_devices // processes
    chosen = [d for p in range(processes) for d in jax.local_devices(process_index=p)[:each]]
    return Mesh(np.array(chosen).reshape(shares[-1], data_devices), ("model", "data"))


def require() -> None:
    """Raise InputError, naming the remedy, if JAX finds no device of the kind that is asked for."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # a bare assertion, if a plugin is missing
        asked = jax.config.jax_platforms
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"JAX finds no device for JAX_PLATFORMS={asked}{reason and f' ({reason})'}; install "
            'the JAX of that platform, such as "jax[cuda13]", or leave the variable out'
        ) from None


def describe() -> str:
    """The devices in words, such as "2 x cpu" or "1 x NVIDIA H200"."""
    devices = jax.devices()
    among = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{len(devices)} x {devices[0].device_kind}{among}"


def is_distributed() -> bool:
    """Whether this is one of several processes that train together."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return not is_distributed() or jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until all processes are here."""
    # JAX's own gathering gives up, on CPUs, on a process that is half a minute late.
    wait = ocp.multihost.get_barrier_sync_fn()
    wait(key=f"sbtt_jax {name} {next(_barriers)}", timeout_ms=BARRIER_SECONDS * 1000)


def on_host(tree: Any) -> Any:
    """Arrays, possibly on devices of several processes, as whole NumPy arrays."""
    if not is_distributed():  # all copies at once; gathering waits for each
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
