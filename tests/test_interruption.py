"""Killed at any moment and resumed, a run ends in the same bits as one that was never stopped."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, call, smoke
from test_run import TINY, TINY_DATA, saved

from sbtt_jax import cli
from sbtt_jax.run.train import train

EPOCHS = 6


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "unbroken"
    train(smoke(bandwidths=[3], data=TINY_DATA), path)
    return path


def assert_same_run(path, unbroken):
    assert saved(path) == saved(unbroken)
    assert saved(path)[0] == EPOCHS
    assert (path / "history.csv").read_bytes() == (unbroken / "history.csv").read_bytes()
    left = [p for pattern in (".*", "*-tmp*") for p in path.rglob(pattern) if p.name != ".lock"]
    assert not left, f"left behind: {left}"


def arguments(path):
    """What a user or a scheduler gives: --resume where there is something to resume."""
    return ("--out", path, *(["--resume"] if (path / "config.yaml").exists() else TINY))


@pytest.fixture
def finish(command):
    def run(path):
        status, _, error = command(cli.train, *arguments(path))
        assert status == 0, error
        assert "Traceback" not in error

    return run


def killed(when, path):
    """Train until that file operation and die there; the operation, or None if the run has ended
    before it."""
    done = call("tests/kill_points.py", when, *arguments(path))
    if done.returncode == 0:
        return None
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout.split("killed at ")[1].strip()


@pytest.mark.parametrize(
    "moment",
    [
        "os.rename RUN/.config.yaml.part",  # nothing has its name yet
        "os.rename RUN/checkpoints/2.orbax-checkpoint-tmp/sums",  # while the first is written
        "os.rename RUN/checkpoints/6.orbax-checkpoint-tmp",  # all but its last name
        "os.rmdir best",  # while an old one is removed
    ],
)
def test_killed_at_a_file_operation(moment, unbroken, tmp_path, finish):
    path = tmp_path / "run"
    assert moment in killed(moment, path)
    finish(path)
    assert_same_run(path, unbroken)


@pytest.mark.slow
def test_killed_at_every_third_file_operation(unbroken, tmp_path, finish):
    places = []
    for operation in range(1, 1000, 3):
        path = tmp_path / str(operation)
        place = killed(operation, path)
        if place is None:
            break
        places.append(place)
        finish(path)
        assert_same_run(path, unbroken)
        shutil.rmtree(path)
    assert len(places) > 30
    for moment in (
        ".config.yaml.part", "history.csv", "/checkpoints/2.orbax-checkpoint-tmp/best",
        "/checkpoints/4.orbax-checkpoint-tmp/rest", "os.remove manifest.ocdbt", "history.png",
    ):  # fmt: skip
        assert any(moment in place for place in places), f"never killed at {moment}: {places}"


@pytest.mark.slow
def test_killed_again_and_again(unbroken, tmp_path, finish):
    """Ten kills in one run, each somewhere else, the last of them always soon after the start."""
    path, draw = tmp_path / "run", random.Random(0)
    kills = 0
    while kills < 10 and killed(draw.randrange(1, 50), path):
        kills += 1
    finish(path)
    assert_same_run(path, unbroken)
    assert kills > 3


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_killed_from_outside_at_a_random_moment(seed, unbroken, tmp_path, finish):
    """SIGKILL comes after a number of history rows and a random part of a second more, which
    decides where it strikes and nothing about what must hold then."""
    path, draw = tmp_path / "run", random.Random(seed)
    rows, pause = draw.randrange(0, EPOCHS), draw.random() * 0.05
    process = subprocess.Popen(
        [sys.executable, "train.py", *map(str, arguments(path))],
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
    finish(path)
    assert_same_run(path, unbroken)


def test_a_damaged_newest_checkpoint_costs_epochs_and_nothing_else(unbroken, tmp_path, command):
    path = shutil.copytree(unbroken, tmp_path / "run")
    for damaged in (path / "checkpoints" / "6" / "best").rglob("d/*"):
        damaged.write_bytes(damaged.read_bytes()[:-9])
    status, _, error = command(cli.evaluate, path)
    assert status == 2
    assert f"error: {path}/checkpoints/6/best: damaged: " in error
    assert "evaluate.py reads it with --checkpoint 4" in error
    assert not (path / "evaluation").exists()

    status, output, _ = command(cli.train, "--out", path, "--resume")
    assert status == 0
    assert f"{path}/checkpoints/6/best: damaged: " in output
    assert "continuing from the checkpoint after 4 epochs" in output
    assert_same_run(path, unbroken)
