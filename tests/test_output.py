"""Messages that cannot be written stop nothing, and change nothing."""

import io
import logging
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import TINY, call, csv_rows, identical, python

import sbtt_jax
from sbtt_jax import cli, output

FULL = "/dev/full"


class Refusing(io.StringIO):
    """A stream that can be written to only so often."""

    def __init__(self, error, writes=0):
        super().__init__()
        self.error, self.left = error, writes

    def write(self, text):
        if not self.left:
            raise self.error
        self.left -= 1
        return super().write(text)


@pytest.mark.parametrize("error", [OSError(28, "full"), BrokenPipeError(), ValueError("closed")])
@pytest.mark.parametrize("writes", [0, 3])
def test_streams_that_refuse(error, writes):
    stream = output.Unfailing(Refusing(error, writes))
    for i in range(10):
        print(f"line {i}", file=stream, flush=True)
    assert output.Unfailing(None).write("nowhere") == 7


def test_messages_go_where_they_belong(capsys, monkeypatch):
    monkeypatch.setattr(output.messages, "propagate", True)  # is set back afterwards
    output.to_terminal()
    output.to_terminal()  # once is enough
    output.messages.info("plain")
    output.messages.warning("careful")
    assert capsys.readouterr() == ("plain\n", "careful\n")
    monkeypatch.setattr(sys, "stdout", Refusing(OSError(28, "full")))
    output.messages.info("lost")
    output.messages.setLevel(logging.WARNING)
    output.messages.info("unheard")
    output.messages.setLevel(logging.INFO)
    assert capsys.readouterr() == ("", "")


@pytest.mark.skipif(not os.path.exists(FULL), reason=f"no {FULL} on this system")
def test_a_full_log_and_a_reader_that_has_gone(tmp_path):
    """The progress bar goes to a full disk, the messages to a closed pipe in an encoding without
    the folder's letters."""
    run = tmp_path / "räten"
    how = python("train.py", *TINY, "--out", run, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    reader, writer = os.pipe()
    os.close(reader)
    with open(FULL, "w") as full:
        done = subprocess.run(**how | {"stdout": writer, "stderr": full})
    os.close(writer)
    assert done.returncode == 0
    assert len(csv_rows(run / "history.csv")) == 6


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_fit_is_interrupted_and_resumed_to_the_same_weights(tmp_path):
    spikes = np.random.default_rng(0).poisson(0.8, (10, 6, 4))
    own = {"epochs": 12, "warmup_epochs": 1, "patience": None, "checkpoint_every": 5}
    small = {"encoder_size": 4, "decoder_size": 4}
    how = {"bin_width": 0.02, "model": small, "train": own | {"steps_per_epoch": 2}}

    def stop(row):
        if row["epoch"] == 7:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="resume=True"):
        sbtt_jax.fit(spikes, **how, out=tmp_path / "run", progress=stop)
    with pytest.raises(sbtt_jax.InputError, match="holds a run already"):
        sbtt_jax.fit(spikes, **how, out=tmp_path / "run")
    resumed = sbtt_jax.fit(spikes, **how, out=tmp_path / "run", resume=True)
    whole = sbtt_jax.fit(spikes, **how)
    assert len(resumed.history) == len(whole.history) == 12
    identical(resumed.params, whole.params)
    with pytest.raises(sbtt_jax.InputError, match="resume needs out"):
        sbtt_jax.fit(spikes, **how, resume=True)


@pytest.mark.slow
def test_a_fit_that_fails_says_so(tmp_path):
    spikes = np.random.default_rng(0).poisson(0.8, (10, 6, 4))
    own = {"epochs": 8, "warmup_epochs": 0, "learning_rate": 1e30, "clip_norm": None}
    small = {"encoder_size": 4, "decoder_size": 4}
    with pytest.warns(UserWarning, match="the model failed: its numbers did not stay finite"):
        fitted = sbtt_jax.fit(spikes, bin_width=0.02, model=small, train=own)
    assert fitted.status == "failed"
    assert repr(fitted).endswith("epoch -1, failed)")
    fitted.save(tmp_path / "run")
    with pytest.warns(UserWarning, match="the model failed"):
        assert sbtt_jax.load(tmp_path / "run").status == "failed"


def test_a_platform_that_is_not_there(tmp_path):
    done = call("train.py", *TINY, "--out", tmp_path / "run", JAX_PLATFORMS="cuda")
    assert done.returncode == cli.WRONG_INPUT
    assert "JAX finds no device for JAX_PLATFORMS=cuda" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_one_command(command, tmp_path):
    status, out, _ = command(cli.command)
    assert status == 0
    assert "sbtt inspect" in out
    assert command(cli.command, "--version")[1].startswith("sbtt-jax ")
    status, _, err = command(cli.command, "trian")
    assert (status, err) == (2, "error: 'trian' is no command; sbtt has train, evaluate, tune, "
                             "inspect, demo, convert, ship\n")  # fmt: skip
    np.savez(tmp_path / "recording.npz", spikes=np.random.default_rng(0).poisson(1.0, (9, 8, 4)))
    status, out, err = command(cli.command, "inspect", tmp_path / "recording.npz")
    assert status == 0, err
    assert "neurons      4" in out
    status, _, err = command(
        cli.command, "train", "--config", "recordings", "--out", tmp_path / "r"
    )
    assert status == 2
    assert "there is no recipe 'recordings'; there are demo, lorenz" in err


@pytest.mark.parametrize(
    ("called", "name", "expected"),
    [
        ("/usr/bin/sbtt", "train", "sbtt train"),
        ("/usr/bin/sbtt", "ship", "sbtt ship"),
        ("train.py", "evaluate", "python evaluate.py"),
        ("/lib/sbtt_jax/ship.py", "ship", "python -m sbtt_jax.ship"),
        ("/lib/sbtt_jax/__main__.py", "evaluate", "python -m sbtt_jax evaluate"),
    ],
)
def test_commands_are_named_as_they_were_called(called, name, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", [called])
    assert output.program(name) == expected


def test_the_package_as_a_command():
    done = call("-m", "sbtt_jax", "ship", "--help")
    assert done.returncode == 0
    assert "usage: python -m sbtt_jax ship" in done.stdout
