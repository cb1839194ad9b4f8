"""Numbers that stop being finite: one model's trouble is that model's alone, and is said."""

import csv
import re

import jax
import numpy as np
import pytest
from conftest import SMALL, call, quick, small_problem
from test_command_lines import SMOKE

from sbtt_jax import training
from sbtt_jax.devices import model_mesh

EPOCHS = 12


def run(rates, epochs=EPOCHS, vmap=None, **settings):
    """Two models of small_problem with these step rates at the start: all states, all logs."""
    trials, masks = small_problem(models=2)
    settings = quick(epochs=epochs, **settings)
    state = training.begin([0, 1], 5, 17, SMALL, settings)
    state = state._replace(recovery=state.recovery._replace(rate=np.float32(rates)))
    mesh = model_mesh(2)
    advance = training.compile_epoch(mesh, 5, 17, SMALL, settings, vmap)
    state, masks, trials = training.place(mesh, state, masks, trials)
    states, logs = [jax.tree.map(np.array, state)], []
    for _ in range(epochs):
        state, log = advance(state, masks, trials)
        states.append(jax.tree.map(np.array, state))
        logs.append(jax.tree.map(np.array, log))
    return states, jax.tree.map(lambda *a: np.stack(a), *logs)


def model(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


def identical(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
    ("vmap", "settings"), [(False, {}), (True, {"average_decay": 0.9, "clip_norm": 1.0})]
)
def test_a_failing_model_leaves_the_others_alone(vmap, settings):
    bad, log = run([1, 1e30], vmap=vmap, **settings)
    good, _ = run([1, 1], vmap=vmap, **settings)
    identical(model(bad[-1], 0), model(good[-1], 0))
    lost = training.RETRIES + 1
    np.testing.assert_array_equal(log.lost[:, 1], [True] * lost + [False] * (EPOCHS - lost))
    np.testing.assert_array_equal(log.failed[:, 1], [False] * (lost - 1) + [True] * (EPOCHS - 5))
    assert not log.lost[:, 0].any()
    assert not log.failed[:, 0].any()
    # Frozen where it began: nothing but its recovery and the number of epochs has changed.
    for name in ("params", "optimizer", "average", "best", "seed"):
        identical(getattr(model(bad[-1], 1), name), getattr(model(bad[0], 1), name))
    assert bad[-1].epoch.tolist() == [EPOCHS, EPOCHS]


def test_a_model_recovers_with_smaller_steps():
    # AdamW's decay keeps weights small where a step is below 1 / decay. Without, a step that goes
    # well for some epochs may end the model after all, and whether it does is a matter of rounding.
    states, log = run([1, 1e3], optimizer="adamw", weight_decay=1.0)
    lost = log.lost[:, 1]
    assert lost[0]
    assert not lost[-3:].any()
    assert not log.failed.any()
    after = states[-1].recovery
    assert after.rate[1] == pytest.approx(1e3 * training.RETRY_RATE ** lost.sum(), rel=1e-5)
    assert after.rate[0] == 1
    assert after.retries.tolist() == [0, 0]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(model(states[-1].params, 1)))
    assert np.isfinite(log.valid_nll[~lost, 1]).all()


def test_the_best_before_it_failed_is_kept():
    """A model that has learned for three epochs and is then driven off the cliff."""
    trials, masks = small_problem(models=2)
    settings = quick(epochs=EPOCHS)
    mesh = model_mesh(2)
    state = training.begin([0, 1], 5, 17, SMALL, settings)
    advance = training.compile_epoch(mesh, 5, 17, SMALL, settings)
    state, masks, trials = training.place(mesh, state, masks, trials)
    for _ in range(3):
        state, _ = advance(state, masks, trials)
    before = jax.tree.map(np.array, state)
    rates = jax.device_put(np.float32([1, 1e30]), state.recovery.rate.sharding)
    state = state._replace(recovery=state.recovery._replace(rate=rates))
    for _ in range(training.RETRIES + 2):
        state, _ = advance(state, masks, trials)
    after = jax.tree.map(np.array, state)
    assert after.recovery.failed.tolist() == [False, True]
    assert before.best.epoch[1] >= 0
    identical(model(after.best, 1), model(before.best, 1))
    identical(model(after.params, 1), model(before.params, 1))


def test_a_run_in_which_every_model_fails_stops_and_says_so(tmp_path):
    path = tmp_path / "run"
    options = ("--train.learning_rate", "1e30", "--bandwidths", "12", "3", "--train.epochs", "50")
    done = call("train.py", *SMOKE, "--out", path, *options)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    for bandwidth in (12, 3):
        assert f"bandwidth {bandwidth}, seed 0 failed" in done.stdout
        lines = re.findall(rf"bandwidth {bandwidth}, seed 0: numbers not finite", done.stderr)
        assert len(lines) == training.RETRIES + 1
    with open(path / "history.csv", newline="") as file:
        history = list(csv.DictReader(file))
    assert list(history[0])[-1] == "status"
    statuses = [row["status"] for row in history if row["bandwidth"] == "3"]
    assert statuses == ["retried"] * training.RETRIES + ["failed"]

    assert call("train.py", "--out", path, "--resume").returncode == 3
    with open(path / "history.csv", newline="") as file:
        assert list(csv.DictReader(file)) == history

    done = call("evaluate.py", path)
    assert done.returncode == 0, done.stderr
    with open(path / "evaluation" / "metrics.csv", newline="") as file:
        metrics = list(csv.DictReader(file))
    assert [row["status"] for row in metrics] == ["failed", "failed"]
    assert [row["epoch"] for row in metrics] == ["-1", "-1"]
    assert "failed" in done.stdout
