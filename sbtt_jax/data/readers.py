"""Files, and folders of some, as named arrays, read in blocks of rows.

Nothing that a pickle names is imported or called. `READERS` lists the formats; to add one, write a
context manager that yields arrays by name, and a row.
"""

import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

import h5py

from sbtt_jax.data import hdf5, matlab, npz, nwb, suite2p
from sbtt_jax.data.arrays import Array, Arrays, Asked
from sbtt_jax.errors import InputError


class Reader(NamedTuple):
    """A row of `READERS`: whether a file, or a folder, is of the format, by its content, and how
    to open it."""

    recognizes: Callable[[Path], bool]
    open: Callable[[Path, Asked], AbstractContextManager[Mapping[str, Array]]]
    answers: tuple[str, ...] = ()  # what it can be asked beside what all can


# The first that recognizes a file reads it. NWB and newer MATLAB files are HDF5 files too.
READERS = {
    "NWB": Reader(nwb.recognizes, nwb.nwb, ("align", "window", "units")),
    "MATLAB": Reader(matlab.recognizes, matlab.matlab),
    "HDF5": Reader(h5py.is_hdf5, hdf5.hdf5),
    "NPZ": Reader(zipfile.is_zipfile, npz.npz),
    "Suite2p": Reader(suite2p.recognizes, suite2p.suite2p),
}
FORMATS = ", ".join(list(READERS)[:-1]) + f" or {list(READERS)[-1]}"


def _plane(*folders: Path) -> str:
    """What to give instead if one of these folders is of Suite2p."""
    found = next((one for one in folders if suite2p.recognizes(one)), None)
    return "" if found is None else f"; of Suite2p, give the folder of a plane, {found}"


# What a damaged file makes the libraries raise while arrays are read; while it is opened, anything.
DAMAGE = (
    OSError, ValueError, EOFError, KeyError, RuntimeError, NotImplementedError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@contextmanager
def opened(path: str | Path, asked: Asked | None = None) -> Iterator[Arrays]:
    """The arrays of a file, or a folder that is a recording, by name, for as long as it is open.

    Raises InputError if it does not exist, is of no known format, is damaged, even if that shows
    only while arrays are read, or cannot have what is asked of it.
    """
    path, asked = Path(path), asked or Asked()
    if not (path.is_file() or path.is_dir()):
        raise InputError(f"{path}: no such file; give an {FORMATS} recording")
    expected: tuple[type[Exception], ...] = (Exception,)
    try:
        name = next((name for name, reader in READERS.items() if reader.recognizes(path)), None)
        if name is None and path.is_dir():
            remedy = _plane(*sorted(path.glob("plane*")), *sorted(path.glob("suite2p/plane*")))
            raise InputError(f"{path}: a folder; give an {FORMATS} recording{remedy}")
        if name is None:
            with path.open("rb") as file:
                is_old = file.read(3) == b"CDF"
            if is_old:
                remedy = "write it as netCDF-4, as by to_netcdf(..., engine='h5netcdf')"
                raise InputError(f"{path}: is netCDF-3, which is not read; {remedy}")
            remedy = ""
            if path.suffix in (".npy", ".csv", ".txt"):
                remedy = "; an array is written by numpy.savez(FILE, spikes=array)"
            remedy = _plane(path.parent) or remedy
            raise InputError(f"{path}: neither {' nor '.join(READERS)}, or cut short{remedy}")
        for other, reader in READERS.items():
            for option in reader.answers:
                if getattr(asked, option) is not None and option not in READERS[name].answers:
                    rule = f"data.{option} is for {other} files, and this is {name}"
                    raise InputError(f"{path}: {rule}")
        with READERS[name].open(path, asked) as arrays:
            expected = DAMAGE  # beyond the libraries, others are bugs
            yield Arrays(str(path), arrays, asked.notes)
    except InputError:
        raise
    except Exception as error:
        if not isinstance(error, expected):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} cannot be read: {reason}") from None
