"""Spike times to counts: against the definition, bin by bin, and at the edges."""

from datetime import timedelta
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbtt_jax.data.binning import bin_spikes, count_spikes, session
from sbtt_jax.errors import InputError

NAN = np.nan


def slowly(spike_times, windows, width, observed):
    """The definition in exact arithmetic, one bin of one neuron at a time."""
    bins = [(end - start) // width for start, end in windows]
    counts = np.full((len(windows), max(bins), len(spike_times)), NAN)
    for trial, (start, _) in enumerate(windows):
        for bin_ in range(bins[trial]):
            low, high = start + bin_ * width, start + (bin_ + 1) * width
            for neuron, times in enumerate(spike_times):
                if covered(low, high, None if observed is None else observed[neuron]):
                    counts[trial, bin_, neuron] = sum(low <= t < high for t in times)
    return counts


def covered(low, high, intervals):
    """Whether a union of intervals covers one, found by walking along it."""
    if intervals is None:
        return True
    while low < high:
        reached = max((end for start, end in intervals if start <= low), default=low)
        if reached <= low:
            return False
        low = reached
    return True


# On a grid, so that spikes and intervals meet the edges of bins; in units of which, written in
# decimals, some are not exact in binary.
UNITS = st.sampled_from([Fraction(1, 4), Fraction(1, 10), Fraction(1, 200), Fraction(1, 3000)])
grid = st.integers(-4, 40)
pairs = st.tuples(grid, st.integers(0, 12)).map(lambda pair: (pair[0], sum(pair)))


@st.composite
def cases(draw):
    neurons = draw(st.integers(1, 3))
    width = draw(st.integers(1, 4))
    longer = pairs.map(lambda pair: (pair[0], pair[1] + width))
    times = draw(st.lists(st.lists(grid, max_size=15), min_size=neurons, max_size=neurons))
    own = st.none() | st.lists(pairs, max_size=6)
    observed = draw(st.none() | st.lists(own, min_size=neurons, max_size=neurons))
    unit, late = draw(UNITS), draw(st.sampled_from([0, 7200]))
    windows = draw(st.lists(longer, min_size=1, max_size=4))
    return times, windows, width, observed, unit, late


def floats(values, unit, late):
    return None if values is None else late + np.array(values, float) * float(unit)


@given(cases())
@settings(max_examples=300, deadline=None)
def test_counts_are_those_of_the_definition(case):
    times, windows, width, observed, unit, late = case
    if late or unit != Fraction(1, 4):
        # What is on an edge exactly need not be so in floating point, and belongs where it is
        # then: the next test. Here, spikes in the middle between edges.
        times = [[t + Fraction(1, 2) for t in own] for own in times]
    expected = slowly(times, windows, width, observed)
    counts = bin_spikes(
        [floats(own, unit, late) for own in times],
        floats(windows, unit, late),
        width * float(unit),
        None if observed is None else [floats(own, unit, late) for own in observed],
    )
    np.testing.assert_array_equal(counts, expected)


@given(st.floats(0.0007, 0.3), st.floats(-100, 1e5), st.lists(st.integers(0, 50), min_size=1))
@settings(max_examples=200, deadline=None)
def test_a_spike_at_an_edge_as_computed_belongs_to_the_bin_that_begins_there(width, start, at):
    times = start + np.array(at) * width
    counts = bin_spikes([times], [(start, start + 51 * width)], width)
    np.testing.assert_array_equal(counts[0, :, 0], np.bincount(at, minlength=51)[:51])
    rounded = bin_spikes([np.nextafter(times, -np.inf)], [(start, start + 51 * width)], width)
    np.testing.assert_array_equal(rounded, counts)
    before = times - 1e-5
    counts = bin_spikes([before[before >= start]], [(start, start + 51 * width)], width)
    earlier = [k - 1 for k in at if k]
    np.testing.assert_array_equal(counts[0, :, 0], np.bincount(earlier, minlength=51)[:51])


@pytest.mark.parametrize("first", [0, 12, 3600, 1_700_000_000])
def test_spikes_of_a_clock_that_ticks_once_per_bin_are_one_to_a_bin(first):
    times = np.arange(1000 * first, 1000 * first + 5000) / 1000
    counts = bin_spikes([times], [(first, first + 5)], 0.001)
    np.testing.assert_array_equal(counts, np.ones((1, 5000, 1)))
    trials = first + 0.1 + np.arange(5)[:, None] * 0.7 + np.array([-0.1, 0.6])
    counts = bin_spikes([times], trials, 0.02)
    np.testing.assert_array_equal(counts, np.full((5, 35, 1), 20))


def test_windows_are_as_exact_as_the_numbers_they_are_given_in():
    ends = (1000 + np.arange(6) * 0.7).astype(np.float32)
    windows = np.stack([ends[:-1], ends[1:]], 1)
    assert bin_spikes([[]], windows, 0.02).shape == (5, 35, 1)
    counts = bin_spikes([np.float32(1000 + np.arange(35) * 0.02)], windows[:1], 0.02)
    np.testing.assert_array_equal(counts, np.ones((1, 35, 1)))


@pytest.mark.parametrize("width", [0.1, 0.001, 1 / 30])
def test_a_session_ends_with_the_bin_of_its_last_spike(width):
    for last in range(1, 300):
        window = session(1.2 + np.array([0, last]) * width, width, to_end=True)
        counts = bin_spikes([1.2 + np.arange(last + 1) * width], window, width)
        np.testing.assert_array_equal(counts, np.ones((1, last + 1, 1)))


def test_edges_that_decimals_miss():
    # 0.3 is less than 3 * 0.1, and 0.7 / 0.1 is less than 7.
    edges = np.arange(11) * 0.1
    assert bin_spikes([edges], [(0, 1)], 0.1)[0, :, 0].tolist() == [1] * 10
    assert bin_spikes([[0.3, 0.7]], [(0, 0.3), (0.3, 0.7)], 0.1).sum(
        1, where=[[[1], [1], [1], [0]], [[1], [1], [1], [1]]]
    ).tolist() == [[0], [1]]
    # A window that is whole but for rounding holds its last bin, and one that is not does not.
    windows = [(0, 0.3 - 1e-9), (0, 0.3 - 1e-6), (0, 0.3 + 1e-9)]
    assert (~np.isnan(bin_spikes([[]], windows, 0.1))).sum(1).tolist() == [[3], [2], [3]]


def test_borders_of_what_was_observed():
    width, windows = 0.02, [(10.0, 10.1)]
    for observed, bins in [
        ([(10.02, 10.08)], [1, 2, 3]),
        ([(10.02 + 1e-10, 10.08 - 1e-10)], [1, 2, 3]),
        ([(10.02 + 1e-6, 10.08)], [2, 3]),
        ([(10.02, 10.08 - 1e-6)], [1, 2]),
        ([(10.05, 10.1), (10.0, 10.05)], [0, 1, 2, 3, 4]),  # touching, in no order
        ([(10.0, 10.051), (10.049, 10.1), (10.01, 10.02)], [0, 1, 2, 3, 4]),
        ([(10.0, 10.05), (10.05 + 1e-6, 10.1)], [0, 1, 3, 4]),
        ([(10.03, 10.03)], []),
        ([(-np.inf, 10.05)], [0, 1]),
        (np.empty((0, 2)), []),
        ([[]], []),
    ]:
        counts = bin_spikes([[10.045]], windows, width, observed)[0, :, 0]
        expected = np.full(5, NAN)
        expected[bins] = 0
        expected[2] += 1  # dropped with its bin if that is not observed
        np.testing.assert_array_equal(counts, expected, str(observed))


def test_ways_to_say_who_was_observed_when():
    times, windows = {"a": [0.5], 7: [1.5, 1.2]}, [(0, 2), (1, 2)]
    everything = [[[1, 0], [0, 2]], [[0, 2], [NAN, NAN]]]
    for observed, expected in [
        (None, everything),
        ([None, None], everything),
        ([(0, 2)], everything),
        (np.array([[0.0, 1.0], [1.0, 2.0]]), everything),
        ([[0, 2], [0, 2]], everything),
        ({7: None, "a": [0, 2]}, everything),
        ({7: [1, 2], "a": None}, [[[1, NAN], [0, 2]], [[0, 2], [NAN, NAN]]]),
        ([None, [(1, 2)]], [[[1, NAN], [0, 2]], [[0, 2], [NAN, NAN]]]),
        ([[(0, 1)], [(1, 1.5), (1.5, 3)]], [[[1, NAN], [NAN, 2]], [[NAN, 2], [NAN, NAN]]]),
    ]:
        for width in (1.0, timedelta(seconds=1)):
            np.testing.assert_array_equal(bin_spikes(times, windows, width, observed), expected)
    by_position = bin_spikes(list(times.values()), np.array(windows), 1.0)
    np.testing.assert_array_equal(by_position, everything)


def test_counts_are_held_in_the_smallest_type_and_never_overflow():
    for number, dtype in [(255, np.uint8), (256, np.uint16), (65535, np.uint16)]:
        counts, observed = count_spikes([[0.1], np.full(number, 0.5)], [(0, 1)], 1.0)
        assert counts.dtype == dtype
        assert counts.tolist() == [[[1, number]]]
        assert observed.all()
    with pytest.raises(
        InputError, match="neuron 1: 65536 spikes in trial 1, bin 2; give a smaller"
    ):
        bin_spikes([[], np.full(65536, 3.5)], [(4, 7), (1, 4)], 1.0)
    unseen = bin_spikes([np.full(65536, 3.5)], [(1, 4)], 1.0, [(1, 3)])
    np.testing.assert_array_equal(unseen[0, :, 0], [0, 0, NAN])


GOOD = {"spike_times": [[0.5], [0.2]], "windows": [(0, 1)], "bin_width": 0.1}
WRONG = [
    ({"spike_times": []}, "spike_times holds no neuron"),
    ({"spike_times": {"u5": [0.1, NAN]}}, "spike_times of neuron u5 holds nan at 1; expected one"),
    ({"spike_times": [[0.5], [np.inf]]}, "spike_times of neuron 1 holds inf at 0"),
    ({"spike_times": [0.5, 0.2]}, "neuron 0 is a single number; expected one 1-D array"),
    ({"spike_times": [["x"]]}, "neuron 0 is not an array of numbers"),
    ({"windows": [(0, 1), (NAN, 2)]}, "windows holds nan at 1; expected trial x 2"),
    ({"windows": [0, 1]}, "windows is 2; expected trial x 2"),
    ({"windows": np.empty((0, 2))}, "windows is 0 x 2; expected trial x 2"),
    ({"windows": [(0, 1), (3, 2)]}, "trial 1 is from 3 to 2 s, which ends before it starts"),
    ({"windows": [(0, 1), (3, 3.05)]}, "trial 1 is from 3 to 3.05 s, which holds no whole bin"),
    ({"bin_width": 0.0}, "bin_width is 0; expected a positive"),
    ({"bin_width": NAN}, "bin_width is nan; expected a positive"),
    ({"bin_width": "20 ms"}, "bin_width: '20 ms' is no time; expected a number of seconds"),
    ({"observed": [[0, 1], [1, 2]]}, "2 pairs for 2 neurons, which may be intervals for all or"),
    ({"observed": {0: None}}, "observed has no intervals for neuron 1"),
    ({"bin_width": 2.0**-50}, "windows and bin_width ask for 1 x 1125899906842624 x 2 counts"),
    ({"observed": [None]}, "observed has 1 arrays for 2 neurons; give one for each, or one"),
    ({"observed": [None, [(0, 1, 2)]]}, "observed of neuron 1 is 1 x 3; expected intervals x 2"),
    ({"observed": [0, 1]}, "observed of neuron 0 is a single number; expected intervals x 2"),
    ({"observed": [None, [(0, NAN)]]}, "observed of neuron 1 holds 0 to nan; expected intervals"),
    ({"observed": [(2, 1)]}, "observed of neuron 0 holds 2 to 1; expected intervals x 2 seconds"),
    ({"observed": [[(0, 1), (2,)], None]}, "observed of neuron 0 is not an array of numbers"),
]


@pytest.mark.parametrize(("change", "words"), WRONG, ids=[words for _, words in WRONG])
def test_what_is_wrong_is_named(change, words):
    assert bin_spikes(**GOOD).shape == (1, 10, 2)
    with pytest.raises(InputError) as error:
        bin_spikes(**GOOD | change)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
