"""What config.yaml records of a run's making, and which changes a run may be resumed with."""

import dataclasses
import shutil

import numpy as np
import pytest
import yaml
from conftest import ROOT

from sbtt_jax import checkpoints, config, dataset, experiment, provenance
from sbtt_jax.errors import InputError
from sbtt_jax.run_folder import RunFolder


def smoke(**changes):
    values = config.load(ROOT / "configs" / "smoke.yaml").model_dump() | {"bandwidths": [3]}
    for name, value in changes.items():
        group, _, leaf = name.partition("__")
        values[group] = values[group] | {leaf: value} if leaf else value
    return config.check(values)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "recording.h5"
    made = dataset.from_lorenz(conditions=4, trials_per_condition=5, bins=8, neurons=6)
    dataset.write(path, made)
    return path


@pytest.fixture(scope="module")
def begun(recording, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "begun"
    experiment.train(smoke(data__path=str(recording), train__epochs=2), path)
    return path


@pytest.fixture
def run(begun, tmp_path):
    return shutil.copytree(begun, tmp_path / "run")


def change(run, edit):
    file = run / "config.yaml"
    values = yaml.safe_load(file.read_text())
    edit(values)
    file.write_text(yaml.safe_dump(values))


def test_versions_device_commit_and_data_are_recorded(run):
    record = yaml.safe_load((run / "config.yaml").read_text())["provenance"]
    assert record["layout"] == config.LAYOUT
    assert set(record["versions"]) == {"python", *provenance.PACKAGES}
    assert record["versions"]["numpy"] == np.__version__
    assert "cpu" in record["device"]
    assert set(record["data"]) == {"counts", "rates"}
    assert RunFolder(run).provenance() == record


def test_a_folder_of_before_is_read_and_a_newer_one_refused(run, recording):
    change(run, lambda values: values["provenance"].update(layout=config.LAYOUT + 1))
    with pytest.raises(InputError, match=r"config\.yaml: provenance\.layout is 3; .*layouts 1 to"):
        RunFolder(run).settings()
    change(run, lambda values: values.pop("provenance"))
    settings = RunFolder(run).settings()
    assert settings.data.path == str(recording)
    assert experiment.train(settings, run, resume=True) is None
    assert RunFolder(run).provenance()["layout"] == config.LAYOUT


def test_resuming_with_more_epochs_is_as_if_begun_so(run, recording, tmp_path):
    longer = smoke(data__path=str(recording), train__epochs=4)
    experiment.train(longer, run, resume=True)
    experiment.train(longer, tmp_path / "whole")
    both = [(path / "history.csv").read_text() for path in (run, tmp_path / "whole")]
    assert both[0] == both[1]
    assert RunFolder(run).settings().train.epochs == 4
    fewer = smoke(data__path=str(recording), train__epochs=3)
    with pytest.raises(InputError, match=r"train\.epochs is 3, and .* has 4 epochs behind it"):
        experiment.train(fewer, run, resume=True)


def test_refinement_may_change_since_training_is_without(run, recording):
    refined = smoke(data__path=str(recording), train__epochs=2, model__refinement_steps=3)
    before = (run / "history.csv").read_text()
    experiment.train(refined, run, resume=True)
    assert RunFolder(run).settings() == refined
    assert (run / "history.csv").read_text() == before


def test_resuming_with_other_settings_is_refused_with_a_list(run, recording):
    other = smoke(data__path=str(recording), train__epochs=2, train__batch_size=7, seeds=[4])
    with pytest.raises(
        InputError, match=r"seeds was \(0,\), now \(4,\); train.batch_size was 24, now 7$"
    ):
        experiment.train(other, run, resume=True)


def test_a_cosine_is_laid_out_for_its_epochs(tmp_path):
    folder = RunFolder(tmp_path)
    folder.begin(smoke(train__schedule="cosine"))
    folder.check(smoke(train__schedule="cosine"), resume=True, overwrite=False)
    with pytest.raises(InputError, match=r"train\.epochs was 6, now 60"):
        folder.check(
            smoke(train__schedule="cosine", train__epochs=60), resume=True, overwrite=False
        )


def test_a_recording_may_move_but_not_change(run, recording, tmp_path):
    moved = shutil.copy(recording, tmp_path / "moved.h5")
    experiment.train(smoke(data__path=str(moved), train__epochs=2), run, resume=True)
    data = experiment.load_data(smoke(data__path=str(recording)))
    counts = data.counts.copy()
    counts[3, 2, 1] += 1
    dataset.write(moved, dataclasses.replace(data, counts=counts))
    before = (run / "config.yaml").read_text()
    with pytest.raises(InputError, match="not the one that the run was begun with"):
        experiment.train(smoke(data__path=str(moved), train__epochs=4), run, resume=True)
    assert (run / "config.yaml").read_text() == before
    assert checkpoints.newest(run / "checkpoints") == 2


def test_fingerprint_is_of_what_is_trained_on(recording):
    data = experiment.load_data(smoke(data__path=str(recording)))
    known = provenance.fingerprint(data)
    wider = dataclasses.replace(data, counts=data.counts.astype(np.uint16))
    assert provenance.fingerprint(wider) == known
    rates = provenance.fingerprint(dataclasses.replace(data, rates=data.rates * 2))
    assert rates["counts"] == known["counts"]
    assert rates["rates"] != known["rates"]
    for name in ("observed", "train", "bin_width"):
        value = getattr(data, name)
        other = dataclasses.replace(
            data, **{name: ~value if name == "observed" else value + value.__class__(1)}
            if name != "train" else {name: value[::-1]}
        )  # fmt: skip
        assert provenance.fingerprint(other)["counts"] != known["counts"], name


def test_other_versions_are_told_and_recorded(run, recording, capsys):
    change(run, lambda values: values["provenance"]["versions"].update(jax="0.0.1"))
    settings = smoke(data__path=str(recording), train__epochs=3)
    experiment.train(settings, run, resume=True)
    assert "other versions than before" in capsys.readouterr().out
    record = RunFolder(run).provenance()
    assert record["versions"]["jax"] == "0.0.1"
    assert [r["after_epochs"] for r in record["resumed"]] == [2]
    experiment.train(settings, run, resume=True)
    assert "other versions" not in capsys.readouterr().out
    assert RunFolder(run).provenance() == record


def test_settings_of_a_run_serve_another(run, recording):
    assert config.load(run / "config.yaml") == smoke(data__path=str(recording), train__epochs=2)
