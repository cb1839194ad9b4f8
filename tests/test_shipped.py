"""The shipped models: what a new user restores first."""

import csv

import pytest
from conftest import ROOT

from sbtt_jax import checkpoints, config, evaluation, published

RUNS = [ROOT / "checkpoints" / name for name in ("lorenz", "reference")]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_shipped_models_score_what_the_shipped_table_says(run, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation.plots, "save", lambda figure, path: None)  # drawn elsewhere
    scores, ensembles = evaluation.evaluate(run, out=tmp_path)
    assert {s.bandwidth for s in scores} == {level.bandwidth for level in published.LEVELS}
    assert all(s.status == "ok" for s in scores)
    for name, found in (("metrics.csv", scores), ("ensemble.csv", ensembles)):
        rows = []
        if (run / "evaluation" / name).exists():
            with (run / "evaluation" / name).open(newline="") as file:
                rows = list(csv.DictReader(file))
        assert len(rows) == len(found)
        for row, score in zip(rows, found, strict=True):
            for name, text in row.items():
                if text and name != "status":
                    value = getattr(score, name)
                    assert float(text) == pytest.approx(value, rel=1e-3, abs=1e-3), name


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_shipped_run_is_small_and_whole(run):
    assert sum(p.stat().st_size for p in run.rglob("*") if p.suffix != ".h5") < 10e6
    folder = run / "checkpoints"
    newest = folder / str(checkpoints.newest(folder))
    assert (newest / checkpoints.SUMS).exists()
    assert checkpoints.damage(newest) is None


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_shipped_run_is_of_the_settings_file_of_its_name(run):
    settings = config.load(ROOT / "configs" / f"{run.name}.yaml")
    assert config.load(run / "config.yaml") == settings


def test_shipped_runs_can_be_compared():
    """They saw the same trials, and the same samples of them."""
    data = [config.load(run / "config.yaml").data for run in RUNS]
    # Points held out to choose an epoch by are taken from validation trials, in training only.
    same = [d.model_copy(update={"holdout_fraction": 0.0}) for d in data]
    assert same[0] == same[1]
