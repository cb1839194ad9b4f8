import pytest
import yaml
from conftest import ROOT

from sbtt_jax import config
from sbtt_jax.errors import InputError

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_settings_load_and_come_back(path, tmp_path):
    settings = config.load(path)
    copy = tmp_path / "copy.yaml"
    copy.write_text(config.dump(settings))
    assert config.load(copy) == settings


def test_reference_is_the_published_recipe():
    settings = config.load(ROOT / "configs" / "reference.yaml")
    # Its Lorenz set is the one that both recipes are compared on, and no part of the recipe.
    data = settings.data.model_copy(update={"seed": config.Settings().data.seed})
    assert settings.model_copy(update={"data": data}) == config.Settings()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {epoch: 5}", "train.epoch: there is no such setting"),
        ("bandwidth: [3]", "bandwidth: there is no such setting"),
        ("train: {epochs: 0}", "train.epochs: input should be greater than or equal to 1"),
        ("train: {epochs: 3000000000}", "train.epochs: input should be less than 2147483648"),
        ("model: {decoder_size: 100000}", "model.decoder_size: input should be less than or equal"),
        ("train: {epochs: many}", "train.epochs: input should be a valid integer"),
        ("train: {epochs: 2.5}", "train.epochs: input should be a valid integer"),
        ("train: {learning_rate: .nan}", "train.learning_rate"),
        ("train: {schedule: linear}", "train.schedule: input should be 'constant' or 'cosine'"),
        ("train: {epochs: 5, warmup_epochs: 5}", "train.warmup_epochs is 5; it must be below"),
        ("model: {dropout: 1.0}", "model.dropout: input should be less than 1"),
        ("model: {dropout: [0.1, 1.0]}", "model.dropout.1: input should be less than 1"),
        ("train: {learning_rate: []}", "train.learning_rate: tuple should have at least 1 item"),
        ("train: {clip_norm: [1, 2, 1.0]}", "train.clip_norm names a value twice: 1, 2, 1"),
        ("train: {learning_rate: fast}", "train.learning_rate: input should be a valid number"),
        ("train: {epochs: [3, 4]}", "train.epochs: input should be a valid integer"),
        ("bandwidths: [0]", "bandwidths.0: input should be greater than or equal to 1"),
        ("bandwidths: [3, 3]", "bandwidths names a value twice"),
        ("seeds: []", "seeds: tuple should have at least 1 item"),
        ("data: 3", "data: input should be a valid dictionary"),
        ("[1, 2]", "Input should be a valid dictionary"),
        ("train: {", "is not YAML"),
        ("a: !!python/object/apply:os.system [ls]", "is not YAML"),
    ],
)
def test_wrong_settings_are_named(text, said, tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        config.load(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: No such file"):
        config.load(tmp_path / "none.yaml")


def test_scientific_numbers_without_a_point(tmp_path):
    """YAML 1.1 takes 1e-3 for a word; a user means a number."""
    path = tmp_path / "settings.yaml"
    path.write_text("train: {learning_rate: 1e-3}")
    assert yaml.safe_load(path.read_text())["train"]["learning_rate"] == "1e-3"
    assert config.load(path).train.learning_rate == 1e-3
