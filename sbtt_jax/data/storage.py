"""Where the values of an HDF5 dataset are, if they are not all in its file: HDF5 reads what is not
there as the dataset's fill value, which is 0 unless someone chose another."""

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sbtt_jax.data.arrays import size


def fill(item: h5py.Dataset) -> Any:
    """The value that was chosen to stand where nothing was written; None if none was.

    One of 0 says nothing: libraries choose it too, and counts are 0 where there was silence. Nor
    do those of bytes in netCDF files, where the library chooses 255 or -127 among valid values.
    """
    chosen = item.id.get_create_plist().fill_value_defined() == h5py.h5d.FILL_VALUE_USER_DEFINED
    if not chosen or item.dtype.kind not in "iuf" or item.fillvalue == 0:
        return None
    is_netcdf = "_NCProperties" in item.file.attrs
    return None if is_netcdf and item.dtype.itemsize == 1 else item.fillvalue


def lacking(item: h5py.Dataset) -> str | None:
    """What is not there of the values, in words, if it would be read as zeros; None if all are."""
    if fill(item) is not None:
        return None
    if item.is_virtual:
        return _of_sources(item)
    left = item.nbytes
    for name, start, length in item.external or ():
        used = min(length, left)
        # One that is gone is an error of HDF5 where it is read.
        if Path(name).is_file() and Path(name).stat().st_size < start + used:
            return f"its file {name} is cut short"
        left -= used
    return None


def _of_sources(item: h5py.Dataset) -> str | None:
    covered = 0
    for source in item.virtual_sources():
        if re.search("%[0-9]*b", source.file_name):  # as many files as there are
            return None
        covered += source.vspace.get_select_npoints()
        where = f"{source.dset_name} of {source.file_name}"
        if source.file_name == ".":
            lacks = _lacks(item.file, source)
        elif (path := _found(item, source.file_name)) is None:
            lacks = "is not there"
        else:
            with h5py.File(path) as file:
                lacks = _lacks(file, source)
        if lacks:
            return f"{where}, which it is made of, {lacks}"
    return None if covered >= item.size else f"it has {item.size} values, and sources of {covered}"


def _found(item: h5py.Dataset, name: str) -> Path | None:
    """The file of a source, sought where HDF5 does."""
    here = Path(item.file.filename).parent
    places = here / name, Path(name), here / Path(name).name
    return next((path for path in places if h5py.is_hdf5(path)), None)


def _lacks(file: h5py.File, source: Any) -> str | None:
    there = file.get(source.dset_name)
    if not isinstance(there, h5py.Dataset):
        return "is not there"
    is_whole = source.src_space.get_select_type() == h5py.h5s.SEL_ALL
    try:
        last = () if is_whole else source.src_space.get_select_bounds()[1]
    except (RuntimeError, ValueError):  # as many as there are
        return lacking(there)
    fits = source.vspace.get_select_npoints() <= there.size
    if not is_whole:
        fits = len(last) == there.ndim and (np.array(last) < there.shape).all()
    return lacking(there) if fits else f"is {size(there.shape)}, and too small"
