"""What comes out carries the recording's own names, times and units."""

import re
import sys
from datetime import UTC, datetime

import h5py
import numpy as np
import pytest
from conftest import FIT, save

import sbtt_jax
from sbtt_jax import cli, config, recipes
from sbtt_jax.data import labels
from sbtt_jax.data.arrays import Array, Arrays
from sbtt_jax.data.objects import Recording
from sbtt_jax.data.problem import prepare
from sbtt_jax.data.recording import assemble
from sbtt_jax.errors import InputError
from sbtt_jax.grid import ModelKey
from sbtt_jax.observations import POISSON
from sbtt_jax.run import notices, provenance
from sbtt_jax.run.evaluate import evaluate
from sbtt_jax.run.rates_file import write_model
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


@pytest.mark.slow
def test_the_mean_of_several_seeds_is_exported_with_its_intervals(session, tmp_path, command):
    pynwb, xarray = pytest.importorskip("pynwb"), pytest.importorskip("xarray")
    run, how = tmp_path / "run", ("--data.bin_width", "0.05", "--seeds", "0", "1", "2")
    assert command(cli.train, *QUICK, *how, "--data", session, "--out", run)[0] == 0
    assert command(cli.evaluate, run, "--export", "nwb", "--full")[0] == 0
    out = run / "evaluation"
    assert (out / "session_bandwidth_3_seed_0.nwb").exists()
    how = {"group": "bandwidth_03/ensemble", "engine": "h5netcdf"}
    with (
        xarray.open_dataset(out / "rates.h5", **how) as file,
        pynwb.NWBHDF5IO(str(out / "session_bandwidth_3_ensemble_of_3.nwb"), "r") as io,
    ):
        module = io.read().processing["ecephys"]
        for end in ("", "_low", "_high"):
            whole = file[f"rates{end}"].values.reshape(-1, 3)
            written = module[f"InferredFiringRates{end.strip('_').capitalize()}"].data[:]
            np.testing.assert_allclose(written, whole[np.isfinite(whole[:, 0])], rtol=1e-5)


def test_windows_around_an_event_and_a_session_as_a_whole(session, tmp_path, command):
    how = ("--data.bin_width", "0.05", "--inspect", "--data", session)
    around = "--data.align", "start_time", "--data.window", "-0.5", "0.5"
    status, out, err = command(cli.train, *QUICK, *how, *around)
    assert status == 0, err
    assert re.search(r"spikes +12 x 20 x 3  uint8", out)
    assert "columns of trials: start_time, stop_time, cue" in out
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
    values = rng.poisson(1.0, (4, 30, 8)).astype(float)
    values[:, 3, 5:] = np.nan
    counts = xarray.DataArray(
        values,
        dims=("unit", "trial", "time"),
        coords={"unit": list("abcd"), "time": -0.1 + 0.05 * np.arange(8)},
    )
    counts = counts.assign_coords(condition=("trial", ["left", "right"] * 15))
    fitted = sbtt_jax.fit(counts, model=FIT["model"], train=FIT["train"])
    assert fitted.settings.data.bin_width == pytest.approx(0.05)
    assert repr(fitted) == f"Fitted(4 neurons, bins of 50 ms, epoch {fitted.epoch})"
    made = fitted.infer(counts.transpose("time", "unit", "trial")).to_xarray()
    np.testing.assert_array_equal(made["neuron"], list("abcd"))
    np.testing.assert_array_equal(made["time"], counts["time"])
    assert made["rates"].sizes == {"trial": 30, "time": 8, "neuron": 4}
    assert made["rates"].attrs["units"] == "spikes/s"
    means = made["rates"].groupby("condition").mean()
    np.testing.assert_allclose(means.sel(condition="left"), made["rates"][::2].mean("trial"))
    with pytest.raises(InputError, match=r"its bins are 0.02 s wide and data.bin_width is 0.05 s"):
        fitted.infer(sbtt_jax.Recording(np.ones((3, 8, 4)), bin_width=0.02))


def test_labelled_data_need_xarray(monkeypatch):
    from sbtt_jax.fitted import Rates

    monkeypatch.setitem(sys.modules, "xarray", None)
    nothing = Rates(*[np.zeros((1, 1, 1))] * 2, np.zeros((1, 1)), None, np.zeros(1), np.zeros(1))
    with pytest.raises(InputError, match="to_xarray needs xarray; pip install xarray"):
        nothing.to_xarray()


def test_an_assumed_bin_width_is_said_before_training(tmp_path):
    path = save(tmp_path / "recording.npz", {"spikes": np.ones((9, 8, 4))})
    settings = config.updated(recipes.load(recipes.named("recording")), data={"path": str(path)})
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


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda counts: counts * 50.0, ["every count is a multiple of 50; are these counts"]),
        (lambda counts: np.where(counts, counts, np.nan), ["no count is 0, and 6", "stand for 0?"]),
        (lambda counts: np.where(counts > 2, np.nan, counts), []),
        (lambda counts: counts, []),
    ],
)
def test_values_that_are_hardly_counts_are_noticed(change, says):
    counts = np.random.default_rng(0).poisson(0.4, (20, 10, 3)).astype(float)
    data = assemble(Recording(change(counts), bin_width=0.1).arrays)
    found = " ".join(notices.unlikely(data, POISSON))
    assert bool(found) == bool(says)
    assert all(text in found for text in says)


def test_zeros_after_trials_are_noticed():
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.4 * (np.arange(40) < 30)[:, None], (20, 40, 30)).astype(float)
    ended = (np.arange(40) >= rng.integers(15, 40, 20)[:, None])[..., None]

    def found(counts):
        data = assemble(Recording(counts, bin_width=0.1).arrays)
        return " ".join(notices.unlikely(data, POISSON))

    assert found(np.where(ended, 0, counts)).startswith("unlikely: 9 of 20 trials end in bins w")
    assert not found(np.where(ended, np.nan, counts))
    assert not found(counts)  # all are silent at their ends


def test_a_session_in_milliseconds_is_noticed():
    times = {name: np.arange(100_000.0)[name::50] for name in range(3)}  # of 100 s
    data = assemble(Recording(times, bin_width=1.0).arrays, chop=100.0)
    assert "unlikely: the session lasts 99953 s; are its times in seconds" in " ".join(
        notices.unlikely(data, POISSON)
    )


def test_booleans_that_may_be_a_mask_are_not_passed_over():
    counts = np.random.default_rng(0).poisson(1.0, (6, 8, 3)).astype(float)
    arrays = {"spikes": Array(counts), "observed": Array(counts > 0)}
    with pytest.raises(InputError, match=r"observed is true or false for each of spikes; .*_mask"):
        assemble(Arrays("file", dict(arrays)), bin_width=0.1)
    arrays["spikes_mask"] = arrays.pop("observed")
    data = assemble(Arrays("file", arrays | {"lick": Array(np.ones((6, 8), bool))}), bin_width=0.1)
    np.testing.assert_array_equal(data.observed, counts > 0)


@pytest.mark.parametrize("dtype", ["u1", "i8", "f4"])
def test_numbers_that_may_be_a_mask_are_not_passed_over(dtype):
    counts = np.random.default_rng(0).poisson(1.0, (6, 8, 3))
    seen = counts % 2

    def read(counts, **others):
        others = {name: Array(np.asarray(values)) for name, values in others.items()}
        arrays = Arrays("file", {"spikes": Array(counts)} | others)
        return assemble(arrays, bin_width=0.1, chop=0.4 if counts.ndim == 2 else None)

    words = "valid is 0 or 1 for each of spikes; if it is 1 where they were observed, call it sp"
    with pytest.raises(InputError, match=words):
        read(counts, valid=seen.astype(dtype))
    with pytest.raises(InputError, match=words):
        read(counts.reshape(48, 3), valid=seen.astype(dtype).reshape(48, 3))
    with pytest.raises(InputError, match=words):  # where it is 0, there are no counts
        read(np.minimum(counts, 1) * seen, valid=seen.astype(dtype))
    # Other values, the same everywhere, or other counts.
    for other in (2 * seen, np.where(seen, 1.0, np.nan), np.ones_like(seen), seen[:, :, 0]):
        assert not read(counts, valid=other).notes
    short = np.minimum(counts, 1)
    assert "valid is 0 or 1 for each of spikes, and not read" in read(short, valid=seen).notes
    assert "spikes is read, and valid_data" in " ".join(read(counts, valid_data=seen).notes)


def test_a_mask_per_frame_by_another_name_is_not_passed_over():
    values, seen = np.ones((6, 8, 3)), np.arange(144).reshape(6, 8, 3) % 5 > 0
    arrays = {"spikes": values, "frame_times": np.arange(8) / 10, "sample_offsets": np.zeros(3)}
    arrays = {name: Array(one) for name, one in (arrays | {"seen": seen}).items()}
    with pytest.raises(InputError, match="seen is true or false for each of spikes; if it is true"):
        assemble(Arrays("file", arrays), bin_width=0.01)


def test_neurons_of_one_name_are_told_apart_by_their_order():
    names = np.array([1, 2, 1, 2])  # units are numbered anew on each probe
    counts = np.random.default_rng(0).poisson(1.0, (6, 8, 4)).astype(float)
    data = assemble(Recording(counts, unit_id=names, bin_width=0.1).arrays)
    assert "their order tells them apart" in data.notes[-1]
    assert labels.order_of(data.unit_id, ["1", "2", "1", "2"]) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="unit_id has 2 2 times, so neurons cannot be put"):
        labels.order_of(data.unit_id, ["2", "1", "1", "2"])
    assert labels.order_of(np.array([3, 1, 2]), ["1", "2", "3"]) == [1, 2, 0]


def test_neurons_are_found_by_their_names_and_lost_ones_are_missing():
    counts = np.random.default_rng(0).poisson(1.0, (6, 8, 4)).astype(float)
    given = np.ones((8, 4), bool)
    given[6:], given[:, 3] = False, False  # bins and a neuron that are only predicted

    def reading(names, which):
        def read(dropped):
            own = {"unit_id": list(names), "given": given[:, which], "bin_width": 0.1}
            arrays = Recording(counts[..., which], **own).arrays
            return assemble(arrays, drop_neurons=dropped)

        return read

    begun = {"unit_id": ["a", "c", "d"]}  # of a recording of a, b, c and d without its second
    whole = provenance.read_in_order(reading("abcd", [0, 1, 2, 3]), [1], begun)
    np.testing.assert_array_equal(whole.counts, counts[..., [0, 2, 3]])
    assert not whole.notes
    for names, which in (("dca", [3, 2, 0]), ("xdca", [1, 3, 2, 0])):
        found = provenance.read_in_order(reading(names, which), [1], begun)
        np.testing.assert_array_equal(found.counts, whole.counts)
        np.testing.assert_array_equal(found.given, whole.given)
    lost = provenance.in_order(reading("ca", [2, 0])([]), {"unit_id": ["a", "z", "c"]})
    assert not lost.observed[..., 1].any()
    np.testing.assert_array_equal(lost.observed[..., [0, 2]], whole.observed[..., :2])
    np.testing.assert_array_equal(lost.given[:, 1], given[:, 0])
    assert lost.neuron_numbers.tolist() == [1, -1, 0]
    assert lost.notes[-1].endswith("1 not there and taken as never observed: z")
    with pytest.raises(ValueError, match=r"unit_id has x, y, .*, and the model was trained on a"):
        provenance.in_order(reading("xy", [0, 2])([]), begun)


@pytest.mark.slow
def test_neurons_of_another_recording_are_put_in_the_order_of_training(tmp_path, caplog):
    rng = np.random.default_rng(0)
    ids = np.array(["c7", "a1", "b4", "d2"])
    counts = rng.poisson([0.2, 1.0, 3.0, 6.0], (30, 12, 4)).astype(float)
    small = {"encoder_size": 8, "decoder_size": 9}
    short = {"epochs": 2, "warmup_epochs": 1, "steps_per_epoch": 2}
    known = sbtt_jax.Recording(counts, bin_width=0.05, unit_id=ids)
    fitted = sbtt_jax.fit(known, model=small, train=short, out=tmp_path / "run")
    order = [2, 0, 3, 1]
    turned = fitted.infer(sbtt_jax.Recording(counts[..., order], unit_id=ids[order]))
    assert turned.unit_id.tolist() == ids.tolist()
    np.testing.assert_allclose(turned.rates, fitted.infer(counts).rates, rtol=1e-6)
    assert fitted.infer(counts).unit_id.tolist() == ids.tolist()
    lost = counts.copy()
    lost[..., 0] = np.nan
    with pytest.warns(
        UserWarning, match="of the 4 neurons that .*, 1 not there and .*: c7"
    ) as told:
        found = fitted.infer(sbtt_jax.Recording(counts, unit_id=["x", "a1", "b4", "d2"]))
    assert str(told[-1].message).endswith("since the model was not trained on them: x")
    assert found.unit_id.tolist() == ids.tolist()
    np.testing.assert_allclose(found.rates, fitted.infer(lost).rates, rtol=1e-6)

    arrays = {"spikes": counts[..., order], "unit_id": ids[order].astype("S"), "bin_width": 0.05}
    path = save(tmp_path / "other.h5", arrays)
    evaluate(tmp_path / "run", data=str(path), out=tmp_path / "out")
    assert "neurons are put in the order that the model was trained on" in caplog.text
    with h5py.File(tmp_path / "out" / "rates.h5") as file:
        group = file["bandwidth_04/seed_0"]
        assert group["neuron"].asstr()[:].tolist() == ids.tolist()
        np.testing.assert_allclose(group["rates"][:], turned.rates, rtol=1e-4)
    save(path, arrays | {"unit_id": np.arange(4)})
    with pytest.raises(InputError, match=r"other.h5: unit_id has 0, 1, 2, 3, ..., and the model"):
        evaluate(tmp_path / "run", data=str(path), out=tmp_path / "out")


def test_trials_that_overlap_are_on_one_side_of_the_split():
    counts = np.random.default_rng(0).poisson(1.0, (40, 10, 3)).astype(float)
    starts = np.repeat(np.arange(20) * 3.0, 2) + np.tile([0.0, 0.4], 20)  # in pairs
    arrays = {"spikes": Array(counts), "trial_start": Array(starts)}
    for seed in range(3):
        data = assemble(Arrays("file", dict(arrays)), bin_width=0.1, seed=seed)
        assert not set(data.train // 2) & set(data.valid // 2)
        assert len(data.valid) == 8
        assert "40 of 40 trials overlap others in time" in data.notes[-1]
    arrays["trial_start"] = Array(np.arange(40) * 0.5)
    data = assemble(Arrays("file", dict(arrays)), bin_width=0.1)
    assert "in one chain, which cannot be split" in data.notes[-1]
    with pytest.raises(InputError, match="40 training and 0 validation trials; at least one of"):
        prepare(recipes.load(recipes.named("recording")), data)
    # They touch, as exactly as the times of their type can tell.
    for starts in (np.arange(40) * 1.0, 1.7e9 + np.arange(40) * 1.1, 500.1 + np.arange(40) * 1.1):
        starts = starts.astype("f8" if starts[0] > 1e9 else "f4")
        width = (starts[-1] - starts[0]) / 390
        own = arrays | {"trial_start": Array(starts)}
        assert not assemble(Arrays("file", own), bin_width=float(width)).notes


def test_overlapping_trials_that_a_file_has_on_both_sides_are_told():
    counts = np.random.default_rng(0).poisson(1.0, (8, 10, 3)).astype(float)
    starts = np.repeat(np.arange(4) * 3.0, 2) + np.tile([0.0, 0.4], 4)  # in pairs
    halves = {"train_inds": Array(np.arange(0, 8, 2)), "valid_inds": Array(np.arange(1, 8, 2))}
    pairs = {"train_inds": Array(np.arange(6)), "valid_inds": Array(np.arange(6, 8))}
    split = {"train_data": Array(counts[::2]), "valid_data": Array(counts[1::2])}
    one, other = Array(starts), Array(np.r_[starts[::2], starts[1::2]])
    whole = {"spikes": Array(counts), "trial_start": one}
    for arrays in (whole | halves, split | {"trial_start": other}):
        (note,) = assemble(Arrays("file", arrays), bin_width=0.1).notes
        assert "and the file has 8 of them in other splits than those that they overlap" in note
    (note,) = assemble(Arrays("file", whole | pairs), bin_width=0.1).notes
    assert "and are on the same side of the split as those" in note


def test_conditions_keep_their_names(tmp_path):
    counts = np.random.default_rng(0).poisson(1.0, (12, 6, 3))
    names = np.array(["left", "right", "up"])[np.arange(12) % 3]
    data = assemble(Recording(counts, condition=names, bin_width=0.1).arrays)
    assert data.condition_names.tolist() == ["left", "right", "up"]
    with h5py.File(tmp_path / "rates.h5", "w") as file:
        write_model(file, ModelKey(3, 0), data, {"rates": counts * 1.0})
        assert file["bandwidth_03/seed_0/condition"].asstr()[:].tolist() == names.tolist()
    xarray = pytest.importorskip("xarray")
    how = {"group": "bandwidth_03/seed_0", "engine": "h5netcdf"}
    with xarray.open_dataset(tmp_path / "rates.h5", **how) as file:
        psth = file["rates"].groupby("condition").mean()
        assert psth["condition"].values.tolist() == ["left", "right", "up"]
        np.testing.assert_allclose(psth.sel(condition="up"), counts[2::3].mean(0), rtol=1e-6)
        assert set(file["rates"].coords) >= {"split", "length", "condition"}


def test_spike_times_of_another_unit_than_trials_are_noticed():
    times = {"a": np.arange(0, 100_000, 7.0), "b": np.arange(0, 100_000, 11.0)}  # milliseconds
    trials = np.stack([np.arange(0, 100, 2.0), np.arange(0, 100, 2.0) + 1], axis=1)
    recording = Recording(times, trials=trials, bin_width=0.1)
    assert (
        "spikes lie in a trial and where it was observed; are all times in seconds"
        in (recording.arrays.notes[0])
    )
