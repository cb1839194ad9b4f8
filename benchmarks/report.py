"""What a benchmark produces: a Markdown table to read and a JSON file to keep."""

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
    """The processor, the cores that this process may use, their load, and versions."""
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
    """The folder, created if there is none; checked before measuring, not after.

    Raises:
      InputError: the folder cannot be created or written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder}: {error.strerror}; name a folder for results") from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"--out {folder}: cannot be written to; name another folder")
    return folder


def write(folder: Path, name: str, result: dict[str, Any]) -> Path:
    """Write a result as JSON, with the machine that it is from; returns the file's path."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **result}, indent=1) + "\n", encoding="utf-8")
    return path


def slug(text: str) -> str:
    """A name as part of a file name: NVIDIA H200 becomes nvidia_h200."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
