"""train.py and evaluate.py as a user calls them."""

import csv
import os
import re
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
from conftest import ROOT, call

SMOKE = ("--config", "configs/smoke.yaml")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "smoke"
    done = call("train.py", *SMOKE, "--out", path, "--train.epochs", "4", "--bandwidths", "12", "3")
    assert done.returncode == 0, done.stderr
    assert re.search(r"64 training and 16 validation trials of 20 bins x 12 neurons", done.stdout)
    assert re.search(r"training 2 models on \d+ x cpu: bandwidths 12, 3; seeds 0", done.stdout)
    assert "bandwidth 12: NLL" in done.stderr
    assert "bandwidth 3: NLL" in done.stderr
    return path


def test_train_then_evaluate(run):
    with open(run / "history.csv", newline="") as file:
        history = list(csv.DictReader(file))
    assert [(r["bandwidth"], r["epoch"]) for r in history] == [
        (b, str(e)) for e in range(4) for b in ("12", "3")
    ]
    done = call("evaluate.py", run)
    assert done.returncode == 0, done.stderr
    with open(run / "evaluation" / "metrics.csv", newline="") as file:
        metrics = list(csv.DictReader(file))
    table = done.stdout.splitlines()
    header = re.split(r"\s{2,}", table[0].strip())
    assert header[:6] == ["bandwidth", "seed", "epoch", "missing", "NLL", "R2"]
    for line, row in zip(table[1:3], metrics, strict=True):
        cells = line.split()
        assert cells[0] == row["bandwidth"]
        assert cells[3] == f"{float(row['missing_fraction']):.1%}"
        assert float(cells[5]) == pytest.approx(float(row["r2"]), abs=6e-4)
    files = {p.name for p in (run / "evaluation").iterdir()}
    assert files == {
        "metrics.csv",
        "rates.h5",
        "r2_vs_missing.png",
        "rates_bandwidth_12.png",
        "rates_bandwidth_03.png",
    }
    assert "Traceback" not in done.stderr
    assert "WARNING" not in done.stderr


def test_evaluation_can_be_written_elsewhere(run, tmp_path):
    done = call("evaluate.py", run, "--out", tmp_path / "there")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "there" / "metrics.csv").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--train.epochs", "0"), "train.epochs: input should be greater than or equal to 1"),
        (("--train.epochs", "many"), "--train.epochs"),
        (("--train.epoch", "3"), "Unrecognized options: --train.epoch"),
        (("--bandwidths", "0"), "bandwidths.0: input should be greater than or equal to 1"),
        (("--bandwidths", "13"), "bandwidths has 13, and data.neurons is 12"),
        (("--bandwidths",), "bandwidths is empty, which needs a recording"),
        (("--data", "nowhere.h5"), "nowhere.h5: no such file"),
        (("--config", "nowhere.yaml"), "settings file nowhere.yaml: No such file"),
        (("--resume",), "holds no run to resume"),
        (("--inspect",), "nothing to inspect; give a recording with --data FILE"),
        (("--data.pattern", "spiral"), "--data.pattern"),
        (("--train.learning_rate",), "train.learning_rate: tuple should have at least 1 item"),
        (("--train.learning_rate", "1e-3", "0"), "train.learning_rate.1: input should be greater"),
        (("--model.dropout", "0.1", "0.1"), "model.dropout names a value twice: 0.1, 0.1"),
        (("--model.dropout", "0.1", "some"), "Error parsing --model.dropout"),
    ],
)
def test_wrong_input_to_train(options, said, tmp_path):
    done = call("train.py", *SMOKE, "--out", tmp_path / "run", *options)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_replaced_unasked(run):
    before = (run / "history.csv").read_bytes()
    done = call("train.py", *SMOKE, "--out", run)
    assert done.returncode == 2
    assert "holds a run already; --resume goes on with it, --overwrite replaces it" in done.stderr
    assert (run / "history.csv").read_bytes() == before


def test_no_place_for_the_run_is_said(tmp_path):
    done = call("train.py", *SMOKE)
    assert done.returncode == 2
    assert "--out" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()])
def test_evaluating_what_is_no_run(make, tmp_path):
    make(tmp_path / "run")
    done = call("evaluate.py", tmp_path / "run")
    assert done.returncode == 2
    assert "no run here (no config.yaml)" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run" / "evaluation").exists()


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_help(script):
    done = call(script, "--help")
    assert done.returncode == 0
    wanted = ["--data", "--out"]
    if script == "train.py":
        wanted += ["--train.learning_rate", "--model.decoder_size", "--data.bin_width", "seconds"]
        wanted += ["default: 0.007"]  # the recommended settings' own, not the published one
    assert all(word in done.stdout for word in wanted)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_first(number, status, tmp_path):
    path = tmp_path / "run"
    command = [sys.executable, "train.py", *SMOKE, "--out", str(path), "--train.epochs", "100000"]
    command += ["--train.checkpoint_every", "100000", "--bandwidths", "3"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    history = path / "history.csv"
    while process.poll() is None and not (history.exists() and history.read_text().count("\n") > 2):
        time.sleep(0.1)
    process.send_signal(number)
    said, _ = process.communicate()
    assert process.returncode == status
    assert f"python train.py --out {path} --resume" in said
    epochs = history.read_text().count("\n") - 1
    assert [p.name for p in (path / "checkpoints").iterdir()] == [str(epochs)]


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """A recording that knows nothing of this package: holes, a mask, trials of their own length."""
    path = tmp_path_factory.mktemp("data") / "recording.h5"
    rng = np.random.default_rng(0)
    rates = rng.gamma(2.0, 5.0, (40, 15, 8))  # spikes/s
    counts = rng.poisson(rates * 0.05).astype(np.int16)
    mask = rng.random(counts.shape) < 0.5
    mask[:10, 12:] = False
    with h5py.File(path, "w") as file:
        file["spikes"], file["spikes_mask"], file["rates"] = counts, mask, rates
        file["condition"] = np.arange(40) % 4
        file["notes"] = np.bytes_("kept by the rig")
    return path


OWN = ("--config", "configs/recording.yaml", "--data.bin_width", "0.05")
QUICK = ("--train.epochs", "2", "--train.warmup_epochs", "1", "--model.decoder_size", "9")


def test_a_recording_is_described_without_training(recording, tmp_path):
    done = call("train.py", *OWN, "--data", recording, "--inspect", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert re.search(r"spikes +40 x 15 x 8 +int16", done.stdout)
    assert "not read: notes" in done.stdout
    assert "32 training, 8 validation, split here: data.valid_fraction 0.2, seed 0" in done.stdout
    assert re.search(r"bins +12 to 15 of 0.05 s", done.stdout)
    assert "true rates are taken for spikes/s" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_inspecting_a_wrong_file_shows_what_it_holds(tmp_path):
    np.savez(tmp_path / "wrong.npz", counts=np.ones((3, 4, 5)))
    done = call("train.py", *OWN, "--data", tmp_path / "wrong.npz", "--inspect")
    assert done.returncode == 2
    assert re.search(r"counts +3 x 4 x 5 +float64", done.stdout)
    assert "no train_data; expected train_data and valid_data, or spikes" in done.stderr
    assert done.stderr.count("\n") == 1


def test_two_commands_on_a_recording(recording, tmp_path):
    run = tmp_path / "run"
    here = os.path.relpath(recording, ROOT)
    done = call("train.py", *OWN, *QUICK, "--data", here, "--out", run)
    assert done.returncode == 0, done.stderr
    assert "true rates are taken for spikes/s" in done.stdout
    for options in ((), ("--data", recording)):
        done = call(ROOT / "evaluate.py", run, *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "bits/spike held out" in done.stdout
    with h5py.File(run / "evaluation" / "rates.h5") as file:
        assert file["bandwidth_08/seed_0/rates"].shape == (40, 15, 8)
        assert file.attrs["bin_width"] == 0.05
    recording.rename(recording.with_name("moved.h5"))
    done = call("evaluate.py", run)
    recording.with_name("moved.h5").rename(recording)
    assert done.returncode == 2
    assert "say where it is now with --data FILE" in done.stderr
    assert done.stderr.count("\n") == 1
