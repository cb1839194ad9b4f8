"""Every setting, typed, bounded and documented once.

The defaults are the published recipe; the recipes in `configs/*.yaml` say what differs from it.
"""

import reprlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from sbtt_jax import observations
from sbtt_jax.data.masking import PATTERNS
from sbtt_jax.errors import InputError, did_you_mean
from sbtt_jax.observations import OBSERVATIONS, Observation

Count = Annotated[int, Field(ge=1, lt=2**31)]
Units = Annotated[int, Field(ge=1, le=2**14)]  # a larger GRU (3 GiB of weights) is a typing error
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Inside = Annotated[float, Field(gt=0, lt=1)]
Weight = Annotated[float, Field(ge=0, le=1)]
# Settings that are inputs of a training program, not part of it.
Changeable = Literal[
    "learning_rate",
    "weight_decay",
    "adam_b2",
    "clip_norm",
    "average_decay",
    "dropout",
    "coordinated_dropout",
    "coordinated_dropout_pass",
    "coordinated_dropout_whole",
    "input_penalty",
]
LEAST_TUNED = 4  # models, of which each generation replaces a quarter
LORENZ_SIZES = ("conditions", "trials_per_condition", "bins", "neurons")
RatesUnit = Literal["counts/bin", "spikes/s", "spikes/ms"]

# A number, or a list of numbers of which each model has one. The form of the value decides which
# of the two is checked, so that an error message is about that one alone.
LIST, NUMBER = "a list", "a number"  # no setting has these names


def _distinct(values: tuple[float, ...]) -> tuple[float, ...] | float:
    if len(set(values)) < len(values):
        raise ValueError(f"names a value twice: {', '.join(f'{value:g}' for value in values)}")
    return values if len(values) > 1 else values[0]


Number = TypeVar("Number")
OneOrMore = Annotated[
    Annotated[Number, Tag(NUMBER)]
    | Annotated[tuple[Number, ...], Field(min_length=1), AfterValidator(_distinct), Tag(LIST)],
    Discriminator(lambda value: LIST if isinstance(value, list | tuple) else NUMBER),
]


def _has_boolean(value: Any) -> bool:
    many = isinstance(value, list | tuple)
    return any(map(_has_boolean, value)) if many else isinstance(value, bool)


class _Settings(BaseModel):
    # Descriptions for --help are the strings below the fields.
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_number(cls, value: Any, info: Any) -> Any:
        if cls.model_fields[info.field_name].annotation is not bool and _has_boolean(value):
            raise ValueError(f"is {reprlib.repr(value)}; only switches are true or false")
        return value

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        for field in cls.model_fields.values():  # --help breaks lines where it needs to
            field.description = " ".join((field.description or "").split()) or None


def _choice(default: str, table: Mapping[str, Any], text: str) -> Any:
    """A setting that names a row of a table; its description lists the rows."""
    rows = "; ".join(f"{name}: {row.summary}" for name, row in table.items())
    return Field(default, description=f"{text} {rows}.")


class DataSettings(_Settings, title="data"):
    """What is trained on: a recording, or a Lorenz set generated here."""

    path: str | None = None
    """Recording: NWB, MATLAB, HDF5, netCDF-4, NPZ, or a folder of Suite2p; None generates a Lorenz
    set."""
    key: str | None = None
    """Array of a recording that holds the counts, if it is not named spikes or train_data: its path
    in the file, such as session1/counts."""
    condition: str | None = None
    """Array, or column of an NWB file's trials, that has each trial's condition; None: the array
    condition, if there is one."""
    align: str | None = None
    """Column of an NWB file's trials with the time that windows are around; None: start_time."""
    window: tuple[float, float] | None = None
    """Seconds around that time, such as -0.2 0.8; None: each trial from its start to its end."""
    units: str | None = None
    """Which units of an NWB file to take, by columns, such as quality=good."""
    chop: Positive | None = None
    """Seconds of the windows that a session without trials is cut into."""
    overlap: Annotated[float, Field(ge=0, le=0.95)] = 0.5
    """Share of such a window that the next one has too, in training; half at least at inference."""
    rates_unit: RatesUnit | None = None
    """Unit of a recording's true rates, if it has some without a conversion_factor. None assumes
    the unit that fits the counts best and says which."""
    drop_neurons: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Neurons of a recording to leave out, numbered from 0, such as ones never sampled."""
    drop_unobserved_trials: bool = False
    """Leave out trials of a recording without any sample, which are an error otherwise."""
    seed: Seed = 0
    """Seed of the Lorenz set, the split, the masks and the held-out points."""
    conditions: Count = 65
    """Lorenz trajectories, each with its own initial state."""
    trials_per_condition: Count = 24
    """Trials of each trajectory: same rates, new counts."""
    bins: Count = 50
    """Bins per trial of the Lorenz set."""
    neurons: Count = 29
    """Neurons of the Lorenz set."""
    bin_width: Positive | None = None
    """Width of a bin in seconds, if a recording does not state its own. None assumes 20 ms."""
    valid_fraction: Inside = 0.2
    """Fraction of trials kept for validation, unless the recording is split already."""
    pattern: Literal[tuple(PATTERNS)] = _choice(
        "random", PATTERNS, "Which neurons a bandwidth observes, as many per bin on average."
    )
    block_length: Count = 10
    """Bins in a block of the pattern blocks."""
    holdout_fraction: Fraction = 0.0
    """Fraction of the validation trials' observed points that the model never sees, and on which
    bits per spike is reported (if there are test trials, of theirs). Half of them choose each
    model's best epoch instead, unless train.folds has other points for that. 0 chooses by the
    points that the model sees, as published."""

    @model_validator(mode="before")
    @classmethod
    def _no_lorenz_sizes_of_a_recording(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("path") is not None:
            return {name: value for name, value in values.items() if name not in LORENZ_SIZES}
        return values


class ModelSettings(_Settings, title="model"):
    """Sizes and inputs of the sequential autoencoder."""

    observation: Literal[tuple(OBSERVATIONS)] = _choice(
        "poisson", OBSERVATIONS, "Observation model: distribution of a neuron's value in a bin."
    )
    event_minimum: NonNegative = 0.0
    """The least event there is, such as the threshold of a deconvolution: zero_inflated_gamma is of
    what events exceed it by."""
    noise: Positive | Literal["neuron"] | None = None
    """Standard deviation of gaussian values; neuron: learned, one for each neuron; None: learned
    for each neuron and bin."""
    encoder_size: Units = 50
    """GRU units in each direction of the encoder."""
    decoder_size: Units = 50
    """GRU units of the decoder."""
    latent_size: Units | None = None
    """Size of a linear bottleneck between decoder and readout; None: no bottleneck."""
    rank: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    """How many factors rates follow at inference: principal directions, over neurons, of what is
    inferred about the training trials. auto: as many as predict held-out points best, or all if
    nothing is held out; None: all."""
    segment: Count | None = None
    """For long trials: the derivative keeps the GRU's inner values of this many bins at a time
    and recomputes the rest. Less memory, a third more time, the same model. None keeps all."""
    inferred_inputs: Annotated[int, Field(ge=0, le=1000)] = 0
    """Numbers per bin, inferred from the encoder's two states at the bin, that drive the decoder
    beside its own dynamics, for what happens to an animal in the middle of a trial (LFADS,
    Pandarinath et al. 2018); 0: autonomous dynamics, as published."""
    dropout: OneOrMore[Fraction] = 0.1
    """Probability of dropping a unit, before and after the initial condition's linear layer."""
    input_scaling: bool = False
    """Divide each trial's input by its observed fraction, so that its size does not depend
    on it."""
    mask_input: bool = False
    """Give the encoder the mask beside the counts, so that it can tell silent from missing."""
    standardize: bool = False
    """Give the encoder each neuron's counts less their mean, in units of their standard deviation,
    and add the logarithm of the mean to the readout; both of what the model trains on."""
    smoothing: bool = False
    """Add to each neuron's log-rate, or mean of signed values, what its own counts or values say
    when smoothed in time, at widths whose weights are learned; needs standardize."""
    refinement_steps: Annotated[int, Field(ge=0, le=1000)] = 0
    """Adam steps that move each trial's initial condition from the encoder's estimate toward its
    posterior mode (semi-amortized inference, Kim et al. 2018). Used at inference, never in
    training. 0 keeps the encoder's estimate."""
    refinement_scale: Positive = 0.5
    """Standard deviation, in each unit of the decoder, of the Gaussian prior that refinement puts
    around the encoder's estimate."""
    bounded_ic: bool = False
    """Initial conditions pass through tanh instead of dropout, so that they lie where the decoder's
    states do."""
    posterior: bool = False
    """Infer rates as means of a posterior over the trajectories of the training trials, each
    weighed by the likelihood of a trial's observed counts, instead of from the trial's own initial
    condition alone. Not for models with inferred inputs."""
    stacked: bool = False
    """Infer rates as a weighted mean of the network's own, of those of similar training trials, of
    a low-rank linear model's and, where conditions are known, of PSTHs. Held-out points choose the
    weights once the network is trained; without any, its own rates stand alone."""

    @property
    def distribution(self) -> Observation:
        """The observation model, with what settings fix of it."""
        return observations.of(self.observation, event_minimum=self.event_minimum, noise=self.noise)

    @model_validator(mode="after")
    def _of_its_observation(self) -> "ModelSettings":
        for name, of in (("event_minimum", "zero_inflated_gamma"), ("noise", "gaussian")):
            if getattr(self, name) and self.observation != of:
                rule = f"it is for model.observation {of}, and this is {self.observation}"
                raise ValueError(f"model.{name} is {getattr(self, name)}; {rule}")
        return self


class TrainSettings(_Settings, title="train"):
    """Optimizer, schedule and length of training."""

    epochs: Count = 1000
    """Passes through the training trials."""
    patience: Count | None = None
    """Epochs without a smaller loss at held-out points (validation loss if none are held out) after
    which a model is done; training ends when all are. None: all epochs."""
    steps_per_epoch: Count | None = None
    """Optimizer steps in an epoch, so that training is as long for few trials as for many; None:
    as many as one pass through the training trials takes."""
    batch_size: Count = 64
    """Trials per batch; the last batch of an epoch may be shorter."""
    learning_rate: OneOrMore[Positive] = 1e-3
    """Largest step size of Adam."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Step size after the warm-up: constant, or a cosine down to zero."""
    warmup_epochs: NonNegative = 0.0
    """Epochs in which the step size rises linearly from zero."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """adam adds weight decay to the gradient (L2); adamw subtracts it from the weights themselves
    (Loshchilov and Hutter 2019)."""
    weight_decay: OneOrMore[NonNegative] = 1e-4
    """Strength of the weight decay."""
    adam_b2: OneOrMore[Inside] = 0.999
    """Decay per step of Adam's mean of squared gradients; a smaller value follows them faster."""
    clip_norm: OneOrMore[Positive] | None = None
    """Largest global norm of a gradient; None: no clipping."""
    coordinated_dropout: OneOrMore[Fraction] = 0.0
    """Fraction of a batch's observed points that is hidden from the input and then inferred, so
    that copying the input is not learned (Keshtkaran and Pandarinath 2019); 0: none."""
    coordinated_dropout_pass: OneOrMore[Weight] = 0.0
    """With coordinated dropout: weight in the loss of the points that stay in the input."""
    coordinated_dropout_whole: OneOrMore[Fraction] = 0.0
    """With coordinated dropout: fraction of a batch's trials from which nothing is hidden, as at
    inference. Their points have the weight of those that stay in the input."""
    coordinated_dropout_neurons: Fraction | Literal["auto"] = 0.0
    """Fraction of the neurons of which a trial's points are all hidden from the input, and then
    inferred from other neurons alone. auto: each neuron as often as training trials lack it, at
    most half of the time, if others are there that were recorded beside it elsewhere."""
    input_penalty: OneOrMore[NonNegative] = 0.0
    """Weight in the loss of the mean square of inferred inputs, so that they act where the dynamics
    alone do not suffice."""
    average_decay: OneOrMore[Inside] | None = None
    """Decay per step of an exponential average of the weights, which is then validated and kept
    in their place (Polyak and Juditsky 1992); None: no average."""
    marginal_epochs: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Epochs after the others, of 20 steps, in which each trial has to be explained by trajectories
    inferred from other trials, never from itself: they maximize a leave-one-out estimate of the
    marginal likelihood. The model then infers rates as posterior means over the trajectories of
    all training trials."""
    marginal_rate: Positive = 3e-3
    """Largest step size in these epochs."""
    folds: Annotated[int, Field(ge=1, le=100)] = 1
    """Passes of validation that choose the epoch, if points are held out. 1: half of the held-out
    points choose. More: all held-out points are reported, and the others are hidden in turn, a
    share in each pass, so that every one chooses: for recordings of few spikes."""
    data_devices: Count = 1
    """Devices that share the trials of each batch, for each device that models are placed on.
    Changes numbers by rounding only."""
    checkpoint_every: Count = 20
    """Epochs between checkpoints."""

    @property
    def all_epochs(self) -> int:
        """Of both kinds."""
        return self.epochs + self.marginal_epochs


class Settings(_Settings):
    """One run: a model for every combination of bandwidth, seed and settings that are lists.

    Of `model`, dropout, and of `train`, what takes one number or several can be a list.
    """

    bandwidths: tuple[Count, ...] = (29, 25, 20, 15, 10, 5, 3, 2)
    """Neurons observed in each bin, one model each. None given: one model on a recording as it
    is."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    """Seeds of initial weights, shuffling and dropout, one model each."""
    tune: Annotated[int, Field(ge=0, le=1000)] = 0
    """Models to train for every bandwidth and seed whose learning rate, dropout, weight decay,
    penalties and latents are tuned by held-out likelihood while they train; the best of them is the
    result. 16 is a good number; 0 keeps the settings as they are."""
    changes: tuple[tuple[Annotated[int, Field(ge=0)], Changeable, float], ...] = ()
    """Settings of model and train that change from some epoch on, such as 50 dropout 0.1: epoch,
    name, value. A search writes them."""
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()

    @model_validator(mode="after")
    def _valid_changes(self) -> "Settings":
        known = set()
        for when, name, value in self.changes:
            if (when, name) in known:
                raise ValueError(f"changes has {name} twice in epoch {when}; give one value")
            known.add((when, name))
            if when >= self.train.all_epochs:
                rule = f"epochs are numbered from 0 to {self.train.all_epochs - 1}"
                raise ValueError(f"changes has {name} change in epoch {when}; {rule}")
            group = self.model if name in ModelSettings.model_fields else self.train
            if not isinstance(getattr(group, name), float):
                raise ValueError(f"changes has {name}, which is not one number from the beginning")
            try:
                type(group).model_validate(dict(group) | {name: value})
            except ValidationError as error:
                raise ValueError(f"changes: {problems(error)}") from None
        return self

    @model_validator(mode="after")
    def _tunable(self) -> "Settings":
        own = dict(self.model) | dict(self.train)
        lists = [name for name, value in own.items() if isinstance(value, tuple)]
        alone = "leave one of them out"
        against = {
            f"is {self.tune}; it must be 0 or at least {LEAST_TUNED}": self.tune < LEAST_TUNED,
            f"with a list of {', '.join(lists)}: a search chooses numbers itself; give one": lists,
            f"with changes: a search changes settings itself; {alone}": self.changes,
            "needs held-out points to choose by; give a data.holdout_fraction, such as "
            "0.2": not self.data.holdout_fraction,
            f"with train.marginal_epochs: those choose by other losses; {alone}": (
                own["marginal_epochs"]
            ),
        }
        if self.tune and (wrong := [text for text, applies in against.items() if applies]):
            raise ValueError(f"tune {wrong[0]}")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        for name, values in (("bandwidths", self.bandwidths), ("seeds", self.seeds)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names a value twice: {', '.join(map(str, values))}")
        if self.model.smoothing and not self.model.standardize:
            raise ValueError("model.smoothing needs model.standardize; switch that on too")
        kind = self.model.distribution
        if self.model.smoothing and not (kind.is_count or kind.is_signed):
            # An event says as much about the deconvolution of the next one as about the rate.
            rule = f"it is not for {self.model.observation}, of positive values; switch it off"
            raise ValueError(f"model.smoothing is on: {rule}")
        own = self.train
        if own.warmup_epochs >= own.epochs:
            rule = f"it must be below train.epochs, which is {own.epochs}"
            raise ValueError(f"train.warmup_epochs is {own.warmup_epochs:g}; {rule}")
        if self.model.posterior and (self.model.inferred_inputs or self.model.smoothing):
            rule = "a trajectory is not all there is to a trial then; leave one of them out"
            raise ValueError(f"model.posterior with model.inferred_inputs or smoothing: {rule}")
        if self.model.posterior and self.model.stacked:
            rule = "what it averages is no posterior's; leave one of them out"
            raise ValueError(f"model.stacked with model.posterior: {rule}")
        if own.marginal_epochs and not self.model.posterior:
            raise ValueError("train.marginal_epochs needs model.posterior; switch that on too")
        if own.marginal_epochs and own.patience:
            raise ValueError("train.marginal_epochs begin after train.epochs; leave out patience")
        if own.batch_size % own.data_devices:
            rule = f"it must divide train.batch_size, which is {own.batch_size}"
            raise ValueError(f"train.data_devices is {own.data_devices}; {rule}")
        return self


def check(values: object) -> Settings:
    """Settings from a nested mapping; InputError if one is unknown, mistyped or out of range."""
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise InputError(problems(error)) from None


def updated(settings: Settings, **groups: object) -> Settings:
    """The settings with some values replaced, checked again: `updated(s, data={"seed": 1})`."""
    values = settings.model_dump()
    for name, new in groups.items():
        values[name] = values.get(name, {}) | new if isinstance(new, Mapping) else new
    return check(values)


def no_lorenz_sizes(asked: Iterable[str]) -> None:
    """Raise InputError if settings of data that somebody asks for, beside a recording, are sizes of
    a Lorenz set."""
    if sizes := sorted(set(LORENZ_SIZES).intersection(asked)):
        meant = " (did you mean data.condition?)" if sizes[0] == "conditions" else ""
        rule = "it is for a Lorenz set, and a recording has its own; leave it out"
        raise InputError(f"data.{sizes[0]}: {rule}{meant}")


def problems(error: ValidationError) -> str:
    """What a validation found, in one line: setting, rule, value."""
    group = (error.title,) if error.title in Settings.model_fields else ()
    names = {part for name in NAMES for part in name.split(".")}
    lines: dict[str, list[str]] = {}
    for problem in error.errors():
        if problem["type"] == "too_short" and problem["input"]:
            continue  # it is, without what is wrong in it, which is said too
        # Between the names of settings are those of types, one for each that a value may have.
        unknown = problem["type"] == "extra_forbidden"
        where = (
            part for part in problem["loc"] if unknown or part in names or isinstance(part, int)
        )
        name, text = ".".join((*group, *map(str, where))), problem["msg"]
        if problem["type"] == "value_error":  # raised here, and complete as it is
            text = text.removeprefix("Value error, ")
            text = text if text.startswith(f"{name}.") else f"{name} {text}".lstrip()
        elif unknown and name in NAMES and "." in name:
            text = f"{name}: is written in its group, {name.replace('.', ': {')}: ...}}"
        elif unknown:
            near = did_you_mean(name, NAMES, 0.8)
            text = f"{name}: there is no such setting{near}; train --help lists all"
        elif name:
            text = f"{text[0].lower()}{text[1:]} (found {reprlib.repr(problem['input'])})"
            text = text.replace("tuple", "list")
            text = text if name in lines else f"{name}: {text}"
        lines.setdefault(name, []).append(text)
    return "; ".join(" or ".join(texts) for texts in lines.values())


GROUPS = DataSettings, ModelSettings, TrainSettings
# Of every setting, dotted.
NAMES = [
    *(name for name in Settings.model_fields if name not in ("data", "model", "train")),
    *(f"{of.model_config['title']}.{name}" for of in GROUPS for name in of.model_fields),
]
