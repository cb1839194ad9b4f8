"""What comes out carries the recording's own names, times and units."""

import re
import sys
from datetime import UTC, datetime

import numpy as np
import pytest
from conftest import save

import sbtt_jax
from sbtt_jax import cli, config
from sbtt_jax.data.problem import prepare
from sbtt_jax.errors import InputError
from sbtt_jax.run.train import announcement

QUICK = ("--config", "configs/recording.yaml", "--train.epochs", "2", "--train.warmup_epochs", "1")
QUICK += ("--train.steps_per_epoch", "3", "--model.encoder_size", "8", "--model.decoder_size", "9")
IDS = [12, 3, 40]
STARTS = 2.0 + 1.5 * np.arange(12)


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """An NWB file: three units, one of them lost for a while, and trials of two lengths."""
    pynwb = pytest.importorskip("pynwb")
    rng = np.random.default_rng(0)
    file = pynwb.NWBFile("A session", "session 1", datetime(2024, 5, 1, tzinfo=UTC))
    file.add_trial_column("cue", "which side")
    for i, start in enumerate(STARTS):
        file.add_trial(start_time=start, stop_time=start + 0.8 + 0.2 * (i % 2), cue="lr"[i % 2])
    for i, unit in enumerate(IDS):
        observed = [[0.0, 30.0]] if i else [[0.0, 6.0], [9.0, 30.0]]
        times = np.sort(rng.uniform(0, 30, 900))
        file.add_unit(id=unit, spike_times=times, obs_intervals=observed)
    path = tmp_path_factory.mktemp("session") / "session.nwb"
    with pynwb.NWBHDF5IO(str(path), "w") as io:
        io.write(file)
    return path


def test_an_nwb_file_from_shell_to_xarray_and_back(session, tmp_path, command):
    pynwb, xarray = pytest.importorskip("pynwb"), pytest.importorskip("xarray")
    run, how = tmp_path / "run", ("--data.bin_width", "0.05", "--data.condition", "cue")
    status, _, err = command(cli.train, *QUICK, *how, "--data", session, "--out", run)
    assert status == 0, err
    status, _, err = command(cli.evaluate, run, "--export", "nwb", "--full")
    assert status == 0, err
    with xarray.open_dataset(
        run / "evaluation" / "rates.h5", group="bandwidth_03/seed_0", engine="h5netcdf"
    ) as file:
        rates = file["rates"].load()
        assert rates.dims == ("trial", "time", "neuron")
        assert rates.attrs["units"] == "spikes/s"
        assert rates["neuron"].values.tolist() == IDS
        np.testing.assert_allclose(rates["time"], 0.05 * np.arange(20))
        assert file["time"].attrs["units"] == "s"
        np.testing.assert_allclose(file["trial_start"], STARTS)
        assert set(file["split"].values.tolist()) == {"train", "valid"}
        np.testing.assert_array_equal(file["length"], np.tile([16, 20], 6))
        assert file["latents"].dims == ("trial", "time", "latent")
    assert np.isnan(rates[::2, 16:]).all()
    assert np.isfinite(rates[1::2]).all()
    with pynwb.NWBHDF5IO(str(run / "evaluation" / "session.nwb"), "r") as io:
        written = io.read().processing["ecephys"]["InferredFiringRates"]
        whole = rates.values.reshape(-1, 3)
        np.testing.assert_allclose(written.data[:], whole[np.isfinite(whole[:, 0])], rtol=1e-5)
        np.testing.assert_allclose(
            written.timestamps[:16], STARTS[0] + 0.05 * (np.arange(16) + 0.5)
        )


def test_windows_around_an_event_and_a_session_as_a_whole(session, tmp_path, command):
    how = ("--data.bin_width", "0.05", "--inspect", "--data", session)
    around = "--data.align", "start_time", "--data.window", "-0.5", "0.5"
    status, out, err = command(cli.train, *QUICK, *how, *around)
    assert status == 0, err
    assert re.search(r"spikes +12 x 20 x 3  uint8", out)
    status, out, err = command(cli.train, *QUICK, *how, "--data.chop", "1.0")
    assert status == 0, err
    assert re.search(r"spikes +600 x 3  uint8", out)
    assert "30 s from 0 s, cut into windows" in out
    for wrong, words in {
        ("--data.condition", "side"): "no column side for data.condition; the columns are",
        ("--data.units", "quality=good"): "no column quality for data.units",
        ("--data.key", "other"): "no array 'other', which data.key names; there are",
    }.items():
        status, _, err = command(cli.train, *QUICK, *how, *wrong)
        assert status == 2
        assert words in err
        assert err.count("\n") == 1


def test_rates_from_python_as_a_labelled_data_set():
    xarray = pytest.importorskip("xarray")
    rng = np.random.default_rng(0)
    counts = xarray.DataArray(
        rng.poisson(1.0, (4, 20, 12)).astype(float),
        dims=("unit", "trial", "time"),
        coords={"unit": list("abcd"), "time": -0.1 + 0.05 * np.arange(12)},
    )
    small = {"encoder_size": 8, "decoder_size": 9}
    fitted = sbtt_jax.fit(counts, model=small, train={"epochs": 1, "warmup_epochs": 0})
    assert fitted.settings.data.bin_width == pytest.approx(0.05)
    assert repr(fitted) == "Fitted(4 neurons, bins of 50 ms, epoch 0)"
    made = fitted.infer(counts.transpose("time", "unit", "trial")).to_xarray()
    np.testing.assert_array_equal(made["neuron"], list("abcd"))
    np.testing.assert_allclose(made["time"], counts["time"])
    assert made["rates"].sizes == {"trial": 20, "time": 12, "neuron": 4}
    assert made["rates"].attrs["units"] == "spikes/s"
    with pytest.raises(InputError, match=r"its bins are 0.02 s wide and data.bin_width is 0.05 s"):
        fitted.infer(sbtt_jax.Recording(np.ones((3, 12, 4)), bin_width=0.02))


def test_labelled_data_need_xarray(monkeypatch):
    from sbtt_jax.estimator import Rates

    monkeypatch.setitem(sys.modules, "xarray", None)
    nothing = Rates(*[np.zeros((1, 1, 1))] * 2, np.zeros((1, 1)), None, np.zeros(1), np.zeros(1))
    with pytest.raises(InputError, match="to_xarray needs xarray; pip install xarray"):
        nothing.to_xarray()


def test_an_assumed_bin_width_is_said_before_training(tmp_path):
    path = save(tmp_path / "recording.npz", {"spikes": np.ones((9, 8, 4))})
    settings = config.updated(config.load(config.recipe("recording")), data={"path": str(path)})
    assert "bins are assumed to be 20 ms wide (set data.bin_width)" in announcement(
        prepare(settings)
    )
    with (
        pytest.warns(UserWarning, match="bins are assumed to be 20 ms wide"),
        pytest.raises(InputError, match="holds out none"),
    ):
        sbtt_jax.fit(np.ones((2, 1, 1)))


def test_what_looks_unlikely_is_said(tmp_path, command):
    counts = np.random.default_rng(0).poisson(30.0, (3, 4, 20))
    np.savez(tmp_path / "turned.npz", spikes=counts)
    data = "--data", tmp_path / "turned.npz", "--data.bin_width", "0.02", "--inspect"
    _, out, _ = command(cli.train, *QUICK, *data)
    assert "unlikely: 20 neurons are more than 3 trials x 4 bins; are the axes" in out
    assert re.search(r"unlikely: 1.5\de\+03 spikes/s on average is much", out)
