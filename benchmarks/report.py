"""What a benchmark hands over: a Markdown table to read and a JSON file to keep."""

import json
import os
import platform
import re
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from sbtt_jax.errors import InputError

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Processor, cores open to this process, how busy they are, and versions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": cores,
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")},
    }


def _processor() -> str:
    if sys.platform == "linux":
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def writable(folder: str | Path) -> Path:
    """The folder, made if need be: better asked before measuring than after.

    Raises:
      InputError: there can be no such folder, or nothing can be written there.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder}: {error.strerror}; name a folder for results") from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"--out {folder}: may not be written to; name another folder")
    return folder


def write(folder: Path, name: str, result: dict[str, Any]) -> Path:
    """Write a result, with the machine it is from, as JSON; the file's path."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **result}, indent=1) + "\n", encoding="utf-8")
    return path


def slug(text: str) -> str:
    """A device's name as part of a file's name: NVIDIA H200 is nvidia_h200."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
