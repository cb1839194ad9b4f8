"""Killed at any moment and resumed, a run ends in the same bits as one that was never stopped."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import ROOT, call

from sbtt_jax import checkpoints

TINY = (
    "--config", "configs/smoke.yaml", "--bandwidths", "3", "--train.epochs", "6",
    "--data.conditions", "4", "--data.trials_per_condition", "5", "--data.bins", "8",
)  # fmt: skip
EPOCHS = 6


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "unbroken"
    done = call("train.py", *TINY, "--out", path)
    assert done.returncode == 0, done.stderr
    return path


def weights(path):
    step = path / "checkpoints" / str(checkpoints.newest(path / "checkpoints"))
    with ocp.StandardCheckpointer() as checkpointer:
        return [
            checkpointer.restore((step / item).resolve()) for item in ("best", "rest", "recovery")
        ]


def assert_same_run(path, unbroken):
    assert checkpoints.newest(path / "checkpoints") == EPOCHS
    assert (path / "history.csv").read_bytes() == (unbroken / "history.csv").read_bytes()
    jax.tree.map(np.testing.assert_array_equal, weights(path), weights(unbroken))
    left = [p.name for p in path.rglob(".*")]
    assert not left, f"left behind: {left}"


def go_on(path):
    """What a user or a scheduler does after a kill: resume where there is something to resume."""
    resume = ("--resume",) if (path / "config.yaml").exists() else TINY
    done = call("train.py", "--out", path, *resume)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def killed_at(operation, path, *arguments):
    """Run until that file operation and die there; the operation, or None for one that is past
    the end."""
    done = call("tests/kill_points.py", operation, "--out", path, *arguments)
    if done.returncode == 0:
        return None
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout.split("killed at ")[1].strip().replace(str(path), "RUN")


# Before config.yaml has its name, before the first checkpoint, and while the first is written.
@pytest.mark.parametrize("operation", [2, 5, 20])
def test_killed_at_a_file_operation(operation, unbroken, tmp_path):
    path = tmp_path / "run"
    assert killed_at(operation, path, *TINY)
    go_on(path)
    assert_same_run(path, unbroken)


@pytest.mark.slow
def test_killed_at_every_third_file_operation(unbroken, tmp_path):
    places = []
    for operation in range(1, 1000, 3):
        path = tmp_path / str(operation)
        place = killed_at(operation, path, *TINY)
        if place is None:
            break
        places.append(place)
        go_on(path)
        assert_same_run(path, unbroken)
        shutil.rmtree(path)
    assert len(places) > 20
    for moment in (".config.yaml.part", "history.csv", "checkpoints/.2.part", "RUN/checkpoints/2"):
        assert any(moment in place for place in places), f"never killed at {moment}: {places}"


@pytest.mark.slow
def test_killed_again_and_again(unbroken, tmp_path):
    """Ten kills in one run, each somewhere else, never twenty operations further than it got."""
    path, draw = tmp_path / "run", random.Random(0)
    kills = 0
    while kills < 10:
        resume = ("--resume",) if (path / "config.yaml").exists() else TINY
        kills += 1
        if killed_at(draw.randrange(1, 20), path, *resume) is None:
            break
    go_on(path)
    assert_same_run(path, unbroken)
    assert kills > 3


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_killed_from_outside_at_a_random_moment(seed, unbroken, tmp_path):
    """SIGKILL comes after a number of history rows and a random part of a second more, which
    decides where it strikes and nothing about what must hold then."""
    path, draw = tmp_path / "run", random.Random(seed)
    rows, pause = draw.randrange(0, EPOCHS), draw.random() * 0.05
    process = subprocess.Popen(
        [sys.executable, "train.py", *TINY, "--out", str(path)],
        cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    history = path / "history.csv"
    while process.poll() is None:
        if history.exists() and history.read_text().count("\n") > rows:
            time.sleep(pause)
            process.kill()
            break
        time.sleep(0.002)
    process.wait()
    go_on(path)
    assert_same_run(path, unbroken)


def test_a_damaged_newest_checkpoint_costs_epochs_and_nothing_else(unbroken, tmp_path):
    path = shutil.copytree(unbroken, tmp_path / "run")
    damaged = next((path / "checkpoints" / "6" / "rest").rglob("d/*"))
    damaged.write_bytes(damaged.read_bytes()[:-9])
    refused = call("evaluate.py", path)
    assert refused.returncode == 2
    assert damaged.name in refused.stderr
    assert "evaluate.py reads it with --checkpoint 4" in refused.stderr
    assert not (path / "evaluation").exists()

    done = call("train.py", "--out", path, "--resume")
    assert done.returncode == 0, done.stderr
    assert damaged.name in done.stdout
    assert "going on from the checkpoint after 4 epochs" in done.stdout
    assert_same_run(path, unbroken)
