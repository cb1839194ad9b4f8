"""A run that is handed on can be evaluated to the same numbers."""

import pytest
from conftest import ROOT

from sbtt_jax import checkpoints, config, evaluation, experiment, ship
from sbtt_jax.errors import InputError


def test_a_shipped_run_evaluates_to_the_same(tmp_path):
    values = config.load(ROOT / "configs" / "smoke.yaml").model_dump()
    settings = config.check(values | {"bandwidths": [3]})
    run, out = tmp_path / "run", tmp_path / "out"
    experiment.train(settings, run)
    scores, _ = evaluation.evaluate(run)
    ship.ship(run, out)
    step = out / "checkpoints" / "6"
    assert sorted(p.name for p in step.iterdir()) == ["SHA256SUMS", "best"]
    assert checkpoints.damage(step) is None
    assert {p.name for p in (out / "evaluation").iterdir()} == {
        p.name for p in (run / "evaluation").iterdir()
    } - {"rates.h5"}
    again, _ = evaluation.evaluate(out, out=tmp_path / "again")
    assert list(map(str, again)) == list(map(str, scores))  # NaN beside NaN
    with pytest.raises(InputError, match="cannot be resumed"):
        experiment.train(settings, out, resume=True)
    with pytest.raises(InputError, match="is there already"):
        ship.ship(run, out)
