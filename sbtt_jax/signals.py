"""Signals that ask to stop, noted so that what was done can be saved first."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

AT_ONCE = "stopped at once; what was saved before is intact"


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """End the process at a SIGINT, with one line on standard error.

    For where there is nothing to save yet, and a KeyboardInterrupt would be lost, or reported from
    wherever it strikes: while modules are imported and JAX starts.
    """

    def end(number: int, frame: object) -> None:
        os.write(2, f"{AT_ONCE}\n".encode())
        os._exit(128 + number)

    own = threading.current_thread() is threading.main_thread()
    if not own or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def noted() -> Iterator[Callable[[], int]]:
    """Note SIGINT and SIGTERM instead of dying of them; a second one takes effect at once.

    Yields a function that returns the signal's number, 0 as long as there is none. Only the main
    thread gets signals; in others there is never one.
    """
    received = 0

    def give_way(number: int = 0, frame: object = None) -> None:
        nonlocal received
        received = received or number
        for each, handler in before.items():
            signal.signal(each, handler)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    before = {s: signal.signal(s, give_way) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received
    finally:
        give_way()
