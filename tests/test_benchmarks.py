"""The benchmarks run on a tiny set and write what they promise. Timings are not tested."""

import importlib.util
import json

import numpy as np
import pytest
from conftest import call, small_data, write

from benchmarks import against_pytorch, intervals, recordings, scaling, two_photon
from sbtt_jax import config, recipes
from sbtt_jax.errors import InputError

TINY = """
bandwidths: [6, 2]
data: {conditions: 8, trials_per_condition: 6, bins: 10, neurons: 8}
model: {encoder_size: 8, decoder_size: 8}
train: {batch_size: 16}
"""


@pytest.fixture
def run(tmp_path):
    """A function that runs a benchmark on the tiny set."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    files = "--config", tmp_path / "tiny.yaml", "--out", tmp_path
    return lambda name, *options: call("-m", f"benchmarks.{name}", *files, *options)


def result(done, path):
    assert done.returncode == 0, done.stderr
    assert f"wrote {path}" in done.stdout
    return json.loads(path.read_text())


@pytest.mark.slow
def test_both_sides_of_the_comparison_compute_the_same(run, tmp_path):
    done = run("against_pytorch", "--rounds", "1")
    if importlib.util.find_spec("torch") is None:
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "pip install torch" in done.stderr
        pytest.skip("PyTorch is not installed: pip install torch")
    found = result(done, tmp_path / "against_pytorch.json")
    assert found["largest_loss_difference"] < 1e-5
    for check in found["losses_without_dropout"]:
        assert check["here"] == pytest.approx(check["pytorch"], abs=1e-5)


def test_only_the_published_recipe_is_compared():
    against_pytorch.published_recipe(recipes.load(recipes.named("reference")))
    with pytest.raises(InputError, match="published recipe"):
        against_pytorch.published_recipe(recipes.load(recipes.named("lorenz")))


@pytest.mark.slow
def test_scaling(run, tmp_path):
    done = run("scaling", "--axes", "batch", "--sizes", "4", "8", "--models", "1")
    small, large = result(done, tmp_path / "scaling_cpu.json")["axes"]["batch"]["points"]
    assert (small["batch"], large["batch"]) == (4, 8)
    assert large["program_mib"] > small["program_mib"]
    assert large["process_mib"] > large["program_mib"]
    assert (tmp_path / "scaling_cpu.png").read_bytes().startswith(b"\x89PNG")


def test_scaling_trains_on_half_of_all_points():
    problem = scaling.random_problem(scaling.Size(2, 6, 10, 4), config.Settings())
    assert (problem.steps, len(problem.keys), problem.neurons) == (scaling.STEPS, 2, 6)
    assert problem.masks.observed.shape == (2, 4 * scaling.STEPS, 10, 6)
    assert problem.masks.observed.mean() == pytest.approx(0.5, abs=0.1)
    assert problem.trials.lengths is None


def test_exponents_are_of_the_upper_half():
    points = [{"bins": n, "step_seconds": max(1.0, (n / 100) ** 2)} for n in (50, 100, 200, 400)]
    assert scaling.exponents("bins", points)["step_seconds"] == pytest.approx(2)


def test_gpu_benchmark_asks_for_a_gpu(run, tmp_path):
    done = run("gpu")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: JAX finds no GPU or TPU")
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.slow
def test_gpu_benchmark_on_a_cpu(run, tmp_path):
    done = run("gpu", "--allow_cpu", "--epochs", "1", "--variants", "turns", "loop_unroll_1")
    found = result(done, tmp_path / "gpu_cpu.json")["variants"]
    assert [one["difference_from_cpu"] < 1e-5 for one in found.values()] == [True, True]


@pytest.mark.slow
@pytest.mark.parametrize("posterior", [False, True])
def test_recordings_are_scored_beside_baselines(tmp_path, posterior):
    write(tmp_path / "small.h5", small_data())
    recipe = config.updated(
        recipes.load(recipes.named("recording")),
        model={
            "inferred_inputs": 0,
            "smoothing": False,
            "posterior": posterior,
            "stacked": not posterior,
        },
        train={"epochs": 1, "warmup_epochs": 0, "steps_per_epoch": 2},
    )
    seen, model = next(recordings.trained(recipe, tmp_path / "small.h5", 0, tmp_path / "runs"))
    found = recordings.scores(seen, {"model": model}, baselines=True)
    assert "model" in found["heldout"]
    bits, spikes = found["heldout"]["model"]
    assert bits.shape == spikes.shape
    assert spikes.sum() > 0


@pytest.mark.slow
def test_intervals_of_counts(tmp_path):
    write(tmp_path / "small.h5", small_data())
    quick = {"epochs": 1, "warmup_epochs": 0, "steps_per_epoch": 2}
    recipe = config.updated(recipes.load(recipes.named("recording")), train=quick)
    found = intervals.of_recording(recipe, tmp_path / "small.h5", (0, 1, 2), tmp_path / "runs")
    assert [row["bandwidth"] for row in found] == [5, 3]
    for row in found:
        assert 0.9 <= row["should"] <= 1
        assert 0.7 < row["inside"] <= 1
        # The likelihood of a mean is no smaller than the mean of likelihoods: Jensen's inequality.
        assert row["bits_of_mean"] >= np.mean(row["bits"])


@pytest.mark.slow
def test_startup(run, tmp_path):
    done = run("startup", "--repeats", "1")
    found = result(done, tmp_path / "startup.json")["wall_and_cpu_seconds"]
    for start in ("first", "second"):
        wall = [found[start][stage][0] for stage in ("begun", "first step", "second epoch")]
        assert 0 < wall[0] < wall[1] < wall[2]


@pytest.mark.slow
def test_ablation(run, tmp_path):
    """Every ingredient that the recipe has is removed, and no other."""
    options = ("--runs", tmp_path / "runs", "--epochs", "1", "--bandwidths", "6")
    found = result(run("ablation", *options), tmp_path / "ablation.json")["without"]
    # The tiny set's recipe is the published one but for its sizes.
    ingredients = ["larger encoder", "larger decoder", "dropout", "smaller batches"]
    assert list(found) == ["nothing", *ingredients]
    assert found["nothing"][0]["r2"] != found["dropout"][0]["r2"]


@pytest.mark.slow
def test_steps(run, tmp_path):
    options = ("--runs", tmp_path / "runs", "--epochs", "1", "2", "--bandwidths", "6")
    found = result(run("steps", *options), tmp_path / "steps.json")["steps"]
    assert list(found) == ["3 (1 epochs)", "6 (2 epochs)"]
    assert [rows[0]["epoch"] < n for n, rows in enumerate(found.values(), 1)] == [True, True]


@pytest.fixture(scope="module")
def imaged():
    """A small population, imaged: at 10 turns a second, faster than frames can show."""
    return two_photon.simulate(3, frequency=10.0, conditions=8, neurons=30)


def test_imaging_has_one_value_of_each_neuron_per_frame(imaged):
    shape = 160, 60, 30
    assert imaged.subframe.shape == imaged.whole_frames.shape == imaged.spikes.shape == shape
    assert imaged.rates.shape == (8, *shape[1:])
    assert imaged.latents.shape == (8, 60, 3)
    assert imaged.condition.tolist() == np.repeat(np.arange(8), 20).tolist()
    for events in (imaged.subframe, imaged.whole_frames):
        seen = ~np.isnan(events)
        assert seen.mean() == pytest.approx(10 / (1000 / 30), rel=0.01)
        assert (events[seen] >= 0).all()
    assert (~np.isnan(imaged.whole_frames)).any(-1).mean() == pytest.approx(0.3, rel=0.01)
    assert (~np.isnan(imaged.subframe)).any(-1).all()
    again = two_photon.simulate(3, frequency=10.0, conditions=8, neurons=30)
    for one, other in zip(imaged, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_imaging_keeps_mean_rates(imaged):
    rates = imaged.rates[imaged.condition]
    per_bin = np.nanmean(imaged.subframe, axis=(0, 1)) * imaged.bin_width * 30
    assert per_bin.mean() == pytest.approx(rates.mean(), rel=0.1)
    assert np.corrcoef(per_bin, rates.mean((0, 1)))[0, 1] > 0.9
    assert imaged.spikes.mean() == pytest.approx(rates.mean(), rel=0.05)


def test_events_show_fast_rates_only_at_their_own_times(imaged):
    def likeness(events):
        """Correlation with the rates, where there are events."""
        seen, rates = ~np.isnan(events), imaged.rates[imaged.condition]
        return np.corrcoef(events[seen], rates[seen])[0, 1]

    middle = two_photon.simulate(3, frequency=10.0, conditions=8, neurons=30, whole_at=0.5)
    own, fair, begin = map(likeness, (imaged.subframe, middle.whole_frames, imaged.whole_frames))
    assert own > 1.05 * fair > 1.1 * begin


def test_deconvolution_undoes_calcium():
    spikes = np.zeros((1, 9, 1), np.uint8)
    spikes[0, [2, 3, 6]] = [[1], [2], [1]]
    level = two_photon.calcium(spikes, 0.8)
    events = two_photon.deconvolved(level, 0.8, threshold=0.1)
    np.testing.assert_allclose(events * 0.2 / -np.log(0.8), spikes[:, 1:], atol=1e-6)
