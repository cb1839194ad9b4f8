"""The package from Python: arrays in, arrays out."""

import copy
import inspect
import json
import multiprocessing
import pickle
import re
import runpy
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace

import h5py
import matplotlib.pyplot as plt
import numpy as np
import pytest
import yaml
from conftest import FIT, ROOT, csv_rows, identical

import sbtt_jax
from sbtt_jax import config, recipes
from sbtt_jax.errors import InputError
from sbtt_jax.model import metrics
from sbtt_jax.run.evaluate import evaluate


@pytest.fixture(scope="module")
def fitted(spikes):
    return sbtt_jax.fit(spikes, **FIT)


def test_arrays_in_arrays_out(fitted, spikes):
    inferred = fitted.infer(spikes)
    assert inferred.rates.shape == spikes.shape
    assert inferred.latents.shape == (30, 8, 4)  # factors: no more than neurons
    assert inferred.initial_states.shape == (30, 6)
    length = 8 - np.argmax((~np.isnan(spikes[3])).any(1)[::-1])
    np.testing.assert_array_equal(np.isnan(inferred.rates[3]).all(1), np.arange(8) >= length)
    assert np.isfinite(np.delete(inferred.rates, 3, axis=0)).all()
    np.testing.assert_array_equal(fitted.infer(spikes.tolist()).rates, inferred.rates)


def test_the_recipe_is_that_of_the_settings_file(fitted):
    recipe = recipes.load(ROOT / "configs" / "recording.yaml")
    own = {"path": fitted.settings.data.path, "bin_width": 0.01}
    changes = {name: FIT[name] for name in ("model", "train")}
    assert fitted.settings == config.updated(recipe, data=own, **changes)


def test_fit_works_in_a_thread_and_prints_and_writes_nothing(
    fitted, spikes, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    with ThreadPoolExecutor(1) as other:
        again = other.submit(sbtt_jax.fit, spikes, **FIT).result()
    identical(again.params, fitted.params)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_every_epoch_is_told_and_fitting_can_be_ended(fitted, spikes):
    seen = []
    ended = sbtt_jax.fit(spikes, **FIT, progress=lambda row: seen.append(row) or len(seen) == 2)
    assert seen == ended.history
    assert str(seen) == str(fitted.history[:2])  # NaN beside NaN
    assert [row["epoch"] for row in fitted.history] == [0, 1, 2]
    assert fitted.epoch == min(fitted.history, key=lambda row: row["heldout_nll"])["epoch"]


def from_worker(fitted, spikes):
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as worker:
        return worker.submit(sbtt_jax.fit, spikes, **FIT).result()


def from_joblib(fitted, spikes):
    joblib = pytest.importorskip("joblib")
    jobs = [joblib.delayed(sbtt_jax.fit)(spikes, **FIT) for _ in range(2)]
    with joblib.parallel_config("loky", n_jobs=2):
        return joblib.Parallel()(jobs)[1]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    "travelled",
    [
        lambda fitted, spikes: pickle.loads(pickle.dumps(fitted)),
        lambda fitted, spikes: copy.deepcopy(fitted),
        pytest.param(from_worker, marks=pytest.mark.slow),
        pytest.param(from_joblib, marks=pytest.mark.slow),
    ],
    ids=["pickle", "deepcopy", "worker", "joblib"],
)
def test_saved_and_evaluated_wherever_it_has_been(travelled, fitted, spikes, tmp_path, monkeypatch):
    here, rates = travelled(fitted, spikes), fitted.infer(spikes).rates
    monkeypatch.chdir(tmp_path)
    np.testing.assert_allclose(here.infer(spikes).rates, rates, rtol=1e-5)
    here.save("run")
    loaded = sbtt_jax.load("run")
    assert loaded.settings == fitted.settings
    assert loaded.epoch == fitted.epoch
    assert [row["epoch"] for row in loaded.history] == [0, 1, 2]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    np.testing.assert_array_equal(loaded.infer(spikes).rates, here.infer(spikes).rates)
    loaded.save("again")
    np.savez("recording.npz", spikes=spikes)
    evaluate("again", data="recording.npz")
    with h5py.File("again/evaluation/rates.h5") as file:
        found = file["bandwidth_04/seed_0/rates"][()]
    np.testing.assert_allclose(found, rates, rtol=1e-4)  # in spikes/s
    scored, (row,) = here.score(spikes), csv_rows("again/evaluation/metrics.csv")
    ends = [row[f"bits_per_spike_heldout{end}"] for end in ("", "_low", "_high")]
    np.testing.assert_allclose(scored[:3], np.array(ends, float), rtol=1e-4)
    baselines = csv_rows("again/evaluation/baselines.csv")
    known = {row["baseline"]: float(row["bits_per_spike_heldout"]) for row in baselines}
    assert scored.baselines == pytest.approx(known, rel=1e-5)


def test_a_file_is_read_as_train_py_reads_it(fitted, spikes, tmp_path):
    path = tmp_path / "recording.h5"
    with h5py.File(path, "w") as file:
        file["spikes"], file["cue"], file["bin_width"] = spikes, np.repeat([3, 5], 15), 0.01
    own = sbtt_jax.fit(path, **FIT | {"bin_width": None})
    identical(own.params, fitted.params)
    assert own.settings.data.path == str(path)
    found = own.infer(path)
    np.testing.assert_array_equal(found.rates, fitted.infer(spikes).rates)
    assert found.time == pytest.approx(np.arange(8) * 0.01)
    assert own.score(str(path)) == fitted.score(spikes)
    with pytest.raises(InputError, match=r"no array 'target', which data\.condition names"):
        sbtt_jax.fit(path, condition="target", **FIT)
    for known, said in (
        ({"data": {"bin_width": 0.01}}, "bin_width: is given both as an argument and in data"),
        ({"condition": [1, 2]}, "condition: of a file, give the name of the array or column"),
        ({"bin_width": "10 ms"}, "bin_width: '10 ms' is no time"),
        ({"bin_width": 0.02}, r"recording\.h5: its bins are 0\.01 s wide"),
    ):
        with pytest.raises(InputError, match=said):
            sbtt_jax.fit(path, **FIT | known)
    with pytest.raises(InputError, match=r"none\.h5: no such file"):
        own.infer(tmp_path / "none.h5")
    with pytest.raises(InputError, match=r"recording\.h5: condition is list; of a file, give the"):
        own.infer(path, condition=[1, 2])


def test_what_a_model_learned_of_a_file_it_does_not_ask_of_arrays(fitted, spikes, tmp_path):
    path, cue, more = tmp_path / "recording.h5", np.repeat([3, 5], 15), {"bin_width": 0.01}
    with h5py.File(path, "w") as file:
        file["own/counts"], file["own/cue"] = spikes, cue
    data = {"key": "own/counts", "condition": "cue"}
    own = sbtt_jax.fit(path, **FIT | {"data": data})
    known = own.infer(path)
    np.testing.assert_array_equal(own.infer(spikes, condition=cue).rates, known.rates)
    np.testing.assert_array_equal(known.trial, np.arange(30))
    assert own.infer(sbtt_jax.Recording(spikes, **more)).rates.shape == spikes.shape
    assert own.score(spikes, condition=cue) == own.score(path)
    with pytest.warns(UserWarning, match=r"not split like it \(by condition, if fit was given"):
        own.score(spikes)
    silent = np.where(np.isnan(spikes[:1]), np.nan, 0)
    with h5py.File(tmp_path / "silent.h5", "w") as file:
        file["own/counts"] = silent
    expected = own.infer(silent).rates
    np.testing.assert_array_equal(own.infer(tmp_path / "silent.h5").rates, expected)


def test_a_file_that_changed_is_not_learned_from_again(spikes, tmp_path):
    """Where a run does not have what inference takes of the training trials."""
    path, names = tmp_path / "recording.h5", np.arange(4)

    def rewrite(counts, names):
        with h5py.File(path, "w") as file:
            file["spikes"], file["unit_id"], file["bin_width"] = counts, names, 0.01

    rewrite(spikes, names)
    fitted = sbtt_jax.fit(path, **FIT | {"bin_width": None})
    fitted.save(tmp_path / "run")
    for name in ("stack", "factors"):
        (tmp_path / "run" / f"{name}.npz").unlink()
    rewrite(spikes[..., ::-1], names[::-1])  # the same, in another order
    with warnings.catch_warnings(action="error"):
        again = sbtt_jax.load(tmp_path / "run")
    rates = fitted.infer(spikes).rates
    np.testing.assert_allclose(again.infer(spikes).rates, rates, rtol=1e-5)
    rewrite(spikes[::-1], names)
    with pytest.warns(UserWarning, match="not stacked, since .* has changed, or is read"):
        alone = sbtt_jax.load(tmp_path / "run")
    assert alone.prior is None


def test_one_of_many_models_is_saved_alone(tmp_path):
    loaded = sbtt_jax.load(ROOT / "checkpoints" / "lorenz", bandwidth=5, seed=0)
    loaded.save(tmp_path / "run")
    again = sbtt_jax.load(tmp_path / "run")
    identical(again.params, loaded.params)
    assert [str(row) for row in again.history] == [str(row) for row in loaded.history]
    counts = np.full((1, 50, 29), np.nan)
    counts[0, :, ::6] = 1
    assert again.infer(counts).rates.shape == counts.shape


def test_what_cannot_be_saved_loaded_or_evaluated(fitted, tmp_path):
    fitted.save(tmp_path / "run")
    with pytest.raises(InputError, match="holds a run already"):
        fitted.save(tmp_path / "run")
    with pytest.raises(InputError, match=r"array .* was trained on it; say .* with --data FILE"):
        evaluate(tmp_path / "run")
    for which in ({}, {"bandwidth": 7}, {"bandwidth": 29, "seed": 9}):
        with pytest.raises(InputError, match=r"the bandwidth and seed of one .*\(29, 0\), \(29, 1"):
            sbtt_jax.load(ROOT / "checkpoints" / "lorenz", **which)


def test_trials_that_were_not_fitted_are_all_scored(fitted, spikes):
    fitted_to = fitted.score(spikes)
    assert fitted_to.trials == 6
    with pytest.warns(UserWarning, match="so all 9 trials are scored"):
        other = fitted.score(spikes[21:])
    assert (other.trials, other.baselines) == (9, {})
    assert other.low < other.bits_per_spike < other.high
    settings = config.updated(fitted.settings, data={"holdout_fraction": 0.0})
    with pytest.raises(InputError, match=r"holdout_fraction is 0, so no points are held out"):
        replace(fitted, settings=settings).score(spikes)


@pytest.mark.slow
def test_neurons_left_out_of_the_fit_are_left_out_of_its_rates(spikes):
    spikes = spikes.copy()
    spikes[:, :, 2] = np.nan
    with pytest.raises(InputError, match="nothing is observed of neuron 2"):
        sbtt_jax.fit(spikes, **FIT)
    fitted = sbtt_jax.fit(spikes, data={"drop_neurons": [2]}, **FIT)
    assert fitted.infer(spikes).rates.shape == (30, 8, 3)


def test_rates_given_as_counts_are_noticed(fitted, spikes):
    with pytest.warns(UserWarning, match="every count is a multiple of 100"):
        fitted.infer(100 * spikes)
    with warnings.catch_warnings(action="error"):
        fitted.infer(spikes[:1])


def test_other_arrays_are_refused_and_wrong_settings_named(fitted, spikes):
    for changed, said in (
        (spikes[..., :3], "spikes has 3 neurons; the model was fitted to 4"),
        (spikes - 1, "spikes holds a negative count, -1 at trial"),
        (spikes[0], "spikes is 8 x 4; expected trial x bin x neuron"),
    ):
        with pytest.raises(InputError, match=f"^array: {said}"):
            fitted.infer(changed)
    for name, meant in (("neurons", "leave it out$"), ("conditions", r"mean data\.condition\?")):
        with pytest.raises(InputError, match=rf"data\.{name}: it is for a Lorenz set.*{meant}"):
            sbtt_jax.fit(spikes, data={name: 5})
    with pytest.raises(InputError, match=r"data\.units: is for files, and spikes are in memory"):
        sbtt_jax.fit(spikes, data={"units": "quality=good"})
    with pytest.raises(InputError, match=r"^model is 5; expected settings by name, as in train="):
        inspect.unwrap(sbtt_jax.fit)(spikes, model=5)  # types are checked while tests run
    with pytest.raises(InputError, match=r"train\.epoch: there is no such setting"):
        sbtt_jax.fit(spikes, train={"epoch": 3})


NOTEBOOKS = {
    "from_nans_to_rates": "R2 at points that were not sampled",
    "your_recording_judged": "sbtt-jax   at points given",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_examples_run(name, tmp_path, monkeypatch, capsys):
    recipe = yaml.safe_load(recipes.named("recording").read_text())
    # What compiles quickly: the scripts are tested here, not the recipe.
    recipe["model"] |= {"encoder_size": 5, "decoder_size": 6, "smoothing": False}
    recipe["model"]["inferred_inputs"] = 0
    recipe["train"] |= {"epochs": 2, "warmup_epochs": 1, "steps_per_epoch": 2, "folds": 1}
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(recipes, "named", lambda name: tmp_path / "quick.yaml")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    plt.close("all")
    assert NOTEBOOKS[name] in capsys.readouterr().out


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_their_scripts_and_were_executed(name):
    """`make notebooks` makes them again."""
    script = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    parts = re.split(r"^# %%(.*)\n", script, flags=re.MULTILINE)[1:]
    written = []
    for kind, text in zip(parts[::2], parts[1::2], strict=True):
        text = re.sub("^# ?", "", text, flags=re.MULTILINE) if "markdown" in kind else text
        written.append(("markdown" if "markdown" in kind else "code", text.strip()))
    text = (ROOT / "examples" / f"{name}.ipynb").read_text(encoding="utf-8")
    cells = json.loads(text)["cells"]
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in cells] == written
    outputs = [one for cell in cells for one in cell.get("outputs", ())]
    assert [one["output_type"] for one in outputs if one["output_type"] == "error"] == []
    said = ["".join(one["text"]) for one in outputs if one.get("name") == "stderr"]
    meant = ["scores are of 3 of 16 trials"] if name == "your_recording_judged" else []
    pairs = zip(meant, said, strict=True)
    assert all(one in other and other.count("\n") == 1 for one, other in pairs)
    assert sum("image/png" in one.get("data", ()) for one in outputs) >= 4
    assert len(text) < 500_000


@pytest.mark.slow
def test_rates_are_better_than_smoothed_counts_however_large_counts_are():
    rng, mean = np.random.default_rng(0), 5000
    angle, phase = rng.uniform(0, 2 * np.pi, 8), rng.uniform(0, 2 * np.pi, (60, 1, 1))
    rates = np.exp(0.7 * np.sin(3 * np.pi * np.arange(20)[:, None] / 20 + phase + angle))
    spikes = rng.poisson(rates * mean / rates.mean()).astype(float)
    short = {"epochs": 30, "patience": None}
    inferred = sbtt_jax.fit(spikes, bin_width=1.0, train=short).infer(spikes).rates
    padded = np.pad(spikes, [(0, 0), (1, 1), (0, 0)], mode="edge")
    smooth = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
    true = rates * mean / rates.mean()
    assert metrics.r2(true, inferred) > max(metrics.r2(true, smooth), metrics.r2(true, spikes))
