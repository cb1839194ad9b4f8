"""Recordings: what is read from files and arrays, and what is refused, in words that help."""

import h5py
import numpy as np
import pytest
from conftest import Trap, save

from sbtt_jax import observations
from sbtt_jax.data import arrays as arrays_module
from sbtt_jax.data.objects import Recording
from sbtt_jax.data.problem import from_lorenz
from sbtt_jax.data.recording import assemble, read
from sbtt_jax.errors import InputError

FORMATS = pytest.mark.parametrize("suffix", [".h5", ".npz"])


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    rates = rng.gamma(2.0, 0.5, (10, 6, 3))
    counts = rng.poisson(rates).astype(float)
    counts[rng.random(counts.shape) < 0.3] = np.nan
    return {
        "train_data": counts[:7],
        "valid_data": counts[7:],
        "train_truth": rates[:7] * 0.05,
        "valid_truth": rates[7:] * 0.05,
        "conversion_factor": 0.05,
    }


@pytest.fixture
def reading(tmp_path):
    """A function that reads arrays back from a file."""

    def through_file(arrays, suffix=".npz", **how):
        return read(save(tmp_path / f"r{suffix}", arrays), **{"bin_width": 0.02, **how})

    return through_file


@FORMATS
def test_a_recording_is_read_as_it_was_written(arrays, suffix, reading):
    data = reading(arrays, suffix, bin_width=0.01)
    assert data.bin_width == 0.01
    own = reading(arrays | {"bin_width": 0.005}, suffix, bin_width=None)
    assert (own.bin_width, own.notes) == (0.005, ())
    with pytest.raises(InputError, match=r"its bins are 0.005 s wide and data.bin_width is 0.01"):
        reading(arrays | {"bin_width": 0.005}, suffix, bin_width=0.01)
    assumed = reading(arrays, suffix, bin_width=None)
    assert assumed.bin_width == 0.02
    assert "bins are assumed to be 20 ms wide" in assumed.notes[0]
    counts = np.concatenate([arrays["train_data"], arrays["valid_data"]])
    np.testing.assert_array_equal(data.observed, ~np.isnan(counts))
    np.testing.assert_array_equal(data.counts[data.observed], counts[~np.isnan(counts)])
    assert data.counts.dtype == np.uint8
    assert [data.train.tolist(), data.valid.tolist()] == [[*range(7)], [7, 8, 9]]
    true = np.concatenate([arrays["train_truth"], arrays["valid_truth"]])
    np.testing.assert_allclose(data.rates, true / 0.05, rtol=1e-6)


@pytest.mark.parametrize(
    ("unit", "scale"), [("counts/bin", 1), ("spikes/s", 50), ("spikes/ms", 0.05)]
)
def test_units_of_true_rates(arrays, unit, scale, reading):
    factor, truth = arrays.pop("conversion_factor"), arrays["train_truth"]
    arrays |= {key: arrays[key] / factor * scale for key in ("train_truth", "valid_truth")}
    data = reading(arrays, rates_unit=unit)
    np.testing.assert_allclose(data.rates[:7], truth / factor, rtol=1e-6)
    assert not data.notes
    guessed = reading(arrays)
    np.testing.assert_array_equal(guessed.rates, data.rates)
    assert f"true rates are assumed to be in {unit}" in guessed.notes[0]


def test_true_values_of_what_is_no_count(reading):
    """What stands at points that were not observed counts for nothing."""
    rng = np.random.default_rng(2)
    means = rng.gamma(2.0, 0.02, (40, 10, 5))
    seen = rng.random(means.shape) < 0.2
    seen[:, -1] = True
    values = np.where(seen, rng.gamma(4.0, means / 4), np.nan)
    data = reading({"spikes": values, "rates": means}, observation=observations.of("gamma"))
    np.testing.assert_allclose(data.rates, means, rtol=1e-6)
    gaussian = {"observation": observations.of("gaussian")}
    signed = {"spikes": np.where(seen, -1 + means, np.nan), "rates": -1 + means}
    np.testing.assert_allclose(reading(signed, **gaussian).rates, -1 + means, rtol=1e-6)
    with pytest.raises(InputError, match="true rates are in spikes/s; expected the unit of the"):
        reading(signed, **gaussian, rates_unit="spikes/s")
    signed["spikes"][seen] = 1e39  # more than float32 holds
    with pytest.raises(InputError, match="spikes holds a value that is not finite"):
        reading(signed, **gaussian)


@pytest.mark.parametrize("factor_given", [True, False])
def test_true_rates_that_do_not_fit_the_counts_are_refused(factor_given, reading):
    rng = np.random.default_rng(1)
    rates = rng.gamma(2.0, 0.5, (40, 10, 5))
    counts = rng.poisson(rates)
    ratio = counts.mean() / rates.mean()
    arrays = {"spikes": counts, "rates": 3 * rates}
    if factor_given:
        arrays["conversion_factor"] = 1.0
    with pytest.raises(InputError, match="times the counts on average, with") as error:
        reading(arrays)
    assert f"conversion_factor of {3 / ratio:.4g} would fit" in str(error.value)
    data = reading(arrays | {"conversion_factor": 3 / ratio})
    np.testing.assert_allclose(data.rates, rates * ratio, rtol=1e-5)
    counts = np.zeros((4, 5, 2))
    counts[0, :, 0] = counts[1, 0, 0] = 1  # six spikes where four were expected: no contradiction
    few = {"spikes": counts, "rates": np.full(counts.shape, 0.1)}
    assert reading(few, rates_unit="counts/bin").rates is not None


FULL = np.ones((7, 6, 3), bool)
NUMBERS = {"train_inds": np.arange(6), "valid_inds": np.arange(3)}
WRONG = [
    (lambda a: a.pop("valid_data"), "no valid_data; expected train_data and valid_data, or"),
    (lambda a: a.pop("valid_truth"), "no valid_truth; true rates are needed for all trials"),
    (lambda a: {"train_data": a["train_data"][0]}, "train_data is 6 x 3; expected trial"),
    (lambda a: {"valid_data": a["valid_data"][..., :2]}, "valid_data is 3 x 6 x 2; bins and"),
    (lambda a: {"train_data": a["train_data"][:0]}, "train_data is 0 x 6 x 3; expected trial"),
    (lambda a: {"train_truth": a["train_truth"][:3]}, "float64; expected 7 x 6 x 3 true rates"),
    (lambda a: {"conversion_factor": -1.0}, "conversion_factor is -1; expected one"),
    (lambda a: np.put(a["train_data"], 0, -1), "train_data holds a negative count, -1 at trial"),
    (lambda a: np.put(a["valid_data"], 0, 0.5), "valid_data holds a fractional count, 0.5 at"),
    (lambda a: np.put(a["train_data"], 0, np.inf), "train_data holds an infinity, inf at trial"),
    (
        lambda a: np.put(a["train_data"], 0, 1e6),
        "train_data holds a count above 65535, 1000000 at trial",
    ),
    (lambda a: np.put(a["train_truth"], 0, np.nan), "true rates hold negative or non-finite"),
    (lambda a: {"train_data": np.full((7, 6, 3), "x", "S1")}, "expected whole spike counts"),
    (lambda a: {k: 0 * a[k] for k in ("train_data", "valid_data")}, "not one spike"),
    (lambda a: {"train_mask": FULL[..., :2]}, "bool; expected 7 x 6 x 3 booleans"),
    (lambda a: {"train_mask": 0.5 * FULL}, "train_mask holds values other than 0 and 1"),
    (lambda a: {"train_mask": 2 * FULL.astype(int)}, "train_mask holds values other than 0 and 1"),
    (lambda a: {"spike_mask": FULL}, "spike_mask belongs to none of"),
    (lambda a: {"mask": FULL}, "mask belongs to none of train_data"),
    (lambda a: {"train_inds": np.arange(7)}, "has train_inds and no valid_inds"),
    (lambda a: {**NUMBERS, "train_inds": np.arange(7)}, "name a trial twice"),
    (lambda a: NUMBERS, "train_inds is 6 of int64; expected a whole number for each of 7"),
    (lambda a: {"bin_width": 0.0}, "bin_width is 0; expected one positive number"),
]


@pytest.mark.parametrize(("change", "words"), WRONG, ids=[words for _, words in WRONG])
def test_what_is_wrong_with_a_file_is_named(arrays, change, words, tmp_path):
    new = change(arrays)  # arrays to add, unless it has changed them in place
    arrays |= new if isinstance(new, dict) else {}
    path = save(tmp_path / "recording.npz", arrays)
    with pytest.raises(InputError) as error:
        read(path, bin_width=0.02)
    assert words in str(error.value)
    assert str(path) in str(error.value)


def test_files_that_are_not_recordings(arrays, tmp_path):
    content = save(tmp_path / "whole.h5", arrays).read_bytes()
    (tmp_path / "text.h5").write_text("hello")
    (tmp_path / "short.h5").write_bytes(content[: len(content) // 2])
    words = {"none": "no such file", "text": "nor HDF5 nor NPZ", "short": "cannot be read"}
    for name, text in words.items():
        with pytest.raises(InputError, match=text):
            read(tmp_path / f"{name}.h5", bin_width=0.02)
    np.save(tmp_path / "counts.npy", arrays["train_data"])
    with pytest.raises(InputError, match=r"an array is written by numpy\.savez\("):
        read(tmp_path / "counts.npy")


def test_pickled_objects_are_never_loaded(reading):
    objects = np.array([[[Trap()]]], object)
    with pytest.raises(InputError, match="train_data is 1 x 1 x 1 of object; expected whole"):
        reading({"train_data": objects, "valid_data": np.zeros((1, 1, 1))})
    with pytest.raises(InputError, match="condition is 1 of object; expected a number"):
        reading({"spikes": np.ones((2, 1, 1)), "condition": objects[0, 0]})


def test_what_would_not_fit_in_memory_is_never_allocated(tmp_path):
    path = tmp_path / "empty.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("spikes", (10**6, 10**5, 100), np.float32, chunks=(1, 100, 100))
    with pytest.raises(InputError, match=r"spikes declares 1000000 x 100000 x 100 counts, 18626"):
        read(path, bin_width=0.02)
    with pytest.raises(InputError, match=r"ask for .* counts, \d+ GiB as small integers"):
        from_lorenz(conditions=10**6, trials_per_condition=5, bins=6, neurons=10**9)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int16, np.uint8])
@FORMATS
def test_arrays_are_read_in_blocks(suffix, dtype, order, tmp_path, monkeypatch):
    monkeypatch.setattr(arrays_module, "BLOCK_BYTES", 3 * 20 * 5 * 8)
    counts = np.random.default_rng(2).poisson(1.5, (50, 20, 5)).astype(dtype, order=order)
    counts[-1, -1, -1] = 100 if dtype == np.uint8 else 300  # beyond a byte, in the last block
    path, how = tmp_path / f"r{suffix}", {"chunks": (7, 20, 2), "compression": "gzip"}
    data = read(save(path, {"spikes": counts}, **how), bin_width=0.02)
    np.testing.assert_array_equal(data.counts, counts)
    assert data.counts.dtype == (np.uint8 if dtype == np.uint8 else np.uint16)
    if dtype != np.uint8:
        counts[41, 2, 1] = -2
        with pytest.raises(InputError, match=r"-2 at trial, bin, neuron \(41, 2, 1\)"):
            read(save(path, {"spikes": counts}, **how), bin_width=0.02)


@FORMATS
def test_damaged_compressed_files_are_refused(suffix, tmp_path):
    counts = np.random.default_rng(0).poisson(1.0, (60, 30, 20)).astype(np.float32)
    path = save(tmp_path / f"r{suffix}", {"spikes": counts}, compression="gzip")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 500] = bytes(500)
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        read(path, bin_width=0.02)


@pytest.mark.parametrize("kind", [bool, np.uint8])
@pytest.mark.parametrize(
    ("key", "name"),
    [("spikes", "spikes_mask"), ("spikes", "mask"), ("train_data", "train_mask"),
     ("train_encod_data", "train_encod_data_mask")],
)  # fmt: skip
def test_a_mask_says_where_counts_were_observed(key, name, kind, arrays, reading):
    mask = np.random.default_rng(5).random((7, 6, 3)) < 0.7
    counts = np.where(mask, arrays["train_data"], -5)  # never read where not observed
    rest = {} if key == "spikes" else {key.replace("train", "valid"): arrays["valid_data"]}
    data = reading({key: counts, name: mask.astype(kind), **rest}, ".h5")
    np.testing.assert_array_equal(data.observed[:7], mask & ~np.isnan(arrays["train_data"]))
    assert data.counts[:7][~mask].max() == 0


@pytest.fixture
def lfads(arrays):
    """The arrays with the keys of lfads-torch."""
    return {
        f"{split}_{kind}_data": arrays[f"{split}_data"]
        for split in ("train", "valid")
        for kind in ("encod", "recon")
    }


def test_lfads_torch_files(arrays, lfads, reading):
    numbers = np.random.default_rng(0).permutation(20)[:10]
    lfads |= {"train_inds": numbers[:7], "valid_inds": numbers[7:]}
    lfads |= {key: arrays[key] for key in ("train_truth", "valid_truth", "conversion_factor")}
    data = reading(lfads, ".h5")
    np.testing.assert_array_equal(data.trial_index, np.sort(numbers))
    np.testing.assert_array_equal(data.trial_index[data.train], np.sort(numbers[:7]))
    for split in ("train", "valid"):
        here = np.searchsorted(data.trial_index, lfads[f"{split}_inds"])
        counts = lfads[f"{split}_recon_data"]
        np.testing.assert_array_equal(data.observed[here], ~np.isnan(counts))
        np.testing.assert_array_equal(data.counts[here], np.nan_to_num(counts))
        np.testing.assert_allclose(data.rates[here], lfads[f"{split}_truth"] / 0.05, rtol=1e-6)
    (note,) = reading(lfads | {"condition": np.arange(10)}, ".h5").notes
    assert note == "condition: taken to be of the trials of train, then valid, in that order"
    again = reading({key: value for key, value in lfads.items() if "encod" not in key}, ".h5")
    np.testing.assert_array_equal(again.counts, data.counts)


@pytest.mark.parametrize("change", [lambda a: a.repeat(2, axis=2), np.nan_to_num])
def test_inputs_that_are_not_the_beginning_of_the_targets_are_refused(change, lfads, reading):
    lfads["train_recon_data"] = change(lfads["train_recon_data"])
    with pytest.raises(InputError, match=r"train_encod_data .* differs from train_recon_data"):
        reading(lfads)


def test_one_array_is_split_here_each_condition_equally(reading):
    condition = np.repeat([7, 1, 4], [10, 20, 30])
    counts = np.random.default_rng(0).poisson(1.0, (60, 4, 3))
    data = reading({"spikes": counts, "condition": condition}, valid_fraction=0.2, seed=3)
    assert [(condition[data.valid] == c).sum() for c in (7, 1, 4)] == [2, 4, 6]
    data = reading({"spikes": counts[:7]}, valid_fraction=0.3, seed=4)
    assert len(data.valid) == 2
    np.testing.assert_array_equal(np.sort(np.r_[data.train, data.valid]), np.arange(7))
    assert data.rates is None


def test_trials_end_at_their_last_sample(reading):
    counts = np.ones((5, 8, 3))
    rates = np.ones(counts.shape)
    counts[1, 5:] = rates[1, 5:] = np.nan
    counts[2, 3:6] = np.nan  # a hole, not an end
    counts[3, 7, :2] = np.nan
    counts[4] = np.nan
    data = reading({"spikes": counts, "rates": rates})
    np.testing.assert_array_equal(data.lengths, [8, 5, 8, 8, 0])
    np.testing.assert_array_equal(data.inside[..., 0].sum(1), data.lengths)
    assert (data.rates[1, :5] == 1).all()
    assert (data.rates[1, 5:] == 0).all()
    assert reading({"spikes": np.ones((5, 8, 3))}).lengths is None


def test_what_was_dropped_is_known(reading):
    rng = np.random.default_rng(0)
    counts = rng.poisson(2.0, (8, 5, 6)).astype(float)
    counts[:, :, [1, 4]] = np.nan
    counts[[0, 6]] = np.nan
    arrays = {"train_data": counts[:5], "valid_data": counts[5:]}
    data = reading(arrays, drop_neurons=(4, 1), drop_unobserved_trials=True)
    trials, neurons = [1, 2, 3, 4, 5, 7], [0, 2, 3, 5]
    np.testing.assert_array_equal(data.counts, counts[np.ix_(trials, range(5), neurons)])
    assert (data.trial_index.tolist(), data.neuron_index.tolist()) == (trials, neurons)
    assert (data.train.tolist(), data.valid.tolist()) == ([0, 1, 2, 3], [4, 5])
    assert (data.dropped_trials, data.dropped_neurons) == ((0, 6), (1, 4))
    with pytest.raises(InputError, match="drop_neurons has 6; neurons are numbered from 0 to 5"):
        reading(arrays, drop_neurons=(6,))


def test_an_array_is_read_as_a_file_is(reading):
    counts = np.random.default_rng(0).poisson(1.0, (20, 6, 4)).astype(float)
    counts[counts > 2] = np.nan
    condition = np.arange(20) % 4
    a = reading({"spikes": counts, "condition": condition}, seed=2)
    b = assemble(Recording(counts, condition=condition).arrays, bin_width=0.02, seed=2)
    for name in ("counts", "observed", "train", "valid"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    with pytest.raises(InputError, match="array: spikes is 6 x 4; expected trial x bin x neuron"):
        assemble(Recording(counts[0]).arrays, bin_width=0.02)
