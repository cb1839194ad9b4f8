"""Several processes that train as one, such as one on each host of a cluster.

Each computes data and masks for itself and the same epochs; the first alone writes and speaks. What
one of them finds out by itself (an error, a signal) it shares with the others, at points that all
of them pass, so that none goes on alone and none waits for another that has ended.
"""

import itertools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from etils import epy
from jax.experimental import multihost_utils

from sbtt_jax.errors import InputError, SaveError

with epy.lazy_imports():
    import orbax.checkpoint as ocp

# Seconds that a process which ends by itself, of a bug or a second signal, waits for the others
# before JAX ends them all.
PATIENCE = 30

# Seconds that processes wait for each other, such as for one whose data come from a slower disk.
# (One that has died is noticed by JAX long before.)
SLOWEST = 3600

LONGEST = 1000  # bytes of what is shared
FINE = "fine"
KINDS = {"InputError": InputError, "SaveError": SaveError}

_exchanges = itertools.count()


def join(coordinator: str | None, count: int | None, number: int | None) -> None:
    """Become one of `count` processes; what is None is found out from Slurm, Open MPI, Kubernetes
    or a TPU pod. Must come before JAX is first used. All but the first process are silent then.

    Raises:
      InputError: there is no such cluster, or the first process cannot be reached.
    """
    # That service would take SIGTERM for itself.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(coordinator, count, number, shutdown_timeout_seconds=PATIENCE)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(
            f"--distributed: {error} Outside of Slurm, Open MPI, Kubernetes and TPU pods, give "
            "each process --coordinator HOST:PORT, --processes N and --process I"
        ) from None
    if not first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def several() -> bool:
    """Whether there are others."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def first() -> bool:
    """Whether this is the process that writes and speaks."""
    return not several() or jax.process_index() == 0


def share(text: str = "") -> list[str]:
    """What each process says here, in their order.

    Raises:
      InputError, SaveError: that of a process which could not come this far.
    """
    said = [text.split(":", 1) for text in _exchange(f"{FINE}:{text}")]
    for number, (kind, text) in enumerate(said):
        if kind != FINE:
            error = KINDS[kind](f"process {number}: {text}")
            error.shared = True
            raise error
    return [text for _, text in said]


@contextmanager
def as_one() -> Iterator[None]:
    """What the user has to mend on one process ends what is inside on all of them.

    Raises:
      InputError, SaveError: this process's own, or another's, by its number.
    """
    try:
        yield
    except (InputError, SaveError) as error:
        if not getattr(error, "shared", False):  # all know of it, if it is
            _exchange(f"{type(error).__name__}:{error}")
            error.shared = True
        raise
    share()


def on_host(tree: Any) -> Any:
    """Arrays that may lie on the devices of several processes as NumPy arrays, whole, on each."""
    return multihost_utils.process_allgather(tree, tiled=True)


def _exchange(text: str) -> list[str]:
    if not several():
        return [text]
    # On CPUs, the gathering itself has no patience with one that comes half a minute late.
    wait = ocp.multihost.get_barrier_sync_fn()
    wait(key=f"sbtt_jax {next(_exchanges)}", timeout_ms=SLOWEST * 1000)
    buffer = np.zeros(LONGEST, np.uint8)
    encoded = np.frombuffer(text.encode()[:LONGEST], np.uint8)
    buffer[: len(encoded)] = encoded
    gathered = multihost_utils.process_allgather(buffer)
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in gathered]
