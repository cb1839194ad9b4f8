"""train.py and evaluate.py as a user calls them: mostly in this process, else as real processes."""

import contextlib
import os
import re
import signal
import subprocess
import time

import h5py
import numpy as np
import pytest
from conftest import FIT, ROOT, call, csv_rows, python

from sbtt_jax import cli, signals
from sbtt_jax.data.masking import PATTERNS
from sbtt_jax.observations import OBSERVATIONS

SMOKE = ("--config", "configs/smoke.yaml", "--bandwidths", "12", "3")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "smoke"
    done = call("train.py", *SMOKE, "--out", path, "--train.epochs", "4")
    assert done.returncode == 0, done.stderr
    assert "64 training and 16 validation trials of 20 bins x 12 neurons" in done.stdout
    assert re.search(r"training 2 models on \d+ x cpu: bandwidths 12, 3; seeds 0", done.stdout)
    assert all(f"bandwidth {b}: NLL" in done.stderr for b in (12, 3))
    return path


def test_train_then_evaluate(run):
    epochs = [(int(row["epoch"]), row["bandwidth"]) for row in csv_rows(run / "history.csv")]
    assert epochs == [(epoch, b) for epoch in range(4) for b in ("12", "3")]
    done = call("evaluate.py", run)
    assert done.returncode == 0, done.stderr
    table = done.stdout.splitlines()
    assert table[0].split()[:6] == ["bandwidth", "seed", "epoch", "missing", "NLL", "R2"]
    for line, row in zip(table[1:3], csv_rows(run / "evaluation" / "metrics.csv"), strict=True):
        bandwidth, _, _, missing, _, r2, *_ = line.split()
        assert (bandwidth, missing) == (row["bandwidth"], f"{float(row['missing_fraction']):.1%}")
        assert float(r2) == pytest.approx(float(row["r2"]), abs=6e-4)
    figures = {
        "report.html",
        "r2_vs_missing.png",
        *(f"{what}_bandwidth_{b}.png" for what in ("rates", "latents") for b in ("12", "03")),
    }
    files = {path.name for path in (run / "evaluation").iterdir()}
    assert files == figures | {"metrics.csv", "ideal_observers.csv", "rates.h5"}
    assert not re.search("Traceback|WARNING", done.stderr)


def refused(result, words):
    """Whether wrong input was answered with status 2 and one line that has the words."""
    status, _, err = result
    return status == 2 and err.count("\n") == 1 and words in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--train.epochs", "0"), "train.epochs: input should be greater than or equal to 1"),
        (("--bandwidths", "13"), "bandwidths has 13, and data.neurons is 12"),
        (("--bandwidths",), "bandwidths is empty, which needs a recording"),
        (("--data", "nowhere.h5"), "nowhere.h5: no such file"),
        (("--config", "nowhere.yaml"), "settings file nowhere.yaml: No such file"),
        (("--resume",), "holds no run to resume"),
        (("--inspect",), "nothing to inspect; give a recording, sbtt inspect FILE or"),
        (("--data.pattern", "spiral"), "--data.pattern"),
        (("--train.learning_rate",), "train.learning_rate: list should have at least 1 item"),
        (("--train.learning_rate", "1e-3", "0"), "train.learning_rate.1: input should be greater"),
        (("--model.dropout", "0.1", "some"), "Error parsing --model.dropout"),
        (("--train.epoch", "3"), "Unrecognized options: --train.epoch, 3 (did you mean --train.ep"),
        (("--seeds", "1.5"), "for arguments: ['1.5'], expected --seeds [INT [INT ...]]; --help"),
        (("--changes", "3", "dropout"), "input_penalty} FLOAT [...]]; --help"),
        (("--data", "a.h5", "--data.key", "bins"), "a.h5: no such file"),
        (("--data", "a.h5", "--data.bins", "5"), "data.bins: it is for a Lorenz set, and a rec"),
        (("--data", "a.h5", "--data.trials-per-condition=5"), "data.trials_per_condition: it is"),
        (("configs",), "a recording goes after --data, settings after --config"),
    ],
)
def test_wrong_input_to_train(options, words, tmp_path, command):
    assert refused(command(cli.train, *SMOKE, "--out", tmp_path / "run", *options), words)
    assert not (tmp_path / "run").exists()


def test_tuning_needs_models_to_tune(command, tmp_path):
    result = command(cli.command, "tune", "--config", "recording", "--out", tmp_path / "run")
    assert refused(result, "tune is 0, so nothing would be tuned; give --tune 16")


def test_a_run_needs_a_folder_and_is_not_replaced_unless_asked(run, command):
    assert refused(command(cli.train, *SMOKE), "--out")
    before = (run / "history.csv").read_bytes()
    words = "holds a run already; --resume continues it, --overwrite replaces it"
    assert refused(command(cli.train, *SMOKE, "--out", run), words)
    assert (run / "history.csv").read_bytes() == before


def test_evaluating_a_folder_without_a_run(tmp_path, command):
    for path in (tmp_path, tmp_path / "none"):
        assert refused(command(cli.evaluate, path), f"{path}: no run here (no config.yaml)")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train.py", "--train.epoch", "3"), "Unrecognized options: --train.epoch"),
        (("evaluate.py", "nowhere"), "nowhere: no run here"),
    ],
)
def test_scripts_exit_with_status_2(arguments, words):
    done = call(*arguments)
    assert refused((done.returncode, done.stdout, done.stderr), words)


TABLES = PATTERNS, OBSERVATIONS
HELP = {
    "evaluate.py": ["--data", "--out", "--full"],
    "train.py": [
        *("--data", "--out", "--train.learning_rate", "--model.decoder_size", "--data.bin_width"),
        *("seconds", "default: 0.007"),  # of the recommended recipe, not of the published one
        *(",".join(table) for table in TABLES),
        *(f"{name}: {row.summary}" for table in TABLES for name, row in table.items()),
    ],
}


@pytest.mark.parametrize("script", HELP)
def test_help(script):
    done = call(script, "--help")
    assert done.returncode == 0
    text = "".join(done.stdout.replace("│", " ").split())  # lines are broken anywhere
    assert [words for words in HELP[script] if words.replace(" ", "") not in text] == []


IMPORTS = """
import sys
import sbtt_jax
from sbtt_jax.data import lorenz, masking
assert lorenz.generate(conditions=1).counts.any() and masking.observe("random", (2, 3, 4), 2).any()
print("jax" in sys.modules)
import sbtt_jax.estimator
print("matplotlib" in sys.modules)
"""


def test_data_can_be_made_without_jax_and_models_fitted_without_matplotlib():
    done = call("-c", IMPORTS)
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_an_interrupt_before_there_is_anything_to_save(monkeypatch):
    """Ends the process in one line, also where an exception would be caught; not if it is ignored,
    as of jobs in the background."""
    told = []
    monkeypatch.setattr(os, "write", lambda *what: told.append(what))
    monkeypatch.setattr(os, "_exit", told.append)
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may be such a job
    with signals.ending(), contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert told == [(2, b"stopped at once; what was saved before is intact\n"), 130]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with signals.ending():
        signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, outside)
    assert len(told) == 2


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_first(number, status, tmp_path):
    path = tmp_path / "run"
    endless = "--train.epochs", 10**5, "--train.checkpoint_every", 10**5
    process = subprocess.Popen(**python("train.py", *SMOKE, "--out", path, *endless))
    history = path / "history.csv"
    while process.poll() is None and not (history.exists() and history.read_text().count("\n") > 4):
        time.sleep(0.1)
    process.send_signal(number)
    out, _ = process.communicate()
    assert process.returncode == status
    assert f"python train.py --out {path} --resume" in out
    epochs = (history.read_text().count("\n") - 1) // 2
    assert [p.name for p in (path / "checkpoints").iterdir()] == [str(epochs)]


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """A recording from elsewhere: holes, a mask, trials of different lengths."""
    path = tmp_path_factory.mktemp("data") / "recording.h5"
    rng = np.random.default_rng(0)
    rates = rng.gamma(2.0, 5.0, (30, 8, 4))  # spikes/s
    counts = rng.poisson(rates * 0.05).astype(np.int16)
    mask = rng.random(counts.shape) < 0.5
    mask[:10, 5:] = False
    with h5py.File(path, "w") as file:
        file["spikes"], file["spikes_mask"], file["rates"] = counts, mask, rates
        file["condition"] = np.arange(30) % 3
        file["notes"] = np.bytes_("kept by the rig")
    return path


OWN = ("--config", "configs/recording.yaml", "--data.bin_width", "0.05")
QUICK = [
    f"--{group}.{name}={FIT[group][name]}" for group in ("model", "train") for name in FIT[group]
]


def test_a_recording_is_described_without_training(recording, tmp_path, command):
    options = "--data", recording, "--inspect", "--out", tmp_path / "run"
    status, out, err = command(cli.train, *OWN[2:], *options)  # by the recipe for recordings
    assert status == 0, err
    assert re.search(r"spikes +30 x 8 x 4 +int16", out)
    assert "not read: notes" in out
    assert "24 training and 6 validation trials, split here: data.valid_fraction 0.2, seed 0" in out
    assert re.search(r"bins +5 to 8 of 0.05 s", out)
    assert "true rates are assumed to be in spikes/s" in out
    assert list(tmp_path.iterdir()) == []


def test_inspecting_a_wrong_file_shows_what_it_holds(tmp_path, command):
    np.savez(tmp_path / "wrong.npz", counts=np.ones((3, 4, 5)), other=np.ones((3, 4, 5)))
    result = command(cli.train, *OWN, "--data", tmp_path / "wrong.npz", "--inspect")
    there = "no spikes, and no train_data; there are counts (3 x 4 x 5), other (3 x 4 x 5); name"
    assert refused(result, there)
    assert re.search(r"counts +3 x 4 x 5 +float64", result[1])


def test_an_empty_option_is_refused(tmp_path, command, monkeypatch):
    """As of a variable of the shell that is not set."""
    monkeypatch.chdir(tmp_path)
    for option in ("--out", "--data"):
        for words in ((option, ""), (f"{option}=",)):
            result = command(cli.train, *OWN, "--out", "run", *words)
            assert refused(result, f"{option} is empty; give a value, or leave it out")
    both = "--data", "a.npz", "--data.path", "b.npz"
    result = command(cli.train, *OWN, "--out", "run", *both)
    assert refused(result, "--data and --data.path say the same; give one of them")
    assert refused(command(cli.evaluate, ""), "an argument is empty")
    assert refused(command(cli.evaluate, "run", "--out", ""), "--out is empty")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("undrawn")
def test_two_commands_on_a_recording(recording, tmp_path, command, monkeypatch):
    run = tmp_path / "run"
    here = os.path.relpath(recording, ROOT)
    status, out, err = command(cli.train, *OWN, *QUICK, "--data", here, "--out", run)
    assert status == 0, err
    assert "true rates are assumed to be in spikes/s" in out
    elsewhere = "--data", recording, "--out", tmp_path
    for options, folder in (((), run / "evaluation"), (elsewhere, tmp_path)):
        monkeypatch.chdir(tmp_path)  # from another folder
        status, out, err = command(cli.evaluate, run, *options)
        assert status == 0, err
        assert "bits/spike held out" in out
        assert f"wrote {folder}" in out
        with h5py.File(folder / "rates.h5") as file:
            assert file["bandwidth_04/seed_0/rates"].shape == (30, 8, 4)
            assert file.attrs["bin_width"] == 0.05
