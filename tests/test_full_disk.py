"""A disk that takes no more: earlier files stay, training goes on, and the user is told."""

import errno
import io
import os
import subprocess
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from conftest import ROOT, TINY, TINY_DATA, contents, smoke

from sbtt_jax import cli
from sbtt_jax.errors import SaveError
from sbtt_jax.run import checkpoints
from sbtt_jax.run import train as training
from sbtt_jax.run.files import GrowingCSV, atomic_write, hdf5
from sbtt_jax.run.folder import RunFolder
from sbtt_jax.run.train import Outcome, train
from sbtt_jax.ship import ship

SETTINGS = smoke(bandwidths=[3], data=TINY_DATA)
NO_SPACE = os.strerror(errno.ENOSPC)


class FullDisk:
    """Checkpoints cannot be written while `full`: in `epochs`, and until changed."""

    def __init__(self, monkeypatch, epochs, error=None):
        self.full, self.refused = False, 0
        rows, manager = training.history_rows, checkpoints._manager

        def watch(keys, epoch, log):
            self.full = epoch in epochs
            return rows(keys, epoch, log)

        def refuse(*arguments, **options):
            if self.full:
                self.refused += 1
                raise error or OSError(errno.ENOSPC, NO_SPACE)
            return manager(*arguments, **options)

        monkeypatch.setattr(training, "history_rows", watch)
        monkeypatch.setattr(checkpoints, "_manager", refuse)


@pytest.mark.parametrize("error", [None, ValueError(f"{NO_SPACE} [source: TensorStore]")])
def test_a_checkpoint_that_failed_is_made_up_for(error, tmp_path, monkeypatch, caplog):
    disk = FullDisk(monkeypatch, {1, 2}, error)  # due after epochs 1, 3 and 5, counted from 0
    assert train(SETTINGS, tmp_path / "run") == Outcome(0, [])
    assert disk.refused == 2
    assert checkpoints.epochs_saved(tmp_path / "run" / "checkpoints") == [6, 4]
    said = caplog.text
    assert said.count(NO_SPACE) == said.count("trying again after each epoch") == 1


@pytest.mark.parametrize("patience", [4, 3])
def test_a_disk_that_stays_full_is_waited_for(patience, tmp_path, monkeypatch):
    """Until there is room, or patience ends; what was there before stays."""
    disk, waited = FullDisk(monkeypatch, range(3, 6)), []

    def make_room(seconds):
        waited.append(seconds)
        disk.full = len(waited) < 4

    monkeypatch.setattr(training, "time", SimpleNamespace(sleep=make_room))
    monkeypatch.setattr(training, "PATIENCE", patience)
    if patience == 4:
        assert train(SETTINGS, tmp_path / "run") == Outcome(0, [])
    else:
        with pytest.raises(SaveError, match=r"No space left on device; 2 of 6 epochs are saved"):
            train(SETTINGS, tmp_path / "run")
    assert len(waited) == patience < disk.refused + 2
    kept = {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == ({"2", "6"} if patience == 4 else {"2"})


def test_history_rows_wait_and_leave_no_half_line(tmp_path):
    rows = [{"epoch": epoch, "nll": 1.5} for epoch in range(4)]

    class Small(io.FileIO):
        room = 9  # for one row and a half

        def write(self, data):
            written = super().write(data[: self.room])
            self.room -= written
            return written

        def truncate(self, size):
            self.room += self.seek(0, os.SEEK_END) - size
            return super().truncate(size)

    table = GrowingCSV(tmp_path / "table.csv", [], list(rows[0]))
    table.file = Small(table.path, "a")
    table.append(rows[:1])
    for row in rows[1:3]:
        with pytest.raises(SaveError, match="No space left"):
            table.append([row])
        assert table.path.read_text() == "epoch,nll\n0,1.5\n"
    table.file.room = 1000
    table.append(rows[3:])
    assert table.path.read_text() == "epoch,nll\n0,1.5\n1,1.5\n2,1.5\n3,1.5\n"


@pytest.mark.parametrize("room", [0, 5_000, 30_000, 90_000])
def test_an_hdf5_file_for_which_there_is_no_room(room, small_disk):
    """Neither HDF5's own error, which crashes later, nor a part of the file."""
    path = small_disk / "rates.h5"
    path.write_text("before")
    with (small_disk / "filler").open("wb", buffering=0) as file:
        file.truncate(2**21)
        os.posix_fallocate(file.fileno(), 0, 2**21 - 4096 - -(-room // 4096) * 4096)

    read = []

    def write():
        with atomic_write(path) as part, hdf5(part, "w") as file:
            for name in "abc":
                file[name] = np.ones(20_000)
                file[f"{name}_text"] = np.array([name * 9] * 3000, object)
            for name in "abc":  # as HDF5 itself does
                read.append((file[name][()] == 1).all())
                read.append((file[f"{name}_text"].asstr()[()] == name * 9).all())

    with pytest.raises(SaveError, match=f"{path}: No space left on device"):
        write()
    assert read == [True] * 6
    assert path.read_text() == "before"
    (small_disk / "filler").unlink()
    with atomic_write(path) as part, hdf5(part, "w") as file:
        file["a"] = np.arange(20_000)
    with h5py.File(path) as file:
        assert file["a"][()].tolist() == list(range(20_000))
    assert {p.name for p in small_disk.iterdir()} == {"rates.h5"}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB, where this user may make one."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    try:
        subprocess.run(mount, capture_output=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("this user may not mount a small file system")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_disk_that_is_really_full(small_disk, command, monkeypatch):
    """Room for a few rows of history and no second checkpoint; once it is made, all is well."""
    run = small_disk / "run"
    assert command(cli.train, *TINY, "--out", run, "--train.epochs", "2")[0] == 0
    with (small_disk / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            file.truncate(file.tell() - 16_384)
    before = contents(run)

    monkeypatch.setattr(training, "PATIENCE", 1)
    resume = ["--out", run, "--resume", "--train.epochs", "4"]
    status, _, error = command(cli.train, *resume)
    assert status == 4, error
    assert "Traceback" not in error
    assert "No space left on device; 2 of 4 epochs are saved" in error.splitlines()[-1]
    history = RunFolder(run).history
    assert history.read_bytes().startswith(before.pop(history))
    del before[RunFolder(run).config]  # in which epochs have become four
    assert before.items() <= contents(run).items()

    (small_disk / "filler").unlink()
    status, _, error = command(cli.train, *resume)
    assert status == 0, error
    assert checkpoints.epochs_saved(run / "checkpoints") == [4, 2]


@pytest.mark.parametrize("where", ["sbtt_jax.ship._copy", "sbtt_jax.run.restore.draw_history"])
def test_what_was_shipped_in_part_is_removed(where, tmp_path, monkeypatch):
    def fail(*_):
        raise SaveError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(where, fail)
        with pytest.raises(SaveError, match="No space left on device"):
            ship(ROOT / "checkpoints" / "reference", tmp_path / "out")
        assert not list(tmp_path.iterdir())
    ship(ROOT / "checkpoints" / "reference", tmp_path / "out")
    assert (tmp_path / "out" / "evaluation" / "metrics.csv").exists()


def test_a_folder_that_cannot_be_written(small_disk, command):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    status, _, error = command(cli.train, *TINY, "--out", small_disk / "run")
    assert status == 4
    assert error.count("\n") == 1
    assert f"{small_disk / 'run'}: Read-only file system" in error
