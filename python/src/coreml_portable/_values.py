"""Values across the table: NumPy arrays, PIL images, numbers, strings, dictionaries and lists."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import byref, c_double, c_int64, c_void_p, sizeof
from typing import Any

import numpy as np

from . import errors
from ._table import TABLE, Entries, ImageBytesFn, ImageDesc, ScalarView, Str, TensorBytesFn, TensorDesc

INT64, DOUBLE, STRING, IMAGE, TENSOR, DICTIONARY, SEQUENCE = range(1, 8)
BGRA8, GRAY8, GRAY16F = 0x42475241, 0x4C303038, 0x4C303068

DTYPES: dict[int, np.dtype] = {
    0x10010: np.dtype(np.float16),
    0x10020: np.dtype(np.float32),
    0x10040: np.dtype(np.float64),
    0x20008: np.dtype(np.int8),
    0x20020: np.dtype(np.int32),
}
NUMBERS: dict[np.dtype, int] = {dtype: number for number, dtype in DTYPES.items()}


def call(slot, *arguments) -> None:
    """Calls a slot that takes the error last, and raises what it reports."""
    error = c_void_p()
    status = slot(*arguments, byref(error))
    if status != 0:
        raise errors.take(status, error.value)


class Value:
    """One counted handle on a value."""

    __slots__ = ("handle",)

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def close(self) -> None:
        handle, self.handle = self.handle, 0
        if handle:
            TABLE.value_release(handle)

    def __del__(self) -> None:
        self.close()


def _made(slot, *arguments) -> Value:
    out = c_void_p()
    call(slot, TABLE.self_, *arguments, byref(out))
    return Value(out.value)


def tensor(array: np.ndarray) -> Value:
    """A copy of an array of one of the five element types, whatever its strides."""
    dtype = NUMBERS[array.dtype]
    if not array.dtype.isnative or any(stride < 0 or stride % array.itemsize for stride in array.strides):
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    integers = c_int64 * max(array.ndim, 1)
    shape = integers(*array.shape)
    strides = integers(*(stride // array.itemsize for stride in array.strides))
    last = sum((n - 1) * stride for n, stride in zip(array.shape, array.strides))
    length = last + array.itemsize if array.size else 0
    desc = TensorDesc(sizeof(TensorDesc), dtype, array.ndim, shape, strides if array.size else None, 0)
    return _made(TABLE.tensor_copy, byref(desc), array.ctypes.data, length)


def scalar(value: int | float | str) -> Value:
    view = ScalarView(size=sizeof(ScalarView))
    if isinstance(value, str):
        text = Str.of(value)
        view.kind, view.string = STRING, text
        return _made(TABLE.scalar_new, byref(view))
    if isinstance(value, (float, np.floating)):
        view.kind, view.float64 = DOUBLE, float(value)
    else:
        value = int(value)
        if not -(2**63) <= value < 2**63:
            raise OverflowError(f"{value} does not fit 64 bits")
        view.kind, view.int64 = INT64, value
    return _made(TABLE.scalar_new, byref(view))


def _entries(keys: Sequence[Any], values: Sequence[float] | None, kind: int | None) -> tuple[Entries, list]:
    keys = [key.item() if isinstance(key, np.generic) else key for key in keys]
    if kind is None:
        kind = STRING if any(isinstance(key, str) for key in keys) else INT64
    view = Entries(size=sizeof(Entries), key_kind=kind, n=len(keys))
    keep: list = []
    if kind == STRING:
        if not all(isinstance(key, str) for key in keys):
            raise TypeError("every key must be a string")
        strings = [Str.of(key) for key in keys]
        view.string_keys = (Str * len(keys))(*strings)
        keep.append(strings)
    else:
        if not all(isinstance(key, int) for key in keys):
            raise TypeError("every key must be an integer")
        view.int64_keys = (c_int64 * len(keys))(*keys)
    if values is not None:
        view.values = (c_double * len(keys))(*(float(value) for value in values))
    return view, keep


def dictionary(value: Mapping[Any, Any], kind: int | None = None) -> Value:
    view, _keep = _entries(list(value), list(value.values()), kind)
    return _made(TABLE.dictionary_new, byref(view))


def sequence(value: Sequence[Any], kind: int | None = None) -> Value:
    view, _keep = _entries(list(value), None, kind)
    return _made(TABLE.sequence_new, byref(view))


def image(value: Any) -> Value:
    """A PIL image (RGB, RGBA, L or F), or an array of bytes [h, w, 3 or 4] or [h, w], or of floats [h, w]."""
    if hasattr(value, "mode") and hasattr(value, "tobytes"):
        if value.mode not in ("RGB", "RGBA", "L", "F"):
            raise TypeError(f"images of mode {value.mode} are not supported: convert to RGB, RGBA, L or F")
        value = np.asarray(value)
    pixels = np.asarray(value)
    if pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] in (3, 4):
        height, width, channels = pixels.shape
        bgra = np.empty((height, width, 4), np.uint8)
        bgra[..., :3] = pixels[..., 2::-1]
        bgra[..., 3] = pixels[..., 3] if channels == 4 else 255
        format_, pixels = BGRA8, bgra
    elif pixels.dtype == np.uint8 and pixels.ndim == 2:
        format_, pixels = GRAY8, np.ascontiguousarray(pixels)
    elif pixels.dtype in (np.float16, np.float32) and pixels.ndim == 2:
        format_, pixels = GRAY16F, np.ascontiguousarray(pixels, np.float16)
    else:
        raise TypeError(f"an array of {pixels.dtype} with the shape {pixels.shape} is not an image")
    height, width = pixels.shape[:2]
    desc = ImageDesc(sizeof(ImageDesc), format_, width, height, pixels.strides[0])
    return _made(TABLE.image_new, byref(desc), pixels.ctypes.data, pixels.nbytes)


def read_tensor(handle: int) -> np.ndarray:
    desc = TensorDesc(size=sizeof(TensorDesc))
    call(TABLE.tensor_desc, handle, byref(desc))
    array = np.empty([desc.shape[axis] for axis in range(desc.rank)], DTYPES[desc.dtype])
    call(TABLE.tensor_read, handle, desc.dtype, array.ctypes.data, array.nbytes)
    return array


def _view(address: int | None, length: int) -> np.ndarray:
    if not address or not length:
        return np.empty(0, np.uint8)
    return np.frombuffer((ctypes.c_uint8 * length).from_address(address), np.uint8)


def strided(address: int | None, desc: TensorDesc) -> np.ndarray:
    """The memory of a visited tensor as an array; valid during the visit only."""
    dtype = DTYPES[desc.dtype]
    shape = [desc.shape[axis] for axis in range(desc.rank)]
    steps = [desc.strides[axis] * dtype.itemsize for axis in range(desc.rank)] if desc.strides else None
    return np.ndarray(shape, dtype, buffer=_view(address, desc.byte_len), strides=steps)


def visit_tensor(slot, *arguments, writable: bool, visit) -> None:
    """Runs `visit(array)` inside the slot; what it raises comes out here."""
    raised: list[BaseException] = []

    def inside(_context, address, desc) -> None:
        try:
            visit(strided(address, desc.contents))
        except BaseException as error:  # nothing may unwind across the table
            raised.append(error)

    call(slot, *arguments, int(writable), TensorBytesFn(inside), None)
    if raised:
        raise raised[0]


def read_image(handle: int) -> np.ndarray:
    """[h, w, 4] RGBA bytes, or [h, w] bytes or halves."""
    seen: list[np.ndarray] = []

    def inside(_context, address, desc) -> None:
        desc = desc.contents
        rows = _view(address, desc.row_bytes * desc.height).reshape(desc.height, desc.row_bytes)
        if desc.format == BGRA8:
            pixels = rows[:, : desc.width * 4].reshape(desc.height, desc.width, 4)
            seen.append(pixels[..., [2, 1, 0, 3]])
        elif desc.format == GRAY8:
            seen.append(rows[:, : desc.width].copy())
        else:
            seen.append(rows[:, : desc.width * 2].copy().view(np.float16))

    call(TABLE.image_with_bytes, handle, 0, ImageBytesFn(inside), None)
    return seen[0]


def read(handle: int) -> Any:
    """The value behind a handle: an array, a number, a string, a dictionary or a list; an image as a PIL image."""
    kind = TABLE.value_kind(handle)
    if kind == TENSOR:
        return read_tensor(handle)
    if kind in (INT64, DOUBLE, STRING):
        view = ScalarView(size=sizeof(ScalarView))
        call(TABLE.scalar_view, handle, byref(view))
        return view.int64 if kind == INT64 else view.float64 if kind == DOUBLE else view.string.text()
    if kind in (DICTIONARY, SEQUENCE):
        view = Entries(size=sizeof(Entries))
        call(TABLE.entries_view, handle, byref(view))
        if view.key_kind == STRING:
            keys: list[Any] = [view.string_keys[at].text() for at in range(view.n)]
        else:
            keys = view.int64_keys[: view.n]
        return dict(zip(keys, view.values[: view.n])) if kind == DICTIONARY else list(keys)
    if kind == IMAGE:
        pixels = read_image(handle)
        try:
            from PIL import Image
        except ImportError:
            return pixels
        if pixels.dtype == np.float16:
            return Image.fromarray(pixels.astype(np.float32))
        return Image.fromarray(np.ascontiguousarray(pixels))
    raise errors.UnsupportedError(f"values of kind {kind}")
