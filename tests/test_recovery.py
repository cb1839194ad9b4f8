"""Numbers that stop being finite: they are reported, and end the model concerned, no other."""

import re

import jax
import numpy as np
import pytest
from conftest import csv_rows, identical, one_model, small_problem, train_small

from sbtt_jax import cli
from sbtt_jax.training import population
from sbtt_jax.training.epoch import RETRIES, RETRY_RATE

EPOCHS = 12
ADAMW = {"optimizer": "adamw", "weight_decay": 1.0}


def with_rates(state, rates):
    return state._replace(recovery=state.recovery._replace(rate=np.float32(rates)))


def run(rates, vmap=None, **settings):
    """Two models with these step rates at the start: states at both ends, and all logs."""
    problem = small_problem(seeds=(0, 1), **settings)
    start = with_rates(population.begin(problem), rates)
    return start, *train_small(problem, EPOCHS, vmap, start)


@pytest.mark.parametrize(
    ("vmap", "settings"), [(False, ADAMW), (True, {"average_decay": 0.9, "clip_norm": 1.0})]
)
def test_a_failing_model_leaves_the_others_alone(vmap, settings):
    start, bad, log = run([1, 1e30], vmap, **settings)
    _, good, _ = run([1, 1], vmap, **settings)
    identical(one_model(bad, 0), one_model(good, 0))
    at = np.arange(EPOCHS)
    np.testing.assert_array_equal(log.lost, np.stack([at < 0, at <= RETRIES], 1))
    np.testing.assert_array_equal(log.failed, np.stack([at < 0, at >= RETRIES], 1))
    # Frozen where it began: nothing but its recovery and the number of epochs has changed.
    for name in ("params", "optimizer", "average", "best", "seed"):
        identical(getattr(one_model(bad, 1), name), getattr(one_model(start, 1), name))
    assert bad.epoch.tolist() == [EPOCHS, EPOCHS]


def test_a_model_recovers_with_smaller_steps():
    # AdamW's decay keeps weights small where a step is below 1 / decay. Without, a step that goes
    # well for some epochs may end the model after all, and whether it does is a matter of rounding.
    _, state, log = run([1, 1e3], False, **ADAMW)
    lost = log.lost[:, 1]
    assert lost[0]
    assert not lost[-3:].any()
    assert not log.failed.any()
    after = state.recovery
    np.testing.assert_allclose(after.rate, [1, 1e3 * RETRY_RATE ** lost.sum()], rtol=1e-5)
    assert after.retries.tolist() == [0, 0]
    for numbers in (*jax.tree.leaves(state.params), log.valid_nll[~lost, 1]):
        assert np.isfinite(numbers).all()


def test_the_best_before_it_failed_is_kept():
    """A model that learns for three epochs and then takes steps far too large."""
    problem = small_problem(seeds=(0, 1), **ADAMW)
    before, _ = train_small(problem, 3, False)
    after, _ = train_small(problem, RETRIES + 2, False, with_rates(before, [1, 1e30]))
    assert after.recovery.failed.tolist() == [False, True]
    assert before.best.epoch[1] >= 0
    identical(one_model(after.best, 1), one_model(before.best, 1))
    identical(one_model(after.params, 1), one_model(before.params, 1))


def test_a_run_in_which_every_model_fails_stops_and_says_so(command, tmp_path):
    path = tmp_path / "run"
    smoke = ("--config", "configs/smoke.yaml", "--bandwidths", "12", "3", "--train.epochs", "50")
    status, out, err = command(cli.train, *smoke, "--train.learning_rate", "1e30", "--out", path)
    assert status == 3, err
    assert "Traceback" not in err
    for bandwidth in (12, 3):
        assert f"bandwidth {bandwidth}, seed 0 failed" in out
        lines = re.findall(rf"bandwidth {bandwidth}, seed 0: numbers not finite", err)
        assert len(lines) == RETRIES + 1
    history = csv_rows(path / "history.csv")
    assert list(history[0])[-1] == "status"
    statuses = [row["status"] for row in history if row["bandwidth"] == "3"]
    assert statuses == ["retried"] * RETRIES + ["failed"]

    assert command(cli.train, "--out", path, "--resume")[0] == 3
    assert csv_rows(path / "history.csv") == history

    status, out, err = command(cli.evaluate, path)
    assert status == 0, err
    rows = [(row["status"], row["epoch"]) for row in csv_rows(path / "evaluation/metrics.csv")]
    assert rows == [("failed", "-1")] * 2
    assert "failed" in out


@pytest.mark.slow
@pytest.mark.parametrize("more", [("--train.patience", "2"), ("--train.epochs", "3")])
def test_a_run_without_one_sound_epoch_failed(more, command, tmp_path):
    """Whether or not there was time for all attempts."""
    smoke = (
        "--config",
        "configs/smoke.yaml",
        "--bandwidths",
        "12",
        "--train.learning_rate",
        "1e30",
    )
    assert command(cli.train, *smoke, *more, "--out", tmp_path / "run")[0] == 3
