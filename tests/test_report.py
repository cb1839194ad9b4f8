from dataclasses import replace
from html.parser import HTMLParser

import h5py
import numpy as np
import pytest
from conftest import small_data

from sbtt_jax import config, recipes
from sbtt_jax.grid import ModelKey
from sbtt_jax.observations import OBSERVATIONS, POISSON
from sbtt_jax.run import notices, page, report
from sbtt_jax.run.evaluate import evaluate
from sbtt_jax.run.scores import ENDS, JUDGED, UNTUNED, WEIGHTS, interval
from sbtt_jax.run.train import train


class Reader(HTMLParser):
    """What a page holds: its text, and where its pictures are from."""

    def __init__(self):
        super().__init__()
        self.text, self.sources, self.links = [], [], []

    def handle_data(self, data):
        self.text.append(data)

    def handle_starttag(self, tag, attributes):
        own = dict(attributes)
        self.sources += [own["src"]] if "src" in own else []
        self.links += [own["href"]] if "href" in own else []


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A recording with holes, trials that end early, and a neuron that never fires."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(2.0, 0.3, (24, 10, 5))).astype(float)
    counts[..., 3] = 0
    counts[rng.random(counts.shape) < 0.3] = np.nan
    counts[:4, 7:] = np.nan
    with h5py.File(folder / "a & b.h5", "w") as file:
        file["spikes"], file["bin_width"] = counts, 0.01
    recipe = recipes.load(recipes.named("recording"))
    settings = config.updated(
        recipe,
        data={"path": str(folder / "a & b.h5"), "valid_fraction": 0.25},
        bandwidths=[5, 2],
        train={"epochs": 2, "steps_per_epoch": 2, "warmup_epochs": 1, "batch_size": 8},
        model={"encoder_size": 5, "decoder_size": 6, "latent_size": 2, "inferred_inputs": 4},
    )
    train(settings, folder / "run")
    evaluate(folder / "run")
    return folder / "run"


def test_the_page_holds_all_that_it_shows(run):
    page = read(run / "evaluation" / "report.html")
    assert page.links == []
    assert len(page.sources) == 1 + 5 + 1 + 1
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in page.sources)
    text = " ".join(page.text)
    for expected in (
        "Firing rates of a & b.h5",
        "24 trials x 10 bins of 10 ms x 5 neurons",
        "18 training and 6 validation trials",
        "1 neuron without a spike where observed, numbered from 0: 3",
        "Bandwidth 5, seed 0",
        "Bandwidth 2, seed 0",
        "low rank",
        "Training",
    ):
        assert expected in text, expected


def test_models_that_differ_in_a_setting_are_told_apart():
    rates = "0.001", "0.01"
    models = [{"bandwidth": 5, "seed": 2, "learning_rate": rate, JUDGED: 0.1} for rate in rates]
    simple = [{"bandwidth": 5, "baseline": "low_rank", JUDGED: 0.2}]
    rows = [row | dict.fromkeys(ENDS, np.nan) for row in (*models, *simple)]
    names = [row[""] for row in report._table(rows[:2], rows[2:], POISSON)]
    own = [f"model, seed 2, learning_rate {rate}" for rate in rates]
    assert names == [*own, "low rank"]


def test_what_is_written_on_a_page_is_text(tmp_path):
    table = [{"<i>": "<b>&"}]
    page.write(tmp_path / "page.html", "<script>", ["a < b"], [page.Section("&", (), (), table)])
    reader = read(tmp_path / "page.html")
    assert {"<script>", "a < b", "&", "<i>", "<b>&"} <= set(reader.text)
    assert "<script" not in (tmp_path / "page.html").read_text()


def rows(losses, status="ok"):
    return [{"heldout_nll": loss, "valid_nll": 0.0, "status": status} for loss in losses]


def test_notices_of_training():
    def of(losses, steps=100, status="ok"):
        return notices.of_training({ModelKey(5, 0): rows(losses, status)}, steps)

    falling = np.exp(-np.arange(10))
    assert of(falling) == []
    (line,) = of(falling, steps=10)
    assert "only 100 optimizer steps, and still improving" in line
    assert of(falling, steps=None) == []  # of another recording
    assert of([1.0, 0.5, 0.4, 0.5]) == []
    (line,) = of([1.0, 0.5, 0.4, 0.9])
    assert "overfitted after epoch 2 of 0 to 3, whose weights" in line
    (line,) = of([1.0, np.nan], status="failed")
    assert line.startswith("bandwidth 5, seed 0: given up")


def test_what_a_model_has_to_know_and_data_do_not_say():
    data = small_data()
    assert list(notices.unsaid(data, {"data": {}})) == []
    observed = data.observed.copy()
    observed[[2, 5]] = False
    (note,) = notices.unsaid(replace(data, observed=observed), {"data": {}})
    assert note == "nothing is observed in 2 trials, of which no rates are inferred: 2, 5"
    numbered = replace(data, unit_id=np.arange(data.neurons))
    assert list(notices.unsaid(numbered, {"data": {"counts": "0"}})) == []
    named = replace(data, unit_id=np.arange(data.neurons) + 100)
    (note,) = notices.unsaid(named, {"data": {"counts": "0"}})
    assert note.endswith("they are taken in the order of the data")
    assert list(notices.unsaid(named, {"data": {"counts": "0"}, "unit_id": [0]})) == []


def test_what_rates_are_a_mean_of_is_said_once_for_bandwidths_alike():
    def row(bandwidth, *weights):
        every = np.pad(weights, (0, len(WEIGHTS) - len(weights)))
        return {"bandwidth": bandwidth} | dict(zip(WEIGHTS, every, strict=True))

    models = [row(9, 0, 1), row(5, 0.25, 0.75), row(3, 0, 1), row(2, 1)]
    assert notices.of_weights([*models, {"bandwidth": 1}]) == [
        "bandwidths 9, 3: rates are those of similar trials alone",
        "bandwidth 5: rates are a weighted mean, 25% network, 75% similar trials",
    ]


def test_a_search_says_whether_it_helped():
    def of(before, after, observation=POISSON):
        row = {"bandwidth": 5, "seed": 0, JUDGED: after, UNTUNED: before}
        return notices.no_gain([row], observation)

    assert of(0.2, 0.3) == []
    assert "has the settings that tuning began with, since none was better" in of(0.2, 0.2)[0]
    assert "better (0.300 bits/spike) than those it found (0.200)" in of(0.3, 0.2)[0]
    assert "better (0.300 bits/sample)" in of(0.3, 0.2, OBSERVATIONS["gaussian"])[0]


def test_the_interval_is_the_spread_over_trials():
    """That of the mean of unit spikes; about 95% of such intervals hold the true mean."""
    rng, hits = np.random.default_rng(3), 0
    for _ in range(60):
        bits = rng.normal(0.4, 1.0, 80)
        low, high = interval(bits, np.ones(80))
        assert high - low == pytest.approx(2 * 1.96 * bits.std() / np.sqrt(80), rel=0.1)
        hits += low < 0.4 < high
    assert 50 <= hits <= 60
    assert all(np.isnan(interval(np.array([1.0, 0.0]), np.array([1.0, 0.0]))))
    # Trials without spikes have bits too, which count.
    bits, spikes = np.array([1.0, 2.0, -1.0, -1.0, -1.0]), np.array([1.0, 2.0, 0.0, 0.0, 0.0])
    low, high = interval(bits, spikes)
    assert low < bits.sum() / spikes.sum() == 0 < high
