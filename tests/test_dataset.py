import h5py
import numpy as np
import pytest

from sbtt_jax import dataset
from sbtt_jax.errors import InputError

SIZES = {"conditions": 4, "trials_per_condition": 5, "bins": 6, "neurons": 3}


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


def save(path, arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for key, value in arrays.items():
                file[key] = value
    return path


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_a_recording_is_read_as_it_was_written(arrays, suffix, tmp_path):
    data = dataset.read(save(tmp_path / f"recording{suffix}", arrays), bin_width=0.01)
    counts = np.concatenate([arrays["train_data"], arrays["valid_data"]])
    np.testing.assert_array_equal(data.observed, ~np.isnan(counts))
    np.testing.assert_array_equal(data.counts[data.observed], counts[~np.isnan(counts)])
    assert data.counts.dtype == np.uint8
    np.testing.assert_array_equal(data.train, np.arange(7))
    np.testing.assert_array_equal(data.valid, np.arange(7, 10))
    true = np.concatenate([arrays["train_truth"], arrays["valid_truth"]])
    np.testing.assert_allclose(data.rates, true / 0.05, rtol=1e-6)


@pytest.mark.parametrize(
    ("unit", "scale"), [("counts/bin", 1), ("spikes/s", 50), ("spikes/ms", 0.05)]
)
def test_units_of_true_rates(arrays, unit, scale, tmp_path):
    counts_per_bin = arrays["train_truth"] / 0.05
    for split in ("train", "valid"):
        arrays[f"{split}_truth"] = arrays[f"{split}_truth"] / 0.05 * scale
    del arrays["conversion_factor"]
    path = save(tmp_path / "recording.npz", arrays)
    data = dataset.read(path, bin_width=0.02, rates_unit=unit)
    np.testing.assert_allclose(data.rates[:7], counts_per_bin, rtol=1e-6)
    with pytest.raises(InputError, match=r"set data\.rates_unit to one of counts/bin, spikes/s"):
        dataset.read(path, bin_width=0.02)


def test_one_array_is_split_here(arrays, tmp_path):
    path = save(tmp_path / "r.npz", {"spikes": np.nan_to_num(arrays["train_data"])})
    data = dataset.read(path, bin_width=0.02, valid_fraction=0.3, seed=4)
    assert len(data.valid) == 2
    np.testing.assert_array_equal(np.sort(np.r_[data.train, data.valid]), np.arange(7))
    assert data.rates is None


def test_a_lorenz_set_written_and_read(tmp_path):
    made = dataset.from_lorenz(seed=1, **SIZES)
    dataset.write(tmp_path / "lorenz.h5", made)
    back = dataset.read(tmp_path / "lorenz.h5", bin_width=made.bin_width)
    for name in ("counts", "rates"):
        written = getattr(made, name)
        np.testing.assert_array_equal(getattr(back, name)[back.train], written[made.train])
        np.testing.assert_array_equal(getattr(back, name)[back.valid], written[made.valid])
    assert back.observed.all()


def spoil(arrays, key, value, at=(0, 0, 0)):
    arrays[key] = arrays[key].copy()
    arrays[key][at] = value


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a.pop("valid_data"), "no valid_data; expected train_data and valid_data, or"),
        (lambda a: a.pop("valid_truth"), "no valid_truth; true rates are needed for all trials"),
        (lambda a: a.update(train_data=a["train_data"][0]), "train_data is 6 x 3; expected trial"),
        (lambda a: a.update(valid_data=a["valid_data"][..., :2]), "valid_data 3 x 6 x 2; bins and"),
        (lambda a: a.update(train_data=a["train_data"][:0]), "train_data is 0 x 6 x 3; no size"),
        (lambda a: a.update(train_truth=a["train_truth"][:3]), "true rates are 6 x 6 x 3"),
        (lambda a: a.update(conversion_factor=-1.0), "conversion_factor is -1.0; expected one"),
        (lambda a: spoil(a, "train_data", -1), "train_data holds a negative count, -1 at trial"),
        (lambda a: spoil(a, "valid_data", 0.5), "valid_data holds a fractional count, 0.5 at"),
        (lambda a: spoil(a, "train_data", np.inf), "train_data holds an infinity, inf at trial"),
        (lambda a: spoil(a, "train_truth", np.nan), "true rates hold negative or non-finite"),
        (lambda a: a.update(train_data=np.full((7, 6, 3), "x", "S1")), "expected spike counts"),
        (
            lambda a: a.update(train_data=0 * a["train_data"], valid_data=0 * a["valid_data"]),
            "not one spike",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_named(arrays, change, said, tmp_path):
    change(arrays)
    path = save(tmp_path / "recording.npz", arrays)
    with pytest.raises(InputError) as error:
        dataset.read(path, bin_width=0.02)
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_files_that_are_no_recordings(arrays, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        dataset.read(tmp_path / "none.h5", bin_width=0.02)
    text = tmp_path / "text.h5"
    text.write_text("hello")
    with pytest.raises(InputError, match="neither HDF5 nor NPZ"):
        dataset.read(text, bin_width=0.02)
    whole = save(tmp_path / "whole.h5", arrays).read_bytes()
    short = tmp_path / "short.h5"
    short.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        dataset.read(short, bin_width=0.02)


def test_pickled_objects_are_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickled object was executed",))

    path = tmp_path / "trap.npz"
    np.savez(path, train_data=np.array([Trap()], object), valid_data=np.zeros((1, 1, 1)))
    with pytest.raises(InputError, match="cannot be read"):
        dataset.read(path, bin_width=0.02)
