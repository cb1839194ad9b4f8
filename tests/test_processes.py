"""Several processes, such as hosts of a cluster have: here two, on this machine."""

import signal
import socket
import subprocess
import time

import numpy as np
import pytest
from conftest import TINY, call, close, csv_rows, python, saved

from sbtt_jax import cli
from sbtt_jax.grid import ModelKey
from sbtt_jax.run import checkpoints
from sbtt_jax.run.restore import restore

OPTIONS = (*TINY, "--bandwidths", "6", "3")
# Compiling is most of the time here. For children only: in this process, others compare bits.
FAST = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
LIMIT = 900  # seconds, far above what anything here takes where a machine has other work too


class Pair:
    """Two processes of train.py, or of the program that `code` is, that train as one."""

    def __init__(self, *arguments, each=((), ()), code=None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        words = *(("-c", code) if code else ("train.py",)), *arguments
        words += "--distributed", "--coordinator", address, "--processes", "2", "--process"
        self.processes = [
            subprocess.Popen(**python(*words, i, *own, **FAST)) for i, own in enumerate(each)
        ]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in self.processes:
            process.kill()
            process.communicate()

    def ended(self):
        """Exit statuses, and what each process wrote to standard output and error."""
        said = [process.communicate(timeout=LIMIT) for process in self.processes]
        return [process.returncode for process in self.processes], said


def train_together(*arguments, **how):
    with Pair(*arguments, **how) as pair:
        return pair.ended()


def train_alone(*arguments):
    done = call("train.py", *arguments, timeout=LIMIT, **FAST)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_processes_stop_together_and_end_in_the_numbers_of_one(tmp_path, command):
    """One is told to stop, both do; then two go on, then one alone."""
    path, history = tmp_path / "run", tmp_path / "run" / "history.csv"
    with Pair("--out", path, *OPTIONS, "--train.epochs", 10**6) as pair:
        deadline = time.monotonic() + LIMIT
        while not (history.exists() and history.read_bytes().count(b"\n") > 2):
            assert time.monotonic() < deadline
            assert [process.poll() for process in pair.processes] == [None, None]
            time.sleep(0.01)
        pair.processes[1].send_signal(signal.SIGTERM)
        statuses, said = pair.ended()
    assert statuses == [128 + signal.SIGTERM] * 2, said
    epochs, _ = saved(path)
    assert history.read_bytes().count(b"\n") == 1 + 2 * epochs
    (output, progress), silent = said
    assert "stopped; continue with" in output
    assert "epoch" in progress
    assert not any(word in text for text in silent for word in ("stopped", "epoch"))

    statuses, said = train_together("--out", path, "--resume", "--train.epochs", epochs + 2)
    assert statuses == [0, 0], said
    assert saved(path)[0] == epochs + 2
    train_alone("--out", path, "--resume", "--train.epochs", epochs + 4)

    unbroken = tmp_path / "unbroken"
    train_alone("--out", unbroken, *OPTIONS, "--train.epochs", epochs + 4)
    assert history.read_text() == (unbroken / "history.csv").read_text()
    assert saved(path) == saved(unbroken)
    assert command(cli.evaluate, path)[0] == 0


@pytest.mark.parametrize(
    ("each", "reason"),
    [
        (((), ("--seeds", "1")), "the processes have different settings, data or checkpoints"),
        ((("--data", "missing.h5"), ()), "missing.h5: no such file"),
        (((), ("--data", "missing.h5")), "process 1: "),
    ],
)
def test_what_is_wrong_on_one_ends_both_and_writes_nothing(each, reason, tmp_path):
    sizes = "--data." if any("--data" in one for one in each) else "none"  # of no recording
    options = [option for option in OPTIONS if not str(option).startswith(sizes)]
    statuses, said = train_together("--out", tmp_path / "run", *options, each=each)
    assert statuses == [2, 2], said
    (_, error), (_, other) = said
    assert reason in error
    assert (error.count("\n"), other) == (1, "")
    assert not (tmp_path / "run").exists()


FULL_DISK = """
import errno, os
from sbtt_jax import cli
from sbtt_jax.run import checkpoints
manager, asked = checkpoints._manager, []
def refuse_once(*arguments, **options):
    asked.append(arguments)
    if len(asked) == 1:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return manager(*arguments, **options)
checkpoints._manager = refuse_once
cli.run(cli.train)
"""


@pytest.mark.slow
def test_a_full_disk_is_said_once_and_tried_again_by_both(tmp_path):
    path = tmp_path / "run"
    statuses, said = train_together("--out", path, *OPTIONS, code=FULL_DISK)
    assert statuses == [0, 0], said
    assert said[0][1].count("No space left on device; trying again after each epoch") == 1
    assert "space" not in said[1][1]
    assert checkpoints.epochs_saved(path / "checkpoints") == [6, 4]


@pytest.mark.slow
def test_processes_that_share_batches_find_the_numbers_of_one(tmp_path):
    one = ("--bandwidths", "6", "--train.coordinated_dropout", "0.3")
    statuses, said = train_together(
        "--out", tmp_path / "two", *OPTIONS, *one, "--train.data_devices", "2"
    )
    assert statuses == [0, 0], said
    train_alone("--out", tmp_path / "one", *OPTIONS, *one)
    two, alone = (
        np.genfromtxt(tmp_path / name / "history.csv", delimiter=",", skip_header=1)[:, 2:5]
        for name in ("two", "one")
    )
    np.testing.assert_allclose(two, alone, rtol=1e-5)
    close(*(restore(tmp_path / name)[ModelKey(6, 0)].params for name in ("two", "one")))


@pytest.mark.slow
def test_settings_are_tuned_alike_in_several_processes(tmp_path):
    tuned = ("--bandwidths", "6", "--data.holdout_fraction", "0.3", "--tune", "4")
    tuned += ("--train.steps_per_epoch", "50")  # so that a generation ends
    statuses, said = train_together("--out", tmp_path / "two", *OPTIONS, *tuned)
    assert statuses == [0, 0], said
    train_alone("--out", tmp_path / "one", *OPTIONS, *tuned)
    histories = [(tmp_path / name / "history.csv").read_text() for name in ("two", "one")]
    assert histories[0] == histories[1]
    assert saved(tmp_path / "two") == saved(tmp_path / "one")
    assert any(row["parent"] != row["member"] for row in csv_rows(tmp_path / "one/history.csv"))


def test_options_of_a_cluster_without_one(command):
    status, _, error = command(cli.train, "--out", "run", "--processes", "2")
    assert status == 2
    assert "go with --distributed" in error
    assert error.count("\n") == 1
    lonely = call("train.py", "--out", "run", "--distributed", timeout=LIMIT)
    assert lonely.returncode == 2
    assert "give each process --coordinator HOST:PORT" in lonely.stderr
    assert lonely.stderr.count("\n") == 1
