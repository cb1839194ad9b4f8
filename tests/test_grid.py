"""Settings that are lists: all combinations train as one program, each as it would alone."""

import itertools
from dataclasses import replace

import h5py
import jax
import numpy as np
import pytest
from conftest import SMALL, close, csv_rows, identical, one_model, small_problem, smoke, train_small

import sbtt_jax
from sbtt_jax import cli, config, grid, recipes
from sbtt_jax.data import problem
from sbtt_jax.errors import InputError
from sbtt_jax.grid import ModelKey
from sbtt_jax.run.evaluate import evaluate, table
from sbtt_jax.run.folder import RunFolder
from sbtt_jax.run.train import train
from sbtt_jax.training import epoch
from sbtt_jax.training.optimizer import Hyperparameters

# Values of every setting that can be a list. 0 leaves a part out of the program.
VALUES = {
    "dropout": (0.3, 0.1, 0.0),
    "learning_rate": (1e-3, 1e-2),
    "weight_decay": (0.1, 0.0),
    "adam_b2": (0.9, 0.999),
    "clip_norm": (0.01, 100.0),
    "coordinated_dropout": (0.4, 0.2, 0.0),
    "coordinated_dropout_pass": (0.3, 0.0),
    "coordinated_dropout_whole": (0.5, 0.2, 0.0),
    "input_penalty": (1.0, 0.1),
    "average_decay": (0.3, 0.9),
}


def problem_of(dropout, **settings):
    own = {"dropout": dropout, "inferred_inputs": 2}
    return small_problem(model=SMALL.model_copy(update=own), **settings)


@pytest.mark.slow
def test_each_model_of_a_grid_is_the_one_trained_alone():
    """To the last bit on a CPU, where models take turns, if their programs have the same parts;
    else, and where they advance together, but for rounding."""
    first, second = ({name: values[i] for name, values in VALUES.items()} for i in (0, 1))
    alone = {
        (3, 4): first,  # bandwidth, seed: settings
        (2, 5): second,
        (3, 5): first | {"dropout": 0.0, "coordinated_dropout_whole": 0.0},
        (2, 4): second | {"coordinated_dropout": 0.0},
    }
    others = [first | {name: second[name]} for name in VALUES]
    keys = [ModelKey(*where, tuple(own.items())) for where, own in alone.items()]
    keys += [ModelKey(3, 4, tuple(own.items())) for own in others]
    whole = problem_of(**VALUES, bandwidths=(3, 2), seeds=(4, 5))
    assert set(keys) < set(whole.keys)
    assert set(VALUES) == set(Hyperparameters._fields)
    whole = replace(whole, keys=tuple(keys))
    turns, together = (train_small(whole, vmap=vmap) for vmap in (False, True))
    for i, ((bandwidth, seed), own) in enumerate(alone.items()):
        expected = train_small(problem_of(**own, bandwidths=(bandwidth,), seeds=(seed,)))
        exact = jax.default_backend() == "cpu" and i < 2
        for (state, log), same in ((turns, identical if exact else close), (together, close)):
            same(jax.tree.map(lambda a, i=i: a[:, [i]], log), expected[1])
            for name in ("params", "average", "best"):
                one = one_model(getattr(state, name), i)
                same(one, one_model(getattr(expected[0], name), 0))
    losses = turns[1].valid_nll[-1]
    assert len(np.unique(losses)) == len(losses)  # every setting has an effect


# The second has more digits than a table's other numbers; the third is too large to train with.
RATES = (1e-3, 0.0123456789, 1e30)


@pytest.fixture(scope="module")
def settings():
    own = {"epochs": 2, "checkpoint_every": 1, "learning_rate": RATES}
    return smoke(bandwidths=(6, 3), seeds=(0, 1), train=own)


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory):
    """The folder of a run, and its evaluation."""
    path = tmp_path_factory.mktemp("runs") / "grid"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch, "RETRIES", 0)
        train(settings, path)
    return path, evaluate(path, full=True)


def model_at(bandwidth, seed, rate):
    return ModelKey(bandwidth, seed, (("learning_rate", rate),))


def test_models_are_all_combinations(settings):
    every = itertools.product((6, 3), RATES, (0, 1))
    assert grid.models(settings, 12) == [model_at(b, seed, rate) for b, rate, seed in every]
    both = grid.models(config.updated(settings, model={"dropout": (0.0, 0.1)}), 12)
    assert len(set(both)) == len(both) == 24
    assert str(both[0]) == "bandwidth 6, seed 0, dropout 0, learning_rate 0.001"


def test_tables_have_a_column_for_what_is_a_list(run):
    path, found = run
    history = csv_rows(path / "history.csv")
    assert list(history[0])[:5] == ["bandwidth", "seed", "learning_rate", "epoch", "train_nll"]
    metrics = csv_rows(path / "evaluation" / "metrics.csv")
    assert list(metrics[0])[:4] == ["bandwidth", "seed", "learning_rate", "missing_fraction"]
    assert [float(row["learning_rate"]) for row in metrics[::2]] == [*RATES, *RATES]
    assert len({(row["learning_rate"], row["bandwidth"], row["nll"]) for row in metrics}) == 12
    last = {ModelKey.of(row): row["valid_nll"] for row in history[12:]}
    for row in metrics:
        assert row["status"] == ("failed" if float(row["learning_rate"]) == 1e30 else "ok")
        if row["status"] == "ok" and row["epoch"] == "1":
            assert float(row["nll"]) == pytest.approx(float(last[ModelKey.of(row)]), rel=1e-4)
    means = csv_rows(path / "evaluation" / "ensemble.csv")
    assert list(means[0])[:3] == ["bandwidth", "learning_rate", "models"]
    # Not of those that failed.
    assert [float(row["learning_rate"]) for row in means] == [*RATES[:2], *RATES[:2]]
    assert RunFolder(path).failed() == {model_at(b, s, 1e30) for b in (6, 3) for s in (0, 1)}

    printed, means = table(found).split("\n\n")
    header, first = (line.split() for line in printed.splitlines()[:2])
    assert header[:4] == ["bandwidth", "seed", "learning_rate", "epoch"]
    assert first[:3] == ["6", "0", "0.001"]
    assert means.splitlines()[1].split()[:3] == ["bandwidth", "learning_rate", "models"]


def test_rates_of_every_model_are_written(run, settings):
    path, _ = run
    data = problem.load(settings)
    with h5py.File(path / "evaluation" / "rates.h5") as file:
        for bandwidth, seed, ((_, rate),), _ in grid.models(settings, 12):
            where = file[f"bandwidth_{bandwidth:02d}/learning_rate_{rate!r}"]
            model = sbtt_jax.load(path, bandwidth=bandwidth, seed=seed, learning_rate=rate)
            observed = problem.observed_at(settings, data, bandwidth)
            rates = model.infer(np.where(observed, data.counts, np.nan)).rates
            np.testing.assert_allclose(where[f"seed_{seed}/rates"][()], rates, rtol=1e-4)
            assert model.settings.train.learning_rate == rate
            assert ("ensemble" in where) == (rate < 1e30)


def test_one_of_several_models_must_be_named(run):
    path, _ = run
    with pytest.raises(InputError) as error:
        sbtt_jax.load(path, bandwidth=6, seed=1)
    assert str(error.value) == (
        f"{path}: give the bandwidth, seed and learning_rate of one model; there are "
        "(bandwidth, seed, learning_rate) (6, 1, 0.001), (6, 1, 0.0123456789), (6, 1, 1e+30)"
    )
    with pytest.raises(InputError, match="differ in dropout, but in bandwidth, seed, learning_ra"):
        sbtt_jax.load(path, bandwidth=6, seed=1, dropout=0.1)


@pytest.mark.slow
def test_a_grid_is_resumed_to_the_same_numbers(tmp_path):
    model, own = {"dropout": (0.0, 0.2)}, {"learning_rate": RATES[:2], "checkpoint_every": 1}
    few = smoke(bandwidths=(6,), seeds=(0,), model=model, train=own | {"epochs": 2})
    more = config.updated(few, train={"epochs": 4})
    stopped, unbroken = tmp_path / "stopped", tmp_path / "unbroken"
    train(few, stopped)
    with pytest.raises(InputError, match=r"model\.dropout was \(0\.0, 0\.2\), now \(0\.0, 0\.3\)"):
        train(config.updated(more, model={"dropout": (0.0, 0.3)}), stopped, resume=True)
    train(more, stopped, resume=True)
    with pytest.raises(InputError, match=r"train\.epochs is 2, and .* has 4 epochs done"):
        train(few, stopped, resume=True)
    train(more, unbroken)
    history = (stopped / "history.csv").read_text()
    assert history == (unbroken / "history.csv").read_text()
    assert history.count("\n") == 1 + 4 * 4
    assert recipes.load(stopped / "config.yaml").train == more.train


def test_fitting_an_array_takes_one_number():
    with pytest.raises(InputError, match="learning_rate: fit trains one model"):
        sbtt_jax.fit(np.ones((10, 4, 3)), train={"learning_rate": [1e-3, 1e-2]})


@pytest.mark.parametrize(
    ("given", "value"),
    [(["0.2"], 0.2), (["0.2", "1e-1"], (0.2, 0.1)), (["0.1", "0.3", "0"], (0.1, 0.3, 0.0))],
)
@pytest.mark.parametrize("default", [0.4, (0.4, 0.5)])
def test_numbers_and_lists_are_read_and_written_as_such(given, value, default, tmp_path):
    default = cli.Train(config.check({"model": {"dropout": default}}))
    settings = cli.parse(cli.Train, ["--model.dropout", *given], default=default).settings
    assert settings.model.dropout == value
    path = tmp_path / "settings.yaml"
    path.write_text(recipes.dump(settings))
    assert recipes.load(path) == settings
    path.write_text(f"model: {{dropout: [{', '.join(given)}]}}")
    assert recipes.load(path).model.dropout == value  # one alone is a number
