"""The shipped models: what a new user restores first."""

from fnmatch import fnmatch

import jax
import pytest
from conftest import ROOT, csv_rows

from sbtt_jax import config, recipes
from sbtt_jax.data import problem
from sbtt_jax.grid import ModelKey
from sbtt_jax.run import checkpoints, priors, published, scores
from sbtt_jax.run.evaluate import evaluate
from sbtt_jax.run.folder import RunFolder
from sbtt_jax.run.restore import restore

RUNS = [ROOT / "checkpoints" / name for name in ("lorenz", "reference")]


@pytest.fixture(scope="module", autouse=True)
def optimized():
    """Models of real size take longer to run than to compile."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, False)
    yield
    jax.config.update(name, before)


@pytest.mark.parametrize("key", [ModelKey(29, 1), ModelKey(2, 0)], ids=str)
def test_a_shipped_model_scores_what_the_shipped_table_says(key):
    run = RUNS[0]
    settings = RunFolder(run).settings()
    seen = scores.view(settings, problem.load(settings), key.bandwidth)
    model = restore(run)[key].model
    _, rates, blind = seen.infer(model, priors.learn(seen, model))
    (row,) = (r for r in csv_rows(run / "evaluation" / "metrics.csv") if ModelKey.of(r) == key)
    for name, score in seen.score(rates[seen.scored], blind).items():
        if row[name]:
            assert float(row[name]) == pytest.approx(score, rel=1e-3, abs=1e-3), name


@pytest.mark.parametrize(
    "run", [pytest.param(RUNS[0], marks=pytest.mark.slow), RUNS[1]], ids=lambda run: run.name
)
def test_shipped_models_score_what_the_shipped_table_says(run, tmp_path, monkeypatch):
    drawing = "evaluate._rates_figure", "evaluate._latents_figure", "plots.r2_vs_missing"
    for name in (*drawing, "plots.save", "report.details", "report.write"):  # drawn elsewhere
        monkeypatch.setattr(f"sbtt_jax.run.{name}", lambda *what, **how: None)
    monkeypatch.setattr("sbtt_jax.run.baselines.score_baselines", lambda *of_data: [])
    found = evaluate(run, out=tmp_path)
    assert {row["bandwidth"] for row in found.models} == {p.bandwidth for p in published.LEVELS}
    assert all(row["status"] == "ok" for row in found.models)
    for name, made in (("metrics.csv", found.models), ("ensemble.csv", found.ensembles)):
        path = run / "evaluation" / name
        rows = csv_rows(path) if path.exists() else []
        assert len(rows) == len(made)
        for row, score in zip(rows, made, strict=True):
            for name, text in row.items():
                if text and name != "status":
                    assert float(text) == pytest.approx(score[name], rel=1e-3, abs=1e-3), name


def is_shipped(path):
    """Not all that evaluate.py writes into a shipped run is; the last pattern that fits decides."""
    shipped = True
    for pattern in (ROOT / ".gitignore").read_text().split():
        if fnmatch(path.relative_to(ROOT).as_posix(), pattern.removeprefix("!")):
            shipped = pattern.startswith("!")
    return shipped


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_shipped_run_is_small_intact_and_of_the_settings_file_of_its_name(run):
    assert sum(p.stat().st_size for p in run.rglob("*") if is_shipped(p)) < 10e6
    (epochs,) = checkpoints.epochs_saved(run / "checkpoints")
    assert (run / "checkpoints" / str(epochs) / "sums").is_dir()  # compared when it is restored
    settings = recipes.load(ROOT / "configs" / f"{run.name}.yaml")
    assert recipes.load(run / "config.yaml") == config.updated(settings, data={"bin_width": 0.02})


def test_shipped_runs_can_be_compared():
    """They saw the same trials, and the same samples of them."""
    data = [recipes.load(run / "config.yaml").data for run in RUNS]
    # Points held out to choose an epoch by are taken from validation trials, in training only.
    same = [d.model_copy(update={"holdout_fraction": 0.0}) for d in data]
    assert same[0] == same[1]
