"""Whole runs through the library: what is written, resumed, restored and evaluated."""

import shutil
import signal

import h5py
import numpy as np
import pytest
from conftest import TINY_DATA, contents, csv_rows, save, saved, smoke

import sbtt_jax
from sbtt_jax import config, recipes
from sbtt_jax.data import problem
from sbtt_jax.errors import InputError
from sbtt_jax.model import metrics
from sbtt_jax.model.inference import infer_all
from sbtt_jax.run import ideal, provenance
from sbtt_jax.run.evaluate import evaluate
from sbtt_jax.run.folder import RunFolder
from sbtt_jax.run.restore import export, restore
from sbtt_jax.run.train import Outcome, train
from sbtt_jax.ship import ship
from sbtt_jax.training.epoch import NUMBERS

DONE = Outcome(0, [])


@pytest.fixture(scope="module")
def settings():
    return smoke()


@pytest.fixture(scope="module")
def data(settings):
    return problem.load(settings)


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory):
    """A finished smoke run, evaluated in full."""
    path = tmp_path_factory.mktemp("runs") / "smoke"
    assert train(settings, path) == DONE
    (path / "evaluation").mkdir()
    (path / "evaluation" / "ensemble.csv").write_text("of several seeds that there were before")
    evaluate(path, full=True)
    return path


def test_history_has_a_row_for_each_model_and_epoch_and_config_every_setting(run, settings, data):
    history = csv_rows(run / "history.csv")
    assert list(history[0])[:7] == (
        ["bandwidth", "seed", "epoch", "train_nll", "valid_nll", "train_r2", "valid_r2"]
    )
    keys = {(int(r["bandwidth"]), int(r["seed"]), int(r["epoch"])) for r in history}
    assert len(history) == len(keys) == 3 * settings.train.epochs
    assert {bandwidth for bandwidth, _, _ in keys} == set(settings.bandwidths)
    assert all(np.isfinite(float(r["valid_nll"])) for r in history)
    resolved = config.updated(settings, data={"bin_width": data.bin_width})
    assert recipes.load(run / "config.yaml") == resolved


def test_metrics_say_what_the_best_epoch_says(run, settings):
    history = csv_rows(run / "history.csv")
    table = csv_rows(run / "evaluation" / "metrics.csv")
    assert ",".join(table[0]) == (
        "bandwidth,seed,missing_fraction,epoch,nll,r2,r2_observed,r2_missing,"
        "bits_per_spike,bits_per_spike_missing,bits_per_spike_heldout,"
        "bits_per_spike_heldout_low,bits_per_spike_heldout_high,latent_r2,status"
    )
    assert [int(r["bandwidth"]) for r in table] == list(settings.bandwidths)
    for row in table:
        own = [r for r in history if r["bandwidth"] == row["bandwidth"]]
        best = min(own, key=lambda r: float(r["valid_nll"]))
        assert row["epoch"] == best["epoch"]
        assert float(row["nll"]) == pytest.approx(float(best["valid_nll"]), rel=1e-4)
        assert float(row["r2"]) == pytest.approx(float(best["valid_r2"]), rel=1e-3, abs=1e-4)
        missing = 1 - int(row["bandwidth"]) / settings.data.neurons
        assert float(row["missing_fraction"]) == pytest.approx(missing, abs=1e-6)
    assert table[0]["r2_missing"] == table[0]["bits_per_spike_missing"] == ""
    assert all(row["bits_per_spike_heldout"] == "" for row in table)  # none are held out


def test_rates_of_every_trial_in_file_order(run, settings, data):
    with h5py.File(run / "evaluation" / "rates.h5") as file:
        np.testing.assert_array_equal(np.flatnonzero(file["split"][()] == b"valid"), data.valid)
        assert file.attrs["bin_width"] == data.bin_width
        for key, trained in restore(run).items():
            group = file[f"bandwidth_{key.bandwidth:02d}/seed_{key.seed}"]
            observed = problem.observed_at(settings, data, key.bandwidth)
            inference = infer_all(trained.model, data.counts, observed)
            assert group["rates"].attrs["unit"] == "spikes/s"
            rates = np.exp(inference.output) / data.bin_width
            np.testing.assert_allclose(group["rates"][()], rates, rtol=1e-5)
            np.testing.assert_allclose(group["latents"][()], inference.latent, atol=1e-6)
            np.testing.assert_allclose(group["initial_states"][()], inference.ic, atol=1e-6)


def test_no_model_is_above_the_ideal_observers(run, settings):
    """Of which the one that knows the patterns knows more than the one that knows the dynamics."""
    rows = csv_rows(run / "evaluation" / "ideal_observers.csv")
    assert [row["knows"] for row in rows[:: len(settings.bandwidths)]] == list(ideal.OBSERVERS)
    patterns, dynamics = (
        {int(row["bandwidth"]): float(row["r2"]) for row in rows if row["knows"] == knows}
        for knows in ideal.OBSERVERS
    )
    assert 1 >= min(patterns[12], patterns[6]) > patterns[2] > 0.5
    for row in csv_rows(run / "evaluation" / "metrics.csv"):
        bandwidth = int(row["bandwidth"])
        assert float(row["r2"]) < dynamics[bandwidth] < patterns[bandwidth]


def test_figures_are_pictures_and_one_seed_has_no_ensemble(run, settings):
    names = [f"evaluation/rates_bandwidth_{b:02d}.png" for b in settings.bandwidths]
    for name in [*names, "evaluation/r2_vs_missing.png", "history.png"]:
        content = (run / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000
    assert not (run / "evaluation" / "ensemble.csv").exists()


def test_stopped_and_resumed_is_as_if_never_stopped(run, settings, tmp_path):
    """Stopped after epoch 3, between two checkpoints, then resumed to the end."""
    part, answers = tmp_path / "part", iter([0, 0, signal.SIGTERM])
    assert train(settings, part, stop=lambda: next(answers)) == (signal.SIGTERM, [])
    assert saved(part)[0] == 3
    assert train(settings, part, resume=True) == DONE
    assert (part / "history.csv").read_text() == (run / "history.csv").read_text()
    assert saved(part) == saved(run)


def test_another_recording_is_not_taken_for_a_damaged_run(tmp_path):
    own = {"holdout_fraction": 0.2}
    paths = [save(tmp_path / f"{n}.h5", {"spikes": np.ones((8, 9, n))}) for n in (3, 4, 5)]
    with_neurons = [config.updated(smoke(), data=own | {"path": str(path)}) for path in paths]
    settings = [config.updated(one, bandwidths=[4]) for one in with_neurons]
    folder = RunFolder(tmp_path / "run")
    data = problem.read(settings[1])
    folder.begin(config.updated(settings[1], data={"bin_width": 0.02}), provenance.record(data))
    (folder.checkpoints / "2" / "best").mkdir(parents=True)  # damaged indeed
    for one in (settings[0], settings[2]):
        with pytest.raises(InputError, match="not the one that the run was begun with"):
            train(one, folder.path, resume=True)
    with pytest.raises(InputError, match="no checkpoint is intact"):
        train(settings[1], folder.path, resume=True)


def test_rows_after_the_checkpoint_are_written_once(tmp_path):
    """Killed between checkpoints: the history is ahead of the state that is resumed."""
    folder = RunFolder(tmp_path)
    numbers = dict.fromkeys(NUMBERS, 1.5) | {"valid_r2": np.nan, "status": "ok"}
    made = [{"bandwidth": 29, "seed": 0, "epoch": epoch, **numbers} for epoch in range(5)]
    folder.writing_history(0, smoke()).append(made)
    with folder.history.open("a") as file:
        file.write("29,0,5,0.3")  # cut short by the kill
    folder.writing_history(3, smoke()).append(made[3:])
    assert str(folder.read_history()) == str(made)  # NaN beside NaN


def test_a_run_is_never_replaced_or_mixed_up(run, settings):
    before = contents(run)
    others = config.updated(settings, seeds=[5], train={"batch_size": 7})
    changed = r"other settings: seeds was \(0,\), now \(5,\); train\.batch_size was 24, now 7$"
    for given, how, said in (
        (settings, {}, "--resume continues it, --overwrite replaces it"),
        (others, {"resume": True}, changed),
        (settings, {"resume": True, "overwrite": True}, "exclude each other"),
    ):
        with pytest.raises(InputError, match=said):
            train(given, run, **how)
    with pytest.raises(InputError, match="holds a run already; give another folder"):
        export(run, settings, {})
    with pytest.raises(InputError, match="already; resume=True continues it; otherwise give"):
        sbtt_jax.fit(np.ones((4, 5, 3)), bin_width=0.01, out=run)
    with RunFolder(run).lock():
        for how in ("resume", "overwrite"):
            with pytest.raises(InputError, match="another training is writing here"):
                train(settings, run, **{how: True})
    assert contents(run) == before


def test_overwriting_takes_what_a_run_wrote_and_nothing_else(tmp_path):
    settings = smoke(bandwidths=[3], data=TINY_DATA, train={"epochs": 1})
    train(settings, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    for name in ("evaluation_other/metrics.csv", "evaluation_mine/notes.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    train(settings, tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "evaluation_mine").exists()
    assert not (tmp_path / "evaluation_other").exists()
    assert len(csv_rows(tmp_path / "history.csv")) == 1


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["checkpoints/net.pt", "evaluation/paper.csv"], "checkpoints"),
        (["checkpoints/lorenz/config.yaml"], "checkpoints"),
        (["checkpoints/100/model.safetensors"], "checkpoints"),
        (["checkpoints/100/_CHECKPOINT_METADATA", "checkpoints/100/default/d"], "checkpoints"),
        (["config.yaml", "checkpoints/last.ckpt"], "config.yaml, checkpoints"),
        (["history.csv"], "history.csv"),
        (["stack.npz", "tuning/winners.csv"], "winners.csv, stack.npz"),
    ],
)
def test_what_no_run_wrote_is_never_removed(files, words, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("lr: 0.1")
    before = contents(tmp_path)
    for overwrite in (True, False):
        with pytest.raises(InputError, match=f"holds {words}, which no run wrote; give another"):
            RunFolder(tmp_path).check(smoke(), overwrite=overwrite)
    RunFolder(tmp_path).begin(smoke(), {"data": {}}, overwrite=True)
    assert before.items() - contents(tmp_path).items() <= {(tmp_path / "config.yaml", b"lr: 0.1")}


@pytest.mark.parametrize("kept", ["config.yaml", "history.csv", "checkpoints/6/best"])
def test_what_is_left_of_a_run_is_replaced(kept, run, tmp_path):
    """Of one that was killed, or damaged; beside what is not of it."""
    path = tmp_path / "run"
    shutil.copytree(run, path, ignore=shutil.ignore_patterns(".lock"))
    for own in ("config.yaml", "history.csv"):
        (path / own).write_text("\0") if own != kept else None
    if not kept.startswith("checkpoints"):
        shutil.rmtree(path / "checkpoints")
    mine = "notes.txt", "checkpoints/net.pt", "checkpoints/7/net.pt", "evaluation/paper.csv"
    for name in mine:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("mine")
    with pytest.raises(InputError, match="holds a run already"):
        RunFolder(path).check(smoke())
    RunFolder(path).check(smoke(), overwrite=True)
    RunFolder(path).begin(smoke(), {"data": {}}, overwrite=True)
    assert contents(path).keys() == {path / name for name in (*mine, "config.yaml")}


def test_a_run_that_another_training_made_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    settings = smoke(bandwidths=[3], data=TINY_DATA, train={"epochs": 1})
    prepared = []

    def slowly(*arguments):
        if not prepared:
            prepared.append(True)
            train(config.updated(settings, seeds=[1]), tmp_path)
        return problem.prepare(*arguments)

    monkeypatch.setattr("sbtt_jax.run.train.prepare", slowly)
    with pytest.raises(InputError, match="holds a run already"):
        train(settings, tmp_path)
    assert RunFolder(tmp_path).settings().seeds == (1,)


@pytest.mark.usefixtures("undrawn")
def test_a_shipped_run_evaluates_to_the_same(run, settings, tmp_path):
    out = tmp_path / "out"
    ship(run, out)
    (step,) = (out / "checkpoints").iterdir()
    assert {p.name for p in step.iterdir() if p.is_dir()} == {"best", "sums"}
    kept, there = ({p.name for p in (path / "evaluation").iterdir()} for path in (out, run))
    assert kept == there - {"rates.h5"}
    assert (out / "history.csv").read_text() == (run / "history.csv").read_text()
    evaluate(out, out=tmp_path / "again")
    folders = run / "evaluation", out / "evaluation", tmp_path / "again"
    assert len({(folder / "metrics.csv").read_text() for folder in folders}) == 1
    with pytest.raises(InputError, match="cannot be resumed"):
        train(settings, out, resume=True)
    with pytest.raises(InputError, match="exists already"):
        ship(run, out)


@pytest.mark.parametrize("folds", [1, 3])
def test_heldout_points_are_hidden_and_in_validation_trials_only(data, folds):
    """Half of them choose in one pass; in several, all are reported and all others choose once."""
    settings = smoke(data={"holdout_fraction": 0.25}, train={"folds": folds})
    prepared = problem.prepare(settings, data)
    for i, key in enumerate(prepared.keys):
        observed, chooses = (mask[i] for mask in prepared.masks[:2])
        given = problem.observed_at(settings, data, key.bandwidth)
        choosing, reporting = problem.heldout_at(settings, data, key.bandwidth, given)
        np.testing.assert_array_equal(chooses[data.valid], choosing)
        assert not chooses[data.train].any()
        known = given[data.valid]
        np.testing.assert_array_equal(observed[data.valid], known & ~reporting)
        np.testing.assert_array_equal(observed[data.train], given[data.train])
        np.testing.assert_array_equal(np.unique(choosing), range(folds + 1))
        assert not ((choosing > 0) & (reporting | ~known)).any()
        shares = [(choosing > 0).sum() / known.sum(), reporting.sum() / known.sum()]
        np.testing.assert_allclose(shares, [[0.125, 0.125], [0.75, 0.25]][folds > 1], atol=0.05)


def test_a_run_out_of_patience_says_so_and_is_done(tmp_path, caplog):
    caplog.set_level("INFO", logger="sbtt_jax")
    settings = smoke(train={"epochs": 40, "patience": 2, "learning_rate": 0.5})
    train(settings, tmp_path / "run")
    assert "done: no smaller validation loss in 2 epochs" in caplog.text
    rows = csv_rows(tmp_path / "run" / "history.csv")
    assert len(rows) < 40 * len(settings.bandwidths)
    train(settings, tmp_path / "run", resume=True)
    assert csv_rows(tmp_path / "run" / "history.csv") == rows


@pytest.mark.slow
def test_seeds_of_a_bandwidth_are_scored_together_too(data, tmp_path):
    run = tmp_path / "run"
    train(smoke(bandwidths=[6, 3], seeds=[0, 1, 2], train={"epochs": 2}), run)
    found = evaluate(run, full=True)
    table = csv_rows(run / "evaluation" / "ensemble.csv")
    assert [(row["bandwidth"], row["models"]) for row in table] == [("6", "3"), ("3", "3")]
    with h5py.File(run / "evaluation" / "rates.h5") as file:
        for row in table:
            group = file[f"bandwidth_{int(row['bandwidth']):02d}"]
            each = [group[f"seed_{seed}/rates"][:] for seed in (0, 1, 2)]
            mean = np.mean(each, axis=0, dtype=np.float64)
            np.testing.assert_allclose(group["ensemble/rates"][:], mean, rtol=1e-5)
            r2 = metrics.r2(data.rates[data.valid], mean[data.valid] * data.bin_width)
            assert float(row["r2"]) == pytest.approx(r2, abs=1e-4)
    # The mean of several estimates has at most the mean of their squared errors.
    for ensemble in found.ensembles:
        alone = [m["r2"] for m in found.models if m["bandwidth"] == ensemble["bandwidth"]]
        assert ensemble["r2"] >= np.mean(alone) - 1e-6

    evaluate(run, out=tmp_path / "short")
    with h5py.File(tmp_path / "short" / "rates.h5") as file:
        assert set(file["bandwidth_06"]) == {"seed_0", "seed_1", "seed_2"}
        written = {name for name, item in file["bandwidth_06/seed_1"].items() if item.ndim > 1}
        assert written == {"rates", "initial_states"}
