"""What config.yaml records of a run's origin, and which changes a run may be resumed with."""

import dataclasses
import shutil

import numpy as np
import pytest
import yaml
from conftest import contents, smoke, write

from sbtt_jax import config, recipes
from sbtt_jax.data import problem
from sbtt_jax.errors import InputError
from sbtt_jax.run import provenance
from sbtt_jax.run.evaluate import evaluate
from sbtt_jax.run.folder import RunFolder
from sbtt_jax.run.train import Outcome, train


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "recording.h5"
    made = problem.from_lorenz(conditions=4, trials_per_condition=5, bins=8, neurons=6)
    write(path, made)
    return path


@pytest.fixture(scope="module")
def settings(recording):
    """A function: settings of 2 epochs on the recording, with some of them changed."""
    begun = smoke(bandwidths=[3], data={"path": str(recording)}, train={"epochs": 2})
    return lambda **changes: config.updated(begun, **changes)


@pytest.fixture(scope="module")
def begun(settings, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "begun"
    train(settings(), path)
    return path


@pytest.fixture
def run(begun, tmp_path):
    return shutil.copytree(begun, tmp_path / "run")


def change(run, edit):
    file = run / "config.yaml"
    values = yaml.safe_load(file.read_text())
    edit(values)
    file.write_text(yaml.safe_dump(values))


def test_settings_versions_device_commit_and_data_are_recorded(run, settings):
    # It can serve another run.
    assert recipes.load(run / "config.yaml") == config.updated(settings(), data={"bin_width": 0.02})
    record = yaml.safe_load((run / "config.yaml").read_text())["provenance"]
    assert record["layout"] == recipes.LAYOUT
    assert set(record["versions"]) == {"python", *provenance.PACKAGES}
    assert record["versions"]["numpy"] == np.__version__
    assert "cpu" in record["device"]
    assert set(record["data"]) == {"counts", "rates"}
    assert RunFolder(run).provenance() == record


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("older", range(1, recipes.LAYOUT))
def test_an_older_folder_is_evaluated_and_not_resumed_and_a_newer_one_refused(older, run, settings):
    before = evaluate(run)
    change(run, lambda values: values["provenance"].update(layout=older))
    if older == 1:
        change(run, lambda values: values.pop("provenance"))
    shutil.rmtree(run / "checkpoints" / "2" / "sums")
    assert str(evaluate(run)) == str(before)
    files = contents(run)
    with pytest.raises(InputError, match=r"begun by an older version .* it cannot be resumed"):
        train(settings(train={"epochs": 4}), run, resume=True)
    assert contents(run) == files
    change(run, lambda values: values.update(provenance={"layout": recipes.LAYOUT + 1, "data": {}}))
    with pytest.raises(InputError, match=r"config\.yaml: provenance\.layout is 4; .* 1 to 3"):
        RunFolder(run).settings()


def test_refinement_may_change_since_training_is_without(run, settings):
    refined = settings(model={"refinement_steps": 3})
    before = (run / "history.csv").read_text()
    train(refined, run, resume=True)
    assert RunFolder(run).settings() == config.updated(refined, data={"bin_width": 0.02})
    assert (run / "history.csv").read_text() == before


def test_a_cosine_is_laid_out_for_its_epochs(tmp_path, settings):
    folder = RunFolder(tmp_path)
    folder.begin(settings(train={"schedule": "cosine"}), {})
    folder.check(settings(train={"schedule": "cosine"}), resume=True)
    with pytest.raises(InputError, match=r"train\.epochs was 2, now 60"):
        folder.check(settings(train={"schedule": "cosine", "epochs": 60}), resume=True)


def test_a_recording_may_move_but_not_change(run, settings, recording, tmp_path):
    moved = shutil.copy(recording, tmp_path / "moved.h5")
    elsewhere = {"path": str(moved)}
    assert train(settings(data=elsewhere), run, resume=True) == Outcome(0, [])
    data = problem.load(settings())
    counts = data.counts.copy()
    counts[3, 2, 1] += 1
    write(moved, dataclasses.replace(data, counts=counts))
    before = contents(run)
    with pytest.raises(InputError, match="not the one that the run was begun with"):
        train(settings(data=elsewhere, train={"epochs": 4}), run, resume=True)
    assert contents(run) == before


def test_fingerprint_is_of_what_is_trained_on(settings):
    data = problem.load(settings())

    def fingerprint(**changes):
        return provenance.fingerprint(dataclasses.replace(data, **changes))

    known = fingerprint()
    assert fingerprint(counts=data.counts.astype(np.uint16)) == known
    rates = fingerprint(rates=data.rates * 2)
    assert rates["counts"] == known["counts"]
    assert rates["rates"] != known["rates"]
    other = {"observed": ~data.observed, "train": data.train[::-1], "bin_width": 2 * data.bin_width}
    for name, value in other.items():
        assert fingerprint(**{name: value})["counts"] != known["counts"], name


def test_other_versions_are_told_and_recorded(run, settings, caplog):
    change(run, lambda values: values["provenance"]["versions"].update(jax="0.0.1"))
    longer = settings(train={"epochs": 3})
    caplog.set_level("INFO", logger="sbtt_jax")
    train(longer, run, resume=True)
    assert "other versions than before" in caplog.text
    caplog.clear()
    record = RunFolder(run).provenance()
    assert record["versions"]["jax"] == "0.0.1"
    assert [r["after_epochs"] for r in record["resumed"]] == [2]
    train(longer, run, resume=True)
    assert "other versions" not in caplog.text
    assert RunFolder(run).provenance() == record
