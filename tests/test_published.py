"""The same numbers as the published program, from its own weights and training steps."""

import numpy as np
import pytest
from conftest import ROOT

from benchmarks import parity, results
from sbtt_jax import cli, config, recipes
from sbtt_jax.run import published
from sbtt_jax.run.folder import RunFolder


def test_log_rates_and_loss_at_every_level(reference):
    found = list(parity.forward(reference, np.float32))
    assert [bandwidth for bandwidth, _, _ in found] == [29, 25, 20, 15, 10, 5, 3, 2]
    for bandwidth, lograte, loss in found:
        assert lograte < 1e-4, bandwidth
        assert loss < 2e-6, bandwidth


def test_no_error_hides_in_rounding(reference):
    for bandwidth, lograte, loss in parity.forward(reference, np.float64):
        assert lograte < 5e-5, bandwidth
        assert loss < 2e-6, bandwidth


def test_a_folder_without_the_published_arrays_is_one_line(tmp_path, capsys):
    assert cli.status(parity.main, ["--folder", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'forward.npz'}: no such file; give the folder with the" in said


def test_25_training_steps(reference):
    found = parity.train(reference)
    assert found["first_gradient"].max() < 1e-6
    assert found["losses"].shape == (25,)
    assert found["losses"].max() < 2e-5
    assert np.mean(found["final"] < 1e-4) > 0.999
    assert found["final"].max() < 2e-3


def test_histories_lead_to_the_published_table():
    for level in published.LEVELS:
        curve = published.history()[level.bandwidth]
        assert curve.epoch[-1] == 999
        assert curve.valid_r2[-1] == pytest.approx(level.r2, abs=0.03)


@pytest.mark.parametrize("name", ["lorenz", "reference"])
def test_the_shipped_runs_are_drawn_beside_the_published_curve(name):
    shipped = RunFolder(ROOT / "checkpoints" / name).settings()  # with the bin width spelled out
    for settings in (shipped, recipes.load(ROOT / "configs" / f"{name}.yaml")):
        assert published.is_published_set(settings)
        other = config.updated(settings, data={"bin_width": 0.01})
        assert not published.is_published_set(other)


def test_readme_shows_the_shipped_results():
    """The table in the README is the one that the shipped runs give."""
    shipped = (results.CHECKPOINTS / name for name in ("lorenz", "reference"))
    assert results.table(*shipped) in (ROOT / "README.md").read_text()
