"""HDF5 files, netCDF-4 among them, as named arrays.

HDF5 reads values that are not there as the dataset's fill value, which is 0 unless someone chose
another, so it is found out where the values are.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sbtt_jax.data import labels
from sbtt_jax.data.arrays import Array, Arrays, Asked, size
from sbtt_jax.errors import InputError


@contextmanager
def hdf5(path: Path, asked: Asked) -> Iterator[Mapping[str, Array]]:
    """The arrays of an HDF5 file, by their paths, such as "session/spikes"."""
    with h5py.File(path) as file:
        yield dict(_datasets(file))


class _Texts(Array):
    """Texts of an HDF5 file."""

    def __init__(self, rows: h5py.Dataset, *said: Any):
        super().__init__(rows, *said)
        self.dtype = np.dtype(str)

    def whole(self):
        return np.array(self._rows.asstr(errors="replace")[()], str)


class _Named(Array):
    """An enumeration of an HDF5 file: its names, and in blocks, as masks are read, its numbers."""

    def whole(self):
        names = {number: name for name, number in h5py.check_enum_dtype(self.dtype).items()}
        values = self._rows[()]
        texts = [names.get(one, str(one)) for one in values.ravel().tolist()]
        return np.array(texts, str).reshape(values.shape)


def _datasets(
    group: h5py.Group, prefix: str = "", above: tuple[h5py.Group, ...] = ()
) -> Iterator[tuple[str, Array]]:
    said, above = labels.plain(group.attrs), (*above, group)
    if "OCTAVE_NEW_FORMAT" in said:
        raise ValueError(f"{prefix[:-1]} is as Octave writes HDF5, axes reversed; save it with -v7")
    if (width := labels.said_width(said)) is not None:
        yield f"{prefix}bin_width", width
    for key, item in group.items():
        if item is None:
            raise ValueError(f"{prefix}{key} is a link to what is not there; mend or remove it")
        if isinstance(item, h5py.Group) and item not in above:
            yield from _datasets(item, f"{prefix}{key}/", above)
        elif isinstance(item, h5py.Dataset) and item.shape is not None:
            array = _array(item)
            if key == "bin_width" and width is not None:
                array.unfit = array.unfit or _other_width(width, array)
            yield prefix + key, array


def _other_width(said: Array, array: Array) -> str | None:
    """What is wrong if an attribute and an array of that name differ; None if they do not."""
    one, other = (Arrays("", {"bin_width": width}) for width in (said, array))
    with suppress(InputError):  # what is no width is refused where it is needed
        one, other = labels.bin_width(one), labels.bin_width(other)
        if not labels.same_width(one, other):
            return f"is {other:g} s, and the attribute of that name is {one:g} s; leave one out"
    return None


def _array(item: h5py.Dataset) -> Array:
    kind = Array
    if h5py.check_string_dtype(item.dtype) is not None:
        kind = _Texts
    elif h5py.check_enum_dtype(item.dtype) is not None:
        kind = _Named
    says = labels.plain(item.attrs)
    if (fill := _fill(item)) is not None:
        says.setdefault(labels.FILLS[0], fill)
    array = kind(item, says, _axes(item, says))
    array.unfit = _lacking(item)
    if "axes" in says and _names(says["axes"]) is None:
        rule = "expected their names, such as trial, bin, neuron"
        array.unfit = f"its attribute axes is {says['axes']}; {rule}"
    return array


def _axes(item: h5py.Dataset, says: Mapping[str, Any]) -> list[str] | None:
    """Names of the axes: labels, names of dimension scales, or an attribute that has them."""
    for name in "axes", "dims", "_ARRAY_DIMENSIONS":
        if name in says and (names := _names(says[name])) is not None:
            return names
    if not {"DIMENSION_LABELS", "DIMENSION_LIST"} & item.attrs.keys():
        return None
    names = [axis.label or (axis[0].name.split("/")[-1] if len(axis) else "") for axis in item.dims]
    return names if any(names) else None


def _names(said: Any) -> list[str] | None:
    """Names in one text or a list of texts; None if it is something else."""
    texts = labels.texts(said)
    if texts.dtype.kind != "U":
        return None
    if texts.ndim:
        return [text.strip() for text in texts.ravel().tolist()]
    return re.findall(r"[^\s,;()\[\]'\"]+", texts.item())


def _fill(item: h5py.Dataset) -> Any:
    """The value that was chosen to stand where nothing was written; None if none was.

    One of 0 says nothing: libraries choose it too, and counts are 0 where there was silence. Nor
    do those of bytes in netCDF files, where the library chooses 255 or -127 among valid values.
    """
    chosen = item.id.get_create_plist().fill_value_defined() == h5py.h5d.FILL_VALUE_USER_DEFINED
    if not chosen or item.dtype.kind not in "iuf" or item.fillvalue == 0:
        return None
    is_netcdf = "_NCProperties" in item.file.attrs
    return None if is_netcdf and item.dtype.itemsize == 1 else item.fillvalue


def _lacking(item: h5py.Dataset) -> str | None:
    """What is not there of the values, in words, if it would be read as zeros; None if all are."""
    if _fill(item) is not None:
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
        return _lacking(there)
    fits = source.vspace.get_select_npoints() <= there.size
    if not is_whole:
        fits = len(last) == there.ndim and (np.array(last) < there.shape).all()
    return _lacking(there) if fits else f"is {size(there.shape)}, and too small"
