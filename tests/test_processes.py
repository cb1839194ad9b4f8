"""Several processes, such as hosts of a cluster have: here two, on this machine."""

import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import ROOT, call
from flax import nnx

from sbtt_jax import checkpoints, evaluation
from sbtt_jax.grid import ModelKey

OPTIONS = (
    "--config", "configs/smoke.yaml", "--bandwidths", "6", "3",
    "--data.conditions", "4", "--data.trials_per_condition", "5", "--data.bins", "8",
)  # fmt: skip
LIMIT = 900  # seconds, far above what anything here takes where a machine has other work too


@pytest.fixture(autouse=True)
def compile_fast(monkeypatch):
    """Compiling is most of the time here."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")


class Pair:
    """Two processes of train.py, or of the program that `code` is, that train as one."""

    def __init__(self, *arguments, each=((), ()), code=None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        program = ["train.py"] if code is None else ["-c", code]
        joining = ("--distributed", "--coordinator", address, "--processes", "2")
        self.processes = [
            subprocess.Popen(
                [sys.executable, *program, *map(str, (*arguments, *own, *joining, "--process", i))],
                cwd=ROOT,
                env=os.environ | {"JAX_PLATFORMS": "cpu", "MPLBACKEND": "agg"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i, own in enumerate(each)
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
    done = call("train.py", *arguments, timeout=LIMIT)
    assert done.returncode == 0, done.stderr


def weights(path):
    newest = path / "checkpoints" / str(checkpoints.newest(path / "checkpoints"))
    with ocp.StandardCheckpointer() as checkpointer:
        return [checkpointer.restore((newest / item).resolve()) for item in ("best", "rest")]


def test_two_processes_stop_together_and_end_in_the_numbers_of_one(tmp_path):
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
    epochs = checkpoints.newest(path / "checkpoints")
    assert history.read_bytes().count(b"\n") == 1 + 2 * epochs
    assert "stopped; go on with" in said[0][0]
    assert "epoch" in said[0][1]
    assert "stopped" not in said[1][0] + said[1][1]
    assert "epoch" not in said[1][1]

    statuses, said = train_together("--out", path, "--resume", "--train.epochs", epochs + 2)
    assert statuses == [0, 0], said
    assert checkpoints.newest_whole(path / "checkpoints") == (epochs + 2, [])
    train_alone("--out", path, "--resume", "--train.epochs", epochs + 4)

    unbroken = tmp_path / "unbroken"
    train_alone("--out", unbroken, *OPTIONS, "--train.epochs", epochs + 4)
    assert history.read_text() == (unbroken / "history.csv").read_text()
    jax.tree.map(np.testing.assert_array_equal, weights(path), weights(unbroken))
    assert call("evaluate.py", path, timeout=LIMIT).returncode == 0


@pytest.mark.parametrize(
    ("each", "reason"),
    [
        (((), ("--seeds", "1")), "the processes have different settings, data or checkpoints"),
        ((("--data", "missing.h5"), ()), "missing.h5: no such file"),
        (((), ("--data", "missing.h5")), "process 1: "),
    ],
)
def test_what_is_wrong_on_one_ends_both_and_writes_nothing(each, reason, tmp_path):
    statuses, said = train_together("--out", tmp_path / "run", *OPTIONS, each=each)
    assert statuses == [2, 2], said
    error, other = said[0][1], said[1][1]
    assert reason in error
    assert error.count("\n") == 1
    assert other == ""
    assert not (tmp_path / "run").exists()


FULL_DISK = """
import errno, os, sys
from sbtt_jax import checkpoints, command_line
import train
really, asked = checkpoints._seal, []
def seal(*where):
    asked.append(where)
    if len(asked) == 1:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    really(*where)
checkpoints._seal = seal
command_line.run(train.main)
"""


@pytest.mark.slow
def test_a_full_disk_is_said_once_and_tried_again_by_both(tmp_path):
    path = tmp_path / "run"
    statuses, said = train_together("--out", path, *OPTIONS, code=FULL_DISK)
    assert statuses == [0, 0], said
    assert said[0][1].count("No space left on device; trying again each epoch") == 1
    assert "space" not in said[1][1]
    assert sorted(p.name for p in (path / "checkpoints").iterdir()) == ["4", "6"]
    assert checkpoints.newest_whole(path / "checkpoints") == (6, [])


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
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        *(
            nnx.state(evaluation.restore(tmp_path / n)[ModelKey(6, 0)].model)
            for n in ("two", "one")
        ),
    )


def test_options_of_a_cluster_without_one():
    refused = call("train.py", "--out", "run", "--processes", "2")
    assert refused.returncode == 2
    assert "go with --distributed" in refused.stderr
    assert refused.stderr.count("\n") == 1
    lonely = call("train.py", "--out", "run", "--distributed", timeout=LIMIT)
    assert lonely.returncode == 2
    assert "give each process --coordinator HOST:PORT" in lonely.stderr
    assert lonely.stderr.count("\n") == 1
