"""Recordings that are Python objects: arrays, lists of trials, labelled arrays, spike times."""

import datetime
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse import csr_array

import sbtt_jax
from sbtt_jax.data.recording import assemble, of
from sbtt_jax.errors import InputError

xr = pytest.importorskip("xarray")
pd = pytest.importorskip("pandas")

rng = np.random.default_rng(0)
COUNTS = rng.poisson(1.0, (6, 5, 3)).astype(float)
MASK = rng.random(COUNTS.shape) < 0.7
HOLES = np.where(MASK, COUNTS, np.nan)
MASKED = np.ma.masked_array(COUNTS.astype("i2"), ~MASK)
LENGTHS = [5, 3, 4, 5, 2, 5]
INSIDE = np.arange(5)[:, None] < np.reshape(LENGTHS, (6, 1, 1))
RAGGED = np.where(INSIDE, HOLES, np.nan)
SESSION = rng.poisson(0.5, (60, 3)).astype(float)
TIME = np.arange(5) * 0.01
NAMES = ["a", "b", "c"]
DIMS = ("trial", "time", "unit")


def taken(spikes, how=(), **known):
    return assemble(sbtt_jax.Recording(spikes, **known).arrays, **dict(how))


def same(data, expected):
    expected = np.asarray(expected, float)
    assert data.counts.shape == expected.shape
    np.testing.assert_array_equal(data.observed, ~np.isnan(expected))
    np.testing.assert_array_equal(data.counts, np.nan_to_num(expected))


def labelled(values=HOLES, dims=DIMS, **how):
    return xr.DataArray(values, dims=dims, **how)


def trials(of=HOLES):
    return [trial[:length] for trial, length in zip(of, LENGTHS, strict=True)]


class Quantity:
    """Numbers with a unit, with the method of one of pint, quantities and astropy."""

    def __init__(self, values, unit, method="to"):
        self.values, self.unit = np.asarray(values), unit
        setattr(self, "unit" if method == "to_value" else "units", unit)
        setattr(self, method, self._converted)

    def _converted(self, unit):
        scale = {"s": 1, "second": 1, "ms": 1e-3, "millisecond": 1e-3}
        return SimpleNamespace(magnitude=self.values * (scale[self.unit] / scale[unit]))

    def __array__(self, dtype=None, copy=None):
        return self.values

    shape = property(lambda self: self.values.shape)
    ndim = property(lambda self: self.values.ndim)


class Tensor:
    """As of PyTorch, whose `t` is a method."""

    def __init__(self, values):
        self.values, self.shape = values, values.shape

    def t(self):
        raise AssertionError

    def __array__(self, dtype=None, copy=None):
        return self.values

    ndim = property(lambda self: self.values.ndim)


class Intervals:
    def __init__(self, *pairs):
        self.start, self.end = np.array(pairs, float).reshape(-1, 2).T


class Train:
    """As pynapple.Ts, which NumPy cannot take for a sequence."""

    def __getitem__(self, index):
        return self

    def __init__(self, times, support=None):
        self.t = np.asarray(times, float)
        self.time_support = support or Intervals((self.t.min(), self.t.max()))


class Series(Train):
    """As pynapple.Tsd, with a value at each time."""

    def __init__(self, times):
        super().__init__(times)
        self.values = np.ones(len(times))
        self.shape = self.values.shape


class Sequence:
    """As neo's list of spike trains, which is no list."""

    def __init__(self, items):
        self.items_ = items

    def __len__(self):
        return len(self.items_)

    def __getitem__(self, index):
        return self.items_[index]


class Group(dict):
    """As pynapple.TsGroup."""

    def __init__(self, trains, support):
        super().__init__({name: Train(times) for name, times in trains.items()})
        self.time_support = support


class Frame:
    """As pynapple.TsdFrame."""

    def __init__(self, t, values, columns):
        self.t, self.values, self.columns, self.shape = t, values, columns, values.shape
        self.time_support = Intervals((t[0], t[-1]))


def objects(arrays):
    found = np.empty(len(arrays), object)
    found[:] = arrays
    return found


MEANT = {
    "array": (HOLES, HOLES),
    "integers": (COUNTS.astype("u1"), COUNTS),
    "booleans": (COUNTS > 0, COUNTS > 0),
    "jax": (jnp.array(HOLES), HOLES),
    "tensor": (Tensor(HOLES), HOLES),
    "nested lists": (HOLES.tolist(), HOLES),
    "masked": (MASKED, HOLES),
    "masked, hard": (np.ma.masked_array(COUNTS, ~MASK, hard_mask=True), HOLES),
    "masked nowhere": (np.ma.masked_array(COUNTS, False), COUNTS),
    "masked and NaN": (np.ma.masked_array(RAGGED, ~MASK), RAGGED),
    "trials": (trials(), RAGGED),
    "trials, integers": (trials(COUNTS.astype("i4")), np.where(INSIDE, COUNTS, np.nan)),
    "trials, masked": (trials(MASKED), RAGGED),
    "trials, nested lists": ([trial.tolist() for trial in trials()], RAGGED),
    "trials, tensors": ([Tensor(trial) for trial in trials()], RAGGED),
    "trials, of one length": (list(HOLES), HOLES),
    "trials, with conditions": ([labelled(t, DIMS[1:], coords={"condition": i % 2})
                                 for i, t in enumerate(trials())], RAGGED),
    "trials, labelled": ([labelled(t.T, ("unit", "time")) for t in trials()], RAGGED),
    "trials, an array of objects": (objects(trials()), RAGGED),
    "trials, with masks": (list(labelled(coords={"mask": (DIMS, MASK)}).fillna(3)), HOLES),
    "trials, with times": ([Frame(TIME[: len(t)], t, NAMES) for t in trials()], RAGGED),
    "masked by a coordinate": (labelled(COUNTS.T, DIMS[::-1], coords={"mask": (DIMS, MASK)}),
                               HOLES),
    "trials, tables": ([pd.DataFrame(t, columns=NAMES) for t in trials()], RAGGED),
    "labelled": (labelled(), HOLES),
    "labelled, any order": (labelled(HOLES.transpose(2, 0, 1), ("unit", "trial", "time")), HOLES),
    "labelled, plural": (labelled(HOLES.transpose(1, 2, 0), ("Bins", "neurons", "trials")), HOLES),
    "labelled, fill": (labelled(np.nan_to_num(HOLES, nan=-1), attrs={"_FillValue": -1}), HOLES),
    "labelled, fills": (labelled(np.where(MASK, COUNTS, [-1, -2, 99]),
                                 attrs={"missing_value": [-1, -2, 99]}), HOLES),
    "labelled, unit": (labelled(attrs={"units": "Spike counts"}), HOLES),
    "numbered bins": (labelled(coords={"time": [1, 2, 3, 4, 5]}), HOLES),
    "objects": (np.where(MASK, COUNTS, None), HOLES),
    "half precision": (HOLES.astype(np.float16), HOLES),
    "trials, nullable tables": ([pd.DataFrame(t, columns=NAMES).astype("Int64") for t in trials()],
                                RAGGED),
    "dimensionless": (Quantity(HOLES, "dimensionless"), HOLES),
}  # fmt: skip


@pytest.mark.parametrize("case", MEANT)
def test_counts_are_taken_as_they_are_meant(case):
    spikes, expected = MEANT[case]
    data = taken(spikes, bin_width=0.01)
    same(data, expected)
    assert data.bin_width == 0.01
    assert not data.notes
    if "conditions" in case:
        assert data.condition.tolist() == [0, 1] * 3
    if "times" not in case:
        same(taken(spikes, {"bin_width": 0.02}), expected)


def coordinate(values, **attrs):
    return {"time": ("time", values, attrs)}


EPOCH = np.datetime64("2024-05-01", "ns")
AT_20_MS = {
    "seconds": coordinate(1 + 2 * TIME),
    "seconds, said": coordinate(1 + 2 * TIME, units="s"),
    "single precision": coordinate((1 + 2 * TIME).astype("f4")),
    "milliseconds": coordinate(1000 + 2000 * TIME, units="ms"),
    "whole milliseconds": coordinate(1000 + np.arange(5) * 20, units="milliseconds"),
    "timedelta": {"time": (1e9 + TIME * 2e9).astype("m8[ns]")},
    "datetime": {"time": EPOCH + (TIME * 2e9).astype("m8[ns]")},
    "datetime of a time zone": {
        "time": pd.date_range("2024-05-01", periods=5, freq="20ms", tz="CET")
    },
}


@pytest.mark.parametrize("case", AT_20_MS)
@pytest.mark.parametrize("known", [{}, {"bin_width": 0.02}, {"bin_width": Quantity(20.0, "ms")}])
def test_times_of_bins_say_their_width(case, known):
    data = taken(labelled(coords=AT_20_MS[case]), **known)
    assert data.bin_width == pytest.approx(0.02, rel=1e-9)
    assert data.time_start == pytest.approx(0 if "datetime" in case else 1, rel=1e-6)
    assert not data.notes
    with pytest.raises(InputError, match=r"bins are 0.02 s wide by time, and bin_width is 0.03 s"):
        taken(labelled(coords=AT_20_MS[case]), bin_width=0.03)


def test_times_may_lie_along_a_dimension_of_another_name():
    coords = {"time": ("t", 1 + TIME, {"units": "s"})}
    counts = labelled(dims=("trial", "t", "unit"), coords=coords)
    for given in (counts, list(counts)):
        data = taken(given)
        np.testing.assert_allclose(data.times, 1 + TIME)
        assert (data.bin_width, data.notes) == (0.01, ())


def test_times_of_whole_seconds_are_times_where_they_say_so():
    assert taken(labelled(coords=coordinate(np.arange(5), units="s"))).bin_width == 1
    assert taken(labelled(coords={"time": np.arange(5).astype("m8[s]")})).bin_width == 1
    numbered = taken(labelled(coords={"time": np.arange(5)}))
    assert "assumed to be 20 ms" in numbered.notes[0]


@pytest.mark.parametrize(("step", "width"), [(1, 0.001), (10, 0.01), (0.5, 0.0005), (1, 1.0)])
def test_times_of_no_unit_are_those_of_the_known_width(step, width):
    counts = labelled(coords=coordinate(np.arange(-2, 3) * step))
    for data in (taken(counts, bin_width=width), of(counts, bin_width=width)):
        assert data.bin_width == width
        np.testing.assert_allclose(data.times, np.arange(-2, 3) * width, atol=1e-12)


def test_the_settings_bin_width_is_that_of_objects():
    table = pd.DataFrame(SESSION, index=np.arange(60) * 10)
    for data in (of(table, bin_width=0.01, **CHOP), of(table, {"bin_width": 0.01}, **CHOP)):
        np.testing.assert_allclose(data.times, np.arange(60) * 0.01)
    with pytest.raises(InputError, match="steps of 10 of no unit; say its unit, or give bin_width"):
        of(table, **CHOP)
    assert of(TIMES, bin_width=0.01, learn=False, chop=0.2).bin_width == 0.01


def test_a_session_has_its_own_times():
    time = 3 + np.arange(3000) / 60  # of a width that no short number says
    data = taken(pd.DataFrame(rng.poisson(1.0, (3000, 2)), time), {"chop": 1.0})
    np.testing.assert_array_equal(data.times, time)
    np.testing.assert_array_equal(data.trial_start, time[data.session.trial_starts])
    assert data.bin_width == pytest.approx(1 / 60, rel=1e-11)
    rounded = taken(pd.DataFrame(data.session.counts, time), {"chop": 1.0, "bin_width": 0.0166667})
    assert rounded.bin_width == 0.0166667  # as a run folder may have it
    np.testing.assert_array_equal(rounded.times, time)


def test_trials_that_touch_do_not_overlap():
    time = 3 + np.arange(1200) / 60
    table = pd.DataFrame(rng.poisson(1.0, (1200, 2)), time)
    data = taken([table.iloc[at : at + 60] for at in range(0, 1200, 60)])
    np.testing.assert_array_equal(data.trial_start, time[::60])
    assert len(data.valid) == 4
    assert not any("overlap" in note for note in data.notes)


@pytest.mark.parametrize(
    "width",
    [0.02, np.float32(0.02), np.array([0.02]), datetime.timedelta(milliseconds=20),
     np.timedelta64(20, "ms"), pd.Timedelta("20ms"), Quantity(20.0, "ms"),
     Quantity(20, "ms", "rescale"), Quantity(20, "ms", "to_value"),
     xr.DataArray(20, attrs={"units": "ms"})],
    ids=lambda width: type(width).__name__,
)  # fmt: skip
def test_bin_widths_with_units(width):
    assert taken(HOLES, bin_width=width).bin_width == pytest.approx(0.02, rel=1e-6)


def test_an_attribute_says_the_bin_width():
    attrs = {"bin_width": 20, "bin_width_unit": "ms"}
    assert taken(labelled(attrs=attrs)).bin_width == 0.02
    with pytest.raises(InputError, match=r"0.02 s wide by an attribute, and bin_width is 0.01"):
        taken(labelled(attrs=attrs), bin_width=0.01)


@pytest.mark.parametrize(
    "names",
    [NAMES, np.array([7, 3, 9]), pd.Index(NAMES), np.array(NAMES, "O"), np.array([20, 3, 1], "O")],
)
def test_coordinates_name_neurons_trials_and_conditions(names):
    condition = ["left", "right"] * 3
    coords = {"unit": names, "trial": [4, 5, 9, 11, 12, 20], "condition": ("trial", condition)}
    data = taken(labelled(coords=coords), {"bin_width": 0.02})
    assert data.unit_ids.tolist() == list(names)
    assert data.unit_ids.dtype.kind in "Ui"
    assert data.trial_numbers.tolist() == coords["trial"]
    assert data.condition.tolist() == [0, 1] * 3
    for missing in (None, np.nan):
        some = ["left", missing, "right"] * 2
        given = taken(HOLES, {"bin_width": 0.02}, condition=some)
        assert given.condition_names.tolist() == ["left", "right"]
        assert given.condition.tolist() == [0, -1, 1] * 2
    given = taken(HOLES, {"bin_width": 0.02}, unit_id=names, condition=pd.Series(condition))
    assert given.unit_ids.tolist() == list(names)
    assert given.condition.tolist() == [0, 1] * 3


@pytest.mark.parametrize(
    ("given", "names", "numbers"),
    [
        (pd.Series(["l", pd.NA, "r"] * 2, dtype="string"), ["l", "r"], [0, -1, 1]),
        (pd.Series([1, pd.NA, 2] * 2, dtype="Int64"), [1, 2], [0, -1, 1]),
    ],
)
def test_conditions_that_pandas_does_not_know(given, names, numbers):
    data = taken(COUNTS, {"bin_width": 0.02}, condition=given)
    assert data.condition_names.tolist() == names
    assert data.condition.tolist() == numbers * 2


def test_coordinates_are_read_as_arrays_of_a_file_are(tmp_path):
    pytest.importorskip("h5netcdf")
    coords = {
        "mask": (DIMS, MASK), "unit_id": ("unit", [7, 8, 9]), "time_start": -0.1,
        "trial_start": ("trial", np.arange(6) * 400.0, {"units": "ms"}),
        "bin_width": ((), 20, {"units": "ms"}), "given": (DIMS[1:], np.eye(5, 3) == 0),
    }  # fmt: skip
    counts = labelled(COUNTS, name="spikes", coords=coords)
    counts.to_netcdf(tmp_path / "counts.nc", engine="h5netcdf")
    turned = counts.transpose("unit", "trial", "time")
    for data in (of(tmp_path / "counts.nc"), taken(counts), taken(turned), taken(list(counts))):
        same(data, HOLES)
        assert data.unit_ids.tolist() == [7, 8, 9]
        np.testing.assert_array_equal(data.given, coords["given"][1])
        np.testing.assert_allclose(data.trial_start, np.arange(6) * 0.4)
        assert (data.bin_width, data.time_start) == (0.02, -0.1)
        assert not data.notes
    with pytest.raises(InputError, match=r"0.02 s wide by a coordinate, and bin_width is 0.01 s"):
        taken(counts, bin_width=0.01)
    seen = counts.drop_vars("mask").assign_coords(seen=(DIMS, MASK))
    with pytest.raises(
        InputError, match=r"seen is true or false for each of spikes; .*spikes_mask"
    ):
        taken(seen)


def test_a_labelled_array_of_frames_is_read_as_one():
    known = {"frame_times": ("time", 4 * TIME), "sample_offsets": ("unit", [0.0, 0.01, 0.03])}
    frames = labelled(coords={"time": 4 * TIME, **known})
    expected = sbtt_jax.bin_frames(HOLES, *(values for _, values in known.values()), 0.01)
    same(of(frames, bin_width=0.01), expected)


def test_trial_starts_keep_overlapping_trials_together():
    starts = np.repeat(np.arange(3) * 3.0, 2) + np.tile([0.0, 0.04], 3)  # in pairs
    dates = EPOCH + (starts * 1e9).astype("m8[ns]")
    of_dates = labelled(COUNTS, coords={"trial_start": ("trial", dates)})
    for given in (starts, Quantity(starts * 1000, "ms"), pd.to_timedelta(starts, "s"), dates):
        data = taken(COUNTS, bin_width=0.02, trial_start=given)
        np.testing.assert_allclose(data.trial_start, starts)
    for counts in (COUNTS, of_dates, list(of_dates)):
        known = {"trial_start": starts} if counts is COUNTS else {}
        data = taken(counts, bin_width=0.02, **known)
        np.testing.assert_allclose(data.trial_start, starts)
        assert not set(data.train // 2) & set(data.valid // 2)
        assert "6 of 6 trials overlap others in time" in data.notes[-1]


def timed(starts, step=0.01, kind=lambda times: times):
    """Trials with times of their own."""
    return [
        pd.DataFrame(t, kind(start + step * np.arange(len(t))), NAMES)
        for t, start in zip(trials(), starts, strict=True)
    ]


@pytest.mark.parametrize(
    "kind",
    [lambda times: times, lambda times: pd.to_timedelta(times, "s"),
     lambda times: pd.Timestamp("2024-05-01", tz="CET") + pd.to_timedelta(times, "s")],
    ids=["seconds", "timedelta", "datetime"],
)  # fmt: skip
def test_trials_begin_when_their_times_say(kind):
    starts = np.arange(6) * 0.3
    data = taken(timed(starts, kind=kind))
    same(data, RAGGED)
    np.testing.assert_allclose(data.trial_start, starts, atol=1e-9)
    assert (data.bin_width, data.time_start) == (0.01, 0)
    assert "trials begin at 0 to 1.5 s and are aligned by their first bins" in data.notes[0]


def test_trials_on_one_axis_of_time_keep_it():
    data = taken(timed([-0.1] * 6))
    np.testing.assert_allclose(data.times, -0.1 + TIME)
    assert (data.trial_start, data.notes) == (None, ())
    about = taken(timed([-0.1, -0.12] * 3))  # an event of each trial: not of the recording's clock
    assert (about.trial_start, about.time_start) == (None, 0)
    assert "-0.12 to -0.1 s and are aligned by their first bins" in about.notes[0]


def test_trials_of_a_labelled_array_keep_their_numbers():
    counts = labelled(coords={"trial": [4, 5, 9, 11, 12, 20], "time": TIME})
    assert taken(list(counts)).trial_numbers.tolist() == [4, 5, 9, 11, 12, 20]
    same_number = [one.assign_coords(trial=1) for one in counts]
    assert taken(same_number).trial_numbers.tolist() == list(range(6))


CHOP = {"chop": 0.2}


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame(SESSION, columns=NAMES, index=3 + np.arange(60) * 0.01),
        pd.DataFrame(SESSION, pd.to_timedelta(3000 + np.arange(60) * 10, "ms"), NAMES),
        Frame(3 + np.arange(60) * 0.01, SESSION, NAMES),
        xr.DataArray(SESSION.T, dims=("unit", "time"),
                     coords={"unit": NAMES, "time": 3 + np.arange(60) * 0.01}),
    ],
    ids=["pandas", "pandas, timedelta", "pynapple", "xarray"],
)  # fmt: skip
def test_tables_are_sessions(table):
    data = taken(table, CHOP)
    np.testing.assert_array_equal(data.session.counts, SESSION)
    assert data.bin_width == 0.01
    assert data.time_start == 3
    assert data.unit_ids.tolist() == NAMES


TIMES = {"u": [0.005, 0.5, 1.015, 1.9], "v": [1.005, 1.006, 1.025]}
STARTS_ENDS = [[0.0, 0.03], [1.0, 1.03]]
BINNED = [[[1, 0], [0, 0], [0, 0]], [[0, 2], [1, 0], [0, 1]]]


def in_ms(times, method):
    return Quantity(1000 * np.asarray(times), "ms", method)


SPIKES = {
    "mapping": TIMES,
    "list": list(TIMES.values()),
    "arrays": [np.array(times) for times in TIMES.values()],
    "series": pd.Series({name: np.array(times) for name, times in TIMES.items()}).to_dict(),
    "pint": {name: in_ms(times, "to") for name, times in TIMES.items()},
    "quantities": [in_ms(times, "rescale") for times in TIMES.values()],
    "astropy": [in_ms(times, "to_value") for times in TIMES.values()],
    "timedelta": [(np.array(times) * 1e6).astype("m8[us]") for times in TIMES.values()],
    "labelled": {
        name: xr.DataArray(1000 * np.array(times), attrs={"units": "ms"})
        for name, times in TIMES.items()
    },
    "named series": pd.Series({name: np.array(times) for name, times in TIMES.items()}),
    "array of objects": objects([np.array(times) for times in TIMES.values()]),
    "sequence": Sequence([in_ms(times, "rescale") for times in TIMES.values()]),
    "pynapple, with values": [Series(TIMES["u"]), Series([*TIMES["v"], 9.0])],
    "pynapple trains": {name: Train(times) for name, times in TIMES.items()},
    "pynapple list": [Train(times) for times in TIMES.values()],
    "pynapple group": Group(TIMES, Intervals((0, 2))),
}

# Columns of tables of trials, which these cases have.
TABLES = {
    "list": ["start", "end"],
    "arrays": ["start", "stop"],
    "series": ["start_time", "stop_time"],
}


@pytest.mark.parametrize("case", SPIKES)
def test_spike_times_are_binned(case):
    ends = STARTS_ENDS if case in ("mapping", "list") else Intervals(*STARTS_ENDS)
    if case in TABLES:
        ends = pd.DataFrame(STARTS_ENDS, columns=TABLES[case]).assign(condition=["y", "x"])
    data = taken(SPIKES[case], trials=ends, bin_width=Quantity(10, "ms"))
    same(data, BINNED)
    assert data.trial_start.tolist() == [0, 1]
    if case in TABLES:
        assert data.condition_names[data.condition].tolist() == ["y", "x"]
    named = hasattr(SPIKES[case], "keys")
    assert data.unit_ids.tolist() == (["u", "v"] if named else [0, 1])


HOLED = np.array(BINNED, float)
HOLED[0, :, 0] = np.nan
BLIND = np.array(BINNED, float)
BLIND[0] = np.nan


@pytest.mark.parametrize(
    ("spikes", "observed", "expected"),
    [
        (TIMES, {"u": [[0.5, 2.0]], "v": [[0.0, 2.0]]}, HOLED),
        (TIMES, [np.array([[0.5, 2.0]]), None], HOLED),
        (TIMES, {"u": [0.5, 2.0], "v": [0.0, 2.0]}, HOLED),
        (TIMES, {"v": None, "u": np.array([0.5, 2.0])}, HOLED),
        (TIMES, {"u": in_ms([0.5, 2.0], "to"), "v": None}, HOLED),
        (TIMES, pd.Series({"u": [[0.5, 2.0]], "v": [0.0, 2.0]}), HOLED),
        (TIMES, [[0.5, 2.0], [[0.0, 2.0]]], HOLED),
        (TIMES, np.array([[0.5, 1.0], [1.0, 2.0]]), BLIND),
        (TIMES, [Intervals((0.5, 2.0)), Intervals((0.0, 2.0))], HOLED),
        (TIMES, Intervals((0.5, 2.0)), BLIND),
        (TIMES, in_ms([[0.5, 2.0]], "to"), BLIND),
        (Group(TIMES, Intervals((0.5, 2.0))), None, BLIND),
        ({"u": Train(TIMES["u"], Intervals((0.5, 2))), "v": Train(TIMES["v"])}, None, HOLED),
        (Group(TIMES, Intervals((0.5, 2.0))), Intervals((0.0, 2.0)), BINNED),
    ],
)
def test_what_was_not_observed_is_missing(spikes, observed, expected):
    same(taken(spikes, trials=STARTS_ENDS, observed=observed, bin_width=0.01), expected)


def test_spike_times_without_trials_are_a_session():
    many = {name: np.sort(rng.uniform(5, 6, 80)) for name in NAMES}
    data = taken(Group(many, Intervals((5, 6))), CHOP, bin_width=0.01)
    assert data.session.counts.sum() == 240
    assert data.time_start == 5
    assert taken(many, CHOP, bin_width=0.01).session.counts.sum() == 240  # and not one fewer


def uneven():
    return coordinate([0, 0.01, 0.02, 0.04, 0.05])


REFUSED = {
    "names that say nothing": (lambda: labelled(dims=("a", "b", "c")), {}, "are a, b, c; expected"),
    "names twice": (lambda: labelled(dims=("trial", "time", "bin")), {}, "trial, time, bin; exp"),
    "a Dataset": (lambda: xr.Dataset({"spikes": labelled()}), {}, "as in data['spikes']"),
    "uneven": (lambda: labelled(coords=uneven()), {}, "time is not evenly spaced"),
    "backwards": (lambda: labelled(coords=coordinate(-TIME)), {}, "time is not evenly spaced"),
    "times of no unit": (lambda: labelled(coords=coordinate(TIME * 1000)), {},
                         "time is in steps of 10 of no unit; say its unit, or give bin_width"),
    "times in mV": (lambda: labelled(coords=coordinate(TIME, units="mV")), {}, "time is in 'mv'"),
    "a rate": (lambda: labelled(attrs={"units": "Hz"}), {}, "spikes is in 'hz', it says"),
    "a rate, quantity": (lambda: Quantity(HOLES, "hertz"), {}, "spikes is in 'hertz', it says"),
    "packed": (lambda: labelled(attrs={"scale_factor": 0.1}), {}, "packed (scale_factor 0.1)"),
    "limits": (lambda: labelled(attrs={"valid_range": [0, 9]}), {}, "its values are valid"),
    "fill of text": (lambda: labelled(attrs={"_FillValue": "none"}), {}, "expected a number"),
    "sparse": (lambda: csr_array(COUNTS[0]), {}, "spikes is a csr_array of no plain numbers"),
    "objects": (lambda: COUNTS.astype(str).astype(object), {}, "a ndarray of no plain numbers"),
    "a table of trials": (lambda: pd.DataFrame({"Trial": [0, 1], "a": [1, 0]}), CHOP,
                          "the column Trial looks like none of a neuron"),
    "none": (lambda: None, {}, "spikes is a NoneType"),
    "a number": (lambda: 3, {}, "spikes is a single number; expected trial x bin x neuron"),
    "text": (lambda: "spikes.h5", {}, "array: spikes.h5 is a path; fit, infer and score take it"),
    "generator": (lambda: (t for t in COUNTS), {}, "a generator of no plain numbers"),
    "no trials": (list, {}, "spikes is 0; expected trial x bin x neuron"),
    "ragged": (lambda: [[[1, 2], [3]], [[1]]], {}, "array: "),
    "ragged neurons": (lambda: [np.ones((3, 2)), np.ones((3, 4))], {}, "trial 0 has 2 neurons"),
    "axes of trials": (lambda: [np.ones((3, 2)), np.ones(3)], {}, "trial 1 has 1 axes"),
    "names of trials": (lambda: [pd.DataFrame(COUNTS[0], columns=n) for n in (NAMES, [1, 2, 3])],
                        {}, "trials 0 and 1 differ in unit_id"),
    "complex": (lambda: COUNTS + 1j, {}, "expected whole spike counts"),
    "a table of text": (lambda: pd.DataFrame({"a": ["x", 1]}), CHOP, "no plain numbers"),
    "counts or times": (lambda: [[0, 1, 2], [1, 0, 1]], {"bin_width": 0.02}, "may be counts or"),
    "counts or times, arrays": (lambda: list(COUNTS[0].astype(int)), {"bin_width": 0.02},
                                "give counts as an array, times as a mapping from neurons"),
    "counts or times, whole": (lambda: list(COUNTS[0]), {"bin_width": 0.02}, "may be counts or"),
    "a list of series": (lambda: [Series(TIME), Series(TIME)], {"bin_width": 0.02},
                         "spikes is a Series; expected counts of all neurons (TsdFrame)"),
    "a mapping of series": (lambda: {"u": Series(TIME)}, {"bin_width": 0.02},
                            "spikes of u is a Series, values at regular times; expected"),
    "columns of two levels": (lambda: pd.DataFrame(COUNTS[0], columns=[list("pqq"), NAMES]), CHOP,
                              "the columns are a MultiIndex (None, None); expected one name for"),
    "rows of two levels": (
        lambda: pd.DataFrame(COUNTS[0]).set_axis([list("ttttt"), TIME]).rename_axis(["trial", "t"]),
        CHOP, "the rows are a MultiIndex (trial, t); expected the time of each bin, and trials as"),
    "starts of trials, twice": (lambda: TIMES, {"bin_width": 0.01, "trials": STARTS_ENDS,
                                                "trial_start": [0, 1]}, "leave it out"),
    "pairs for all or of each": (
        lambda: TIMES, {"bin_width": 0.01, "trials": STARTS_ENDS, "observed": [[0, 1], [1, 2]]},
        "a list of 2 pairs for 2 neurons, which may be intervals for all or one of each; give"),
    "observed of a neuron": (
        lambda: TIMES, {"bin_width": 0.01, "observed": {"u": None, "v": [0, 1, 2]}},
        "observed of neuron v is 3; expected intervals x 2"),
    "trials of counts": (lambda: HOLES, {"trials": STARTS_ENDS}, "and spikes are counts"),
    "times, no width": (lambda: TIMES, {}, "spike times need a bin_width"),
    "trains in mV": (lambda: {"u": Quantity([1], "mV")}, {"bin_width": 0.02}, "is no time"),
    "times that are dates": (lambda: {"u": EPOCH + np.arange(3)}, {"bin_width": 0.02}, "are dates"),
    "times that are text": (lambda: {"u": ["x"]}, {"bin_width": 0.02}, "could not convert"),
    "observed of more": (lambda: TIMES, {"bin_width": 1, "observed": dict.fromkeys("uvw")},
                         "observed has intervals for w, which is no neuron"),
    "trials without bins": (lambda: TIMES, {"bin_width": 1, "trials": STARTS_ENDS},
                            "array: trials: trial 0 is from 0 to 0.03 s, which holds no whole"),
    "starts of trials": (lambda: TIMES, {"bin_width": 0.01, "trials": [0, 1]},
                         "array: trials is 2; expected trial x 2 finite seconds"),
    "a table of trials that says no ends": (
        lambda: TIMES, {"bin_width": 0.01, "trials": pd.DataFrame({"go": [0.0], "to": ["left"]})},
        "array: trials is not an array of numbers; expected start and end of each"),
    "observed of others": (lambda: TIMES, {"bin_width": 0.01, "observed": {"u": [[0, 1]]}},
                           "observed has no intervals for neuron v"),
    "width in mV": (lambda: HOLES, {"bin_width": Quantity(1, "mV")}, "is no time"),
    "width of text": (lambda: HOLES, {"bin_width": "20 ms"}, "'20 ms' is no time"),
    "width of several": (lambda: HOLES, {"bin_width": [0.01, 0.02]}, "is no time"),
    "negative width": (lambda: HOLES, {"bin_width": -0.02}, "expected one positive number"),
    "conditions": (lambda: HOLES, {"condition": [1, 2]}, "condition is 2 of int64; exp"),
    "ragged conditions": (lambda: HOLES, {"condition": [[1], [2, 3]]}, "array: "),
    "names": (lambda: HOLES, {"unit_id": NAMES[:2]}, "unit_id is 2 of"),
    "a series": (lambda: Train([1, 2]), {}, "spikes is a Train; expected counts of all neurons"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_refused(case):
    make, known, words = REFUSED[case]
    with pytest.raises(InputError) as error:
        taken(make(), **known) if known is not CHOP else taken(make(), CHOP)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
