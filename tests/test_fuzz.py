"""Files that nobody meant to write: 2,400 of them, each refused with an InputError or read soundly.

A mutated file may still be a recording, or settings. Then what comes out must be valid. Any other
exception than InputError is a failure.
"""

import io
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, save
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sbtt_jax import config
from sbtt_jax.data.recording import read
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
    """Refused, or a data set that training could take as it is."""
    try:
        data = read(path, bin_width=0.02, rates_unit="counts/bin")
    except InputError as error:
        assert str(path) in str(error)
        return False
    assert data.counts.ndim == 3
    assert data.counts.dtype in (np.uint8, np.uint16)
    assert data.observed.shape == data.counts.shape
    assert data.counts[data.observed].any()
    assert not data.counts[~data.observed].any()
    trials = np.concatenate([data.train, data.valid])
    np.testing.assert_array_equal(np.sort(trials), np.arange(len(data.counts)))
    assert min(len(data.train), len(data.valid)) > 0
    if data.rates is not None:
        assert data.rates.shape == data.counts.shape
        assert np.isfinite(data.rates[data.observed]).all()
    return True


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
KEYS += ["conversion_factor", "bin_width", "mask", "something"]


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
        loaded = config.load(path)
    except InputError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
        assert len(str(error)) < 5000
        return False
    path.write_text(config.dump(loaded), encoding="utf-8")
    assert config.load(path) == loaded
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
RECORD = {"layout": config.LAYOUT, "versions": {"jax": "0.10"}, "data": DATA}
SETTINGS = config.dump(config.load(ROOT / "configs" / "lorenz.yaml"), RECORD).encode()
HISTORY = (
    b"bandwidth,seed,epoch,train_nll,valid_nll,train_r2,valid_r2,heldout_nll,status\n"
    b"29,0,0,0.5,0.25,,-1.5,0.75,ok\n29,0,1,0.5,0.25,,-1.5,0.75,retried\n3,0,1,,,,,,failed\n"
)
FILES = {
    f"{name}{suffix}": (partial(save, arrays=recording(), **how), 250, check_read)
    for suffix in (".npz", ".h5")
    for name, how in {"plain": {}, "compressed": {"compression": "gzip"}}.items()
}
FILES["settings.yaml"] = partial(Path.write_bytes, data=SETTINGS), 500, check_load
FILES["history.csv"] = partial(Path.write_bytes, data=HISTORY), 100, check_history


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
        config.load(path)
    assert words in str(error.value)
    assert len(str(error.value)) < 5000
