"""Settings as YAML files: the recipes that ship with the package, and a run's config.yaml."""

import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sbtt_jax import config
from sbtt_jax.config import LORENZ_SIZES, Settings
from sbtt_jax.errors import InputError

# Version of the run folder. 1 had no provenance and no checksums; up to 2, checkpoints kept the
# recovery state apart, and only their best weights are still read.
LAYOUT = 3

# Limits of a settings file. A run's config.yaml has under 100 lines, three levels deep.
MAX_BYTES = 2**20
MAX_LEVELS = 20


def named(name: str) -> Path:
    """The settings file of a recipe, such as "lorenz"; InputError if there is none of that name."""
    package = Path(__file__).parent
    inside = package / "configs"  # once installed; in a checkout, beside the package
    folder = inside if inside.is_dir() else package.parent / "configs"
    there = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in there:
        raise InputError(f"there is no recipe {name!r}; there are {', '.join(there)}")
    return folder / f"{name}.yaml"


def load(path: str | Path) -> Settings:
    """Settings from a YAML file, also a run's config.yaml; what it leaves out keeps its default, or
    the value in the recipe that it names as its `base`.

    Raises InputError if the file cannot be read, or a setting is unknown, mistyped, out of range or
    of a Lorenz set beside a recording.
    """
    return load_run(path)[0]


def load_run(path: str | Path) -> tuple[Settings, dict[str, Any]]:
    """Settings and provenance of a run's config.yaml; provenance is empty if it has none.

    Raises InputError as `load` does, and if the folder is of a newer layout.
    """
    try:
        return _parse(Path(path))
    except OSError as error:
        raise InputError(f"settings file {path}: {error.strerror}") from None
    except InputError as error:
        raise InputError(f"settings file {path}: {' '.join(str(error).split())}") from None


def _parse(path: Path) -> tuple[Settings, dict[str, Any]]:
    with path.open("rb") as file:
        text = file.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise InputError(f"too large to be one (over {MAX_BYTES} bytes)")
    try:
        values = yaml.load(text.decode("utf-8"), _Loader)
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"is not YAML: {error}") from None
    if not isinstance(values, dict):
        return config.check({} if values is None else values), {}
    record, base = values.pop("provenance", {}), values.pop("base", None)
    if not isinstance(record, dict) or (record and not isinstance(record.get("data"), dict)):
        raise InputError("provenance: expected what train.py writes there; leave it out otherwise")
    data = values.get("data")
    if not record and isinstance(data, dict) and data.get("path") is not None:
        # A run of the first layout names all of them.
        config.no_lorenz_sizes(() if data.keys() >= set(LORENZ_SIZES) else data)
    layout = record.get("layout", 1)
    if not isinstance(layout, int) or not 1 <= layout <= LAYOUT:
        found = f"provenance.layout is {reprlib.repr(layout)}; this sbtt-jax reads 1 to {LAYOUT}"
        raise InputError(f"{found}; use the version that wrote the run folder, or a newer one")
    own = config.check(values) if base is None else config.updated(load(named(base)), **values)
    return own, record


class _Loader(yaml.SafeLoader):
    """Plain YAML values only. Aliases, which can stand for far more than the file holds, and
    repeated names, of which one would silently be lost, are refused."""

    levels = 0

    def compose_node(self, parent, index):
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed", mark)
        if self.levels >= MAX_LEVELS:
            text = f"more than {MAX_LEVELS} levels deep"
            raise yaml.composer.ComposerError(None, None, text, mark)
        self.levels += 1
        node = super().compose_node(parent, index)
        self.levels -= 1
        return node

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := {name for name in names if names.count(name) > 1}:
            text = f"named twice: {', '.join(sorted(twice))}"
            raise yaml.constructor.ConstructorError(None, None, text, node.start_mark)
        return super().construct_mapping(node, deep)


def dump(settings: Settings, provenance: Mapping[str, Any] | None = None) -> str:
    """All settings as YAML text, which `load` reads back to the same settings."""
    unused = set() if settings.data.path is None else set(LORENZ_SIZES)
    values = settings.model_dump(mode="json", exclude={"data": unused})
    if provenance is not None:
        values["provenance"] = dict(provenance)
    # Through JSON, in which nothing is shared: YAML would write what is as an alias.
    return yaml.safe_dump(json.loads(json.dumps(values)), sort_keys=False)
