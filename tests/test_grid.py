"""Settings that are lists: all combinations train as one program, each as it would alone."""

import csv
import itertools

import h5py
import jax
import numpy as np
import pytest
from conftest import ROOT, SMALL, quick, small_problem, train_small

import sbtt_jax
import train
from sbtt_jax import command_line, config, evaluation, experiment, grid, training
from sbtt_jax.errors import InputError
from sbtt_jax.grid import ModelKey
from sbtt_jax.run_folder import RunFolder


def close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), a, b)


PRODUCT = list(itertools.product((1e-3, 1e-2), (0.0, 0.3)))
CASES = {
    "product": {
        "learning_rate": [rate for rate, _ in PRODUCT for _ in range(2)],
        "dropout": [dropout for _, dropout in PRODUCT for _ in range(2)],
    },
    "others": {
        "coordinated_dropout": [0.4, 0.4, 0.0],
        "coordinated_dropout_pass": [0.0, 0.3, 0.0],
        "coordinated_dropout_whole": [0.0, 0.5, 0.5],
        "weight_decay": [0.0, 0.1, 1e-3],
        "adam_b2": [0.999, 0.9, 0.99],
        "clip_norm": [100.0, 0.01, 1.0],
        "average_decay": [0.5, 0.9, 0.7],
    },
}


@pytest.mark.parametrize("case", CASES)
def test_each_model_of_a_grid_is_the_one_trained_alone(case):
    varied = CASES[case]
    models = len(next(iter(varied.values())))
    trials, masks = small_problem(models=models)
    masks = jax.tree.map(lambda m: m[np.arange(models) % 2], masks)
    # What the settings themselves say is of no account where the models have values of their own.
    settings = config.with_values(quick(), {name: values[0] for name, values in varied.items()})
    together = [
        train_small(trials, masks, settings, [4] * models, vmap=vmap, varied=varied)
        for vmap in (False, True)
    ]
    for i in range(models):
        own = {name: values[i] for name, values in varied.items()}
        mine = jax.tree.map(lambda m, i=i: m[i : i + 1], masks)
        settings, model = config.with_values(quick(), own), config.with_values(SMALL, own)
        alone, alone_log = train_small(trials, mine, settings, [4], model)
        for state, log in together:
            close(jax.tree.map(lambda a, i=i: a[:, [i]], log), alone_log)
            close(jax.tree.map(lambda a, i=i: a[[i]], state.params), alone.params)
    losses = together[0][1].train_nll[-1, ::2]
    assert len(np.unique(losses.round(5))) == len(losses)  # the values do differ in effect


# The second has more digits than a table's other numbers; the third is too large to train with.
RATES = (1e-3, 0.0123456789, 1e30)


@pytest.fixture(scope="module")
def settings():
    values = config.load(ROOT / "configs" / "smoke.yaml").model_dump()
    values |= {"bandwidths": (6, 3), "seeds": (0, 1)}
    values["train"] |= {"epochs": 2, "checkpoint_every": 1, "learning_rate": RATES}
    return config.check(values)


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "grid"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "RETRIES", 0)
        experiment.train(settings, path)
    evaluation.evaluate(path)
    return path


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_models_are_all_combinations(settings):
    assert grid.models(settings, 12) == [
        ModelKey(bandwidth, seed, (("learning_rate", rate),))
        for bandwidth in (6, 3)
        for rate in RATES
        for seed in (0, 1)
    ]
    model = settings.model.model_copy(update={"dropout": (0.0, 0.1)})
    both = grid.models(settings.model_copy(update={"model": model}), 12)
    assert len(set(both)) == len(both) == 24
    assert str(both[0]) == "bandwidth 6, seed 0, dropout 0, learning_rate 0.001"


def test_tables_have_a_column_for_what_is_a_list(run):
    history = table(run / "history.csv")
    assert list(history[0])[:5] == ["bandwidth", "seed", "learning_rate", "epoch", "train_nll"]
    metrics = table(run / "evaluation" / "metrics.csv")
    assert list(metrics[0])[:4] == ["bandwidth", "seed", "learning_rate", "missing_fraction"]
    assert [float(row["learning_rate"]) for row in metrics[::2]] == [*RATES, *RATES]
    assert len({(row["learning_rate"], row["bandwidth"], row["nll"]) for row in metrics}) == 12
    last = {
        (row["bandwidth"], row["seed"], row["learning_rate"]): row["valid_nll"]
        for row in history[12:]
    }
    for row in metrics:
        assert row["status"] == ("failed" if float(row["learning_rate"]) == 1e30 else "ok")
        if row["status"] == "ok" and row["epoch"] == "1":
            valid = float(last[row["bandwidth"], row["seed"], row["learning_rate"]])
            assert float(row["nll"]) == pytest.approx(valid, rel=1e-4)
    means = table(run / "evaluation" / "ensemble.csv")
    assert list(means[0])[:3] == ["bandwidth", "learning_rate", "models"]
    # Not of those that failed.
    assert [float(row["learning_rate"]) for row in means] == [*RATES[:2], *RATES[:2]]
    assert RunFolder(run).failed() == {
        ModelKey(b, s, (("learning_rate", 1e30),)) for b in (6, 3) for s in (0, 1)
    }


def test_rates_of_every_model_are_written(run, settings):
    with h5py.File(run / "evaluation" / "rates.h5") as file:
        for key in grid.models(settings, 12):
            where = file[f"bandwidth_{key.bandwidth:02d}/learning_rate_{key.varied[0][1]!r}"]
            model = sbtt_jax.load(
                run, bandwidth=key.bandwidth, seed=key.seed, learning_rate=key.varied[0][1]
            )
            data = experiment.load_data(settings)
            observed = experiment.observed_at(settings, data, key.bandwidth)
            rates = model.infer(np.where(observed, data.counts, np.nan)).rates
            np.testing.assert_allclose(where[f"seed_{key.seed}/rates"][()], rates, rtol=1e-4)
            assert model.settings.train.learning_rate == key.varied[0][1]
            assert ("ensemble" in where) == (key.varied[0][1] < 1e30)


def test_the_printed_table_has_the_column_too(run, tmp_path):
    models, means = evaluation.table(*evaluation.evaluate(run, out=tmp_path)).split("\n\n")
    header, first = (line.split() for line in models.splitlines()[:2])
    assert header[:4] == ["bandwidth", "seed", "learning_rate", "epoch"]
    assert first[:3] == ["6", "0", "0.001"]
    assert means.splitlines()[1].split()[:3] == ["bandwidth", "learning_rate", "models"]


def test_one_of_several_models_must_be_named(run):
    with pytest.raises(InputError) as error:
        sbtt_jax.load(run, bandwidth=6, seed=1)
    assert str(error.value) == (
        f"{run}: give the bandwidth, seed and learning_rate of one model; there are "
        "(bandwidth, seed, learning_rate) (6, 1, 0.001), (6, 1, 0.0123456789), (6, 1, 1e+30)"
    )
    with pytest.raises(InputError, match="give the bandwidth, seed and learning_rate"):
        sbtt_jax.load(run, bandwidth=6, seed=1, dropout=0.1)


def test_a_grid_is_resumed_to_the_same_numbers(settings, tmp_path):
    train_settings = settings.train.model_copy(update={"learning_rate": RATES[:2]})
    model = settings.model.model_copy(update={"dropout": (0.0, 0.2)})
    update = {"bandwidths": (6,), "seeds": (0,), "train": train_settings, "model": model}
    few = settings.model_copy(update=update)
    more = few.model_copy(update={"train": train_settings.model_copy(update={"epochs": 4})})
    experiment.train(few, tmp_path / "stopped")
    other = more.model_copy(update={"model": model.model_copy(update={"dropout": (0.0, 0.3)})})
    with pytest.raises(InputError, match=r"model\.dropout was \(0\.0, 0\.2\), now \(0\.0, 0\.3\)"):
        experiment.train(other, tmp_path / "stopped", resume=True)
    experiment.train(more, tmp_path / "stopped", resume=True)
    experiment.train(more, tmp_path / "unbroken")
    read = [(tmp_path / name / "history.csv").read_text() for name in ("stopped", "unbroken")]
    assert read[0] == read[1]
    assert read[0].count("\n") == 1 + 4 * 4
    assert config.load(tmp_path / "stopped" / "config.yaml") == more


def test_fitting_an_array_takes_one_number():
    with pytest.raises(InputError, match="learning_rate: fit trains one model"):
        sbtt_jax.fit(np.ones((10, 4, 3)), train={"learning_rate": [1e-3, 1e-2]})


@pytest.mark.parametrize(
    ("given", "value"),
    [(["0.2"], 0.2), (["0.2", "1e-1"], (0.2, 0.1)), (["0.1", "0.3", "0"], (0.1, 0.3, 0.0))],
)
@pytest.mark.parametrize("default", [0.4, (0.4, 0.5)])
def test_numbers_and_lists_are_read_and_written_as_such(given, value, default, tmp_path):
    settings = config.check({"model": {"dropout": default}})
    options = command_line.parse(
        train.Arguments, ["--model.dropout", *given], default=train.Arguments(settings=settings)
    )
    assert options.settings.model.dropout == value
    path = tmp_path / "settings.yaml"
    path.write_text(config.dump(options.settings))
    assert config.load(path) == options.settings
    assert config.load(path).model.dropout == value
    path.write_text(f"model: {{dropout: [{', '.join(given)}]}}")
    assert config.load(path).model.dropout == value  # one alone is a number
