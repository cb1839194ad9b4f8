"""Killed at any moment and resumed, a run ends in the same bits as one that was never stopped."""

import itertools
import random
import shutil
import signal
import subprocess
import time

import pytest
from conftest import AS_HERE, TINY, TINY_DATA, call, python, saved, smoke

from sbtt_jax import cli
from sbtt_jax.run.train import train

EPOCHS = 6


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "unbroken"
    train(smoke(bandwidths=[3], data=TINY_DATA), path)
    return path


def arguments(path):
    """What a user or a scheduler gives: --resume where there is something to resume."""
    return ("--out", path, *(["--resume"] if (path / "config.yaml").exists() else TINY))


@pytest.fixture
def finish(command, unbroken):
    """A function that resumes a run, which must end as if it had never been stopped."""

    def run(path):
        status, output, error = command(cli.train, *arguments(path))
        assert status == 0, error
        assert "Traceback" not in error
        assert saved(path) == saved(unbroken)
        assert saved(path)[0] == EPOCHS
        assert (path / "history.csv").read_bytes() == (unbroken / "history.csv").read_bytes()
        left = [p for pattern in (".*", "*-tmp*") for p in path.rglob(pattern) if p.name != ".lock"]
        assert not left, f"left behind: {left}"
        return output

    return run


def killed(when, path):
    """Train until that file operation and die there; the operation, or None if the run has ended
    before it."""
    done = call("tests/kill_points.py", when, *arguments(path), **AS_HERE)
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
def test_killed_at_a_file_operation(moment, tmp_path, finish):
    path = tmp_path / "run"
    assert moment in killed(moment, path)
    finish(path)


@pytest.mark.slow
def test_killed_at_every_third_file_operation_and_at_others_by_name(tmp_path, finish):
    named = [
        "history.csv", "/checkpoints/2.orbax-checkpoint-tmp/best",
        "/checkpoints/4.orbax-checkpoint-tmp/rest", "os.remove manifest.ocdbt", "history.png",
    ]  # fmt: skip
    places = []
    for when in itertools.chain(named, itertools.count(1, 3)):
        if not (place := killed(when, path := tmp_path / "run")):
            break
        places.append(place)
        finish(path)
        shutil.rmtree(path)
    assert len(places) > 30 + len(named)
    assert all(moment in place for moment, place in zip(named, places, strict=False))


@pytest.mark.slow
def test_killed_again_and_again(tmp_path, finish):
    """Ten kills in one run, each somewhere else, the last of them always soon after the start."""
    path, draw, kills = tmp_path / "run", random.Random(0), 0
    while kills < 10 and killed(draw.randrange(1, 50), path):
        kills += 1
    finish(path)
    assert kills > 3


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_killed_from_outside_at_a_random_moment(seed, tmp_path, finish):
    """SIGKILL comes after a number of history rows and a random part of a second more, which
    decides where it strikes and nothing about what must hold then."""
    path, draw = tmp_path / "run", random.Random(seed)
    rows, pause = draw.randrange(0, EPOCHS), draw.random() * 0.05
    process = subprocess.Popen(**python("train.py", *arguments(path), **AS_HERE))
    history = path / "history.csv"
    while process.poll() is None:
        if history.exists() and history.read_text().count("\n") > rows:
            time.sleep(pause)
            process.kill()
            break
        time.sleep(0.002)
    process.communicate()
    finish(path)


def test_a_damaged_checkpoint_costs_epochs_and_nothing_else(unbroken, tmp_path, command, finish):
    path = shutil.copytree(unbroken, tmp_path / "run")
    for damaged in (path / "checkpoints" / "6" / "best").rglob("d/*"):
        damaged.write_bytes(damaged.read_bytes()[:-9])
    status, _, error = command(cli.evaluate, path)
    assert (status, error.count("\n")) == (2, 1)
    assert f"error: {path}/checkpoints/6/best: damaged: " in error
    assert "evaluate.py reads it with --checkpoint 4" in error
    assert not (path / "evaluation").exists()

    output = finish(path)
    assert f"{path}/checkpoints/6/best: damaged: " in output
    assert "continuing from the checkpoint after 4 epochs" in output
