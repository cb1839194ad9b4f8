import io
import zipfile

import h5py
import numpy as np
import pytest

from sbtt_jax import array_file, dataset
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
    assert not data.notes
    guessed = dataset.read(path, bin_width=0.02)
    np.testing.assert_array_equal(guessed.rates, data.rates)
    assert f"true rates are taken for {unit}" in guessed.notes[0]


@pytest.mark.parametrize("told", [True, False])
def test_true_rates_that_do_not_fit_the_counts_are_refused(told, tmp_path):
    rng = np.random.default_rng(1)
    rates = rng.gamma(2.0, 0.5, (40, 10, 5))
    counts = rng.poisson(rates)
    ratio = counts.mean() / rates.mean()
    arrays = {"spikes": counts, "rates": 3 * rates}
    if told:
        arrays["conversion_factor"] = 1.0
    path = save(tmp_path / "recording.npz", arrays)
    with pytest.raises(InputError, match="times the counts in the mean, with") as error:
        dataset.read(path, bin_width=0.02)
    assert f"conversion_factor of {3 / ratio:.4g} would fit" in str(error.value)
    arrays["conversion_factor"] = 3 / ratio
    data = dataset.read(save(path, arrays), bin_width=0.02)
    np.testing.assert_allclose(data.rates, rates * ratio, rtol=1e-5)


def test_few_spikes_are_no_ground_to_refuse_true_rates(tmp_path):
    """Six spikes where four were expected are no contradiction."""
    counts = np.zeros((4, 5, 2))
    counts[0, :, 0] = counts[1, 0, 0] = 1
    path = save(tmp_path / "r.npz", {"spikes": counts, "rates": np.full(counts.shape, 0.1)})
    assert dataset.read(path, bin_width=0.02, rates_unit="counts/bin").rates is not None


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
        (
            lambda a: a.update(valid_data=a["valid_data"][..., :2]),
            "valid_data is 3 x 6 x 2; bins and",
        ),
        (lambda a: a.update(train_data=a["train_data"][:0]), "train_data is 0 x 6 x 3; no size"),
        (lambda a: a.update(train_truth=a["train_truth"][:3]), "true rates are 6 x 6 x 3"),
        (lambda a: a.update(conversion_factor=-1.0), "conversion_factor is -1; expected one"),
        (lambda a: spoil(a, "train_data", -1), "train_data holds a negative count, -1 at trial"),
        (lambda a: spoil(a, "valid_data", 0.5), "valid_data holds a fractional count, 0.5 at"),
        (lambda a: spoil(a, "train_data", np.inf), "train_data holds an infinity, inf at trial"),
        (lambda a: spoil(a, "train_truth", np.nan), "true rates hold negative or non-finite"),
        (lambda a: a.update(train_data=np.full((7, 6, 3), "x", "S1")), "expected spike counts"),
        (
            lambda a: a.update(train_data=0 * a["train_data"], valid_data=0 * a["valid_data"]),
            "not one spike",
        ),
        (lambda a: a.update(train_mask=np.ones((7, 6, 2), bool)), "train_mask is 7 x 6 x 2 and"),
        (lambda a: a.update(train_mask=np.ones((7, 6, 3))), "train_mask holds float64; expected"),
        (lambda a: a.update(train_mask=np.full((7, 6, 3), 2)), "train_mask holds other values"),
        (lambda a: a.update(spike_mask=np.ones((7, 6, 3), bool)), "spike_mask belongs to none of"),
        (lambda a: a.update(mask=np.ones((7, 6, 3), bool)), "mask belongs to none of train_data"),
        (lambda a: a.update(train_inds=np.arange(7)), "has train_inds alone"),
        (
            lambda a: a.update(train_inds=np.arange(7), valid_inds=np.arange(3)),
            "train_inds and valid_inds name a trial twice",
        ),
        (
            lambda a: a.update(train_inds=np.arange(6), valid_inds=np.arange(3)),
            "train_inds is 6 of int64; expected a whole number for each of 7 trials",
        ),
        (lambda a: a.update(bin_width=0.0), "bin_width is 0; expected one positive number"),
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
    objects = np.array([[[Trap()]]], object)
    np.savez(path, train_data=objects, valid_data=np.zeros((1, 1, 1)))
    with pytest.raises(InputError, match="train_data holds object; expected spike counts"):
        dataset.read(path, bin_width=0.02)
    np.savez(path, spikes=np.ones((2, 1, 1)), condition=objects[0, 0])
    with pytest.raises(InputError, match="condition is 1 of object; expected a number"):
        dataset.read(path, bin_width=0.02)


def test_what_a_file_declares_and_does_not_hold_is_never_allocated(tmp_path):
    path = tmp_path / "empty.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("spikes", (10**6, 10**5, 100), np.float32, chunks=(1, 100, 100))
    with pytest.raises(InputError, match=r"spikes declares 1000000 x 100000 x 100 counts, 18626"):
        dataset.read(path, bin_width=0.02)
    path = tmp_path / "header.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**5, 100)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("spikes.npy", header.getvalue() + bytes(64))
    with pytest.raises(InputError, match="which is 40000000000000 bytes, and holds 64"):
        dataset.read(path, bin_width=0.02)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int16, np.uint8])
@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_arrays_are_read_in_blocks(suffix, dtype, order, tmp_path, monkeypatch):
    monkeypatch.setattr(array_file, "BLOCK_SIZE", 3 * 20 * 5 * 8)
    counts = np.random.default_rng(2).poisson(1.5, (50, 20, 5)).astype(dtype, order=order)
    counts[-1, -1, -1] = 100 if dtype == np.uint8 else 300  # beyond a byte, in the last block
    path = tmp_path / f"r{suffix}"
    if suffix == ".npz":
        np.savez_compressed(path, spikes=counts)
    else:
        with h5py.File(path, "w") as file:
            file.create_dataset("spikes", data=counts, chunks=(7, 20, 2), compression="gzip")
    data = dataset.read(path, bin_width=0.02)
    np.testing.assert_array_equal(data.counts, counts)
    assert data.counts.dtype == (np.uint8 if dtype == np.uint8 else np.uint16)


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_a_fault_in_a_later_block_is_placed(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(array_file, "BLOCK_SIZE", 100)
    counts = np.ones((50, 4, 3))
    counts[41, 2, 1] = -2
    with pytest.raises(InputError, match=r"negative count, -2 at trial, bin, neuron \(41, 2, 1\)"):
        dataset.read(save(tmp_path / f"r{suffix}", {"spikes": counts}), bin_width=0.02)


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_compressed_files_cut_short_or_spoiled_are_refused(suffix, tmp_path):
    counts = np.random.default_rng(0).poisson(1.0, (60, 30, 20)).astype(np.float32)
    path = tmp_path / f"r{suffix}"
    if suffix == ".npz":
        np.savez_compressed(path, spikes=counts)
    else:
        with h5py.File(path, "w") as file:
            file.create_dataset("spikes", data=counts, compression="gzip")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 500] = bytes(500)
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        dataset.read(path, bin_width=0.02)


@pytest.mark.parametrize("kind", [bool, np.uint8])
@pytest.mark.parametrize("name", ["spikes_mask", "mask", "train_mask", "train_encod_data_mask"])
def test_a_mask_says_where_counts_were_observed(name, kind, arrays, tmp_path):
    mask = np.random.default_rng(5).random((7, 6, 3)) < 0.7
    key = {"spikes_mask": "spikes", "mask": "spikes", "train_mask": "train_data"}.get(
        name, "train_encod_data"
    )
    counts = np.where(mask, arrays["train_data"], -5)  # whatever is not observed is not read
    path = save(tmp_path / "r.h5", {key: counts, name: mask.astype(kind)} | (
        {} if key == "spikes" else {key.replace("train", "valid"): arrays["valid_data"]}
    ))  # fmt: skip
    data = dataset.read(path, bin_width=0.02)
    np.testing.assert_array_equal(data.observed[:7], mask & ~np.isnan(arrays["train_data"]))
    assert data.counts[:7][~mask].max() == 0


def test_lfads_torch_files(arrays, tmp_path):
    both = {f"{split}_{kind}_data": arrays[f"{split}_data"]
            for split in ("train", "valid") for kind in ("encod", "recon")}  # fmt: skip
    numbers = np.random.default_rng(0).permutation(20)[:10]
    both |= {"train_inds": numbers[:7], "valid_inds": numbers[7:]}
    both |= {key: arrays[key] for key in ("train_truth", "valid_truth", "conversion_factor")}
    data = dataset.read(save(tmp_path / "r.h5", both), bin_width=0.02)
    np.testing.assert_array_equal(data.trial_index, np.sort(numbers))
    np.testing.assert_array_equal(data.trial_index[data.train], np.sort(numbers[:7]))
    for split in ("train", "valid"):
        for row, number in enumerate(both[f"{split}_inds"]):
            here = int(np.flatnonzero(data.trial_index == number)[0])
            counts = both[f"{split}_recon_data"][row]
            np.testing.assert_array_equal(data.observed[here], ~np.isnan(counts))
            np.testing.assert_array_equal(data.counts[here], np.nan_to_num(counts))
            true = both[f"{split}_truth"][row] / 0.05
            np.testing.assert_allclose(data.rates[here], true, rtol=1e-6)
    only = {key: value for key, value in both.items() if "encod" not in key}
    again = dataset.read(save(tmp_path / "recon.h5", only), bin_width=0.02)
    np.testing.assert_array_equal(again.counts, data.counts)


@pytest.mark.parametrize("change", ["more neurons", "other counts"])
def test_targets_that_are_no_inputs_are_refused(change, arrays, tmp_path):
    both = {f"{split}_{kind}_data": arrays[f"{split}_data"]
            for split in ("train", "valid") for kind in ("encod", "recon")}  # fmt: skip
    if change == "more neurons":
        both["train_recon_data"] = both["train_recon_data"].repeat(2, axis=2)
    else:
        both["train_recon_data"] = np.nan_to_num(both["train_recon_data"])
    with pytest.raises(InputError, match=r"train_recon_data .* differs from train_encod_data"):
        dataset.read(save(tmp_path / "r.h5", both), bin_width=0.02)


def test_conditions_are_split_equally(tmp_path):
    condition = np.repeat([7, 1, 4], [10, 20, 30])
    counts = np.random.default_rng(0).poisson(1.0, (60, 4, 3))
    path = save(tmp_path / "r.npz", {"spikes": counts, "condition": condition})
    data = dataset.read(path, bin_width=0.02, valid_fraction=0.2, seed=3)
    in_valid = [(condition[data.valid] == c).sum() for c in (7, 1, 4)]
    assert in_valid == [2, 4, 6]


def test_a_recording_may_say_its_bin_width(tmp_path):
    arrays = {"spikes": np.ones((4, 3, 2)), "bin_width": 0.005}
    assert dataset.read(save(tmp_path / "r.npz", arrays), bin_width=0.02).bin_width == 0.005


def test_trials_end_at_their_last_sample(tmp_path):
    counts = np.ones((5, 8, 3))
    rates = np.ones(counts.shape)
    counts[1, 5:] = rates[1, 5:] = np.nan
    counts[2, 3:6] = np.nan  # a hole, not an end
    counts[3, 7, :2] = np.nan
    counts[4] = np.nan
    path = save(tmp_path / "r.npz", {"spikes": counts, "rates": rates})
    data = dataset.read(path, bin_width=0.02)
    np.testing.assert_array_equal(data.lengths, [8, 5, 8, 8, 0])
    np.testing.assert_array_equal(data.real[..., 0].sum(1), data.lengths)
    assert (data.rates[1, :5] == 1).all()
    full = dataset.read(save(tmp_path / "f.npz", {"spikes": np.ones((5, 8, 3))}), bin_width=0.02)
    assert full.lengths is None


def test_what_was_dropped_is_known(tmp_path):
    rng = np.random.default_rng(0)
    counts = rng.poisson(2.0, (8, 5, 6)).astype(float)
    counts[:, :, [1, 4]] = np.nan
    counts[[0, 6]] = np.nan
    arrays = {"train_data": counts[:5], "valid_data": counts[5:]}
    path = save(tmp_path / "r.h5", arrays)
    data = dataset.read(path, bin_width=0.02, drop_neurons=(4, 1), drop_unobserved_trials=True)
    kept = counts[np.ix_([1, 2, 3, 4, 5, 7], range(5), [0, 2, 3, 5])]
    np.testing.assert_array_equal(data.counts, kept)
    np.testing.assert_array_equal(data.trial_index, [1, 2, 3, 4, 5, 7])
    np.testing.assert_array_equal(data.train, [0, 1, 2, 3])
    np.testing.assert_array_equal(data.valid, [4, 5])
    np.testing.assert_array_equal(data.neuron_index, [0, 2, 3, 5])
    assert (data.dropped_trials, data.dropped_neurons) == ((0, 6), (1, 4))
    with pytest.raises(InputError, match="drop_neurons has 6; neurons are numbered from 0 to 5"):
        dataset.read(path, bin_width=0.02, drop_neurons=(6,))


def test_an_array_is_read_as_a_file_is(tmp_path):
    counts = np.random.default_rng(0).poisson(1.0, (20, 6, 4)).astype(float)
    counts[counts > 2] = np.nan
    condition = np.arange(20) % 4
    path = save(tmp_path / "r.npz", {"spikes": counts, "condition": condition})
    a = dataset.read(path, bin_width=0.02, seed=2)
    b = dataset.from_arrays(counts, bin_width=0.02, seed=2, condition=condition)
    for name in ("counts", "observed", "train", "valid"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    with pytest.raises(InputError, match="array: spikes is 6 x 4; expected trial x bin x neuron"):
        dataset.from_arrays(counts[0], bin_width=0.02)


def test_a_lorenz_set_beyond_memory_is_refused_at_once():
    sizes = SIZES | {"neurons": 10**9, "conditions": 10**6}
    with pytest.raises(InputError, match=r"asked for are .* GiB as small integers"):
        dataset.from_lorenz(**sizes)
