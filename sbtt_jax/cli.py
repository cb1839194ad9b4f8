"""The command lines: options from typed settings, signals, errors in one line, exit statuses."""

import contextlib
import gc
import importlib
import importlib.metadata
import io
import itertools
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from pydantic import ValidationError

from sbtt_jax import config, grid, recipes, signals
from sbtt_jax.config import Settings
from sbtt_jax.errors import InputError, SaveError, did_you_mean
from sbtt_jax.output import messages, program, protect, to_terminal
from sbtt_jax.run import processes
from sbtt_jax.training import devices

# Exit statuses besides 0 and those of signals (130, 143). Anything else is a bug.
WRONG_INPUT, MODELS_FAILED, NOT_SAVED = 2, 3, 4

QUICK_DEMO = "--bandwidths 29 10 3 --train.epochs 20 --train.marginal_epochs 3"

Options = TypeVar("Options")


@dataclass
class Train:
    """Train a model for each bandwidth and seed, all at once, and write a run folder.

    Every setting of the settings file can be given here by its dotted name and then takes
    precedence; the defaults shown are those of the file. Where a setting takes several numbers,
    there is one model for every combination of what is given. Evaluate afterwards: evaluate.py RUN,
    or sbtt evaluate RUN
    """

    settings: Annotated[Settings, tyro.conf.arg(name="")]
    out: Annotated[str | None, tyro.conf.arg(metavar="RUN")] = None
    """Run folder to write; needed except with --inspect."""
    config: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """Settings file (YAML), or the name of a recipe. If not given: with --resume the run's own,
    with --data recording, otherwise lorenz."""
    data: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Recording to train on, short for --data.path: NWB, MATLAB, HDF5, netCDF-4, NPZ, or a folder
    of Suite2p."""
    inspect: tyro.conf.FlagCreatePairsOff[bool] = False
    """Say what the recording holds and how it would be read, and do nothing else."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Continue the run in the folder from its newest checkpoint."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace the run in the folder."""
    distributed: tyro.conf.FlagCreatePairsOff[bool] = False
    """Train with other processes, such as one on each host: start all of them with this command.
    On Slurm and TPU pods they find each other; elsewhere, the following options say how."""
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """With --distributed: where process 0 runs, and a free port there."""
    processes: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """With --distributed: how many processes there are."""
    process: Annotated[int | None, tyro.conf.arg(metavar="I")] = None
    """With --distributed: which of them this one is, from 0."""


def train(argv: Sequence[str], command: str = "train") -> int:
    """train.py: the exit status of a command line; `command` is its name in the usage."""
    to_terminal()
    file = _settings_file(argv)
    given = parse(
        Train,
        argv,
        default=Train(recipes.load(file), config=str(file)),
        prog=program(command),
    )
    settings = given.settings
    typed = {word.partition("=")[0].replace("-", "_") for word in argv}
    if given.data and "__data.path" in typed:
        raise InputError("--data and --data.path say the same; give one of them")
    if given.data:  # as an absolute path, so that evaluate.py finds it from any folder
        settings = config.updated(settings, data={"path": os.path.abspath(given.data)})
    if settings.data.path is not None:
        prefix = "__data."
        config.no_lorenz_sizes(w.removeprefix(prefix) for w in typed if w.startswith(prefix))
    if command == "tune" and not settings.tune:
        raise InputError(
            "tune is 0, so nothing would be tuned; give --tune 16, or leave --config out"
        )
    if given.inspect:
        from sbtt_jax.run.inspect import inspect

        for line in inspect(settings):
            messages.info(line)
        return 0
    if given.out is None:
        raise InputError("no --out; name the run folder to write, such as --out runs/mine")
    with signals.ending():
        devices.cache_compiled()
        # Before processes join, which looks for devices.
        devices.use_cores(len(grid.models(settings, 1)) * settings.train.data_devices)
        where = given.coordinator, given.processes, given.process
        if given.distributed:
            processes.join(*where)
        elif where != (None, None, None):
            alone = "--coordinator, --processes and --process go with --distributed"
            raise InputError(f"{alone}; add it")
        from sbtt_jax.run.train import train

        devices.require()
    with signals.noted() as stop, processes.together():
        how = {"resume": given.resume, "overwrite": given.overwrite}
        stopped, failed = train(settings, given.out, stop=stop, **how)
    advice = "a smaller --train.learning_rate or --train.clip_norm may help"
    for key in failed:
        lost = f"{key} failed: its numbers did not stay finite, even with smaller steps"
        messages.info(f"{lost}; {advice}")
    if stopped:
        again = program("train", "--out", given.out, "--resume")
        messages.info(f"stopped; continue with: {again}")
        return 128 + stopped
    if failed:
        return MODELS_FAILED
    messages.info(f"wrote {given.out}; now: {program('evaluate', given.out)}")
    return 0


def _settings_file(argv: Sequence[str]) -> Path:
    """The settings file, which must be known before other options, whose defaults it holds."""
    words = [word for argument in argv for word in argument.split("=", 1)]
    given = {name: Path(value) for name, value in itertools.pairwise(words)}
    own = given.get("--out", Path()) / "config.yaml"
    resumes = "--resume" in words and "--out" in given and own.is_file()
    standard = "recording" if {"--data", "--data.path"} & given.keys() else "lorenz"
    chosen = given.get("--config", own if resumes else Path(standard))
    if not chosen.exists() and not chosen.suffix and chosen.name == str(chosen):
        return recipes.named(chosen.name)
    return chosen


@dataclass
class Evaluate:
    """Infer the rates of every trial with each model of a run; print a table, write figures.

    Scores are over the test trials if the recording has some, otherwise over the validation trials,
    and of another recording (--data) over all trials. R2 is against true rates, if known. Missing
    points are those that the model had no sample of.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder that train.py wrote, such as checkpoints/lorenz."""
    data: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Recording to infer instead of the one trained on; all of its trials are reported on."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder to write to; RUN/evaluation if not given, or RUN/evaluation_NAME for another
    recording."""
    checkpoint: Annotated[int | None, tyro.conf.arg(metavar="EPOCHS")] = None
    """Read the checkpoint after this many epochs, such as the one before a damaged one, instead of
    the newest."""
    full: tyro.conf.FlagCreatePairsOff[bool] = False
    """Write to rates.h5 also each bin's latents and, of several seeds, the mean rates and their
    intervals: more than twice the size."""
    export: Literal["nwb", "nlb"] | None = None
    """Write also, for each model, nwb: a copy of an NWB recording with rates and latents in it; or
    nlb: a submission to the Neural Latents Benchmark, whose tensors the recording holds."""


def evaluate(argv: Sequence[str]) -> int:
    """evaluate.py: the exit status of a command line."""
    to_terminal()
    given = parse(Evaluate, argv, prog=program("evaluate"))
    with signals.ending():
        devices.cache_compiled()
        devices.use_cores()
        devices.require()
        from sbtt_jax.run import evaluate as evaluation

    how = {"data": given.data, "out": given.out, "checkpoint": given.checkpoint}
    how |= {"full": given.full, "export": given.export}
    found = evaluation.evaluate(given.run, **how)
    messages.info(evaluation.table(found))
    messages.info(f"wrote {found.out}")
    return 0


def parse(kind: type[Options], argv: Sequence[str], **how: Any) -> Options:
    """The options in `argv` as an instance of `kind`, whose fields say what options there are.

    Raises InputError if an option is unknown or missing, or its value of the wrong kind or range,
    and SystemExit after printing --help.
    """
    output = io.StringIO()
    for before, word in itertools.pairwise(["an argument", *argv]):
        name = before if word == "" else word[:-1]
        if word == "" or (word.startswith("--") and word.endswith("=")):
            raise InputError(f"{name} is empty; give a value, or leave it out")
    try:
        with contextlib.redirect_stderr(output):
            return tyro.cli(kind, args=list(argv), use_underscores=True, **how)
    except (ValidationError, SystemExit) as stop:
        if isinstance(stop, SystemExit) and not stop.code:
            raise
        error: BaseException | None = stop
        while error is not None:  # a refused setting may be at the bottom of it
            if isinstance(error, ValidationError):
                raise InputError(config.problems(error)) from None
            error = error.__cause__ or error.__context__
    # The first paragraph of a message by Tyro, which has a title and rules, in one line.
    lines = [text for line in output.getvalue().splitlines() if (text := line.strip("│╭╮╰╯ "))]
    rules = {"─"}, {"-"}  # depending on the encoding of standard output
    body = itertools.dropwhile(lambda line: set(line) in rules, lines[1:])
    text = " ".join(itertools.takewhile(lambda line: set(line) not in rules, body))
    # What each of several types has to say about a value would be many lines.
    text = " ".join(text.split()).split(". Got errors:")[0]
    if "Could not find valid parse" in text:
        usage = re.search(r"helptext: (--.*?\.\.\.\]+)", " ".join(lines))
        text += f", expected {usage[1]}" if usage else ""
    raise InputError(f"{text}{_meant(kind, argv, text)}; --help lists all options")


def _meant(kind: type, argv: Sequence[str], text: str) -> str:
    """What may have been meant by an option that is not known."""
    wrong = [word for word in argv if f"options: {word}" in text]
    if not wrong:
        return ""
    if Path(wrong[0]).exists():
        return " (a recording goes after --data, settings after --config)"
    names = [*kind.__annotations__, *(config.NAMES if "settings" in kind.__annotations__ else ())]
    return did_you_mean(wrong[0], (f"--{name}" for name in names))


def status(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """The exit status of a command line. What the user has to fix is one line on stderr: wrong
    input, files that cannot be written or read, an interrupt before there was anything to save."""
    to_terminal()
    try:
        return main(argv)
    except InputError as error:
        status, line = WRONG_INPUT, f"error: {error}"
    except SaveError as error:
        status, line = NOT_SAVED, f"not saved: {error}"
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        status, line = NOT_SAVED, f"error: {where}{error.strerror or error}"
    except KeyboardInterrupt:
        status, line = 128 + signal.SIGINT, signals.AT_ONCE
    if devices.is_main():
        messages.error(" ".join(line.split()))
    return status


COMMANDS = {
    "train": "train models on a recording, or on a Lorenz set",
    "evaluate": "infer rates with the models of a run; tables, figures, a page",
    "tune": "train models on a recording with settings tuned to it",
    "inspect": "say what a recording holds and how it would be read",
    "demo": "the eight-level result on a Lorenz set; --quick for a minute",
    "convert": "make a run of a checkpoint of the published program",
    "ship": "copy what evaluation needs of a run to a small folder",
}

INSPECT = """usage: sbtt inspect FILE [OPTIONS]

Say what a recording holds and how it would be read, and do nothing else. Options are those of
sbtt train, of which the ones that begin with --data. matter; sbtt train --help lists them."""


def command(argv: Sequence[str]) -> int:
    """sbtt: the exit status of a command line."""
    name, rest = (argv[0], list(argv[1:])) if argv else ("--help", [])
    if name == "--version":
        messages.info(f"sbtt-jax {importlib.metadata.version('sbtt-jax')}")
        return 0
    if name in ("--help", "-h"):
        lines = [f"  sbtt {name:9} {text}" for name, text in COMMANDS.items()]
        messages.info("\n".join(["usage:", *lines, "", "sbtt COMMAND --help lists all options"]))
        return 0
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise InputError(f"{name!r} is no command; sbtt has {known}")
    if name in ("convert", "ship"):
        return importlib.import_module(f"sbtt_jax.{name}").main(rest)
    if name == "tune":  # a run that is resumed has its own settings
        return train(rest if "--resume" in rest else ["--config", "tuned", *rest], name)
    if name == "inspect":  # a recording may be given alone
        if rest in (["--help"], ["-h"]):
            messages.info(INSPECT)
            return 0
        given = ["--data", *rest] if rest and not rest[0].startswith("-") else rest
        return train(["--config", "recording", "--inspect", *given])
    return {"train": train, "evaluate": evaluate, "demo": demo}[name](rest)


@dataclass
class Demo:
    """Train models of eight sampling levels on a Lorenz set, three minutes on two cores, and
    evaluate them."""

    out: Annotated[str, tyro.conf.arg(metavar="RUN")] = "runs/demo"
    """Run folder to write; a run that is there is replaced."""
    quick: tyro.conf.FlagCreatePairsOff[bool] = False
    """Three levels and fewer epochs: about a minute."""


def demo(argv: Sequence[str]) -> int:
    """sbtt demo: the exit status of a command line."""
    given = parse(Demo, argv, prog="sbtt demo")
    options = ["--config", "demo", "--out", given.out, "--overwrite"]
    if given.quick:
        options += QUICK_DEMO.split()
    return train(options) or evaluate([given.out])


def main() -> None:
    """Run sbtt on this process's arguments."""
    run(command)


def run(main: Callable[[Sequence[str]], int]) -> None:
    """Run a command line on this process's arguments and exit with its status."""
    protect()
    # What has been imported stays. Looking through it for garbage, again and again while JAX traces
    # a model, would take longer than looking through the rest.
    gc.freeze()
    # Failed background tasks of Orbax report a second time what has been raised already.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.exit(status(main, sys.argv[1:]))
