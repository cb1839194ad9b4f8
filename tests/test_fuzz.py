"""Files and objects that nobody meant to make: 4,300 of them, each refused with an InputError or
read soundly.

A mutated file may still be a recording, or settings. Then what comes out must be valid. Any other
exception than InputError is a failure.
"""

import io
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from conftest import ROOT, save
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matlab_files import save5, save73

from sbtt_jax import config, recipes
from sbtt_jax.data.objects import Recording
from sbtt_jax.data.recording import assemble, read
from sbtt_jax.errors import InputError
from sbtt_jax.run.folder import RunFolder

# The same inputs each time, however long they take.
EVERY_TIME = {"deadline": None, "derandomize": True, "database": None}
EVERY_TIME["suppress_health_check"] = list(HealthCheck)


def recording():
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.6, (6, 4, 3)).astype(np.float32)
    counts[rng.random(counts.shape) < 0.2] = np.nan
    rates = np.full(counts.shape, 0.6, np.float32)
    arrays = {"train_data": counts[:4], "valid_data": counts[4:]}
    arrays |= {"train_truth": rates[:4], "valid_truth": rates[4:]}
    return arrays | {"conversion_factor": np.float64(1)}


@st.composite
def mutated(draw, content):
    """A few bytes changed, and perhaps a piece cut out, doubled or missing at the end."""
    out = bytearray(content)
    for _ in range(draw(st.integers(0, 6))):
        out[draw(st.integers(0, len(out) - 1))] = draw(st.integers(0, 255))
    how = draw(st.sampled_from(["no more", "cut", "end", "double"]))
    start = draw(st.integers(0, len(out) - 1))
    stop = min(len(out), start + draw(st.integers(1, 64)))
    if how == "cut":
        del out[start:stop]
    elif how == "end":
        del out[start:]
    elif how == "double":
        out[start:start] = out[start:stop]
    return bytes(out)


def check_read(path):
    """Refused in one line that names the file, or read soundly."""
    try:
        data = read(path, bin_width=0.02, rates_unit="counts/bin")
    except InputError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
        return False
    check_sound(data)
    return True


def check_sound(data):
    """A data set that training could take as it is."""
    assert data.counts.ndim == 3
    assert data.counts.dtype in (np.uint8, np.uint16)
    assert data.observed.shape == data.counts.shape
    assert data.counts[data.observed].any()
    assert not data.counts[~data.observed].any()
    trials = np.concatenate([data.train, data.valid, *([] if data.test is None else [data.test])])
    np.testing.assert_array_equal(np.sort(trials), np.arange(len(data.counts)))
    assert min(len(data.train), len(data.valid)) > 0
    if data.rates is not None:
        assert data.rates.shape == data.counts.shape
        assert np.isfinite(data.rates[data.observed]).all()
    assert 0 < data.bin_width < np.inf
    assert np.isfinite(data.time_start)
    assert len(data.unit_ids) == data.neurons
    for each in (data.condition, data.trial_start, data.trial_numbers):
        assert each is None or each.shape == (len(data.counts),)


DTYPES = ["u1", "i2", "i8", "u8", "f2", "f4", "f8", ">f4", "c8", "bool", "S3", "U2", "M8[s]"]


@st.composite
def odd_array(draw):
    """An array that is rarely a recording: any shape and type, values out of range."""
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    if dtype.kind not in "iufc":
        return np.zeros(shape, dtype)
    values = [0, 1, 2, 300, 70_000, -1, 0.5, 1e30, -np.inf, np.inf, np.nan]
    fill = draw(st.lists(st.sampled_from(values), min_size=1, max_size=5))
    with np.errstate(all="ignore"):
        return np.resize(np.array(fill), shape).astype(dtype)


KEYS = ["train_data", "valid_data", "train_truth", "valid_truth", "spikes", "rates"]
KEYS += ["conversion_factor", "bin_width", "mask", "something", "time", "time_start", "given"]
KEYS += ["unit_id", "trial_id", "trial_start", "condition", "train_inds", "valid_inds", "test_data"]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(max_examples=500, **EVERY_TIME)
@given(
    arrays=st.dictionaries(st.sampled_from(KEYS), odd_array(), max_size=5),
    kept=st.sets(st.sampled_from(sorted(recording()))),
    as_npz=st.booleans(),
)
def test_arrays_that_are_not_a_recording(arrays, kept, as_npz, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / ("odd.npz" if as_npz else "odd.h5")
    arrays = {key: value for key, value in recording().items() if key in kept} | arrays
    if not as_npz:  # which has no such types
        arrays = {key: value for key, value in arrays.items() if value.dtype.kind not in "UM"}
    check_read(save(path, arrays))


def labelled(values, **how):
    """As of xarray and pandas, but with any names and attributes, and some of them missing."""
    made = SimpleNamespace(values=values, shape=values.shape, ndim=values.ndim, dtype=values.dtype)
    vars(made).update(how)
    return made


NAMES = st.sampled_from(["trial", "time", "unit", "neuron", "x", ""])
SAYS = st.dictionaries(
    st.sampled_from(["units", "_FillValue", "missing_value", "scale_factor", "bin_width"]),
    st.sampled_from(["ms", "spikes", "x", None, 1, 0.02, -1.0, np.nan, b"s", [1, 2], {}, object()]),
)
OBJECTS = st.recursive(
    odd_array()
    | st.builds(np.ma.masked_invalid, odd_array().filter(lambda values: values.dtype.kind in "iuf"))
    | st.builds(labelled, odd_array(), attrs=SAYS, units=st.sampled_from(["ms", "", None, 3]))
    | st.builds(labelled, odd_array(), columns=odd_array(), index=odd_array())
    | st.builds(labelled, odd_array(), t=odd_array(), time_support=odd_array())
    | st.builds(labelled, odd_array(), start=odd_array(), end=odd_array())
    | st.sampled_from([None, "spikes", 0.02, 3, {}, [], object(), np.timedelta64(20, "ms"), len])
    | st.lists(st.integers(0, 3) | st.floats(0, 2), max_size=4),
    lambda some: (
        st.lists(some, max_size=4)
        | st.dictionaries(st.integers(0, 3) | st.text(max_size=2), some, max_size=3)
    ),
    max_leaves=5,
)
KNOWN = ["bin_width", "condition", "trials", "observed", "unit_id"]


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=800, **EVERY_TIME)
@given(
    spikes=OBJECTS | st.just(recording()["train_data"]) | st.just({"a": [0.1, 0.5], "b": [0.3]}),
    known=st.dictionaries(st.sampled_from(KNOWN), OBJECTS, max_size=2),
    width=st.sampled_from([0.02, None]),
    chop=st.sampled_from([None, 0.04]),
)
def test_objects_that_are_not_a_recording(spikes, known, width, chop):
    try:
        made = Recording(spikes, **{"bin_width": width} | known)
        data = assemble(made.arrays, chop=chop)
    except InputError as error:
        assert "array" in str(error)
        assert "\n" not in str(error)
    else:
        check_sound(data)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=200, **EVERY_TIME)
@given(
    values=odd_array().filter(lambda values: values.ndim in (2, 3) and values.dtype.kind in "iuf"),
    names=st.permutations(["trial", "time", "unit", "x"]),
    attrs=SAYS,
    time=odd_array(),
    of_time=SAYS,
)
def test_labelled_arrays_that_are_not_a_recording(values, names, attrs, time, of_time):
    xarray = pytest.importorskip("xarray")
    dims = names[: values.ndim]
    length = dict(zip(dims, values.shape, strict=True)).get("time", 0)
    coords = {}
    if time.size and "time" in dims:
        coords = {"time": ("time", np.resize(time, length), of_time)}
    spikes = xarray.DataArray(values, dims=dims, coords=coords, attrs=attrs)
    try:
        data = assemble(Recording(spikes).arrays, chop=0.04 if values.ndim == 2 else None)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        check_sound(data)


@pytest.mark.parametrize("shape", [(2**20, 2**10, 2**10), (2**40,), (2**62, 2**62, 2**62)])
def test_a_header_that_claims_more_than_the_file_holds(shape, tmp_path):
    header, sound = io.BytesIO(), io.BytesIO()
    claim = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, claim)
    np.save(sound, np.ones((2, 2, 2)))
    path = tmp_path / "claims.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("train_data.npy", header.getvalue() + bytes(64))
        file.writestr("valid_data.npy", sound.getvalue())
    with pytest.raises(InputError, match=r"cannot be read: train_data.* declares .* and holds 64"):
        read(path, bin_width=0.02)


def check_load(path):
    """Refused in one line that names the file, or settings that come back as they are."""
    try:
        loaded = recipes.load(path)
    except InputError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
        assert len(str(error)) < 5000
        return False
    path.write_text(recipes.dump(loaded), encoding="utf-8")
    assert recipes.load(path) == loaded
    return True


def check_history(path):
    try:
        rows = RunFolder(path.parent).read_history()
    except InputError as error:
        assert "history.csv" in str(error)
        return False
    content = path.read_bytes()
    assert len(rows) <= content.count(b"\n") + content.count(b"\r")
    return True


DATA = {"counts": "ab", "rates": None}
RECORD = {"layout": recipes.LAYOUT, "versions": {"jax": "0.10"}, "data": DATA}
SETTINGS = recipes.dump(recipes.load(ROOT / "configs" / "lorenz.yaml"), RECORD).encode()
HISTORY = (
    b"bandwidth,seed,epoch,train_nll,valid_nll,train_r2,valid_r2,heldout_nll,status\n"
    b"29,0,0,0.5,0.25,,-1.5,0.75,ok\n29,0,1,0.5,0.25,,-1.5,0.75,retried\n3,0,1,,,,,,failed\n"
)


def for_matlab():
    own = recording()
    cells = [own["train_data"][0], own["train_data"][1, :2]]
    return own | {"condition": list("abcabc"), "s": {"x": 1.0, "cells": cells, "mask": []}}


def save_netcdf(path):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    counts = np.concatenate([recording()["train_data"], recording()["valid_data"]])
    spikes = ("unit", "trial", "time"), counts.transpose(2, 0, 1), {"units": "spikes"}
    coords = {"time": 0.02 * np.arange(4), "unit": ["a", "b", "c"]}
    data = xarray.Dataset({"spikes": spikes, "condition": ("trial", list("xyxyxy"))}, coords)
    data.to_netcdf(path, engine="h5netcdf", encoding={"spikes": {"dtype": "i2", "_FillValue": -1}})


def save_nwb(path):
    pytest.importorskip("pynwb")
    from test_nwb import write_nwb

    write_nwb(path)


FILES = {
    f"{name}{suffix}": (partial(save, arrays=recording(), **how), 250, check_read)
    for suffix in (".npz", ".h5")
    for name, how in {"plain": {}, "compressed": {"compression": "gzip"}}.items()
}
FILES["v5.mat"] = partial(save5, values=for_matlab(), compress=False), 300, check_read
FILES["compressed.mat"] = partial(save5, values=for_matlab()), 200, check_read
FILES["v73.mat"] = partial(save73, values=for_matlab()), 200, check_read
FILES["netcdf.nc"] = save_netcdf, 200, check_read
FILES["session.nwb"] = save_nwb, 60, check_read
FILES["settings.yaml"] = partial(Path.write_bytes, data=SETTINGS), 500, check_load
FILES["history.csv"] = partial(Path.write_bytes, data=HISTORY), 100, check_history


@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize("name", FILES)
def test_bytes(name, tmp_path):
    write, examples, check = FILES[name]
    path = tmp_path / name
    write(path)
    sound = path.read_bytes()
    assert check(path)  # before it is mutated

    @settings(max_examples=examples, **EVERY_TIME)
    @given(content=mutated(sound))
    def check_all(content):
        path.write_bytes(content)
        check(path)

    check_all()


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
ODD = st.recursive(
    PLAIN | st.dates() | st.binary(max_size=4),
    lambda some: (
        st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=5), some, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=300, **EVERY_TIME)
@given(group=st.sampled_from([None, "data", "model", "train", "provenance"]), draw=st.data())
def test_values_of_settings(group, draw, tmp_path_factory):
    values = config.Settings().model_dump(mode="json") | {"provenance": dict(RECORD)}
    inside = values if group is None else values[group]
    inside[draw.draw(st.sampled_from(list(inside)) | st.text(max_size=6))] = draw.draw(ODD)
    path = tmp_path_factory.getbasetemp() / "values.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    check_load(path)


BOMB = "a0: &a0 [x, x]\n"
BOMB += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "aliases"),
        ("seeds: &s [0, *s]", "aliases"),
        ("[" * 100_000, "levels deep"),
        ("a: " * 5, "not YAML"),
        ("seeds: [" + "1" * 10_000 + "]", "not YAML"),
        ("seeds: [0]\nseeds: [1]", "named twice: seeds"),
        ("train: {epochs: 3, epochs: 4}", "named twice: epochs"),
        ("seeds: [0]\n" + "#" * 2**21, "too large"),
        ("data: {path: 2001-13-41}", "not YAML"),
        ("? [a, b]\n: 1", "settings file"),
        ("? {a: b}\n: 1", "not YAML"),
        ("!!python/name:os.system", "not YAML"),
        ("train: {epochs: 1e400}", "train.epochs"),
    ],
    ids=lambda text: repr(text[:20]),
)
def test_hostile_settings_are_refused(text, words, tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        recipes.load(path)
    assert words in str(error.value)
    assert len(str(error.value)) < 5000
