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
        for name, value in score._asdict().items():
            if row.get(name):
                assert float(row[name]) == pytest.approx(value, rel=1e-3, abs=1e-3), name


def test_shipped_run_is_small():
    assert sum(p.stat().st_size for p in RUN.rglob("*") if p.suffix != ".h5") < 10e6
