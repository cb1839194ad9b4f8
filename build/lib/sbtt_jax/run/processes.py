"""Several processes that train as one, such as one on each host of a cluster.

Each prepares data and masks for itself and computes the same epochs; only the first writes and
prints. What one finds out alone (an error, a signal) it shares at points that all of them pass, so
that none continues alone and none waits for one that has ended.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils

from sbtt_jax.errors import InputError, SaveError
from sbtt_jax.training import devices

SHUTDOWN_SECONDS = 30  # how long a process that ends waits for the others before JAX ends them all
MAX_BYTES = 1000  # of a message
KINDS = {"InputError": InputError, "SaveError": SaveError}


def join(coordinator: str | None, count: int | None, number: int | None) -> None:
    """Become one of `count` processes; None is found out from Slurm, Open MPI, Kubernetes or a TPU
    pod. Must be called before JAX is first used. All but the first process are silent afterwards.

    Raises InputError if there is no such cluster, or the first process cannot be reached.
    """
    # JAX's preemption service would take SIGTERM for itself, and leave SIGINT alone.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        timeout = SHUTDOWN_SECONDS
        jax.distributed.initialize(coordinator, count, number, shutdown_timeout_seconds=timeout)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(
            f"--distributed: {error} Outside of Slurm, Open MPI, Kubernetes and TPU pods, give "
            "each process --coordinator HOST:PORT, --processes N and --process I"
        ) from None
    if not devices.is_main():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def gather(text: str = "") -> list[str]:
    """What each process passes here, in their order.

    Raises the InputError or SaveError of a process that did not get this far.
    """
    messages = [message.split(":", 1) for message in _exchange(f"ok:{text}")]
    for number, (kind, content) in enumerate(messages):
        if kind != "ok":
            raise _shared(KINDS[kind](f"process {number}: {content}"))
    return [content for _, content in messages]


@contextmanager
def together() -> Iterator[None]:
    """An InputError or SaveError inside, on any process, ends the block on all of them.

    Raises this process's own, or that of another with its number.
    """
    try:
        yield
    except (InputError, SaveError) as error:
        if not getattr(error, "shared", False):
            _exchange(f"{type(error).__name__}:{error}")
        raise _shared(error) from error.__cause__
    gather()


def _shared(error: Exception) -> Exception:
    error.shared = True  # all processes know of it
    return error


def _exchange(text: str) -> list[str]:
    if not devices.is_distributed():
        return [text]
    devices.barrier("exchange")
    padded = text.encode()[:MAX_BYTES].ljust(MAX_BYTES, b"\0")
    gathered = multihost_utils.process_allgather(np.frombuffer(padded, np.uint8))
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in gathered]
