import pytest
import yaml
from conftest import ROOT

from sbtt_jax import config, recipes
from sbtt_jax.config import LORENZ_SIZES, DataSettings, ModelSettings, Settings
from sbtt_jax.data.masking import PATTERNS
from sbtt_jax.errors import InputError
from sbtt_jax.observations import OBSERVATIONS

RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_found_load_and_come_back(name, tmp_path):
    path = recipes.named(name)
    assert path.samefile(ROOT / "configs" / f"{name}.yaml")
    copy = tmp_path / "copy.yaml"
    copy.write_text(recipes.dump(recipes.load(path)))
    assert recipes.load(copy) == recipes.load(path)


def test_reference_is_the_published_recipe():
    settings = recipes.load(recipes.named("reference"))
    # Its Lorenz set is the one that both recipes are compared on, and not part of the recipe.
    assert config.updated(settings, data={"seed": Settings().data.seed}) == Settings()


def test_a_recording_has_no_lorenz_sizes(tmp_path):
    """Its config.yaml names none, and settings that differ only in them are the same."""
    settings = config.check({"data": {"path": "mine.h5", "seed": 3}})
    assert settings == config.check({"data": {"path": "mine.h5", "seed": 3, "neurons": 7}})
    path = tmp_path / "config.yaml"
    path.write_text(recipes.dump(settings))
    assert recipes.load(path) == settings
    names = DataSettings.model_fields.keys()
    assert yaml.safe_load(path.read_text())["data"].keys() == names - set(LORENZ_SIZES)
    assert yaml.safe_load(recipes.dump(Settings()))["data"].keys() == names


def test_a_run_of_the_first_layout_names_them_beside_a_recording(tmp_path):
    sizes = "".join(f", {name}: 5" for name in LORENZ_SIZES)
    (tmp_path / "config.yaml").write_text("data: {path: mine.h5" + sizes + "}")
    assert recipes.load(tmp_path / "config.yaml") == config.check({"data": {"path": "mine.h5"}})


def test_updated_settings_are_checked_again():
    settings = config.updated(Settings(), data={"seed": 1}, seeds=(1, 2))
    assert (settings.data.seed, settings.seeds) == (1, (1, 2))
    assert config.updated(settings, data={"seed": 0}, seeds=(0,)) == Settings()
    with pytest.raises(InputError, match=r"train\.epochs: input should be greater"):
        config.updated(Settings(), train={"epochs": 0})


@pytest.mark.parametrize(
    ("group", "name", "table"),
    [(DataSettings, "pattern", PATTERNS), (ModelSettings, "observation", OBSERVATIONS)],
)
def test_choices_are_the_rows_of_a_table(group, name, table):
    for choice, row in table.items():
        assert getattr(group(**{name: choice}), name) == choice
        assert f"{choice}: {row.summary}" in group.model_fields[name].description
    with pytest.raises(ValueError, match=f"'{list(table)[-1]}'"):
        group(**{name: "spiral"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {epoch: 5}", "train.epoch: there is no such setting (did you mean train.epochs?)"),
        ("model: {rank: some}", "(found 'some') or input should be 'auto' (found 'some')"),
        ("bandwidth: [3]", "bandwidth: there is no such setting"),
        ("train: {epochs: 3000000000}", "train.epochs: input should be less than 2147483648"),
        ("model: {decoder_size: 100000}", "model.decoder_size: input should be less than or equal"),
        ("train: {epochs: many}", "train.epochs: input should be a valid integer"),
        ("train: {learning_rate: .nan}", "train.learning_rate"),
        ("train: {schedule: linear}", "train.schedule: input should be 'constant' or 'cosine'"),
        ("train: {epochs: 5, warmup_epochs: 5}", "train.warmup_epochs is 5; it must be below"),
        ("model: {dropout: 1.0}", "model.dropout: input should be less than 1"),
        ("model: {dropout: [0.1, 1.0]}", "model.dropout.1: input should be less than 1"),
        ("train: {learning_rate: []}", "train.learning_rate: list should have at least 1 item"),
        ("train: {clip_norm: [1, 2, 1.0]}", "train.clip_norm names a value twice: 1, 2, 1"),
        ("train: {learning_rate: fast}", "train.learning_rate: input should be a valid number"),
        ("train: {epochs: [3, 4]}", "train.epochs: input should be a valid integer"),
        ("bandwidths: [0]", "bandwidths.0: input should be greater than or equal to 1"),
        ("bandwidths: [3, 3]", "bandwidths names a value twice"),
        ("seeds: []", "seeds: list should have at least 1 item"),
        ("seeds: [-1]", "yaml: seeds.0: input should be greater than or equal to 0 (found -1)$"),
        ("seeds: [true]", "seeds is [True]; only switches are true or false"),
        ("train: {epochs: true}", "train.epochs is True; only switches are true or false"),
        ("changes: [[3, dropout, true]]", "dropout', True]]; only switches are true or false"),
        ("train.epochs: 3", "train.epochs: is written in its group, train: {epochs: ...}"),
        (
            "changes: [[3, dropout, 0.1], [3, dropout, 0.2]]",
            "changes has dropout twice in epoch 3; give one value",
        ),
        ("data: {path: a.h5, neurons: 5}", "data.neurons: it is for a Lorenz set, and a recording"),
        ("base: recording\ndata: {path: a.h5, bins: 5}", "data.bins: it is for a Lorenz set"),
        ("data: 3", "data: input should be a valid dictionary"),
        ("[1, 2]", "Input should be a valid dictionary"),
        (None, "No such file"),
    ],
)
def test_wrong_settings_are_named(text, words, tmp_path):
    path = tmp_path / "settings.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError) as error:
        recipes.load(path)
    assert words.removesuffix("$") in str(error.value)
    assert not words.endswith("$") or str(error.value).endswith(words[:-1])
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_scientific_numbers_without_a_point(tmp_path):
    """YAML 1.1 reads 1e-3 as text; a user means a number."""
    (tmp_path / "settings.yaml").write_text("train: {learning_rate: 1e-3}")
    assert recipes.load(tmp_path / "settings.yaml").train.learning_rate == 1e-3
