"""Every setting, typed, bounded and documented once; YAML in and out.

The defaults are the published recipe; `configs/*.yaml` say what differs from it.
"""

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from sbtt_jax.errors import InputError

# Of the run folder: 1 had no provenance in config.yaml and no sums in its checkpoints.
LAYOUT = 2

# Of a settings file; those of a run have fewer than 100 lines, three levels deep.
MOST_BYTES = 2**20
MOST_LEVELS = 20

Count = Annotated[int, Field(ge=1, lt=2**31)]
# A GRU of this size has 3 GiB of weights: more is a slip of the keyboard.
Units = Annotated[int, Field(ge=1, le=2**14)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Inside = Annotated[float, Field(gt=0, lt=1)]
Weight = Annotated[float, Field(ge=0, le=1)]
Pattern = Literal["random", "round_robin", "bernoulli", "raster", "blocks", "channels"]
RatesUnit = Literal["counts/bin", "spikes/s", "spikes/ms"]

# A number, or a list of numbers that each are some models' own. The value's form says which of the
# two it is to be, so that what is wrong with it is said of that one alone.
LIST, NUMBER = "a list", "a number"  # no setting's name


def _distinct(values: tuple[float, ...]) -> tuple[float, ...] | float:
    """A list of numbers that differ; one alone is no list."""
    if len(set(values)) < len(values):
        raise ValueError(f"names a value twice: {', '.join(f'{value:g}' for value in values)}")
    return values if len(values) > 1 else values[0]


Number = TypeVar("Number")
OneOrMore = Annotated[
    Annotated[Number, Tag(NUMBER)]
    | Annotated[
        tuple[Number, ...],
        Field(min_length=1),
        AfterValidator(_distinct),
        Tag(LIST),
    ],
    Discriminator(lambda value: LIST if isinstance(value, list | tuple) else NUMBER),
]


class _Settings(BaseModel):
    # Descriptions are read from the strings below the fields, for --help.
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


Group = TypeVar("Group", bound=_Settings)


class DataSettings(_Settings, title="data"):
    """What is trained on: a recording, or a Lorenz set generated here."""

    path: str | None = None
    """HDF5 or NPZ recording; None: generate a Lorenz set."""
    rates_unit: RatesUnit | None = None
    """Unit of a recording's true rates, where it holds some but no conversion_factor; None: the
    unit that suits the counts best, and a line that says which."""
    drop_neurons: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Neurons of a recording to leave out, numbered from 0, such as ones never sampled."""
    drop_unobserved_trials: bool = False
    """Leave out a recording's trials without any sample, which are refused otherwise."""
    seed: Seed = 0
    """Seed of the Lorenz set, the split, the masks and the held-out points."""
    conditions: Count = 65
    """Lorenz trajectories, each with an initial state of its own."""
    trials_per_condition: Count = 24
    """Trials of each trajectory: the same rates, counts drawn anew."""
    bins: Count = 50
    """Bins in a trial of the Lorenz set."""
    neurons: Count = 29
    """Neurons in the Lorenz set."""
    bin_width: Positive = 0.02
    """Width of a bin in seconds, of a recording too where it holds no bin_width."""
    valid_fraction: Inside = 0.2
    """Share of trials kept for validation, where a recording is not split already."""
    pattern: Pattern = "random"
    """Which neurons a bandwidth observes: random: as many in every bin; round_robin: groups in
    turn, as multiplexed electrodes; bernoulli: each point by chance; raster: each neuron once in a
    scan, as two-photon imaging; blocks: each neuron by stretches; channels: the same through a
    trial. In all of them, as many as the bandwidth per bin on average."""
    block_length: Count = 10
    """Bins in a stretch of the pattern blocks."""
    holdout_fraction: Share = 0.0
    """Share of the validation trials' observed points that is hidden from the model, to choose
    each model's best epoch by and to report bits per spike on; 0: choose by the points that it
    sees, as published."""


class ModelSettings(_Settings, title="model"):
    """Sizes and inputs of the sequential autoencoder."""

    encoder_size: Units = 50
    """GRU units in each direction of the encoder."""
    decoder_size: Units = 50
    """GRU units of the decoder."""
    latent_size: Units | None = None
    """Size of a linear bottleneck between decoder and readout; None: no bottleneck."""
    segment: Count | None = None
    """For long trials: bins that training keeps the GRUs' inner values of at a time, to compute
    them again when it needs them; less memory, a third more time, the same model. None: of all."""
    dropout: OneOrMore[Share] = 0.1
    """Probability of dropping a unit, before and after the initial condition's linear layer."""
    input_scaling: bool = False
    """Divide each trial's input by its observed fraction, which its size then does not follow."""
    mask_input: bool = False
    """Give the encoder the mask beside the counts: a silent sample is not a missing one."""
    refinement_steps: Annotated[int, Field(ge=0, le=1000)] = 0
    """Steps by which a trained model, when it is used or evaluated, improves each trial's initial
    condition by the likelihood of its observed counts (semi-amortized inference, Kim et al. 2018);
    0: the encoder's word. Training does without."""
    refinement_scale: Positive = 0.5
    """How far from the encoder's initial condition refinement expects a trial's: the standard
    deviation of a Gaussian prior, in each unit of the decoder."""


class TrainSettings(_Settings, title="train"):
    """Optimiser, schedule and length of training."""

    epochs: Count = 1000
    """Passes through the training trials."""
    batch_size: Count = 64
    """Trials in a batch; the last one of an epoch may be shorter."""
    learning_rate: OneOrMore[Positive] = 1e-3
    """Largest step size of Adam."""
    schedule: Literal["constant", "cosine"] = "constant"
    """The step size after the warm-up: as it is, or down to zero along a cosine."""
    warmup_epochs: NotNegative = 0.0
    """Epochs in which the step size rises linearly from zero."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """adam: weight decay is added to the gradient (L2); adamw: it is taken off the weights
    themselves (Loshchilov and Hutter 2019)."""
    weight_decay: OneOrMore[NotNegative] = 1e-4
    """Strength of the weight decay."""
    adam_b2: OneOrMore[Inside] = 0.999
    """Decay per step of Adam's mean of squared gradients; less follows them sooner."""
    clip_norm: OneOrMore[Positive] | None = None
    """Largest global norm of a gradient; None: no clipping."""
    coordinated_dropout: OneOrMore[Share] = 0.0
    """Share of a batch's observed points that is hidden from the input and then inferred, so that
    copying the input is not learned (Keshtkaran and Pandarinath 2019); 0: none."""
    coordinated_dropout_pass: OneOrMore[Weight] = 0.0
    """With coordinated dropout, the weight in the loss of the points that stay in the input."""
    coordinated_dropout_whole: OneOrMore[Share] = 0.0
    """With coordinated dropout, share of a batch's trials from which nothing is hidden: inputs as
    whole as those that the model is used on."""
    average_decay: OneOrMore[Inside] | None = None
    """Decay per step of an exponential average of the weights, which then is validated and kept
    (Polyak and Juditsky 1992); None: the weights themselves."""
    data_devices: Count = 1
    """Devices that share the trials of each batch, for each device that models are dealt to; all
    numbers stay the same but for rounding."""
    checkpoint_every: Count = 20
    """Epochs from one checkpoint to the next."""


class Settings(_Settings):
    """One run: a model for every combination of bandwidth, seed and settings that are lists.

    In `model` and `train`, a number that is neither a size nor a length can be a list.
    """

    bandwidths: tuple[Count, ...] = (29, 25, 20, 15, 10, 5, 3, 2)
    """Neurons observed in each bin, a model each; none given: one model on a recording as it is."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    """Seeds of initial weights, shuffling and dropout, a model each."""
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        for name, values in (("bandwidths", self.bandwidths), ("seeds", self.seeds)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names a value twice: {', '.join(map(str, values))}")
        if self.train.warmup_epochs >= self.train.epochs:
            raise ValueError(
                f"train.warmup_epochs is {self.train.warmup_epochs:g}; it must be below "
                f"train.epochs, which is {self.train.epochs}"
            )
        if self.train.batch_size % self.train.data_devices:
            raise ValueError(
                f"train.data_devices is {self.train.data_devices}; it must divide "
                f"train.batch_size, which is {self.train.batch_size}"
            )
        return self


def check(values: object) -> Settings:
    """Settings from a nested mapping of their values.

    Raises:
      InputError: a setting is unknown, mistyped or out of range.
    """
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise InputError(problems(error)) from None


def problems(error: ValidationError) -> str:
    """What a validation found, in one line: setting, rule, value."""
    group = (error.title,) if error.title in Settings.model_fields else ()
    lines = []
    for problem in error.errors():
        where = (part for part in problem["loc"] if part not in (LIST, NUMBER))
        name = ".".join(map(str, (*group, *where)))
        text = problem["msg"]
        if problem["type"] == "value_error":  # ours, which says all there is to say
            text = f"{name} {text.removeprefix('Value error, ')}".lstrip()
        elif problem["type"] == "extra_forbidden":
            text = f"{name}: there is no such setting; train.py --help lists all"
        elif name:
            text = f"{name}: {text[0].lower()}{text[1:]} (found {reprlib.repr(problem['input'])})"
        lines.append(text)
    return "; ".join(lines)


def load(path: str | Path) -> Settings:
    """Settings from a YAML file; a setting that it leaves out keeps its default.

    Of a run's config.yaml, these are all but `provenance`.

    Raises:
      InputError: the file cannot be read, or a setting is unknown, mistyped or out of range.
    """
    return _load(path)[0]


def provenance(path: str | Path) -> dict[str, Any]:
    """What a run's config.yaml records of its making; empty where it is from before that.

    Raises:
      InputError: as `load`.
    """
    return _load(path)[1]


def _load(path: str | Path) -> tuple[Settings, dict[str, Any]]:
    try:
        with Path(path).open("rb") as file:
            text = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"settings file {path}: {error.strerror}") from None
    if len(text) > MOST_BYTES:
        raise InputError(f"settings file {path} is too large to be one (over {MOST_BYTES} bytes)")
    try:
        values = yaml.load(text.decode("utf-8"), _Loader)
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"settings file {path} is not YAML: {' '.join(str(error).split())}"
        ) from None
    try:
        values = {} if values is None else values
        record = {}
        if isinstance(values, dict):
            values = dict(values)
            record = _readable(values.pop("provenance", {}))
        return check(values), record
    except InputError as error:
        raise InputError(f"settings file {path}: {' '.join(str(error).split())}") from None


def _readable(record: object) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise InputError("provenance: expected what train.py writes there; leave it out otherwise")
    layout = record.get("layout", 1)
    if not isinstance(layout, int) or not 1 <= layout <= LAYOUT:
        raise InputError(
            f"provenance.layout is {reprlib.repr(layout)}; this version of sbtt-jax reads run "
            f"folders of layouts 1 to {LAYOUT}; use the version that wrote it, or a newer one"
        )
    if record and not isinstance(record.get("data"), dict):
        raise InputError("provenance.data: expected the fingerprint that train.py writes there")
    return record


class _Loader(yaml.SafeLoader):
    """YAML's plain values alone. What could stand for far more than the file holds (aliases) or
    be silently dropped (a name given twice) is refused."""

    levels = 0

    def compose_node(self, parent, index):
        event = self.peek_event()
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(
                None, None, "aliases (*name) are not read here", event.start_mark
            )
        if self.levels >= MOST_LEVELS:
            raise yaml.composer.ComposerError(
                None, None, f"more than {MOST_LEVELS} levels deep", event.start_mark
            )
        self.levels += 1
        node = super().compose_node(parent, index)
        self.levels -= 1
        return node

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"named twice: {', '.join(sorted(twice))}", node.start_mark
            )
        return super().construct_mapping(node, deep)


def on_recording(settings: Settings, path: str | None) -> Settings:
    """The same settings on the recording at `path`; unchanged where it is None."""
    if path is None:
        return settings
    values = settings.model_dump()
    return check(values | {"data": values["data"] | {"path": path}})


def with_bin_width(settings: Settings, bin_width: float) -> Settings:
    """The same settings for bins of this width, in seconds."""
    data = settings.data.model_copy(update={"bin_width": bin_width})
    return settings.model_copy(update={"data": data})


def with_values(group: Group, values: Mapping[str, Any]) -> Group:
    """The same settings of a group, with those of `values` that are among them, unchecked."""
    own = {name: values[name] for name in type(group).model_fields if name in values}
    return group.model_copy(update=own)


def dump(settings: Settings, provenance: Mapping[str, Any] | None = None) -> str:
    """All settings as YAML text, which `load` reads back to the same settings."""
    values = settings.model_dump(mode="json")
    if provenance is not None:
        values["provenance"] = dict(provenance)
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data):
        return True
