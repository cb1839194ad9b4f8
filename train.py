"""Train the models of a settings file and write a run folder: python train.py --help"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from sbtt_jax import command_line, config, devices, experiment, grid, inspection, processes
from sbtt_jax.config import Settings
from sbtt_jax.errors import InputError
from sbtt_jax.run_folder import RunFolder

RECOMMENDED = Path(os.path.relpath(Path(__file__).parent / "configs" / "lorenz.yaml"))


@dataclass
class Arguments:
    """Train a model for each bandwidth and seed, all at once, and write a run folder.

    Every setting of the settings file can be given here by its dotted name, and then counts
    instead; the defaults shown are the file's. Where a setting takes FLOAT [FLOAT ...], there is a
    model for every combination of what is given. Evaluate afterwards: python evaluate.py RUN
    """

    settings: Annotated[Settings, tyro.conf.arg(name="")]
    out: Annotated[str | None, tyro.conf.arg(metavar="RUN")] = None
    """Run folder to write; needed but with --inspect."""
    config: Annotated[str, tyro.conf.arg(metavar="FILE")] = str(RECOMMENDED)
    """Settings file (YAML); with --resume, the run's own unless given."""
    data: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Recording to train on (HDF5 or NPZ), short for --data.path."""
    inspect: tyro.conf.FlagCreatePairsOff[bool] = False
    """Say what the recording holds and how it would be read, and do nothing else."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on with the run in the folder from its newest checkpoint."""
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


def main(argv: Sequence[str]) -> int:
    file = settings_file(argv)
    default = Arguments(settings=config.load(file), config=str(file))
    given = command_line.parse(Arguments, argv, default=default)
    # In full, so that evaluate.py finds the recording from any folder.
    settings = config.on_recording(given.settings, given.data and os.path.abspath(given.data))
    if given.inspect:
        for line in inspection.lines(settings):
            print(line)
        return 0
    if given.out is None:
        raise InputError("no --out; name the run folder to write, such as --out runs/mine")
    devices.cache_compiled()
    # Before processes join, for that looks for devices.
    devices.use_cores(len(grid.models(settings, 1)) * settings.train.data_devices)
    where = given.coordinator, given.processes, given.process
    if given.distributed:
        processes.join(*where)
    elif where != (None, None, None):
        raise InputError("--coordinator, --processes and --process go with --distributed; add it")
    with processes.as_one():
        stopped = experiment.train(
            settings, given.out, resume=given.resume, overwrite=given.overwrite
        )
    failed = RunFolder(given.out).failed()
    for key in sorted(failed, reverse=True):
        print(
            f"{key} failed: its numbers did not stay finite, with "
            "ever smaller steps; a smaller --train.learning_rate or --train.clip_norm may help"
        )
    if stopped:
        print(f"stopped; go on with: python train.py --out {given.out} --resume")
        return 128 + stopped
    if failed:
        return command_line.MODELS_FAILED
    print(f"wrote {given.out}; now: python evaluate.py {given.out}")
    return 0


def settings_file(argv: Sequence[str]) -> Path:
    """The file whose settings are the other options' defaults, so it must be known before them."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--config", type=Path)
    early.add_argument("--out", type=Path)
    early.add_argument("--resume", action="store_true")
    try:
        given, _ = early.parse_known_args(argv)
    except argparse.ArgumentError:  # an option without its value: the full parser will say so
        return RECOMMENDED
    if (
        given.config is None
        and given.resume
        and given.out
        and (given.out / "config.yaml").is_file()
    ):
        return given.out / "config.yaml"
    return given.config or RECOMMENDED


if __name__ == "__main__":
    command_line.run(main)
