"""What training says of settings."""

from dataclasses import replace

import pytest
from conftest import ROOT, small_problem

from sbtt_jax import config, recipes
from sbtt_jax.run import notices

RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
INERT = {  # a setting without effect, and what gives it one
    ("data", "overlap", 0.2): {"data": {"chop": 1.0}},
    ("model", "refinement_scale", 1.0): {"model": {"refinement_steps": 2}},
    ("train", "coordinated_dropout_pass", 0.2): {"train": {"coordinated_dropout": 0.3}},
    ("train", "coordinated_dropout_whole", (0.0, 0.2)): {
        "changes": [[1, "coordinated_dropout", 0.3]],
    },
    ("train", "folds", 4): {"data": {"holdout_fraction": 0.2}},
    ("train", "input_penalty", 0.1): {"model": {"inferred_inputs": 2}},
    ("train", "marginal_rate", 0.1): {
        "train": {"marginal_epochs": 1},
        "model": {"posterior": True},
    },
}


def said(settings):
    return notices.of_settings(replace(small_problem(), settings=settings))


@pytest.mark.parametrize("name", RECIPES)
def test_no_recipe_has_a_setting_without_effect(name):
    assert said(recipes.load(recipes.named(name))) == []


@pytest.mark.parametrize("setting", INERT, ids=lambda setting: setting[1])
def test_a_setting_without_effect_is_named_with_what_it_lacks(setting):
    group, name, value = setting
    own = config.updated(config.Settings(), **{group: {name: value}})
    (line,) = said(own)
    assert line.startswith(f"{group}.{name} has no effect without ")
    assert said(config.updated(own, **INERT[setting])) == []
    assert {f"{group}.{name}" for group, name, _ in INERT} == notices.NEEDS.keys()
