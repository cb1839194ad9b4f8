"""Values per frame to values per bin: against the definition, at the edges, and from files."""

from fractions import Fraction

import h5py
import numpy as np
import pytest
from conftest import save
from hypothesis import given, settings
from hypothesis import strategies as st

from sbtt_jax.data import readers, recording
from sbtt_jax.data.frames import bin_frames
from sbtt_jax.errors import InputError

NAN = np.nan


def slowly(values, times, offsets, width, start):
    """The definition in exact arithmetic, one sample at a time."""
    begins = [own[0] for own in times] if start is None else start
    ends = [own[-1] + max(offsets) - begin for own, begin in zip(times, begins, strict=True)]
    bins = max(end // width for end in ends) + 1
    binned = np.full((len(times), bins, len(offsets)), NAN, np.float32)
    for trial, begin in enumerate(begins):
        for neuron, offset in enumerate(offsets):
            found = {}
            for frame, time in enumerate(times[trial]):
                value = values[trial, frame, neuron]
                if not np.isnan(value) and time + offset >= begin:
                    found.setdefault((time + offset - begin) // width, []).append(value)
            for bin_, own in found.items():
                binned[trial, bin_, neuron] = np.mean(own)
    return binned


# In units of which, written in decimals, some are not exact in binary.
UNITS = st.sampled_from([Fraction(1, 4), Fraction(1, 10), Fraction(1, 200), Fraction(1, 3000)])


@st.composite
def cases(draw):
    trials, frames, neurons = (draw(st.integers(1, most)) for most in (3, 6, 3))
    period = draw(st.integers(1, 7))
    steps = st.just(period) | st.integers(2 * period, 9 * period)  # a frame, or a pause
    times = []
    for _ in range(trials):
        own = [period, *draw(st.lists(steps, min_size=frames - 1, max_size=frames - 1))]
        times.append(np.cumsum([draw(st.integers(-9, 9)), *sorted(own[1:])]).tolist())
    few = min(int(np.median(np.diff(times))), period) if frames > 1 else period
    one = st.lists(st.integers(0, few), min_size=neurons, max_size=neurons)
    number = st.sampled_from([NAN, -1.5, 0.0, 0.25, 3.0])
    count = trials * frames * neurons
    values = draw(st.lists(number, min_size=count, max_size=count))
    latest = [min(own[0] + 5, own[-1]) for own in times]
    start = draw(st.none() | st.just(latest))
    values = np.array(values).reshape(trials, frames, neurons)
    return values, times, draw(one), draw(st.integers(1, 12)), start, draw(UNITS)


@given(cases(), st.sampled_from([0, 7200]))
@settings(max_examples=300, deadline=None)
def test_values_are_those_of_the_definition(case, late):
    values, times, offsets, width, start, unit = case
    expected = slowly(values, times, offsets, width, start)
    binned = bin_frames(
        values,
        late + np.array(times) * float(unit),
        np.array(offsets) * float(unit),
        width * float(unit),
        start=None if start is None else late + np.array(start) * float(unit),
    )
    assert binned.dtype == np.float32
    np.testing.assert_array_equal(binned, expected)


def test_a_scan_at_30_hz_in_bins_of_10_ms():
    times, offsets = 5 + np.arange(4) / 30, [0.0, 0.0151, 1 / 30]
    values = np.arange(12.0).reshape(4, 3)
    binned = bin_frames(values, times, offsets, 0.01)
    assert binned.shape == (14, 3)
    for neuron, bins in enumerate([[0, 3, 6, 10], [1, 4, 8, 11], [3, 6, 10, 13]]):
        np.testing.assert_array_equal(np.flatnonzero(~np.isnan(binned[:, neuron])), bins)
        np.testing.assert_array_equal(binned[bins, neuron], values[:, neuron])
    rows = bin_frames(values, times, [0, 151, 1000 / 3], 0.01, line_period=1e-4)
    np.testing.assert_array_equal(rows, binned)


def test_bins_as_long_as_frames_hold_one_sample_each_whatever_the_rounding():
    for rate, late in [(30, 0.0), (29.97, 1e4), (7.5, 0.3), (15.49, 1e6)]:
        values = np.arange(1000.0)[:, None] * [1, -1]
        binned = bin_frames(values, late + np.arange(1000) / rate, [0, 0.9 / rate], 1 / rate)
        np.testing.assert_array_equal(binned, values)


def test_samples_of_one_bin_are_averaged_without_missing_ones():
    values = [[1, 2], [3, NAN], [NAN, NAN], [NAN, 5]]
    binned = bin_frames(values, [0, 0.1, 0.2, 0.3], [0, 0.05], 0.2)
    np.testing.assert_array_equal(binned, [[2, 2], [NAN, 5]])
    masked = np.ma.masked_invalid(values)
    np.testing.assert_array_equal(bin_frames(masked, [0, 0.1, 0.2, 0.3], [0, 0.05], 0.2), binned)


def test_trials_share_the_times_of_frames_or_have_their_own():
    values = np.arange(12.0).reshape(2, 3, 2)
    times, offsets = np.array([0, 0.03, 0.06]), [0, 0.01]
    shared = bin_frames(values, times, offsets, 0.01)
    own = bin_frames(values, [times, 100 + times], offsets, 0.01)
    np.testing.assert_array_equal(shared, own)
    for trial in range(2):
        np.testing.assert_array_equal(
            shared[trial], bin_frames(values[trial], times, offsets, 0.01)
        )
    # A trial that begins within a frame has what was sampled since then.
    cut = bin_frames(values, times, offsets, 0.01, start=0.005)
    np.testing.assert_array_equal(
        cut[0].T, [[NAN, NAN, 2, NAN, NAN, 4, NAN], [1, *2 * [NAN], 3, *2 * [NAN], 5]]
    )


GOOD = {"values": np.zeros((3, 2)), "frame_times": [0, 0.1, 0.2], "offsets": [0, 0.05]}
GOOD |= {"bin_width": 0.02}
TWO = {"values": np.zeros((2, 3, 2))}
WRONG = [
    ({"values": np.zeros(3)}, "values is 3; expected trial x frame x neuron or frame x neuron"),
    ({"values": np.zeros((0, 2))}, "values is 0 x 2; expected"),
    ({"values": [["a", "b"]]}, "values is not an array of numbers"),
    ({"frame_times": [0, 0.1]}, "frame_times is 2; expected seconds of 3 frames"),
    (TWO | {"frame_times": np.zeros((3, 2))}, "is 3 x 2; expected seconds of 2 x 3 frames"),
    ({"frame_times": [0, NAN, 0.2]}, "frame_times holds nan; expected finite seconds of 3 frames"),
    ({"frame_times": [0, 0.1, 0.1]}, "frame 2 begins at 0.1 s, and the one before at 0.1 s"),
    (TWO | {"frame_times": [[0, 1, 2], [0, 2, 1]]}, "frame 2 of trial 1 begins at 1 s, and the"),
    ({"offsets": [0, 0, 0]}, "offsets is 3; expected seconds of 2 neurons"),
    ({"offsets": [0, -0.01]}, "neuron 1 is met after -0.01 s; expected seconds from 0 to"),
    ({"offsets": [0.11, 0]}, "neuron 0 is met after 0.11 s; expected seconds from 0 to less than"),
    ({"offsets": [0, NAN]}, "offsets: neuron 1 is met after nan s"),
    ({"offsets": [0, 511], "line_period": 1e-3}, "neuron 1 is met after 0.511 s"),
    ({"offsets": [0], "line_period": 1e-3}, "offsets is 1; expected rows of 2 neurons"),
    ({"line_period": 0.0}, "line_period is 0; expected a positive number of seconds"),
    ({"bin_width": 0.0}, "bin_width is 0; expected a positive number of seconds"),
    ({"bin_width": NAN}, "bin_width is nan; expected a positive"),
    ({"bin_width": "20 ms"}, "bin_width: '20 ms' is no time; expected a number of seconds"),
    ({"line_period": "x"}, "line_period: 'x' is no time; expected a number of seconds"),
    ({"bin_width": 2.0**-50}, "frame_times and bin_width ask for 1 x 2814749"),
    ({"start": [0, 1]}, "start is 2; expected finite seconds, one number or 1"),
    ({"start": 0.3}, "start is after the last sample of a trial"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), WRONG, ids=[words for _, words in WRONG])
def test_what_is_wrong_is_named(change, words):
    assert bin_frames(**GOOD).shape == (13, 2)
    with pytest.raises(InputError) as error:
        bin_frames(**GOOD | change)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def scanned():
    """Counts of 8 trials of 12 frames at 20 Hz, some missing, and when they were sampled."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.8, (8, 12, 3)).astype(np.float32)
    counts[rng.random(counts.shape) < 0.1] = NAN
    times = 10.0 * np.arange(8)[:, None] + np.arange(12) * 0.05
    return {"spikes": counts, "frame_times": times, "sample_offsets": np.array([0, 0.021, 0.04])}


def reading(tmp_path, arrays, suffix=".npz", **how):
    return recording.read(save(tmp_path / f"r{suffix}", arrays), **{"bin_width": 0.01} | how)


def seen(data):
    return np.where(data.observed, data.counts, NAN)


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_a_file_of_frames_is_read_in_bins(suffix, scanned, tmp_path):
    data = reading(tmp_path, scanned, suffix)
    expected = bin_frames(*scanned.values(), 0.01)
    np.testing.assert_array_equal(seen(data), expected)
    assert (data.bin_width, data.counts.shape) == (0.01, (8, 60, 3))
    np.testing.assert_allclose(data.trial_start, 10 * np.arange(8))
    # All trials may have the same times, and a mask says what a NaN does.
    counts = scanned["spikes"]
    scanned |= {"spikes": np.nan_to_num(counts, nan=7), "spikes_mask": ~np.isnan(counts)}
    data = reading(tmp_path, scanned | {"frame_times": scanned["frame_times"][0]}, suffix)
    np.testing.assert_array_equal(seen(data), expected)
    assert data.trial_start is None


def test_splits_of_frames(scanned, tmp_path):
    counts, times = scanned.pop("spikes"), scanned.pop("frame_times")
    splits = {"train_data": counts[:6], "valid_data": counts[6:], "bin_width": 0.01}
    own = {"train_frame_times": times[:6], "valid_frame_times": times[6:]}
    data = reading(tmp_path, scanned | splits | own, bin_width=None)
    expected = bin_frames(counts, times, scanned["sample_offsets"], 0.01)
    np.testing.assert_array_equal(seen(data), expected)
    np.testing.assert_allclose(data.trial_start, times[:, 0])
    shorter = {"valid_data": counts[6:, :9], "valid_frame_times": times[6:, :9]}
    shorter = reading(tmp_path, scanned | splits | own | shorter)
    np.testing.assert_array_equal(seen(shorter)[6:, :45], expected[6:, :45])
    assert not shorter.observed[6:, 45:].any()


def test_a_session_of_frames_is_chopped(scanned, tmp_path):
    counts = scanned["spikes"].reshape(96, 3)
    scanned |= {"spikes": counts, "frame_times": 3 + np.arange(96)[None] / 20}  # as MATLAB's
    data = reading(tmp_path, scanned, chop=0.5)
    expected = bin_frames(counts, 3 + np.arange(96) / 20, scanned["sample_offsets"], 0.01)
    session = data.session
    np.testing.assert_array_equal(np.where(session.observed, session.counts, NAN), expected)
    assert data.time_start == 3


def test_units_and_values_that_stand_for_nothing_are_used(scanned, tmp_path):
    path = tmp_path / "r.h5"
    expected = seen(reading(tmp_path, scanned, ".h5"))
    scanned["spikes"] = np.nan_to_num(scanned["spikes"], nan=99)
    for key in ("frame_times", "sample_offsets"):
        scanned[key] = scanned[key] * 1000
    save(path, scanned)
    with h5py.File(path, "r+") as file:
        file["spikes"].attrs["_FillValue"] = 99.0
        file["frame_times"].attrs["units"] = file["sample_offsets"].attrs["units"] = "ms"
    np.testing.assert_array_equal(seen(recording.read(path, bin_width=0.01)), expected)


@pytest.mark.parametrize(
    ("key", "said", "words"),
    [
        ("frame_times", {"scale_factor": 1e-3}, r"frame_times is packed \(scale_factor 0.001"),
        ("sample_offsets", {"add_offset": 0.1}, r"sample_offsets is packed \(add_offset 0.1"),
        ("frame_times", {"_FillValue": 0.1}, r"frame_times is NaN or a fill value at 2"),
        ("sample_offsets", {"missing_value": 0.04}, "sample_offsets is NaN or a fill value at 2"),
    ],
)
def test_times_are_meant_as_they_stand(key, said, words, scanned, tmp_path):
    path = save(tmp_path / "r.h5", scanned)
    with h5py.File(path, "r+") as file:
        file[key].attrs.update(said)
    with pytest.raises(InputError, match=words):
        recording.read(path, bin_width=0.01)


def test_the_axis_of_time_begins_with_the_first_frame_of_all_trials(scanned, tmp_path):
    scanned["frame_times"] = -0.5 + np.arange(12) * 0.05
    data = reading(tmp_path, scanned)
    assert data.time_start == -0.5
    splits = {"train_data": scanned["spikes"][:6], "valid_data": scanned["spikes"][6:]}
    scanned.pop("spikes")
    assert reading(tmp_path, scanned | splits).time_start == -0.5


def test_axes_of_values_per_frame_are_named(scanned, tmp_path):
    expected = seen(reading(tmp_path, scanned))
    path = save(tmp_path / "r.h5", scanned | {"spikes": scanned["spikes"].transpose(2, 0, 1)})
    with h5py.File(path, "r+") as file:
        file["spikes"].attrs["axes"] = "neuron trial frame"
    np.testing.assert_array_equal(seen(recording.read(path, bin_width=0.01)), expected)


def test_longer_bins_are_averaged_and_a_note_says_so(scanned, tmp_path):
    scanned["spikes"] = np.ones((8, 12, 3))
    data = reading(tmp_path, scanned, bin_width=0.1)
    assert data.counts.shape == (8, 6, 3)
    assert "spikes: samples in the same bin of 0.1 s are averaged" in data.notes
    scanned["spikes"][0, 0] = 2
    with pytest.raises(InputError, match=r"spikes holds a fractional count, 1.5 at trial, bin"):
        reading(tmp_path, scanned, bin_width=0.1)


UNFIT = [
    (lambda a: {"frame_times": None}, "no frame_times; values per frame need"),
    (lambda a: {"sample_offsets": None}, "no sample_offsets; values per frame need frame_times"),
    (lambda a: {"sample_offsets": np.zeros(4)}, "offsets is 4; expected seconds of 3 neurons"),
    (lambda a: {"frame_times": np.array(["a"] * 12)}, "frame_times is 12 of text; expected"),
    (lambda a: {"spikes_mask": np.ones((8, 60, 3))}, "expected 8 x 12 x 3 booleans, as spikes"),
]


@pytest.mark.parametrize(("change", "words"), UNFIT, ids=[w for _, w in UNFIT])
def test_what_is_wrong_with_a_file_is_named(change, words, scanned, tmp_path):
    arrays = {key: value for key, value in (scanned | change(scanned)).items() if value is not None}
    with pytest.raises(InputError) as error:
        reading(tmp_path, arrays)
    assert words in str(error.value)
    assert str(error.value).startswith(str(tmp_path))


def test_a_file_of_frames_needs_a_bin_width(scanned, tmp_path):
    with pytest.raises(InputError, match=r"per frame; give data\.bin_width, in seconds, as in"):
        reading(tmp_path, scanned, bin_width=None)
    path = save(tmp_path / "r.npz", scanned)
    with readers.opened(path) as arrays:
        recording.assemble(arrays, bin_width=0.01)
        assert arrays.read >= set(scanned)
