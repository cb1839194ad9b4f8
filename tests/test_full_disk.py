"""A disk that takes no more: earlier files stay, training goes on, and it is said."""

import errno
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT, call

from sbtt_jax import checkpoints, config, experiment
from sbtt_jax.errors import SaveError
from sbtt_jax.run_folder import HistoryRow, RunFolder

OPTIONS = ("--config", "configs/smoke.yaml", "--bandwidths", "3", "--train.epochs", "6")


@pytest.fixture
def settings():
    values = config.load(ROOT / "configs" / "smoke.yaml").model_dump()
    return config.check(values | {"bandwidths": [3]})


class FullDisk:
    """Stands before a function that writes, and raises what a full disk raises while it is."""

    def __init__(self, monkeypatch, module, name):
        self.really, self.full, self.refused = getattr(module, name), False, 0
        monkeypatch.setattr(module, name, self)

    def __call__(self, *arguments):
        if self.full:
            self.refused += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.really(*arguments)


@pytest.fixture
def full_in_epoch(monkeypatch):
    """A function: make the disk full for checkpoints during these epochs."""

    def arrange(epochs):
        disk = FullDisk(monkeypatch, checkpoints, "_seal")
        rows = experiment._history_rows

        def watch(keys, epoch, log):
            disk.full = epoch in epochs
            return rows(keys, epoch, log)

        monkeypatch.setattr(experiment, "_history_rows", watch)
        return disk

    return arrange


def test_a_checkpoint_that_failed_is_made_up_for(full_in_epoch, settings, tmp_path, capfd):
    saved = []
    disk = full_in_epoch({1, 2})  # due after epochs 1, 3 and 5, counted from 0
    really = disk.really
    disk.really = lambda part, checkpoint: (saved.append(checkpoint.name), really(part, checkpoint))
    assert experiment.train(settings, tmp_path / "run") is None
    assert disk.refused == 2
    assert saved == ["4", "6"]
    said = capfd.readouterr().err
    assert said.count("No space left on device; trying again each epoch") == 1


def test_a_disk_that_stays_full_is_waited_for(full_in_epoch, settings, tmp_path, monkeypatch):
    disk = full_in_epoch(range(3, 6))
    waited = []

    def make_room(seconds):
        waited.append(seconds)
        disk.full = len(waited) < 4

    monkeypatch.setattr(experiment, "time", SimpleNamespace(sleep=make_room))
    assert experiment.train(settings, tmp_path / "run") is None
    assert len(waited) == 4
    assert checkpoints.newest_whole(tmp_path / "run" / "checkpoints") == (6, [])


def test_a_disk_that_is_full_to_the_end_leaves_what_was_there(
    full_in_epoch, settings, tmp_path, monkeypatch
):
    disk = full_in_epoch(range(3, 6))
    monkeypatch.setattr(experiment, "time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr(experiment, "PATIENCE", 4)
    folder = tmp_path / "run"
    with pytest.raises(SaveError, match=r"No space left on device; 2 of 6 epochs are saved"):
        experiment.train(settings, folder)
    assert disk.refused > experiment.PATIENCE
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["2"]
    assert checkpoints.newest_whole(folder / "checkpoints") == (2, [])


def test_history_rows_wait_and_leave_no_half_line(tmp_path):
    rows = [HistoryRow(3, 0, e, 1.0, 2.0, 0.5, 0.5, 1.5) for e in range(4)]
    folder = RunFolder(tmp_path)

    class Small:
        """A file on a disk with room for one more row and a half."""

        def __init__(self, file):
            self.file, self.room = file, 45

        def write(self, data):
            written = self.file.write(data[: self.room])
            self.room -= written
            return written

        def truncate(self, size):
            self.room += self.file.seek(0, os.SEEK_END) - size
            return self.file.truncate(size)

        def seek(self, *where):
            return self.file.seek(*where)

    with folder.writing_history(0) as history:
        history.file = Small(history.file)
        history.append(rows[:1])
        before = folder.history.read_bytes()
        for row in rows[1:3]:
            with pytest.raises(SaveError, match="No space left"):
                history.append([row])
            assert folder.history.read_bytes() == before
        history.file.room = 1000
        history.append(rows[3:])
    assert folder.read_history() == rows


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB, where this user may make one."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    try:
        made = subprocess.run(mount, capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.SubprocessError):
        made = False
    if not made:
        pytest.skip("this user may not mount a small file system")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_disk_that_is_really_full(small_disk):
    """Room for a few rows of history and no second checkpoint; once it is made, all is well."""
    run = small_disk / "run"
    done = call("train.py", *OPTIONS, "--out", run, "--train.epochs", "2")
    assert done.returncode == 0, done.stderr
    with (small_disk / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            file.truncate(file.tell() - 16_384)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}

    impatient = (
        "from sbtt_jax import command_line, experiment; import train; "
        "experiment.PATIENCE = 1; command_line.run(train.main)"
    )
    resume = ["--out", str(run), "--resume", "--train.epochs", "4"]
    full = subprocess.run(
        [sys.executable, "-c", impatient, *resume],
        cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
    )  # fmt: skip
    assert full.returncode == 4, full.stderr
    assert "Traceback" not in full.stderr
    assert "No space left on device; 2 of 4 epochs are saved" in full.stderr.splitlines()[-1]
    history = run / "history.csv"
    assert history.read_bytes().startswith(before.pop(history))
    del before[run / "config.yaml"]  # in which epochs have become four
    assert {p: p.read_bytes() for p in before} == before

    (small_disk / "filler").unlink()
    done = call("train.py", *resume)
    assert done.returncode == 0, done.stderr
    assert checkpoints.newest_whole(run / "checkpoints") == (4, [])


def test_a_folder_that_cannot_be_written(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = call("train.py", *OPTIONS, "--out", small_disk / "run")
    assert done.returncode == 4
    assert done.stderr.count("\n") == 1
    assert f"{small_disk / 'run'}: Read-only file system" in done.stderr
