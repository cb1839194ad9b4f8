"""The package from Python: arrays in, arrays out."""

import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
from conftest import ROOT

import sbtt_jax
from sbtt_jax import config, estimator, evaluation
from sbtt_jax.errors import InputError

SMALL = {
    "model": {"encoder_size": 5, "decoder_size": 6},
    "train": {"epochs": 3, "warmup_epochs": 1},
}


@pytest.fixture(scope="module")
def spikes():
    rng = np.random.default_rng(0)
    spikes = rng.poisson(rng.gamma(2.0, 0.5, (30, 8, 4))).astype(float)
    spikes[rng.random(spikes.shape) < 0.4] = np.nan
    spikes[:, -1, 0] = 0
    spikes[3, 5:] = np.nan
    return spikes


@pytest.fixture(scope="module")
def fitted(spikes):
    return sbtt_jax.fit(spikes, bin_width=0.01, **SMALL)


def test_arrays_in_arrays_out(fitted, spikes):
    inferred = fitted.infer(spikes)
    assert inferred.rates.shape == spikes.shape
    assert inferred.latents.shape == (30, 8, 6)
    assert inferred.initial_states.shape == (30, 6)
    length = 8 - np.argmax((~np.isnan(spikes[3])).any(1)[::-1])
    np.testing.assert_array_equal(np.isnan(inferred.rates[3]).all(1), np.arange(8) >= length)
    assert np.isfinite(np.delete(inferred.rates, 3, axis=0)).all()
    np.testing.assert_array_equal(fitted.infer(spikes.tolist()).rates, inferred.rates)


def test_saved_loaded_and_evaluated(fitted, spikes, tmp_path):
    fitted.save(tmp_path / "run")
    loaded = sbtt_jax.load(tmp_path / "run")
    assert loaded.epoch == fitted.epoch
    np.testing.assert_array_equal(loaded.infer(spikes).rates, fitted.infer(spikes).rates)
    loaded.save(tmp_path / "again")
    with pytest.raises(InputError, match="holds a run already"):
        fitted.save(tmp_path / "run")
    with pytest.raises(InputError, match=r"array .* was trained on it; say .* with --data FILE"):
        evaluation.evaluate(tmp_path / "run")
    with h5py.File(tmp_path / "r.h5", "w") as file:
        file["spikes"] = spikes
    evaluation.evaluate(tmp_path / "run", data=str(tmp_path / "r.h5"))
    with h5py.File(tmp_path / "run" / "evaluation" / "rates.h5") as file:
        rates = file["bandwidth_04/seed_0/rates"][()]
    np.testing.assert_allclose(rates, fitted.infer(spikes).rates, rtol=1e-4)  # in spikes/s


def test_which_of_several_models(tmp_path):
    run = ROOT / "checkpoints" / "lorenz"
    with pytest.raises(
        InputError, match=r"give the bandwidth and seed of one .*\(29, 0\), \(29, 1"
    ):
        sbtt_jax.load(run)
    counts = np.full((1, 50, 29), np.nan)
    counts[0, :, ::6] = 1
    assert sbtt_jax.load(run, bandwidth=5, seed=0).infer(counts).rates.shape == counts.shape


def test_neurons_left_out_of_the_fit_are_left_out_of_its_rates(spikes):
    spikes = spikes.copy()
    spikes[:, :, 2] = np.nan
    with pytest.raises(InputError, match="nothing is observed of neuron 2"):
        sbtt_jax.fit(spikes, **SMALL)
    fitted = sbtt_jax.fit(spikes, data={"drop_neurons": [2]}, **SMALL)
    assert fitted.infer(spikes).rates.shape == (30, 8, 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s[..., :3], "spikes has 3 neurons; the model was fitted to 4"),
        (lambda s: s - 1, "spikes holds a negative count, -1 at trial"),
        (lambda s: s[0], "spikes is 8 x 4; expected trial x bin x neuron"),
    ],
)
def test_other_arrays_are_refused(fitted, spikes, change, said):
    with pytest.raises(InputError) as error:
        fitted.infer(change(spikes))
    assert said in str(error.value)


def test_wrong_settings_are_named(spikes):
    with pytest.raises(InputError, match=r"train\.epoch: there is no such setting"):
        sbtt_jax.fit(spikes, train={"epoch": 3})


def test_the_recipe_is_that_of_the_settings_file():
    settings = config.load(ROOT / "configs" / "recording.yaml")
    assert config.check({"bandwidths": (), **estimator.RECIPE}) == settings


def test_importing_the_package_does_not_import_jax():
    code = "import sys, sbtt_jax.masking; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_examples_run(path):
    done = subprocess.run(
        [sys.executable, path],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "EXAMPLE_EPOCHS": "2"},
    )
    assert done.returncode == 0, done.stderr
    assert "R2 at points that were not sampled" in done.stdout
