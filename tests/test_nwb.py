"""NWB files: what is read from them, what is refused, and what is written back."""

import sys
from dataclasses import replace
from datetime import UTC, datetime

import h5py
import numpy as np
import pytest

from sbtt_jax import observations
from sbtt_jax.data import nwb
from sbtt_jax.data.arrays import Asked
from sbtt_jax.data.objects import Recording
from sbtt_jax.data.recording import assemble, of
from sbtt_jax.errors import InputError
from sbtt_jax.observations import POISSON
from sbtt_jax.run import exports
from sbtt_jax.run.nwb_export import export

pynwb = pytest.importorskip("pynwb")

WIDTH = 0.05
IDS = [12, 3, 40, 7]
# Unit 40 was lost for a while, at no bin's edge; unit 7 is never lost, and silent for most of it.
OBSERVED = [[(0.0, 20.0)], [(0.0, 6.5), (6.5, 20.0)], [(0.0, 4.12), (7.3, 20.0)], [(0.0, 20.0)]]
QUALITY, DEPTH = ["good", "mua", "good", "good"], [1.5, 2.0, 2.5, 2.5]
STARTS, STOPS = [1.0, 3.5, 9.0, 6.0], [2.5, 5.0, 9.77, 8.0]  # in no order, of several lengths
GO, CUE = [1.2, 3.9, np.nan, 6.4], ["left", "right", "left", "right"]


def write_nwb(path, *, observed=OBSERVED, trials=True, invalid=(), times=None, units=4):
    rng = np.random.default_rng(0)
    times = [rng.uniform(0, 20, n) for n in (150, 200, 170, 4)] if times is None else times
    start = datetime(2024, 5, 1, tzinfo=UTC)
    file = pynwb.NWBFile("A session", "session 1", start)
    probe = file.create_electrode_group("probe0", "", "CA1", file.create_device("a probe"))
    for name in ("quality", "depth", "electrode_group") if units else ():
        file.add_unit_column(name, name)
    for i in range(units):
        how = {} if observed is None else {"obs_intervals": observed[i]}
        own = {"quality": QUALITY[i], "depth": DEPTH[i], "electrode_group": probe}
        file.add_unit(id=IDS[i], spike_times=times[i], **how, **own)
    if trials:
        for name in ("go", "cue", "hit"):
            file.add_trial_column(name, name)
        file.add_trial_column("licks", "licks", index=True)
        for i in range(4):
            own = {"go": GO[i], "cue": CUE[i], "hit": i < 2, "licks": [0.1] * i}
            file.add_trial(start_time=STARTS[i], stop_time=STOPS[i], id=10 + i, **own)
    for pair in invalid:
        file.add_invalid_time_interval(*pair)
    with pynwb.NWBHDF5IO(str(path), "w") as io:
        io.write(file)
    return times


def asked(**how):
    return Asked(**{"bin_width": WIDTH} | how)


def read(path, **how):
    """The arrays of a file, and the notes."""
    question = asked(**how)
    with nwb.nwb(path, question) as arrays:
        return {name: array.whole() for name, array in arrays.items()}, question.notes


def slowly(times, observed, windows, width=WIDTH):
    """Counts, NaN where not observed, one bin of one unit at a time, with intervals that do not
    touch or overlap unless they meet at a bin's edge."""
    bins = [int((end - start) / width + 1e-6) for start, end in windows]
    counts = np.full((len(windows), max(bins), len(times)), np.nan)
    for trial, (start, _) in enumerate(windows):
        for bin_ in range(bins[trial]):
            low, high = start + bin_ * width, start + (bin_ + 1) * width
            for unit, own in enumerate(times):
                if any(a - 1e-9 <= low and high <= b + 1e-9 for a, b in observed[unit]):
                    counts[trial, bin_, unit] = ((own >= low) & (own < high)).sum()
    return counts


def same(arrays, expected):
    counts = arrays["spikes"].astype(float)
    assert arrays["spikes"].dtype == np.uint8
    if "spikes_mask" in arrays:
        assert arrays["spikes_mask"].dtype == bool
        counts[~arrays["spikes_mask"]] = np.nan
    np.testing.assert_array_equal(counts, expected)
    assert ("spikes_mask" in arrays) == np.isnan(expected).any()


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """A file and its spike times; not to be changed."""
    path = tmp_path_factory.mktemp("nwb") / "session.nwb"
    return path, write_nwb(path)


def test_trials_from_start_to_stop(recording):
    path, times = recording
    arrays, notes = read(path, condition="cue")
    same(arrays, slowly(times, OBSERVED, list(zip(STARTS, STOPS, strict=True))))
    assert arrays["bin_width"] == WIDTH
    assert arrays["unit_id"].tolist() == IDS
    assert arrays["trial_start"].tolist() == STARTS
    assert arrays["trial_id"].tolist() == [10, 11, 12, 13]
    assert arrays["condition"].tolist() == CUE
    assert not notes
    assert read(path, condition="hit")[0]["condition"].tolist() == [True, True, False, False]
    assert "bin_width" not in read(path, bin_width=None)[0]  # it is assumed elsewhere, with a note


def test_trials_around_an_event(recording):
    path, times = recording
    arrays, notes = read(path, align="go", window=(-0.1, 0.4), condition="cue")
    windows = [(go - 0.1, go + 0.4) for go in GO if go == go]
    same(arrays, slowly(times, OBSERVED, windows))
    assert arrays["spikes"].shape == (3, 10, 4)
    assert arrays["condition"].tolist() == ["left", "right", "right"]
    assert arrays["trial_id"].tolist() == [10, 11, 13]
    assert notes == ["1 of 4 trials have no go, and are left out"]


def test_units_that_were_asked_for(recording):
    path, times = recording
    for filters, rows in [
        ("quality=good", [0, 2, 3]),
        (" quality = good , depth=2.50", [2, 3]),
        ("id=3", [1]),
        ("electrode_group=probe0", [0, 1, 2, 3]),
    ]:
        arrays, _ = read(path, units=filters, window=(0.0, 0.5))
        assert arrays["unit_id"].tolist() == [IDS[row] for row in rows]
        windows = [(start, start + 0.5) for start in STARTS]
        same(arrays, slowly([times[r] for r in rows], [OBSERVED[r] for r in rows], windows))


def test_a_continuous_recording(recording, tmp_path):
    path, times = recording
    arrays, notes = read(path, chop=1.0)
    same(arrays, slowly(times, OBSERVED, [(0, 20)])[0])
    assert arrays["time_start"] == 0
    assert not {"trial_start", "condition"} & arrays.keys()
    assert not notes

    times = write_nwb(tmp_path / "plain.nwb", observed=None, trials=False)
    arrays, notes = read(tmp_path / "plain.nwb", chop=1.0)
    assert arrays["time_start"] == min(map(np.min, times))
    assert arrays["spikes"].sum() == sum(map(len, times))  # the last is not lost
    assert "spikes_mask" not in arrays
    assert len(notes) == 1
    assert "no obs_intervals, so a unit that was lost looks like one that was silent" in notes[0]


def test_invalid_times_were_not_observed(tmp_path):
    invalid = [(8.0, 9.2), (1.51, 1.6), (1.3, 1.55)]
    apart = [(-99, 1.3), (1.6, 8.0), (9.2, 99)]
    times = write_nwb(tmp_path / "a.nwb", observed=None, invalid=invalid)
    arrays, notes = read(tmp_path / "a.nwb")
    windows = list(zip(STARTS, STOPS, strict=True))
    same(arrays, slowly(times, [apart] * 4, windows))
    assert notes[1:] == ["3 invalid_times of the file are taken as not observed"]
    times = write_nwb(tmp_path / "b.nwb", invalid=invalid)
    arrays, _ = read(tmp_path / "b.nwb")
    both = slowly(times, OBSERVED, windows) + 0 * slowly(times, [apart] * 4, windows)
    same(arrays, both)


@pytest.mark.parametrize("name", ["mask", "rates", "trial_start", "spikes", "laser_mask"])
def test_a_condition_may_have_any_name(name, tmp_path):
    path = tmp_path / "r.nwb"
    write_nwb(path)
    with pynwb.NWBHDF5IO(str(path), "a") as io:
        file = io.read()
        file.trials.add_column(name, "", data=[3, 1, 3, 1])
        io.write(file)
    for how in ({"condition": name}, {"condition": name, "learn": False}):
        data = of(path, bin_width=WIDTH, **how)
        assert data.condition_values.tolist() == [1, 3]
        assert data.condition.tolist() == [1, 0, 1, 0]
        assert data.trial_start.tolist() == STARTS
    assert data.counts.shape == (4, 40, 4)


@pytest.mark.filterwarnings("ignore:EnumData")
def test_columns_of_an_enumeration_go_by_its_names(tmp_path):
    path = tmp_path / "r.nwb"
    write_nwb(path)
    with pynwb.NWBHDF5IO(str(path), "a") as io:
        file = io.read()
        names = ["mua", "good"], ["right", "left"]
        for table, values in zip((file.units, file.trials), names, strict=True):
            table.add_column("side", "", data=[1, 0, 1, 1], enum=values)
        io.write(file)
    arrays, _ = read(path, condition="side", units="side=good")
    assert arrays["unit_id"].tolist() == [12, 40, 7]
    assert arrays["condition"].tolist() == ["left", "right", "left", "left"]


def test_the_last_spike_of_a_session_is_in_its_last_bin(tmp_path):
    times = [np.arange(n) / 10 for n in (4, 7, 2, 5)]
    write_nwb(tmp_path / "r.nwb", observed=None, times=times)
    arrays, _ = read(tmp_path / "r.nwb", chop=1.0, bin_width=0.1)
    assert arrays["spikes"].sum(0).tolist() == [4, 7, 2, 5]
    assert arrays["spikes"].shape == (7, 4)


def test_borders_are_right_to_the_sample(tmp_path):
    rate = 30000
    samples = [150, 151, 749, 750, 751, 1499]  # bins of 150 samples: the edges of the sixth
    observed = [[(150 / rate, 750 / rate), (900 / rate, 1501 / rate)],
                [(151 / rate, 749 / rate), (901 / rate, 1500 / rate)]]  # fmt: skip
    write_nwb(tmp_path / "a.nwb", observed=observed, times=[np.array(samples) / rate] * 2, units=2)
    with h5py.File(tmp_path / "a.nwb", "a") as file:
        file["intervals/trials/start_time"][:] = 0
        file["intervals/trials/stop_time"][:] = 1500 / rate
    arrays, _ = read(tmp_path / "a.nwb", bin_width=0.005)
    counts = np.where(arrays["spikes_mask"], arrays["spikes"].astype(float), -1)
    assert counts[0].T.tolist() == [
        [-1, 2, 0, 0, 1, -1, 0, 0, 0, 1],
        [-1, -1, 0, 0, -1, -1, -1, 0, 0, 1],
    ]


def change(path, name, value):
    with h5py.File(path, "a") as file:
        file[name][...] = value


WRONG = [
    ({"align": "reach"}, "trials table: no column reach for data.align; the columns are start_ti"),
    (
        {"align": "cue", "window": (0.0, 1.0)},
        "cue is <U5; data.align needs a column of",
    ),
    ({"align": "go"}, "data.align is go without data.window"),
    ({"window": (1.0, -1.0)}, "data.window is 1 to -1 s; give seconds before and after start_time"),
    (
        {"window": (0.0, 0.01)},
        "no trial can be used: 4 of 4 trials are shorter than a bin",
    ),
    ({"condition": "target"}, "no column target for data.condition; the columns are start_time,"),
    ({"condition": "licks"}, "licks holds several values in a row; data.condition needs one"),
    ({"units": "quality"}, "data.units is 'quality'; expected COLUMN=VALUE, as in quality=good"),
    ({"units": "region=CA1"}, "units table: no column region for data.units; the columns are"),
    ({"units": "depth=deep"}, "data.units depth=deep: depth holds numbers"),
    ({"units": "quality=great"}, "quality=great leaves no unit; quality holds good, mua"),
    ({"units": "quality=mua,depth=1.5"}, "data.units depth=1.5 leaves no unit; depth holds 2.0"),
    ({"units": "spike_times=1"}, "spike_times holds several values in a row"),
    ({"chop": 1.0, "condition": "cue"}, "data.chop ignores trials, which data.condition need"),
    ({"bin_width": 0.0}, "data.bin_width is 0; expected a positive number"),
]


@pytest.mark.parametrize(("how", "words"), WRONG, ids=[words for _, words in WRONG])
def test_what_is_asked_for_and_not_there_is_named(how, words, recording):
    path, _ = recording
    refused(path, words, **how)


def refused(path, words, **how):
    with pytest.raises(InputError) as error:
        read(path, **how)
    assert str(error.value).startswith(f"{path}: ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


DAMAGE = [
    ("units/spike_times", np.nan, "spike_times of neuron 12 (row 0 of units) holds nan at 0"),
    ("units/obs_intervals", np.nan, "units table: obs_intervals of unit 12 are not intervals"),
    ("intervals/trials/stop_time", 0.0, "trials table: trial 10 stops before it starts"),
    ("intervals/trials/start_time", np.nan, "4 of 4 trials have no start_time or stop_time"),
    ("intervals/invalid_times/stop_time", np.nan, "invalid_times table: an interval has no start"),
]


def test_what_is_wrong_with_a_file_is_named(recording, tmp_path):
    path = tmp_path / "damaged.nwb"
    write_nwb(path, invalid=[(15.0, 15.1)])
    whole = path.read_bytes()
    for name, value, words in DAMAGE:
        path.write_bytes(whole)
        change(path, name, value)
        refused(path, words)
        if "spike_times" in name:
            refused(path, words, chop=1.0)
    for name, words in [
        ("units", "no units table, or an empty one; expected sorted units with spike_times"),
        (
            "units/spike_times_index",
            "pynwb cannot read it: Could not construct Units object due to",
        ),
        ("intervals/trials", "no trials table, or an empty one; give data.chop, seconds, to take"),
        ("session_start_time", "pynwb cannot read it: "),
    ]:
        path.write_bytes(whole)
        with h5py.File(path, "a") as file:
            del file[name]
        refused(path, words)
    path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        del file["units/spike_times"], file["units/spike_times_index"]
        columns = [c for c in file["units"].attrs["colnames"] if c != "spike_times"]
        file["units"].attrs["colnames"] = columns
    refused(path, "units table: no column spike_times; the columns are quality, depth,")
    write_nwb(path, times=[[1.0]] * 4)
    with h5py.File(path, "a") as file:
        del file["units/spike_times_index"]
    refused(path, "units table: spike_times has no spike_times_index, which says whose they are")


def test_trials_too_short_for_a_bin_are_left_out(tmp_path):
    write_nwb(tmp_path / "a.nwb")
    change(tmp_path / "a.nwb", "intervals/trials/stop_time", [1.04, 5.0, np.nan, 8.0])
    arrays, notes = read(tmp_path / "a.nwb", condition="cue")
    assert arrays["trial_id"].tolist() == [11, 13]
    assert arrays["condition"].tolist() == ["right", "right"]
    assert notes == [
        "1 of 4 trials have no start_time or stop_time, and are left out",
        "1 of 4 trials are shorter than a bin of 0.05 s, and are left out",
    ]


def test_files_of_the_format_are_recognized(recording, tmp_path, monkeypatch):
    path, _ = recording
    assert nwb.recognizes(path)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["spikes"] = np.ones(3)
    (tmp_path / "text.nwb").write_text("hello")
    for name in ("other.h5", "text.nwb", "missing.nwb"):
        assert not nwb.recognizes(tmp_path / name)
    monkeypatch.setitem(sys.modules, "pynwb", None)
    refused(path, "NWB files need pynwb; pip install 'sbtt-jax[nwb]'")


def inferred(arrays, bins, trials=()):
    """Rates and latents that tell trials, bins and columns apart, and which model they are of."""
    rng = np.random.default_rng(1)
    how = {"unit_ids": arrays["unit_id"], "bin_width": WIDTH, "model": "bandwidth 2, seed 0"}
    rates, latents = (rng.random((*trials, bins, n)).astype(np.float32) for n in (4, 6))
    return how | {"rates": rates, "latents": latents}


def exported(path, *more):
    """The series that an export added, once the file is seen to be valid."""
    assert not pynwb.validate(path=str(path))
    with pynwb.NWBHDF5IO(str(path), "r") as io:
        file = io.read()
        module = file.processing["ecephys"]
        columns = module["InferredFiringRatesUnits"]
        assert columns["unit"].table is file.units
        assert columns["unit"].data[:].tolist() == list(range(4))
        assert columns.id[:].tolist() == file.units.id[:].tolist() == IDS
        names = "InferredFiringRates", "InferredLatents", *more
        series = [module[name] for name in names]
        assert "bandwidth 2, seed 0" in series[0].description
        assert [one.unit for one in series] == ["spikes/s", "a.u.", *(["spikes/s"] * len(more))]
        for one in series[1:]:
            np.testing.assert_array_equal(series[0].timestamps[:], one.timestamps[:])
        return series[0].timestamps[:], *(one.data[:] for one in series)


def test_rates_are_written_back_in_the_files_own_time(recording, tmp_path):
    path, _ = recording
    arrays, _ = read(path)
    before = path.read_bytes()
    how = inferred(arrays, 40, (4,))
    lengths = np.array([30, 30, 15, 40])
    how["rates"][np.arange(40) >= lengths[:, None]] = np.nan
    export(path, tmp_path / "out.nwb", starts=arrays["trial_start"], lengths=lengths, **how)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["out.nwb"]

    times, rates, latents = exported(tmp_path / "out.nwb")
    by_time = [(trial, b) for trial in np.argsort(STARTS) for b in range(lengths[trial])]
    expected = [STARTS[trial] + (b + 0.5) * WIDTH for trial, b in by_time]
    np.testing.assert_allclose(times, expected, rtol=0, atol=1e-12)
    assert (np.diff(times) > 0).all()
    for array, name in ((rates, "rates"), (latents, "latents")):
        np.testing.assert_array_equal(array, np.stack([how[name][at] for at in by_time]))
    again, _ = read(tmp_path / "out.nwb")  # all else is as it was
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)
    with pytest.raises(InputError, match=r"holds Inferred.* already; export to the original"):
        export(tmp_path / "out.nwb", tmp_path / "b.nwb", starts=np.array(STARTS), lengths=None,
               **how)  # fmt: skip
    assert [file.name for file in tmp_path.iterdir()] == ["out.nwb"]


def test_rates_of_a_continuous_recording_are_written_back(recording, tmp_path):
    path, _ = recording
    arrays, _ = read(path, chop=1.0)
    how = inferred(arrays, 400)
    start = float(arrays["time_start"])
    export(path, tmp_path / "out.nwb", starts=start, lengths=None, **how)
    times, rates, latents = exported(tmp_path / "out.nwb")
    np.testing.assert_allclose(times, (np.arange(400) + 0.5) * WIDTH, atol=1e-12)
    np.testing.assert_array_equal(rates, how["rates"])
    np.testing.assert_array_equal(latents, how["latents"])
    interval = how["rates"] - 1, how["rates"] + 1
    export(path, tmp_path / "ends.nwb", starts=start, lengths=None, interval=interval, **how)
    _, rates, _, *ends = exported(
        tmp_path / "ends.nwb", "InferredFiringRatesLow", "InferredFiringRatesHigh"
    )
    np.testing.assert_array_equal(rates, how["rates"])
    np.testing.assert_array_equal(ends, interval)


def test_rows_of_one_id_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "IDS", [5, 7, 5, 9])
    path = tmp_path / "r.nwb"
    write_nwb(path)
    arrays, _ = read(path)
    how = inferred(arrays, 40, (4,)) | {"starts": np.array(STARTS), "lengths": None}
    export(path, tmp_path / "out.nwb", **how)
    with pynwb.NWBHDF5IO(str(tmp_path / "out.nwb"), "r") as io:
        table = io.read().processing["ecephys"]["InferredFiringRatesUnits"]
        assert table["unit"].data[:].tolist() == [0, 1, 2, 3]
    how |= {"rates": how["rates"][..., 1:], "unit_ids": np.array([7, 5, 9])}
    with pytest.raises(InputError, match="2 rows of units have the id 5, and rates are of 1 of"):
        export(path, tmp_path / "b.nwb", **how)


def test_trials_of_a_clock_of_large_times_are_apart(tmp_path):
    start = 1.7e9 + np.arange(4) * 0.7
    path = tmp_path / "r.nwb"
    monkey = {"STARTS": start.tolist(), "STOPS": (start + 0.7).tolist()}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in monkey.items():
            patch.setitem(globals(), name, value)
        write_nwb(path, observed=None)
    arrays, _ = read(path)
    assert arrays["spikes"].shape[1] == 14
    how = inferred(arrays, 14, (4,)) | {"lengths": None}
    export(path, tmp_path / "out.nwb", starts=arrays["trial_start"], **how)
    early = arrays["trial_start"] - [0, 0, 0.2, 0]
    with pytest.raises(InputError, match=r"starts at 1700000001\.2 s, before .*01\.4 s"):
        export(path, tmp_path / "b.nwb", starts=early, **how)


def test_what_cannot_be_exported_is_refused(recording, tmp_path):
    path, _ = recording
    how = inferred({"unit_id": np.array(IDS)}, 40, (4,)) | {"lengths": None}
    starts = np.array(STARTS)
    (tmp_path / "other.h5").write_bytes(b"")
    for source, out, changes, words in [
        (tmp_path / "other.h5", "o.nwb", {}, "not an NWB file"),
        (path, path, {}, "is the recording itself, which is never changed"),
        (path, "o.nwb", {"starts": starts / 2}, "starts at 1.75 s, before another ends at 2.5 s"),
        (path, "o.nwb", {"unit_ids": np.array([12, 3, 5, 7])}, "no unit 5; export to the"),
    ]:
        with pytest.raises(InputError, match=words):
            export(source, tmp_path / out, **{"starts": starts, **how, **changes})
    data = assemble(Recording(np.ones((4, 5, 2)), bin_width=0.1, unit_id=[3, 5]).arrays)
    data = replace(data, trial_start=np.arange(4.0))
    with pytest.raises(InputError, match=r"other\.h5: not an NWB file; --export nwb adds to one"):
        exports.check("nwb", tmp_path / "other.h5", data, POISSON)
    with pytest.raises(InputError, match="--export nwb is for firing rates, and its values are no"):
        exports.check("nwb", path, data, observations.of("gamma"))
    assert [file.name for file in tmp_path.iterdir()] == ["other.h5"]
