"""MATLAB files of version 5 and 7.3: what is read from them, and what is refused."""

import h5py
import numpy as np
import pytest
from matlab_files import save5, save73
from scipy.sparse import csc_matrix

from sbtt_jax.data import arrays as arrays_module
from sbtt_jax.data.recording import read
from sbtt_jax.errors import InputError


@pytest.fixture(params=[save5, save73], ids=["v5", "v7.3"])
def reading(request, tmp_path, monkeypatch):
    """A function that reads values back from a file of MATLAB, a few rows at a time."""
    monkeypatch.setattr(arrays_module, "BLOCK_BYTES", 200)

    def through_file(values, **how):
        return read(request.param(tmp_path / "r.mat", values), **how)

    return through_file


rng = np.random.default_rng(0)
COUNTS = rng.poisson(1.0, (6, 5, 3)).astype(float)
MASK = rng.random(COUNTS.shape) < 0.7
HOLES = np.where(MASK, COUNTS, np.nan)
LENGTHS = [5, 3, 4, 5, 2, 5]
TRIALS = [trial[:length] for trial, length in zip(COUNTS, LENGTHS, strict=True)]
RAGGED = COUNTS.copy()
for row, length in enumerate(LENGTHS):
    RAGGED[row, length:] = np.nan
W = {"bin_width": 0.01}


def same(data, expected):
    np.testing.assert_array_equal(data.observed, ~np.isnan(expected))
    np.testing.assert_array_equal(data.counts, np.nan_to_num(expected))


def turned(trials):
    return [trial.T for trial in trials]


def masks(of):
    return [mask[: len(trial)] for mask, trial in zip(MASK, of, strict=True)]


def grid(trials, *, turned=False):
    """A cell array, trial x neuron, of the counts of each."""
    cells = np.empty((len(trials), trials[0].shape[1]), object)
    for row, neuron in np.ndindex(cells.shape):
        cells[row, neuron] = trials[row][:, neuron][None]
    return cells.T if turned else cells


READ = {
    "double": ({"spikes": HOLES}, HOLES),
    "single": ({"spikes": HOLES.astype("f4")}, HOLES),
    "int16": ({"spikes": COUNTS.astype("i2")}, COUNTS),
    "logical": ({"spikes": COUNTS > 0}, COUNTS > 0),
    "mask": ({"spikes": COUNTS, "spikes_mask": MASK}, HOLES),
    "two masks": ({"spikes": COUNTS, "spikes_mask": MASK, "mask": COUNTS < 3},
                  np.where(COUNTS < 3, HOLES, np.nan)),
    "empty mask": ({"spikes": COUNTS, "mask": np.zeros((0, 0))}, COUNTS),
    "cells": ({"spikes": TRIALS}, RAGGED),
    "cells, turned": ({"spikes": turned(TRIALS)}, RAGGED),
    "cells, integer": ({"spikes": [trial.astype("u1") for trial in TRIALS]}, RAGGED),
    "cells, sparse mask": ({"spikes": list(COUNTS), "mask": [csc_matrix(mask) for mask in MASK]},
                           HOLES),
    "cells, sparse": ({"spikes": [csc_matrix(trial) for trial in TRIALS]}, RAGGED),
    "cells, mask first": ({"mask": masks(TRIALS), "spikes": TRIALS},
                          np.where(MASK, RAGGED, np.nan)),
    "cells, mask turned": ({"spikes": turned(TRIALS), "spikes_mask": turned(masks(TRIALS))},
                           np.where(MASK, RAGGED, np.nan)),
    "cells, rates": ({"spikes": TRIALS, "rates": [trial * 100 for trial in TRIALS]}, RAGGED),
    "cells beside": ({"spikes": COUNTS, "lfp": [np.ones((4, 9)), np.ones((4, 8))],
                      "odd": [np.ones((4, 9)), np.ones((3, 8))],
                      "nested": [[np.ones((2, 2))], "a"]}, COUNTS),
    "vectors": ({"spikes": grid(COUNTS), "mask": grid(MASK)}, HOLES),
    "vectors, ragged": ({"spikes": grid(TRIALS)}, RAGGED),
    "vectors, neurons first": ({"spikes": grid(TRIALS, turned=True)}, RAGGED),
    "struct": ({"s": {"spikes": HOLES, **W}}, HOLES),
    "struct, cells": ({"s": {"spikes": TRIALS}, **W}, RAGGED),  # the width lies above
    "struct array": ({"t": [{"spikes": trial, "condition": float(k % 2)}
                            for k, trial in enumerate(TRIALS)]}, RAGGED),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_arrays_are_read_as_matlab_shows_them(case, reading):
    values, expected = READ[case]
    data = reading(values if case.startswith("struct") else values | W, bin_width=0.01)
    same(data, np.asarray(expected, float))
    if "struct" not in case or "cells" not in case:
        assert data.bin_width == 0.01
    if case == "struct array":
        np.testing.assert_array_equal(data.condition, np.arange(6) % 2)
    if case == "cells, rates":
        np.testing.assert_allclose(data.rates, np.nan_to_num(RAGGED))
    if case == "cells, turned":
        assert "each cell is taken as neuron x bin, since bins differ" in " ".join(data.notes)
    if case.startswith("vectors"):
        order = "neuron x trial, since" if "first" in case else "trial x neuron"
        assert f"spikes: its cells are taken as {order}" in " ".join(data.notes)
    assert "lfp" not in " ".join(data.notes)


@pytest.mark.parametrize("width", [0.01, np.array([[0.01]])])
def test_a_bin_width_is_read_from_where_the_counts_are_or_above(width, reading):
    both = {"spikes": COUNTS, "bin_width": width}
    for values in (both, {"s": both}, {"s": {"spikes": COUNTS}, "bin_width": width}):
        assert reading(values).bin_width == 0.01


def test_cells_that_are_not_needed_are_not_read(tmp_path, monkeypatch):
    path = save73(
        tmp_path / "r.mat", {"spikes": COUNTS, "lfp": [np.sin(np.arange(50.0))] * 40, **W}
    )
    read_, whole = [], arrays_module.Array.whole
    monkeypatch.setattr(arrays_module.Array, "whole", lambda own: read_.append(own) or whole(own))
    same(read(path), COUNTS)
    assert sum(50 in own.shape for own in read_) <= 2  # one cell, and what it is a view of


def test_a_sparse_matrix_is_a_session(reading):
    session = rng.poisson(0.3, (200, 4))
    data = reading({"spikes": csc_matrix(session.astype(float)), **W}, chop=0.2)
    np.testing.assert_array_equal(data.session.counts, session)


NAMES = ["left", "right", "left", "up", "", "right"]


@pytest.mark.parametrize(
    "condition",
    [np.array([[3, 1, 3, 0, -2, 1.0]]), np.array([[3, 1, 3, 0, -2, 1]]).T, NAMES,
     [3.0, 1.0, 3.0, 0.0, -2.0, 1.0]],
    ids=["row", "column", "cellstr", "cell of numbers"],
)  # fmt: skip
def test_conditions(condition, reading):
    data = reading({"spikes": COUNTS, "condition": condition, **W})
    numbers = data.condition
    assert numbers[0] == numbers[2]
    assert numbers[1] == numbers[5]
    assert len(set(numbers.tolist())) == 4


@pytest.mark.parametrize("first", [0, 1])
def test_splits_that_a_file_gives(first, reading):
    values = {"train_inds": np.array([[4, 0, 2]]), "valid_inds": np.array([[5, 1]])}
    values = {key: value + first for key, value in values.items()}
    whole = values | {"test_inds": np.array([[3]]) + first}
    data = reading({"spikes": COUNTS, **whole, **W})
    assert [s.tolist() for s in (data.train, data.valid, data.test)] == [[0, 2, 4], [1, 5], [3]]
    same(data, COUNTS)
    with pytest.raises(InputError, match="to name each of the 6 trials of spikes once"):
        reading({"spikes": COUNTS, **values, **W})


def test_an_array_by_its_path(reading):
    values = {"a": {"x": {"spk": COUNTS, "spk_mask": MASK, **W}}, "spikes": COUNTS + 1}
    same(reading(values, key="a/x/spk"), HOLES)
    with pytest.raises(InputError, match=r"no array 'a/y', .* there are a/x/bin_width \(1 x 1\)"):
        reading(values, key="a/y")


MATRICES = np.empty((6, 2), object)
MATRICES[:] = [[trial, trial] for trial in COUNTS]
UNEVEN = grid(COUNTS)
UNEVEN[1, 2] = UNEVEN[1, 2][:, :3]

REFUSED = {
    "cells of matrices": ({"spikes": MATRICES},
                          "spikes: a cell array of 6 x 2 of matrices; expected a matrix for each"),
    "rows": ({"spikes": list(COUNTS[:, :1])}, "spikes: its cells hold rows of numbers, as long"),
    "uneven vectors": ({"spikes": UNEVEN}, "spikes: cells of 6 x 3 vectors differ in length; exp"),
    "names in two axes": ({"spikes": COUNTS, "condition": np.array([["a", "b"]] * 3, object)},
                          "condition is 3 x 2 of text; expected a number or name for each of 6"),
    "trailing singleton": ({"spikes": COUNTS[..., 0]}, "spikes is 6 x 5; expected trial x bin"),
    "empty": ({"spikes": np.zeros((0, 5, 3))}, "no spikes, and no train_data"),
    "neurons differ": ({"spikes": [np.ones((4, 3)), np.ones((5, 2))]},
                       "spikes: trial 0 has 3 neurons and trial 1 2"),
    "cells in cells": ({"spikes": [[np.ones((4, 3))], [np.ones((5, 3))]]},
                       "spikes: an object, or structs or cells in cells; expected matrices"),
    "an empty cell": ({"spikes": [np.ones((4, 3)), np.zeros((0, 0))]},
                      "spikes: trial 0 has 3 neurons and trial 1 0"),
    "three axes": ({"spikes": [COUNTS, COUNTS]}, "spikes: its cells hold arrays of three axes"),
    "times of spikes": ({"spikes": [np.array([[3.0, 40, 95]]), np.array([[7.0, 8]])]},
                        "spikes: its cells hold rising numbers, as times of spikes; count them"),
    "text": ({"spikes": "none"}, "spikes is 1 of text; expected whole spike counts"),
    "width of text": ({"spikes": COUNTS, "bin_width": "20 ms"}, "expected one positive number"),
    "widths": ({"spikes": COUNTS, "bin_width": np.ones((1, 6))}, "expected one positive number"),
    "mask of text": ({"spikes": COUNTS, "spikes_mask": NAMES}, "expected 6 x 5 x 3 booleans"),
    "mask turned": ({"spikes": COUNTS, "spikes_mask": MASK.T}, "expected 6 x 5 x 3 booleans"),
    "mask above": ({"s": {"spikes": COUNTS}, "spikes_mask": MASK[:5]}, "6 x 5 x 3 booleans"),
    "condition": ({"spikes": COUNTS, "condition": [["a"]] * 6}, "condition: an object, or"),
    "complex": ({"spikes": COUNTS + 1j}, "spikes is 6 x 5 x 3 of"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_meaning_is_refused(case, reading):
    values, words = REFUSED[case]
    with pytest.raises(InputError) as error:
        reading(values, bin_width=0.02)
    assert words in str(error.value)
    assert "r.mat" in str(error.value)
    assert "\n" not in str(error.value)


def test_objects_of_classes_are_refused_where_they_are_needed(tmp_path):
    path = save73(tmp_path / "r.mat", {"spikes": COUNTS, "table": 1.0, "condition": 1.0, **W})
    with h5py.File(path, "r+") as file:
        for name in ("table", "condition"):
            file[name].attrs["MATLAB_object_decode"] = np.int32(3)
    with pytest.raises(InputError, match=r"condition: an object, or .* \(as of cellstr\)"):
        read(path)
    with h5py.File(path, "r+") as file:
        del file["condition"]
    same(read(path), COUNTS)


@pytest.mark.parametrize("write", [save5, save73])
@pytest.mark.parametrize("part", [0.0, 0.02, 0.3, 0.7, 0.95])
@pytest.mark.parametrize("how", ["cut", "overwritten"])
def test_damaged_files_are_refused(write, part, how, tmp_path):
    whole = write(tmp_path / "r.mat", {"spikes": np.arange(90_000.0).reshape(30, 100, 30)})
    content = whole.read_bytes()
    at = 130 + int(part * (len(content) - 130))
    rest = b"" if how == "cut" else b"\xff" * 400 + content[at + 400 :]
    whole.write_bytes(content[:at] + rest)
    with pytest.raises(InputError, match=r"r\.mat"):
        read(whole, bin_width=0.02)


def test_what_would_not_fit_in_memory_is_never_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays_module, "memory", lambda: 10**5)
    big = {
        "array": np.zeros((30, 100, 30)),
        "cells": [np.zeros((1000, 10)), np.ones((1000, 10))],
        "struct": {"spikes": np.zeros((30, 100, 30))},
    }
    for name, value in big.items():
        path = save5(tmp_path / f"{name}.mat", {"spikes": value})
        with pytest.raises(InputError, match=r"its variables are .* GiB; this machine"):
            read(path, bin_width=0.02)
    ragged = [np.ones((5000, 1))] + [np.ones((1, 1))] * 20  # little, until it is padded
    for write in (save5, save73):
        with pytest.raises(InputError, match="spikes declares 21 x 5000 x 1 counts"):
            read(write(tmp_path / "ragged.mat", {"spikes": ragged}), bin_width=0.02)
    sparse = csc_matrix(([1.0], ([0], [0])), shape=(10**6, 10))
    for write in (save5, save73):
        with pytest.raises(InputError, match="a sparse matrix declares 1000000 x 10 counts"):
            read(write(tmp_path / "sparse.mat", {"spikes": sparse}), bin_width=0.02)


def test_whole_numbers_may_be_stored_as_matlab_stores_numbers(reading):
    given = np.ones((5, 3))
    given[4, 2] = 0
    numbers = {
        "spikes": COUNTS,
        "spikes_mask": MASK.astype(float),
        "given": given,
        "trial_id": np.arange(11.0, 17.0)[None],
        "train_inds": np.array([[1.0, 3.0, 4.0, 6.0]]),
        "valid_inds": np.array([[2.0, 5.0]]),
    }
    data = reading(numbers, **W)
    np.testing.assert_array_equal(data.observed, MASK)
    np.testing.assert_array_equal(data.given, given == 1)
    assert data.trial_numbers.tolist() == [11, 12, 13, 14, 15, 16]
    assert (data.train.tolist(), data.valid.tolist()) == ([0, 2, 3, 5], [1, 4])
    split = {"train_data": COUNTS[:4], "valid_data": COUNTS[4:]}
    split |= {"train_inds": np.array([[1.0, 3.0, 4.0, 6.0]]), "valid_inds": np.array([[2.0, 5.0]])}
    assert reading(split, **W).valid.tolist() == [1, 4]
    with pytest.raises(InputError, match="expected a whole number for each of 6 trials"):
        reading({"spikes": COUNTS, "trial_id": np.arange(6) + 0.5}, **W)
