"""The shipped models: what a new user restores first."""

import pytest
from conftest import ROOT, csv_rows

from sbtt_jax import config
from sbtt_jax.run import checkpoints, plots, published, report
from sbtt_jax.run.evaluate import evaluate

RUNS = [ROOT / "checkpoints" / name for name in ("lorenz", "reference")]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_shipped_models_score_what_the_shipped_table_says(run, tmp_path, monkeypatch):
    for module, name in ((plots, "save"), (report, "details"), (report, "write")):
        monkeypatch.setattr(module, name, lambda *what, **how: None)  # drawn elsewhere
    monkeypatch.setattr("sbtt_jax.run.evaluate.score_baselines", lambda *of_data: [])
    found = evaluate(run, out=tmp_path)
    assert {row["bandwidth"] for row in found.models} == {p.bandwidth for p in published.LEVELS}
    assert all(row["status"] == "ok" for row in found.models)
    for name, scores in (("metrics.csv", found.models), ("ensemble.csv", found.ensembles)):
        path = run / "evaluation" / name
        rows = csv_rows(path) if path.exists() else []
        assert len(rows) == len(scores)
        for row, score in zip(rows, scores, strict=True):
            for name, text in row.items():
                if text and name != "status":
                    assert float(text) == pytest.approx(score[name], rel=1e-3, abs=1e-3), name


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_shipped_run_is_small_intact_and_of_the_settings_file_of_its_name(run):
    made = {".h5", ".html"}  # by evaluate.py, and not shipped
    assert sum(p.stat().st_size for p in run.rglob("*") if p.suffix not in made) < 10e6
    (epochs,) = checkpoints.epochs_saved(run / "checkpoints")
    assert (run / "checkpoints" / str(epochs) / "sums").is_dir()  # compared when it is restored
    settings = config.load(ROOT / "configs" / f"{run.name}.yaml")
    assert config.load(run / "config.yaml") == config.updated(settings, data={"bin_width": 0.02})


def test_shipped_runs_can_be_compared():
    """They saw the same trials, and the same samples of them."""
    data = [config.load(run / "config.yaml").data for run in RUNS]
    # Points held out to choose an epoch by are taken from validation trials, in training only.
    same = [d.model_copy(update={"holdout_fraction": 0.0}) for d in data]
    assert same[0] == same[1]
