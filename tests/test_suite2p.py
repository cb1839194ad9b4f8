"""Folders of Suite2p: read as they are meant, and without executing what their pickles name."""

import datetime
import pickle
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from conftest import Trap

from sbtt_jax import config, recipes
from sbtt_jax.data import readers, recording
from sbtt_jax.data.frames import bin_frames
from sbtt_jax.data.suite2p import array_of, unpickled
from sbtt_jax.errors import InputError
from sbtt_jax.observations import POISSON
from sbtt_jax.run.inspect import inspect

ROWS, FRAMES, RATE, PLANES = 512, 400, 15.0, 2
REAL = POISSON._replace(dtype=np.float32, invalid=lambda values: [], expected="numbers")


def roi(row):
    """What Suite2p says of a region, in part."""
    y = row + np.arange(-4, 5)
    pixels = {"ypix": y, "xpix": y + 7, "lam": np.ones(9, np.float32), "med": [row, row + 7]}
    return pixels | {"npix": 9, "skew": np.float32(1.5), "overlap": np.zeros(9, bool)}


def options(**others):
    ops = {"fs": RATE, "nplanes": PLANES, "Ly": ROWS, "Lx": np.int64(512), "do_registration": True}
    ops |= {"meanImg": np.ones((4, 4), np.float32), "yrange": [2, 510], "filelist": np.array(["a"])}
    now = datetime.datetime(2024, 5, 1).astimezone()
    return ops | {"date_proc": now, "save_path": Path("/data"), "timing": {"total": 3.5}} | others


@pytest.fixture
def folder(tmp_path):
    """A plane with six ROIs, of which four are cells."""
    rng, path = np.random.default_rng(0), tmp_path / "suite2p" / "plane0"
    path.mkdir(parents=True)
    for name in ("spks", "F", "Fneu"):
        np.save(path / f"{name}.npy", rng.poisson(1.0, (6, FRAMES)).astype(np.float32))
    is_cell = np.array([1, 0, 1, 1, 0, 1])
    np.save(path / "iscell.npy", np.stack([is_cell, 0.3 + 0.5 * is_cell], axis=1))
    np.save(path / "stat.npy", [roi(row) for row in (10, 400, 100, 256, 30, 500)])
    np.save(path / "ops.npy", options())
    return path


def seen(data):
    session = data.session
    return np.where(session.observed, session.counts, np.nan)


def expected(values, rows=(10, 100, 256, 500)):
    offsets = np.array(rows) / ROWS / RATE / PLANES
    return bin_frames(values, np.arange(FRAMES) / RATE, offsets, 0.01)


def test_cells_are_read_in_bins(folder):
    data = recording.read(folder, bin_width=0.01, chop=1.0)
    spikes = np.load(folder / "spks.npy")[[0, 2, 3, 5]].T
    np.testing.assert_array_equal(seen(data), expected(spikes))
    assert data.unit_id.tolist() == [0, 2, 3, 5]
    assert any("512 rows of the plane" in n and "over 33.33 ms" in n for n in data.notes)
    fluorescence = recording.read(folder, bin_width=0.01, chop=1.0, key="F")
    np.testing.assert_array_equal(
        seen(fluorescence), expected(np.load(folder / "F.npy")[[0, 2, 3, 5]].T)
    )


def test_fluorescence_may_be_missing(folder):
    before = seen(recording.read(folder, bin_width=0.01, chop=1.0))
    for name in ("F.npy", "Fneu.npy"):
        (folder / name).unlink()
    after = seen(recording.read(folder, bin_width=0.01, chop=1.0))
    np.testing.assert_array_equal(after, before)


BAD = np.arange(FRAMES) % 9 == 2


@pytest.mark.parametrize(
    "said", [BAD, BAD.astype(int), np.flatnonzero(BAD), np.flatnonzero(BAD)[::-1].tolist()]
)
def test_bad_frames_are_not_observed(said, folder):
    bad = BAD
    np.save(folder / "ops.npy", options(badframes=said))
    data = recording.read(folder, bin_width=0.01, chop=1.0)
    spikes = np.load(folder / "spks.npy")[[0, 2, 3, 5]].T
    np.testing.assert_array_equal(seen(data), expected(np.where(bad[:, None], np.nan, spikes)))
    assert f"{bad.sum()} of 400 frames are bad (badframes) and not observed" in data.notes


@pytest.mark.parametrize("said", [None, [], np.zeros(FRAMES, bool)])
def test_no_bad_frames(said, folder):
    before = seen(recording.read(folder, bin_width=0.01, chop=1.0))
    np.save(folder / "ops.npy", options(badframes=said))
    data = recording.read(folder, bin_width=0.01, chop=1.0)
    np.testing.assert_array_equal(seen(data), before)
    assert not any("badframes" in note for note in data.notes)


def test_all_planes_as_one_mosaic_are_refused(folder):
    other = folder.rename(folder.with_name("combined"))
    with pytest.raises(InputError, match=r"one mosaic, .*; give one plane, such as suite2p/plane0"):
        recording.read(other, bin_width=0.01, chop=1.0)


@pytest.mark.parametrize("given", ["spks.npy", "..", "../.."])
def test_what_is_beside_the_folder_of_a_plane_names_it(folder, given):
    remedy = r"; of Suite2p, give the folder of a plane, .*plane0$"
    with pytest.raises(InputError, match=remedy):
        recording.read((folder / given).resolve(), bin_width=0.01, chop=1.0)


def test_events_are_real_values_which_are_no_counts(folder):
    events = np.random.default_rng(1).gamma(0.3, 20.0, (6, FRAMES)).astype(np.float32)
    np.save(folder / "spks.npy", events)
    with pytest.raises(InputError, match=r"spikes holds a fractional count, .*model\.observation"):
        recording.read(folder, bin_width=0.01, chop=1.0)
    data = recording.read(folder, bin_width=0.01, chop=1.0, observation=REAL)
    np.testing.assert_array_equal(seen(data), expected(events[[0, 2, 3, 5]].T))


def test_a_folder_is_inspected_like_a_file(folder):
    own = {"path": str(folder), "chop": 1.0, "bin_width": 0.02}
    settings = config.updated(recipes.load(recipes.named("recording")), data=own)
    lines = list(inspect(settings))
    assert any(line.startswith("  neurons      4: ") for line in lines)
    assert any(line.split() == ["spikes", "400", "x", "4", "float32"] for line in lines)
    with pytest.raises(InputError, match="per frame; give data"):
        recording.read(folder, chop=1.0)
    with pytest.raises(InputError, match=r"data\.units is for NWB files, and this is Suite2p"):
        recording.read(folder, chop=1.0, units="a=b")
    with pytest.raises(InputError, match=r"suite2p: a folder; give an .* or Suite2p recording"):
        recording.read(folder.parent)


def test_what_pickles_hold_is_decoded(tmp_path):
    values = [
        np.arange(6, dtype=">i2").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(["a", "bcd"]),
        np.array([b"a", b"bcd"]),
        np.float32(2.5),
        np.array([True, False]),
        np.array(7),
        np.zeros((0, 3), np.uint8),
        [1, 2.5, 3],
    ]
    for protocol in (3, 4):
        path = tmp_path / f"{protocol}.npy"
        np.save(path, np.zeros((2, 1), object))
        header = path.read_bytes()[:128]
        nested = np.array([[{"values": values}], [None]], object)
        path.write_bytes(header + pickle.dumps(nested, protocol))
        found = unpickled(path)
        assert found.shape == (2, 1)
        for value, own in zip(values, found[0, 0]["values"], strict=True):
            own = array_of(own)
            np.testing.assert_array_equal(own, value)
            assert own.dtype.kind == np.asarray(value).dtype.kind


class Calls:
    """What a pickle would call."""

    def __init__(self, function, *arguments):
        self.how = function, arguments

    def __reduce__(self):
        return self.how


@pytest.mark.parametrize(
    ("planted", "name"),
    [
        (Trap(), "holds a _pytest.outcomes"),
        (Calls(eval, "1 + 1"), "holds a builtins.eval"),
        (Calls(getattr, "a", "upper"), "holds a builtins.getattr"),
        (Calls(np.load, "other.npy"), "holds a numpy.load"),
        (np.ma.array([1]), "holds a numpy.ma.core._mareconstruct"),
        (np.random.default_rng(0), "holds a numpy.random"),
    ],
)
def test_a_pickle_that_would_call_something_is_refused(folder, planted, name):
    np.save(folder / "ops.npy", options(planted=planted))
    with pytest.raises(InputError, match=name) as error:
        recording.read(folder, bin_width=0.01, chop=1.0)
    assert str(error.value).startswith(str(folder / "ops.npy"))
    assert "\n" not in str(error.value)


def saved(name, value):
    return lambda folder: np.save(folder / name, value)


WRONG = [
    (saved("iscell.npy", np.zeros((6, 2))), "says that none of 6 ROIs is a cell"),
    (saved("iscell.npy", np.ones((5, 2))), "iscell.npy is of 5 ROIs and spks.npy of 6"),
    (saved("stat.npy", [roi(3)]), "stat.npy is of 1 ROIs and spks.npy of 6"),
    (saved("stat.npy", np.zeros(6)), "stat.npy: is float64; expected what Suite2p writes"),
    (saved("stat.npy", [{}] * 6), "cannot be read: 'ypix'"),
    (saved("stat.npy", [roi(600)] * 6), "stat.npy has ROIs beyond the 512 rows"),
    (saved("ops.npy", options(fs=0)), "ops.npy has no fs; expected a positive number"),
    (saved("ops.npy", options(nplanes="two")), "ops.npy has no nplanes"),
    (saved("ops.npy", options(mesoscan=True)), "ops.npy has mesoscan, a scan"),
    (saved("ops.npy", options(lines=[[0, 1], [2, 3]])), "ops.npy has lines, a scan"),
    (saved("ops.npy", options(io={"bruker_bidirectional": True})), "ops.npy has bruker_bidir"),
    (saved("stat.npy", [roi(9) | {"iplane": i % 2} for i in range(6)]), "all planes as one mosaic"),
    (saved("ops.npy", options(badframes=BAD[1:])), "badframes, 399 of bool; expected 400 boolea"),
    (saved("ops.npy", options(badframes=[3, 3])), "badframes, 2 of int64; expected"),
    (saved("ops.npy", options(badframes=[-1, 3])), "numbers of bad frames from 0 to 399"),
    (saved("ops.npy", options(badframes=[3, FRAMES])), "badframes, 2 of int64; expected"),
    (saved("ops.npy", options(badframes=[2.5])), "badframes, 1 of float64; expected"),
    (saved("ops.npy", options(badframes="none")), "badframes, 1 of <U4; expected"),
    (saved("ops.npy", [1, None]), "cannot be read"),
    (saved("spks.npy", np.ones(5)), "spks.npy has 1 axes"),
    (saved("spks.npy", np.array([[Trap()]])), "cannot be read: "),
    (lambda folder: (folder / "iscell.npy").unlink(), "cannot be read: .*iscell.npy"),
    (lambda folder: (folder / "ops.npy").write_bytes(b"\x93NUMPY"), "cannot be read"),
]


@pytest.mark.parametrize(("change", "words"), WRONG, ids=[words for _, words in WRONG])
def test_what_is_wrong_with_a_folder_is_named(folder, change, words):
    change(folder)
    with pytest.raises(InputError, match=words) as error:
        recording.read(folder, bin_width=0.01, chop=1.0)
    assert str(error.value).startswith(str(folder))
    assert "\n" not in str(error.value)


def test_damage_is_refused_or_harmless(folder):
    """Bytes of a pickle changed at random are an error of input, or change a value."""
    content = (folder / "ops.npy").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(content)
        for at in rng.integers(128, len(content), 3):
            changed[at] = rng.integers(256)
        (folder / "ops.npy").write_bytes(changed)
        with suppress(InputError), readers.opened(folder) as arrays:
            assert arrays["frame_times"].shape == (FRAMES,)
