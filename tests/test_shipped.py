"""The shipped models: what a new user restores first."""

import csv

import pytest
from conftest import ROOT

from sbtt_jax import evaluation

RUN = ROOT / "checkpoints" / "lorenz"


def test_shipped_models_score_what_the_shipped_table_says(tmp_path):
    scores = evaluation.evaluate(RUN, out=tmp_path)
    with (RUN / "evaluation" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(scores) == 8
    for row, score in zip(rows, scores, strict=True):
        assert row.get("status", "ok") == score.status == "ok"
        for name, text in row.items():
            if text and name != "status":
                value = getattr(score, name)
                assert float(text) == pytest.approx(value, rel=1e-3, abs=1e-3), name


def test_shipped_run_is_small():
    assert sum(p.stat().st_size for p in RUN.rglob("*") if p.suffix != ".h5") < 10e6
