from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from matplotlib.image import imread

from sbtt_jax.errors import SaveError
from sbtt_jax.grid import ModelKey
from sbtt_jax.model.intervals import Interval
from sbtt_jax.observations import OBSERVATIONS
from sbtt_jax.run import plots


def history(*keys, epochs=30, truth=True, heldout=True, **how):
    """The figure of made-up histories, whose best epoch is the third to last."""
    epoch = np.arange(epochs)
    rows = {}
    for key in keys:
        nll = 0.3 + 0.3 * np.exp(-epoch / 8) + 1 / key.bandwidth
        r2 = 1 - 20 * np.exp(-epoch / 2) - 1 / key.bandwidth if truth else np.full(epochs, np.nan)
        unseen = nll + 0.03 if heldout else np.full(epochs, np.nan)
        names = "epoch", "train_nll", "valid_nll", "heldout_nll", "valid_r2"
        columns = epoch, nll, nll + 0.02, unseen, r2
        rows[key] = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    return plots.history(rows, dict.fromkeys(keys, epochs - 3), **how)


def row(bandwidth, r2, seed=0, sweep=()):
    missing = 1 - bandwidth / 29
    scores = {"r2": r2, "r2_observed": r2 + 0.01, "r2_missing": r2 - 0.02 if missing else np.nan}
    return ModelKey(bandwidth, seed, sweep).columns | {"missing_fraction": missing, **scores}


def trials(missing=0.5, seed=0):
    rng = np.random.default_rng(seed)
    rates = rng.gamma(2, 0.2, (3, 12, 5))
    counts = rng.poisson(rates).astype(np.uint8)
    return counts, rng.random(counts.shape) >= missing, rates, rates * 1.1


TWO = ModelKey(29, 0), ModelKey(2, 0)
RATES = 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.2, 0.3, 0.4
GRID = [(("dropout", i / 10), ("learning_rate", rate)) for i in range(8) for rate in RATES]
LABELS = {"bin_width": 0.02, "trials": [4, 7, 9], "bandwidth": 2}
WALKS = np.random.default_rng(0).normal(size=(4, 30, 3)).cumsum(1)
FIGURES = {
    "history": lambda: history(*TWO, published=True),
    "history of many": lambda: history(*(ModelKey(b, s) for b in range(1, 9) for s in (0, 1))),
    "history of a grid": lambda: history(*(ModelKey(5, 0, sweep) for sweep in GRID)),
    "short history": lambda: history(ModelKey(3, 0), epochs=3, truth=False, heldout=False),
    "r2": lambda: plots.r2_vs_missing(
        [row(b, b / 30, seed) for b in (29, 2) for seed in (0, 1)],
        ensembles=[row(b, b / 29) | {"models": 2} for b in (29, 2)],
        published=True,
        ideal=[{"bandwidth": b, "knows": "all", "r2": 0.99 - 0.4 * (b == 2)} for b in (29, 2)],
        baselines=[row(29, 0.4) | {"baseline": "low_rank"}, row(2, 0.1) | {"baseline": "psth"}],
    ),
    "r2 of a grid": lambda: plots.r2_vs_missing(
        [row(b, 0.5, 0, sweep) for sweep in GRID for b in (5, 2)], published=True
    ),
    "r2 below zero": lambda: plots.r2_vs_missing([row(29, -3.0)]),
    "latents": lambda: plots.latents(WALKS + 0.3, WALKS, title="States of 4 validation trials"),
    "rates": lambda: plots.rates(*trials(), **LABELS, r2=0.5),
    "rates without truth": lambda: plots.rates(*trials()[:2], None, trials()[3], **LABELS),
}


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_is_cut_off(name):
    figure = FIGURES[name]()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes]  # with all their labels
    boxes += [part.get_window_extent(renderer) for part in (*figure.texts, *figure.legends)]
    for box in boxes:
        assert box.width > 0
        np.testing.assert_array_less(figure.bbox.min - 1, box.min)
        np.testing.assert_array_less(box.max, figure.bbox.max + 1)


def test_history_has_a_panel_for_each_known_number():
    names = [axes.get_ylabel() for axes in history(*TWO).axes]
    assert names[:2] == [f"NLL at {points} points (nats)" for points in ("observed", "held-out")]
    assert names[2:] == ["R² against true rates"]
    assert len(history(TWO[0], truth=False, heldout=False).axes) == 1


def test_a_model_that_diverged_does_not_stop_the_figure():
    names = "train_nll", "valid_nll", "heldout_nll", "valid_r2"
    numbers = [dict.fromkeys(names, value) for value in (np.nan, 0.5)]
    lost, sound = ([{"epoch": i, **values} for i in range(30)] for values in numbers)
    for rows in ({TWO[0]: lost}, {TWO[0]: lost, TWO[1]: sound}):
        FigureCanvasAgg(plots.history(rows, dict.fromkeys(rows, -1), published=True)).draw()


def test_history_names_every_bandwidth_once_and_marks_the_best_epoch():
    figure = history(*(ModelKey(b, s) for b in (29, 5) for s in (0, 1)))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[:2] == ["29", "5"]
    assert names[2] == "validation"
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [line.get_xdata().tolist() for line in dots] == [[27]] * 4  # from 0, as in the tables


@pytest.mark.parametrize(
    ("name", "label"),
    [("history of a grid", "5, 0.1, 0.003"), ("r2 of a grid", "0.1, 0.003")],
)
def test_every_combination_of_settings_has_a_line_and_a_name(name, label):
    figure = FIGURES[name]()
    (legend,) = figure.legends
    assert legend.get_title().get_text().endswith("dropout, learning_rate")
    names = [text.get_text() for text in legend.get_texts()]
    shade = legend.get_lines()[names.index(label)].get_color()
    assert any(same_color(line.get_color(), shade) for line in figure.axes[0].lines)
    assert len(set(names)) == len(names) >= len(GRID)


@pytest.mark.parametrize("values", [[0.9, 0.4], [-3.0, -7.0]])
def test_every_r2_is_inside_the_axes(values):
    figure = plots.r2_vs_missing([row(29, values[0]), row(2, values[1])], published=True)
    low, high = figure.axes[0].get_ylim()
    assert low < min(values)
    assert max(values) < high


def test_r2_line_goes_through_the_mean_of_the_seeds_and_needs_true_rates():
    rows = [row(5, 0.5, 0), row(5, 0.7, 1), row(29, 0.9, 0), row(29, 0.9, 1)]
    line = plots.r2_vs_missing(rows).axes[0].lines[0]
    np.testing.assert_allclose(line.get_xdata(), [0, 100 * 24 / 29])
    np.testing.assert_allclose(line.get_ydata(), [0.9, 0.6])
    with pytest.raises(ValueError, match="true rates"):
        plots.r2_vs_missing([row(5, np.nan)])


def test_rates_are_shown_in_spikes_per_second_and_missing_points_as_missing():
    counts, observed, true, inferred = trials()
    figure = plots.rates(counts, observed, true, inferred, **LABELS)
    images = [a.images[0] for a in figure.axes if a.images]
    np.testing.assert_array_equal(images[0].get_array().mask, ~observed[0].T)
    np.testing.assert_array_equal(images[0].get_array().filled(0), (counts * observed)[0].T)
    np.testing.assert_allclose(images[1].get_array(), true[0].T / 0.02)
    np.testing.assert_allclose(images[2].get_array(), inferred[0].T / 0.02)
    assert images[1].norm is images[2].norm
    labels = {a.get_xlabel() for a in figure.axes}
    assert labels >= {"Time (s)", "Firing rate (spikes/s, square-root scale)"}
    assert images[0].get_extent()[:2] == pytest.approx((0, 12 * 0.02))
    titles = [a.get_title() for a in FIGURES["rates without truth"]().axes]
    assert [title for title in titles if title] == ["Observed counts", "Inferred rates"]


def test_what_is_no_count_is_not_called_one():
    observation = OBSERVATIONS["gamma"]
    figure = plots.rates(*trials(), **LABELS, observation=observation)
    words = {a.get_title() for a in figure.axes} | {a.get_xlabel() for a in figure.axes}
    assert words >= {"Observed values", "Inferred expected values"}
    assert not any("count" in one or "pike" in one for one in words)


def test_neurons_are_called_what_the_recording_calls_them():
    names = ["u3", "u4", "u7", "u8", "u9"]
    figure = plots.rates(*trials(), **LABELS, names=names)
    FigureCanvasAgg(figure).draw()
    axis = figure.axes[0].yaxis
    inside = [
        (y, t.get_text()) for y, t in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
    ]
    assert [(y, text) for y, text in inside if 0 <= y < 5] == list(enumerate(names))
    counts, observed, _, inferred = (each[0] for each in trials())
    interval = Interval(inferred, *3 * [np.ones_like(inferred)])
    how = {"bin_width": 0.02, "title": "", "names": names}
    drawn = plots.intervals(counts, observed, interval, None, **how)
    titles = [a.get_title() for a in drawn.axes if a.get_visible()]
    assert sorted(titles) == [f"Neuron {name}" for name in names]


def test_a_figure_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    def broken(self, content):
        with self.open("wb") as file:
            file.write(content[:9])
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", broken)
        with pytest.raises(SaveError, match=r"figure\.png: disk full"):
            plots.save(Figure(), tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())
    plots.save(FIGURES["r2"](), tmp_path / "figure.png")
    FIGURES["r2"]().savefig(tmp_path / "same.png", dpi=150)
    drawn, same = (imread(tmp_path / name) for name in ("figure.png", "same.png"))
    np.testing.assert_array_equal(drawn, same)
