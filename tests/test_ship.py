"""A run that is handed on can be evaluated to the same numbers."""

import pytest
from conftest import smoke
from test_run import TINY_DATA

from sbtt_jax.errors import InputError
from sbtt_jax.run.evaluate import evaluate
from sbtt_jax.run.ship import ship
from sbtt_jax.run.train import train


def test_a_shipped_run_evaluates_to_the_same(tmp_path):
    settings = smoke(bandwidths=[3], data=TINY_DATA, train={"epochs": 2})
    run, out = tmp_path / "run", tmp_path / "out"
    train(settings, run)
    scores = evaluate(run)
    ship(run, out)
    step = {p.name for p in (out / "checkpoints" / "2").iterdir() if p.is_dir()}
    assert step == {"best", "sums"}
    assert {p.name for p in (out / "evaluation").iterdir()} == {
        p.name for p in (run / "evaluation").iterdir()
    } - {"rates.h5"}
    assert (out / "history.csv").read_text() == (run / "history.csv").read_text()
    assert str(evaluate(out, out=tmp_path / "again")) == str(scores)  # NaN beside NaN
    with pytest.raises(InputError, match="cannot be resumed"):
        train(settings, out, resume=True)
    with pytest.raises(InputError, match="exists already"):
        ship(run, out)
