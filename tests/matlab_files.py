"""Writes MATLAB files of version 5, as SciPy does, and 7.3, which are HDF5 of a kind of its own.

A list is a cell array of one row, an array of objects one of its shape, a mapping a struct, a list
of mappings a struct array.
"""

import itertools

import h5py
import numpy as np
from scipy.io import savemat
from scipy.sparse import issparse

HEADER = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
NUMBERS = itertools.count()
CLASSES = {"f4": "single", "f8": "double", "b1": "logical"}


def save73(path, values):
    """Values by name as MATLAB writes them with -v7.3."""
    with h5py.File(path, "w", userblock_size=512) as file:
        references = file.create_group("#refs#")
        for key, value in values.items():
            _put(file, key, value, references)
    content = bytearray(path.read_bytes())
    content[: len(HEADER)] = HEADER
    path.write_bytes(content)
    return path


def _put(group, key, value, references):
    if isinstance(value, dict):
        inner = group.create_group(key)
        for name, one in value.items():
            _put(inner, name, one, references)
        return _of_class(inner, "struct")
    if isinstance(value, list) and value and isinstance(value[0], dict):
        inner = group.create_group(key)
        for name in value[0]:
            _references(inner, name, [one[name] for one in value], references)
        return _of_class(inner, "struct")
    if isinstance(value, list) or getattr(getattr(value, "dtype", None), "hasobject", False):
        return _of_class(_references(group, key, value, references), "cell")
    if issparse(value):
        inner = group.create_group(key)
        inner.attrs["MATLAB_sparse"] = np.uint64(value.shape[0])
        inner["data"], inner["ir"], inner["jc"] = value.data, value.indices, value.indptr
        return _of_class(inner, "double")
    if isinstance(value, str):
        units = np.frombuffer(value.encode("utf-16-le"), "u2")
        item = group.create_dataset(key, data=units[:, None] if value else np.zeros(2, "u8"))
        item.attrs.update({"MATLAB_int_decode": np.int32(2)} | _empty(not value))
        return _of_class(item, "char")
    value = np.atleast_2d(value)
    stored = value.T.astype(np.uint8) if value.dtype == bool else value.T
    if not value.size:
        stored = np.array(value.shape, "u8")
    item = group.create_dataset(key, data=stored)
    item.attrs.update(_empty(not value.size))
    name = CLASSES.get(value.dtype.str[1:], value.dtype.name)
    return _of_class(item, name)


def _empty(is_empty):
    return {"MATLAB_empty": np.uint8(1)} if is_empty else {}


def _references(group, key, values, references):
    made, shape = [], np.shape(values) if isinstance(values, np.ndarray) else (1, len(values))
    for value in values.ravel("F") if isinstance(values, np.ndarray) else values:
        name = f"a{next(NUMBERS)}"
        _put(references, name, value, references)
        made.append(references[name].ref)
    return group.create_dataset(key, data=np.array(made, h5py.ref_dtype).reshape(shape[::-1]))


def _of_class(item, name):
    item.attrs["MATLAB_class"] = np.bytes_(name)
    return item


def save5(path, values, compress=True):
    """Values by name with SciPy, which takes an array of objects for a cell array."""
    savemat(
        path, {key: _for_scipy(value) for key, value in values.items()}, do_compression=compress
    )
    return path


def _for_scipy(value):
    if isinstance(value, dict):
        return {name: _for_scipy(one) for name, one in value.items()}
    if not isinstance(value, list):
        return value
    if value and isinstance(value[0], dict):
        fields = [(name, object) for name in value[0]]
        made = np.empty((1, len(value)), fields)
        for k, one in enumerate(value):
            for name in one:
                made[name][0, k] = _for_scipy(one[name])
        return made
    made = np.empty((1, len(value)), object)
    for k, one in enumerate(value):
        made[0, k] = _for_scipy(one)
    return made
