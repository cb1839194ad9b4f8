"""HDF5 files of others: netCDF-4 with named dimensions and coordinates, attributes, groups, links;
and what NPZ files share with them."""

import h5py
import numpy as np
import pytest
from conftest import save

from sbtt_jax.data.recording import read
from sbtt_jax.errors import InputError

xr = pytest.importorskip("xarray")
pytest.importorskip("h5netcdf")

rng = np.random.default_rng(0)
COUNTS = rng.poisson(1.0, (6, 5, 3))
MASK = rng.random(COUNTS.shape) < 0.7
HOLES = np.where(MASK, COUNTS, np.nan)
COUNTS[0, 0, 0], MASK[0, 0, 0], HOLES[0, 0, 0] = 1, True, 1
NAMES = ["a", "bb", "ccc"]
DIMS = ("trial", "time", "unit")
ALIKE = ("trials", "time", "neuron_id"), ("epoch", "time", "Cells")  # names that say the same
TIME = 0.5 + np.arange(5) * 0.01


@pytest.fixture
def written(tmp_path):
    """A function that writes arrays with attributes, and reads them as a recording."""

    def through_file(arrays, attrs=(), how=(), **own):
        path = tmp_path / "r.h5"
        with h5py.File(path, "w") as file:
            for key, value in arrays.items():
                file[key] = value
            for key, value in own.items():
                file.attrs[key] = value
            for key, name, value in attrs:
                file[key].attrs[name] = value
        return read(path, **{"bin_width": 0.02} | dict(how))

    return through_file


def same(data, expected):
    np.testing.assert_array_equal(data.observed, ~np.isnan(expected))
    np.testing.assert_array_equal(data.counts, np.nan_to_num(expected))


def netcdf(path, dims=DIMS, order=(0, 1, 2), values=HOLES, encoding=None, **variables):
    time = variables.pop("time", ("time", TIME, {"units": "s"}))
    names = [dims[axis] for axis in order]
    spikes = (names, np.transpose(values, order), {"units": "spikes"})
    coords = {} if time is None else {"time": time}
    data = xr.Dataset({"spikes": spikes, **variables}, coords)
    data.to_netcdf(path, engine="h5netcdf", encoding={"spikes": encoding or {}})
    return path


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("dims", [DIMS, *ALIKE])
@pytest.mark.parametrize(
    ("values", "encoding"),
    [
        (HOLES, {}),
        (HOLES, {"_FillValue": -9999.0}),
        (HOLES, {"dtype": "i2", "_FillValue": -1}),
        (HOLES, {"dtype": "u1", "_FillValue": 255, "zlib": True}),
        (HOLES, {"dtype": "i8", "missing_value": 2**60}),
        (COUNTS, {}),
    ],
)
def test_named_dimensions_come_in_any_order(order, dims, values, encoding, tmp_path):
    others = {dims[2]: (dims[2], NAMES), "condition": (dims[0], ["x", "y"] * 3)}
    others["bin_width"] = ((), 10.0, {"units": "ms"})
    others["spikes_mask"] = (tuple(dims[axis] for axis in (1, 0, 2)), MASK.transpose(1, 0, 2))
    data = read(netcdf(tmp_path / "r.nc", dims, order, values, encoding, **others))
    same(data, HOLES)
    assert data.bin_width == pytest.approx(0.01)
    assert data.time_start == pytest.approx(0.5)
    assert data.unit_ids.tolist() == NAMES
    assert data.condition.tolist() == [0, 1] * 3
    assert not data.notes


@pytest.mark.parametrize(
    "time",
    [
        ("time", TIME, {"units": "s"}),
        ("time", 1000 * TIME, {"units": "ms"}),
        ("time", 500 + np.arange(5) * 10, {"units": "Milliseconds"}),
        ("time", (TIME * 1e9).astype("m8[ns]")),
        ("time", np.datetime64("2024-05-01T10:00", "ns") + (TIME * 1e9).astype("m8[ns]")),
    ],
    ids=["s", "ms", "whole ms", "timedelta", "datetime"],
)
def test_times_of_bins_say_their_width(time, tmp_path):
    data = read(netcdf(tmp_path / "r.nc", time=time))
    assert data.bin_width == pytest.approx(0.01)
    with pytest.raises(InputError, match=r"bins are 0.01 s wide and data.bin_width is 0.03"):
        read(tmp_path / "r.nc", bin_width=0.03)


def test_dimensions_of_splits(tmp_path):
    dims = {name: (f"{name}_trial", "time", "unit") for name in ("train", "valid", "test")}
    parts = dict(zip(dims, np.split(HOLES, [3, 5]), strict=True))
    turned = {
        f"{name}_data": (dims[name][::-1], part.transpose(2, 1, 0)) for name, part in parts.items()
    }
    xr.Dataset(turned, {"time": TIME}).to_netcdf(tmp_path / "r.nc", engine="h5netcdf")
    data = read(tmp_path / "r.nc")
    same(data, HOLES)
    assert [len(s) for s in (data.train, data.valid, data.test)] == [3, 2, 1]
    assert data.bin_width == pytest.approx(0.01)


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 1, 0)])
def test_named_axes_of_what_is_given_as_input(order, tmp_path):
    with h5py.File(tmp_path / "r.h5", "w") as file:
        for name, counts in (("train", COUNTS[:4]), ("valid", COUNTS[4:])):
            file[f"{name}_recon_data"] = counts
            file[f"{name}_encod_data"] = counts[:, :4, :2].transpose(order)
            file[f"{name}_encod_data"].attrs["axes"] = [DIMS[axis] for axis in order]
    data = read(tmp_path / "r.h5", bin_width=0.01)
    given = np.zeros(COUNTS.shape[1:], bool)
    given[:4, :2] = True
    np.testing.assert_array_equal(data.given, given)


def test_a_width_that_is_none_is_said_to_be_of_the_file_once(tmp_path):
    with h5py.File(tmp_path / "r.h5", "w") as file:
        file["spikes"] = COUNTS
        file["spikes"].attrs["bin_width"] = -1
    expected = r"^\S+r.h5: bin_width is -1; expected one positive number$"
    with pytest.raises(InputError, match=expected):
        read(tmp_path / "r.h5")


def split_file(path, train, valid, **more):
    """Counts of two splits whose axes have coordinates of their own: train_time, valid_time, ..."""
    with h5py.File(path, "w") as file:
        for name, counts, own in (("train", COUNTS[:4], train), ("valid", COUNTS[4:], valid)):
            file[f"{name}_data"] = counts
            file[f"{name}_data"].attrs["axes"] = [f"{name}_{axis}" for axis in DIMS]
            for axis, values in own.items():
                file[f"{name}_{axis}"] = values
        for key, value in more.items():
            file[key] = value
    return path


@pytest.mark.parametrize(
    ("axis", "train", "valid", "words"),
    [
        ("unit", NAMES, NAMES[::-1], "train_unit and valid_unit differ (a and ccc at 0); expected"),
        ("unit", [1, 2, 3], [1, 2, 4], "differ (3 and 4 at 2); expected the same neurons in the"),
        ("time", TIME, TIME + 5, "train_time and valid_time differ (0.5 and 5.5 at 0); expected"),
        ("time", np.arange(5), np.arange(5) + 5, "expected the same times for all splits"),
    ],
)
def test_splits_of_other_neurons_or_times_are_not_joined(axis, train, valid, words, tmp_path):
    for more in ({}, {"unit_id": ["x", "y", "z"]}):
        path = split_file(tmp_path / "r.h5", {axis: train}, {axis: valid}, **more)
        with pytest.raises(InputError) as error:
            read(path)
        assert words in str(error.value)
    data = read(split_file(path, {axis: train}, {axis: train}), bin_width=0.01)
    same(data, COUNTS)
    assert data.unit_ids.tolist() == (list(train) if axis == "unit" else [0, 1, 2])


def test_trials_of_each_split_are_numbered(tmp_path):
    path = split_file(tmp_path / "r.h5", {"trial": [7, 2, 5, 9]}, {"trial": [1.0, 3.0]})
    data = read(path, bin_width=0.02)
    assert data.trial_numbers.tolist() == [7, 2, 5, 9, 1, 3]
    assert not data.notes
    path = split_file(tmp_path / "r.h5", {"trial": range(4)}, {"trial": range(2)})
    (note,) = read(path, bin_width=0.02).notes
    assert note == "trial_id is not read, since it is 4, and there are 6 trials"


def test_time_may_lie_along_an_axis_of_another_name(tmp_path):
    def through(dims, values, name="t", **more):
        time = (dims, values, {"units": "s"})
        return netcdf(tmp_path / "r.nc", ("trial", name, "unit"), time=time, **more)

    for more in ({}, {"t": ("t", np.arange(5))}):
        data = read(through("t", TIME, **more))
        assert data.bin_width == pytest.approx(0.01)
        assert data.time_start == pytest.approx(0.5)
        np.testing.assert_allclose(data.times, TIME)
        assert not data.notes
    data = read(through("trial", np.arange(6)), bin_width=0.02)
    assert data.notes == ("time lies along trial, and is not read; expected the time of each t",)


WRONG_TIMES = {
    "uneven": (
        ("time", [0, 1, 2, 4, 5], {"units": "s"}),
        r"time is not evenly spaced \(in steps of 1, but 2 after 2\)",
    ),
    "mV": (("time", TIME, {"units": "mV"}), "time is in 'mv', it says; expected a time"),
    "of no unit": (("time", 1000 * TIME), "time is in steps of 10 of no unit; say its unit"),
}


@pytest.mark.parametrize("case", WRONG_TIMES)
def test_times_of_bins_that_say_nothing_are_refused(case, tmp_path):
    time, words = WRONG_TIMES[case]
    with pytest.raises(InputError, match=rf"r\.nc: {words}"):
        read(netcdf(tmp_path / "r.nc", time=time))


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_an_array_of_times_says_the_bins_width_without_names_of_axes(suffix, tmp_path):
    path = save(tmp_path / f"r{suffix}", {"spikes": HOLES, "time": TIME, "unit_id": [4, 2, 9]})
    data = read(path)
    assert data.bin_width == pytest.approx(0.01)
    assert data.unit_ids.tolist() == [4, 2, 9]


def test_times_of_no_unit_are_milliseconds_where_the_bin_width_says_so(tmp_path):
    for known in ({"bin_width": 0.01}, {}):
        path = save(tmp_path / "r.npz", {"spikes": HOLES, "time": 1000 * TIME} | known)
        data = read(path, bin_width=0.01)
        assert (data.bin_width, data.time_start) == (0.01, pytest.approx(0.5))
    with pytest.raises(InputError, match=r"bins are 10 s wide and data.bin_width is 0.02 s"):
        read(path, bin_width=0.02)
    with pytest.raises(InputError, match="time is in steps of 10 of no unit; say its unit, or"):
        read(path)


def test_labels_of_dimensions(tmp_path):
    with h5py.File(tmp_path / "r.h5", "w") as file:
        file["spikes"] = HOLES.transpose(2, 0, 1)
        for dim, label in zip(file["spikes"].dims, ("neuron", "trial", "bin"), strict=True):
            dim.label = label
    same(read(tmp_path / "r.h5", bin_width=0.02), HOLES)


@pytest.mark.parametrize("name", ["axes", "dims", "_ARRAY_DIMENSIONS"])
@pytest.mark.parametrize(
    "axes",
    [
        "neuron bin trial",
        "unit, time, trial",
        "('neuron', 'time', 'trial')",
        ["neuron", "time", "trial"],
        np.array(["neuron", "time", "trial"], "S"),
    ],
)
def test_axes_in_an_attribute(name, axes, written):
    arrays = {"spikes": HOLES.T, "time": TIME, "spikes_mask": MASK.T}
    attrs = [(key, name, axes) for key in ("spikes", "spikes_mask")]
    same(written(arrays, [*attrs, ("time", name, ["time"])], BY), HOLES)


def test_a_shape_in_an_attribute_names_no_axes(written):
    same(written({"spikes": HOLES}, [("spikes", "dims", HOLES.shape)]), HOLES)


HEEDED = {
    "fill": ("_FillValue", -1),
    "fill of one": ("_FillValue", np.array([-1])),
    "missing": ("missing_value", -1.0),
    "several": ("missing_value", np.array([-1, -2])),
}


@pytest.mark.parametrize("case", HEEDED)
@pytest.mark.parametrize("dtype", ["i2", "f4", ">i8"])
def test_values_that_stand_for_nothing(case, dtype, written):
    values = np.nan_to_num(HOLES, nan=-1).astype(dtype)
    if case == "several":
        values[0][~MASK[0]] = -2
    same(written({"spikes": values}, [("spikes", *HEEDED[case])]), HOLES)


@pytest.mark.parametrize("key", ["spikes", "train_spikes_heldin"])
@pytest.mark.parametrize("dtype", ["f2", "f4", ">f4"])
def test_fill_values_are_of_the_type_of_the_values(key, dtype, written):
    values = np.nan_to_num(HOLES, nan=-999.9).astype(dtype)
    data = written({key: values}, [(key, "_FillValue", np.float64(-999.9))])
    same(data, HOLES)
    times = {"frame_times": 0.02 * np.arange(5), "sample_offsets": np.zeros(3)}
    if key == "spikes":
        data = written({key: values} | times, [(key, "_FillValue", np.float64(-999.9))])
        same(data, HOLES)


def test_fills_after_the_end_of_a_trial_are_allowed(written):
    values, rates = HOLES.copy(), np.full(HOLES.shape, np.nanmean(HOLES))
    values[1, 3:], rates[1, 3:] = np.nan, -1
    data = written({"spikes": values, "rates": rates}, [("rates", "_FillValue", -1.0)])
    np.testing.assert_allclose(data.rates[0], np.nanmean(HOLES), rtol=1e-6)
    assert not data.rates[1, 3:].any()
    same(
        written({"spikes": COUNTS, "spikes_mask": MASK}, [("spikes_mask", "_FillValue", 0)]), HOLES
    )


@pytest.mark.parametrize("unit", ["", "1", "spikes", "counts per bin", np.array([b"count"], "S5")])
def test_units_of_counts(unit, written):
    same(written({"spikes": HOLES}, [("spikes", "units", unit)]), HOLES)


def test_units_of_rates(written):
    arrays = {"spikes": COUNTS, "rates": np.full(COUNTS.shape, COUNTS.mean() * 50)}
    for unit in ("Hz", "spikes per second"):
        data = written(arrays, [("rates", "units", unit)])
        np.testing.assert_allclose(data.rates, COUNTS.mean(), rtol=1e-5)
        assert not data.notes
        with pytest.raises(InputError, match=r"in spikes/s, they say, and data.rates_unit counts"):
            written(arrays, [("rates", "units", unit)], {"rates_unit": "counts/bin"})


BY = {"bin_width": None}
REFUSED = {
    "rate": (
        [("spikes", "units", "Hz")],
        {},
        "spikes is in 'hz', it says; expected counts",
    ),
    "packed": ([("spikes", "scale_factor", 0.1)], {}, "spikes is packed (scale_factor 0.1)"),
    "packed rates": ([("rates", "add_offset", 1.0)], {}, "rates is packed (add_offset 1.0)"),
    "packed width": ([("bin_width", "scale_factor", 1e-3)], {}, "bin_width is packed (scale_fac"),
    "packed factor": ([("conversion_factor", "scale_factor", 0.1)], {}, "conversion_factor is pac"),
    "limits": ([("spikes", "valid_max", 9)], {}, "spikes says which of its values are valid"),
    "fill": ([("spikes", "_FillValue", "none")], {}, "spikes has the _FillValue 'none'; expected"),
    "rates": ([("rates", "units", "dB")], {}, "rates is in 'db', it says; expected one of"),
    "width": ([("bin_width", "units", "Hz")], {}, "bin_width is in 'hz', it says; expected a time"),
    "widths": (
        [("spikes", "bin_width", 0.03)],
        {},
        "0.03 s wide by an attribute, and bin_",
    ),
    "axes": ([("spikes", "axes", "a b c")], {}, "the axes of spikes are named a, b, c; expected"),
    "axes by number": (
        [("spikes", "axes", [2, 1, 0])],
        {},
        "spikes: its attribute axes is [2 1 0]; expected their names, such as trial, bin, neuron",
    ),
    "filled rates": (
        [("rates", "_FillValue", 1.0)],
        {},
        "true rates hold negative or non-finite values, or fill values",
    ),
    "filled mask": (
        [("spikes_mask", "_FillValue", 1)],
        {},
        "spikes_mask holds its fill value, 1; expected 6 x 5 x 3 booleans",
    ),
    "filled width": (
        [("bin_width", "_FillValue", 0.02)],
        {},
        "bin_width is its fill value, 0.02; expected one positive number",
    ),
    "filled factor": (
        [("conversion_factor", "missing_value", 1.0)],
        {},
        "conversion_factor is its fill value, 1; expected one positive number",
    ),
    "few axes": ([("spikes", "axes", "time unit")], {}, "the axes of spikes are named time, unit"),
    "mask": ([("spikes_mask", "axes", "x y z")], {}, "the axes of spikes_mask are named x, y, z"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_attributes_say_is_not_passed_over(case, written):
    attrs, how, words = REFUSED[case]
    arrays = {"spikes": HOLES, "spikes_mask": MASK, "rates": np.ones(MASK.shape), "bin_width": 0.02}
    arrays["conversion_factor"] = 1.0
    with pytest.raises(InputError) as error:
        written(arrays, attrs, how)
    assert words in str(error.value)
    assert "r.h5: " in str(error.value)
    assert "\n" not in str(error.value)


def test_the_first_name_of_some_says_where_the_others_are(written):
    partly = [("spikes", "DIMENSION_LABELS", np.array(["", "", "neuron"], "O"))]
    same(written({"spikes": HOLES}, partly), HOLES)
    turned = [("spikes", "DIMENSION_LABELS", np.array(["neuron", "", ""], "O"))]
    with pytest.raises(InputError, match="the axes of spikes are named neuron, , ; expected"):
        written({"spikes": HOLES.transpose(2, 0, 1)}, turned)


def test_a_bin_width_in_attributes_and_in_units(written):
    assert written({"spikes": HOLES}, how=BY, bin_width=0.01).bin_width == 0.01
    unit = {"bin_width": 10, "bin_width_unit": "ms"}
    assert written({"spikes": HOLES}, how=BY, **unit).bin_width == pytest.approx(0.01)
    assert written({"g/spikes": HOLES}, how=BY, **unit).bin_width == pytest.approx(0.01)
    own = [("spikes", "bin_width", 0.01)]
    assert written({"spikes": HOLES}, own, BY).bin_width == 0.01
    own = [("bin_width", "units", "msec")]
    assert written({"spikes": HOLES, "bin_width": 10}, own, BY).bin_width == pytest.approx(0.01)


def test_texts(written):
    names = {"unit_id": NAMES, "condition": np.array(["x", "y"] * 3, "S")}
    data = written({"spikes": HOLES, **names})
    assert data.unit_ids.tolist() == NAMES
    assert data.condition.tolist() == [0, 1] * 3


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_groups(suffix, tmp_path):
    def through(arrays, **how):
        return read(save(tmp_path / f"r{suffix}", arrays), **{"bin_width": 0.02, **how})

    one = {"a/b/spikes": COUNTS, "a/b/mask": MASK, "condition": np.arange(6) % 2}
    data = through(one)
    same(data, HOLES)
    assert data.condition.tolist() == [0, 1] * 3
    assert data.notes == ("read from the group a/b",)
    two = one | {"c/spikes": COUNTS, "c/spikes_mask": ~MASK}
    with pytest.raises(InputError, match=r"counts in 2 groups: c, a/b; name one .* a/b/spikes"):
        through(two)
    same(through(two, key="c/spikes"), np.where(MASK, np.nan, COUNTS))
    data = through(two | {"spikes": COUNTS})
    same(data, COUNTS)
    assert "counts in c, a/b are not read; choose with --data.key" in data.notes
    same(through(two | {"spikes": COUNTS, "spikes_mask": ~MASK}, key="a/b/spikes"), HOLES)
    with pytest.raises(InputError, match=r"no array 'd', which data.key names; there are a/b/mask"):
        through(two, key="d")
    data = through(
        {"train_data": COUNTS, "valid_data": COUNTS, "train_mask": MASK, "spikes": COUNTS}
    )
    assert "spikes is read, and train_data, valid_data beside it is not" in data.notes


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_counts_by_another_name(suffix, tmp_path):
    def through(arrays, **how):
        return read(save(tmp_path / f"r{suffix}", arrays), **{"bin_width": 0.02, **how})

    data = through({"g/binned": COUNTS, "g/binned_mask": MASK, "g/time": TIME}, bin_width=None)
    same(data, HOLES)
    assert data.bin_width == pytest.approx(0.01)
    assert data.notes == (
        "g/binned is taken for the spike counts, as the only array of three axes",
    )
    two = {"x": COUNTS, "y": COUNTS, "z": TIME, "x_mask": MASK}
    listed = r"there are x \(6 x 5 x 3\), x_mask \(6 x 5 x 3\), y \(6 x 5 x 3\), z \(5\)"
    with pytest.raises(InputError, match=rf"no spikes, and no train_data; {listed}; name the"):
        through(two)
    same(through(two, key="x"), HOLES)
    # The mask of other counts is not that of these.
    same(through({"spikes": COUNTS, "spikes_mask": ~MASK, "x": COUNTS}, key="x"), COUNTS)


@pytest.mark.parametrize(
    ("link", "sound"),
    [
        (h5py.SoftLink("/hidden/seen"), True),
        (h5py.SoftLink("/nowhere"), False),
        (h5py.ExternalLink("other.h5", "/mask"), True),
        (h5py.ExternalLink("gone.h5", "/mask"), False),
    ],
)
def test_links_are_followed_or_refused(link, sound, tmp_path):
    save(tmp_path / "other.h5", {"mask": MASK})
    save(tmp_path / "r.h5", {"spikes": COUNTS, "hidden/seen": MASK})
    with h5py.File(tmp_path / "r.h5", "r+") as file:
        file["spikes_mask"] = link
    if sound:
        same(read(tmp_path / "r.h5", bin_width=0.02), HOLES)
    else:
        with pytest.raises(InputError, match="spikes_mask is a link to what is not there"):
            read(tmp_path / "r.h5", bin_width=0.02)


def test_a_group_in_itself_is_read_once(tmp_path):
    with h5py.File(save(tmp_path / "r.h5", {"g/spikes": HOLES}), "r+") as file:
        file["g/again"] = file["g"]
        file["g/top"] = h5py.SoftLink("/")
    same(read(tmp_path / "r.h5", bin_width=0.02), HOLES)


def test_files_of_groups_alone_and_of_octave_are_refused(tmp_path):
    with h5py.File(tmp_path / "r.h5", "w") as file:
        file.create_group("a/b")
    with pytest.raises(InputError, match="no spikes, and no train_data; there are no arrays"):
        read(tmp_path / "r.h5")
    with h5py.File(tmp_path / "r.h5", "w") as file:
        file["spikes/value"] = HOLES.T
        file["spikes"].attrs["OCTAVE_NEW_FORMAT"] = 1
    with pytest.raises(InputError, match="spikes is as Octave writes HDF5, axes reversed; save"):
        read(tmp_path / "r.h5")


MORE = {
    "trial_id": (np.arange(5), "trial_id is 5 of int64; expected a number for each of 6 trials"),
    "trial_start": (np.array(["x"] * 6, "S"), "trial_start is 6 of"),
    "time_start": (np.array([1.0, 2.0]), "time_start is 2 of float64; expected one finite number"),
    "given": (np.full((5, 3), 2), "given holds values other than 0 and 1; expected 5 x 3 booleans"),
    "unit_id": (np.arange(4), "unit_id is 4 of int64; expected a number or name for each of 3"),
    "train_inds": (np.arange(6), "has train_inds and no valid_inds; expected both or none"),
    "spikes_mask": (MASK[..., 0], "spikes_mask is 6 x 5 of bool; expected 6 x 5 x 3 booleans"),
    "masks/mask": (MASK, "masks/mask belongs to none of spikes; expected spikes_mask"),
    "other_mask": (MASK, "other_mask belongs to none of spikes; expected spikes_mask"),
}


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
@pytest.mark.parametrize("key", MORE)
def test_arrays_that_do_not_fit_are_not_passed_over(key, suffix, tmp_path):
    value, words = MORE[key]
    with pytest.raises(InputError) as error:
        read(save(tmp_path / f"r{suffix}", {"spikes": HOLES, key: value}), bin_width=0.02)
    assert words in str(error.value)


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_masks_of_the_benchmarks_tensors_are_not_passed_over(suffix, tmp_path):
    arrays = {"train_spikes_heldin": COUNTS, "train_spikes_heldout": COUNTS}
    path = save(tmp_path / f"r{suffix}", arrays)
    assert read(path, bin_width=0.02).counts.shape == (6, 5, 6)
    save(path, arrays | {"train_spikes_heldin_mask": MASK})
    with pytest.raises(InputError, match="train_spikes_heldin_mask belongs to none of spikes"):
        read(path, bin_width=0.02)


def test_what_is_said_of_the_benchmarks_tensors_is_heeded(written):
    arrays = {"train_spikes_heldin": COUNTS.T, "train_spikes_heldout": COUNTS[..., :2].T}
    attrs = [(key, "axes", "neuron time trial") for key in arrays]
    attrs.append(("train_spikes_heldin", "bin_width", 0.005))
    data = written(arrays, attrs, BY)
    same(data, np.concatenate([COUNTS, COUNTS[..., :2]], 2))
    assert data.bin_width == pytest.approx(0.005)
    with pytest.raises(InputError, match=r"wide by an attribute, and bin_width is 0\.02"):
        written(arrays | {"bin_width": 0.02}, attrs, BY)


@pytest.mark.parametrize("name", ["Mask", "SPIKES_MASK", "Spikes_mask"])
@pytest.mark.parametrize("most", [1, 100])  # counts of 0 and 1 could be taken for a mask
def test_masks_are_known_in_any_case(name, most, written):
    counts = np.minimum(COUNTS, most)
    data = written({"spikes": counts, name: MASK.astype(int)})
    same(data, np.where(MASK, counts, np.nan))
    assert not data.notes
    splits = {"train_data": counts[:4], "valid_data": counts[4:]}
    splits |= {"Train_Mask": MASK[:4], "valid_mask": MASK[4:]}
    same(written(splits), np.where(MASK, counts, np.nan))


def test_arrays_that_are_called_masks_are_noted(written):
    for mask in (MASK.T, 2 * MASK):
        (note,) = written({"spikes": COUNTS, "mask_spikes": mask}).notes
        assert note.startswith("mask_spikes is ")
        assert note.endswith("a mask is 6 x 5 x 3 of booleans and called spikes_mask")


def test_a_key_that_is_a_split_chooses_it(written):
    arrays = {"spikes": COUNTS[:3], "mask": MASK[:3], "spikes_mask": MASK[:3]}
    arrays |= {"train_data": COUNTS[:4], "valid_data": COUNTS[4:]}
    data = written(arrays, how={"key": "train_data"})
    same(data, COUNTS)
    assert data.valid.tolist() == [4, 5]
    assert data.notes == ("train_data and its splits are read, and spikes beside it is not",)
    for key in ("valid_data", "test_data"):
        with pytest.raises(InputError, match=f"data.key names {key}, which is one split; name tra"):
            written(arrays | {"test_data": COUNTS}, how={"key": key})


def test_units_and_fills_of_small_arrays_are_heeded(written):
    starts = 1000.0 * np.arange(6)
    cue = np.array([0, 1, -1, 0, 1, -1], "i2")
    arrays = {"spikes": COUNTS, "trial_start": starts, "time_start": -200, "condition": cue}
    attrs = [(name, "units", "ms") for name in ("trial_start", "time_start")]
    data = written(arrays, [*attrs, ("condition", "_FillValue", -1)])
    np.testing.assert_allclose(data.trial_start, np.arange(6.0))
    assert data.time_start == pytest.approx(-0.2)
    assert data.condition.tolist() == [0, 1, -1, 0, 1, -1]
    assert data.condition_names.tolist() == [0, 1]
    starts[2] = np.nan
    with pytest.raises(InputError, match="trial_start is 6 of float64; expected finite numbers"):
        written(arrays)
    with pytest.raises(InputError, match="time_start is in 'spikes', it says; expected a time"):
        written({"spikes": COUNTS, "time_start": 1}, [("time_start", "units", "spikes")])
    with pytest.raises(InputError, match="unit_id is NaN or a fill value at 1; expected a number"):
        written({"spikes": COUNTS, "unit_id": [1.0, np.nan, 3.0]})
    with pytest.raises(InputError, match=r"condition is packed \(scale_factor 0.1\)"):
        written({"spikes": COUNTS, "condition": cue}, [("condition", "scale_factor", 0.1)])


def test_a_bin_width_is_said_once_or_twice_the_same(written):
    width = {"spikes": HOLES, "bin_width": 20.0}, [("bin_width", "units", "ms")]
    assert written(*width, BY, bin_width=0.02).bin_width == pytest.approx(0.02)
    with pytest.raises(InputError, match=r"bin_width: is 0\.02 s, and the attribute of that name"):
        written(*width, BY, bin_width=0.01)


def test_trials_are_numbered_by_whole_numbers_of_any_type(tmp_path):
    for values in (np.arange(6) + 3, np.arange(6) + 3.0):
        data = read(save(tmp_path / "r.h5", {"spikes": COUNTS, "trial": values}), bin_width=0.02)
        assert data.trial_numbers.tolist() == [3, 4, 5, 6, 7, 8]
        assert not data.notes
    for values in (np.arange(6) + 0.5, ["a"] * 6):
        data = read(save(tmp_path / "r.h5", {"spikes": COUNTS, "trial": values}), bin_width=0.02)
        assert data.notes == ("trial is not read, since it is not of whole numbers",)


def test_trials_of_splits_are_numbered(tmp_path):
    def through(**more):
        split = {"train_data": COUNTS[:4], "valid_data": COUNTS[4:]}
        return read(save(tmp_path / "r.h5", split | more), bin_width=0.02)

    ids = np.array([9, 4, 7, 2, 30, 1])
    data = through(trial_id=ids)
    assert data.trial_numbers.tolist() == ids.tolist()
    assert data.valid.tolist() == [4, 5]
    same(data, COUNTS)
    data = through(trial_id=ids[:4])
    assert data.notes == ("trial_id is not read, since it is 4, and there are 6 trials",)
    inds = {"train_inds": np.arange(4), "valid_inds": np.array([4, 5])}
    data = through(trial_id=ids, **inds)
    assert data.trial_numbers.tolist() == list(range(6))
    (note,) = data.notes
    assert note == "trial_id is not read, since train_inds and valid_inds number the trials"


@pytest.mark.parametrize(
    ("name", "words"),
    [("neuron", "the name of each of 3 neurons"), ("trial", "the number of each of 6 trials")],
)
def test_coordinates_that_do_not_fit_are_noted(name, words, tmp_path):
    path = save(tmp_path / "r.h5", {"spikes": COUNTS, name: np.arange(4)})
    data = read(path, bin_width=0.02)
    assert data.notes == (f"{name} is 4, and not read; expected {words}",)


def test_times_of_each_trial_are_said_not_to_be_read(tmp_path):
    path = save(tmp_path / "r.npz", {"spikes": COUNTS, "time": np.tile(TIME, (6, 1))})
    data = read(path)
    assert data.notes[0] == "time is 6 x 5, and not read; expected the time of each of 5 bins"


def test_a_mask_of_xarray_by_another_name_is_not_passed_over(tmp_path):
    path = netcdf(tmp_path / "r.nc", values=COUNTS, seen=(DIMS, MASK))
    with pytest.raises(InputError, match="seen is true or false for each of spikes; if it is true"):
        read(path)


def test_names_may_be_bytes(tmp_path):
    names = np.array([b"u0", b"u1", b"u2"])
    path = save(
        tmp_path / "r.npz", {"spikes": COUNTS, "unit_id": names, "condition": names.repeat(2)}
    )
    data = read(path, bin_width=0.02)
    assert data.unit_id.tolist() == data.condition_names.tolist() == ["u0", "u1", "u2"]


def test_bin_widths_may_differ_by_what_times_are_rounded_to(tmp_path):
    path = netcdf(tmp_path / "r.nc", time=("time", np.arange(5) / 60, {"units": "s"}))
    assert read(path, bin_width=1 / 60).bin_width == pytest.approx(1 / 60, rel=1e-4)
    with pytest.raises(InputError, match=r"its bins are 0\.0166667 s wide and data\.bin_width is"):
        read(path, bin_width=0.017)


@pytest.mark.parametrize("fill", [-1, 255, np.nan, 7])
def test_what_was_never_written_is_not_observed(fill, tmp_path):
    dtype = "f4" if fill is np.nan else "i2"
    with h5py.File(tmp_path / "r.h5", "w") as file:
        file.create_dataset("spikes", COUNTS.shape, dtype, chunks=(1, 5, 3), fillvalue=fill)
        file["spikes"][:4] = COUNTS[:4]
        file.create_dataset("condition", (6,), "i2", fillvalue=-1)[:4] = [0, 1, 0, 1]
    data = read(tmp_path / "r.h5", bin_width=0.02)
    same(data, np.where(np.arange(6)[:, None, None] < 4, COUNTS, np.nan))
    assert data.condition.tolist() == [0, 1, 0, 1, -1, -1]


@pytest.mark.parametrize("fill", [None, 0])
def test_zeros_are_counts_whoever_chose_the_fill_value(fill, tmp_path):
    with h5py.File(tmp_path / "r.h5", "w") as file:
        file.create_dataset("spikes", data=COUNTS, dtype="u1", fillvalue=fill)
    same(read(tmp_path / "r.h5", bin_width=0.02), COUNTS)


def test_bytes_that_a_netcdf_library_fills_with_are_values(tmp_path):
    counts = COUNTS.copy()
    counts[1, 1, 1] = 255
    with h5py.File(tmp_path / "r.h5", "w") as file:
        file.attrs["_NCProperties"] = "version=2,netcdf=4.9.2"
        file.create_dataset("spikes", data=counts, dtype="u1", fillvalue=255)
    same(read(tmp_path / "r.h5", bin_width=0.02), counts)


def virtual(path, names, fill=None, parts=3):
    """Counts whose trials are in several files, two in each."""
    layout = h5py.VirtualLayout(COUNTS.shape, "i8")
    for part, name in enumerate(names[:parts]):
        rows = slice(2 * part, 2 * part + 2)
        layout[rows] = h5py.VirtualSource(name, "counts", (2, 5, 3))
        with h5py.File(path.with_name(name), "w") as file:
            file.create_dataset("counts", data=COUNTS[rows], chunks=True, maxshape=(None, 5, 3))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("spikes", layout, fillvalue=fill)


def without_dataset(path):
    with h5py.File(path, "r+") as file:
        del file["counts"]


def shortened(path):
    with h5py.File(path, "r+") as file:
        file["counts"].resize((1, 5, 3))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.unlink(), "counts of b.h5, which it is made of, is not there"),
        (without_dataset, "counts of b.h5, which it is made of, is not there"),
        (shortened, "counts of b.h5, which it is made of, is 1 x 5 x 3, and too small"),
    ],
)
def test_values_in_other_files_have_to_be_there(change, words, tmp_path):
    path, names = tmp_path / "r.h5", ["a.h5", "b.h5", "c.h5"]
    virtual(path, names)
    same(read(path, bin_width=0.02), COUNTS)
    change(tmp_path / "b.h5")
    with pytest.raises(InputError, match=rf"r\.h5: spikes: {words}"):
        read(path, bin_width=0.02)


def test_a_fill_value_says_what_is_not_there(tmp_path):
    virtual(tmp_path / "r.h5", ["a.h5", "b.h5", "c.h5"], fill=-1)
    (tmp_path / "b.h5").unlink()
    gone = np.isin(np.arange(6), (2, 3))[:, None, None]
    same(read(tmp_path / "r.h5", bin_width=0.02), np.where(gone, np.nan, COUNTS))


def test_every_value_has_to_have_a_source(tmp_path):
    virtual(tmp_path / "r.h5", ["a.h5", "b.h5"])
    with pytest.raises(InputError, match="spikes: it has 90 values, and sources of 60"):
        read(tmp_path / "r.h5", bin_width=0.02)


def test_an_external_file_has_to_be_whole(tmp_path):
    raw = tmp_path / "raw.bin"
    COUNTS.astype("i4").tofile(raw)
    with h5py.File(tmp_path / "r.h5", "w") as file:
        where = [(str(raw), 0, 100), (str(raw), 100, h5py.h5f.UNLIMITED)]
        file.create_dataset("spikes", COUNTS.shape, "i4", external=where)
    same(read(tmp_path / "r.h5", bin_width=0.02), COUNTS)
    raw.write_bytes(raw.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"spikes: its file .*raw\.bin is cut short"):
        read(tmp_path / "r.h5", bin_width=0.02)
    raw.unlink()
    with pytest.raises(InputError, match="unable to open external raw data file"):
        read(tmp_path / "r.h5", bin_width=0.02)


def test_names_of_an_enumeration(tmp_path):
    names = h5py.enum_dtype({"LEFT": 0, "RIGHT": 1}, "i1")
    seen = h5py.enum_dtype({"MISSING": 0, "OBSERVED": 1}, "i1")
    with h5py.File(tmp_path / "r.h5", "w") as file:
        file["spikes"] = COUNTS
        file.create_dataset("condition", data=[1, 0] * 3, dtype=names)
        file.create_dataset("spikes_mask", data=MASK, dtype=seen)
        file["hit"] = np.arange(6) % 3 == 0
    data = read(tmp_path / "r.h5", bin_width=0.02)
    same(data, HOLES)
    assert data.condition_names.tolist() == ["LEFT", "RIGHT"]
    assert data.condition.tolist() == [1, 0] * 3
    data = read(tmp_path / "r.h5", bin_width=0.02, condition="hit")
    assert data.condition_names.tolist() == [False, True]
