"""The C table of `coreml_bridge.h`, mirrored with `ctypes`, and the library that fills it."""

from __future__ import annotations

import ctypes
import os
import sys
from ctypes import POINTER, Structure, c_char_p, c_double, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path

ABI_VERSION = 1


class Str(Structure):
    _fields_ = [("ptr", c_void_p), ("len", c_size_t)]

    @classmethod
    def of(cls, text: str | bytes | None) -> "Str":
        """Borrows `text`; the result keeps it alive."""
        if text is None:
            return cls(None, 0)
        data = text.encode() if isinstance(text, str) else text
        made = cls(ctypes.cast(c_char_p(data), c_void_p), len(data))
        made.keep = data
        return made

    def text(self) -> str:
        return ctypes.string_at(self.ptr, self.len).decode() if self.ptr else ""


class Config(Structure):
    _fields_ = [
        ("size", c_uint32),
        ("compute_units", c_int32),
        ("flags", c_uint32),
        ("threads", c_uint32),
        ("function_name", Str),
        ("display_name", Str),
        ("reshape_frequency", c_int32),
        ("specialization", c_int32),
        ("preferred_device", c_uint64),
    ]


class TensorDesc(Structure):
    _fields_ = [
        ("size", c_uint32),
        ("dtype", c_int32),
        ("rank", c_uint32),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_len", c_uint64),
    ]


class ErrorView(Structure):
    _fields_ = [
        ("size", c_uint32),
        ("depth_left", c_uint32),
        ("status", c_int32),
        ("code", c_int64),
        ("domain", Str),
        ("message", Str),
        ("reason", Str),
    ]


class PredictOptions(Structure):
    _fields_ = [
        ("size", c_uint32),
        ("reserved", c_uint32),
        ("wanted", POINTER(Str)),
        ("n_wanted", c_size_t),
        ("backing_names", POINTER(Str)),
        ("backings", POINTER(c_void_p)),
        ("n_backings", c_size_t),
    ]


class Output(Structure):
    _fields_ = [("name", Str), ("value", c_void_p), ("backing_used", c_uint32), ("reserved", c_uint32)]


class ResultView(Structure):
    _fields_ = [
        ("size", c_uint32),
        ("reserved", c_uint32),
        ("prepare_ns", c_uint64),
        ("run_ns", c_uint64),
        ("collect_ns", c_uint64),
        ("n_outputs", c_size_t),
        ("outputs", POINTER(Output)),
    ]


class ScalarView(Structure):
    _fields_ = [("size", c_uint32), ("kind", c_int32), ("int64", c_int64), ("float64", c_double), ("string", Str)]


class Entries(Structure):
    _fields_ = [
        ("size", c_uint32),
        ("key_kind", c_int32),
        ("n", c_size_t),
        ("int64_keys", POINTER(c_int64)),
        ("string_keys", POINTER(Str)),
        ("values", POINTER(c_double)),
    ]


class ImageDesc(Structure):
    _fields_ = [
        ("size", c_uint32),
        ("format", c_uint32),
        ("width", c_uint32),
        ("height", c_uint32),
        ("row_bytes", c_size_t),
    ]


TensorBytesFn = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, POINTER(TensorDesc))
ImageBytesFn = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, POINTER(ImageDesc))
ReleaseFn = ctypes.CFUNCTYPE(None, c_void_p)

_HANDLE_OUT = POINTER(c_void_p)
_ERROR_OUT = POINTER(c_void_p)


def _status(*arguments):
    """A slot that answers a status and takes the error out-pointer last."""
    return ctypes.CFUNCTYPE(c_int32, *arguments, _ERROR_OUT)


def _void(*arguments):
    return ctypes.CFUNCTYPE(None, *arguments)


class Bridge(Structure):
    _fields_ = [
        ("abi_version", c_uint32),
        ("struct_size", c_uint32),
        ("self_", c_void_p),
        ("backend_info", _status(c_void_p, _HANDLE_OUT)),
        ("error_view", _void(c_void_p, c_uint32, POINTER(ErrorView))),
        ("error_free", _void(c_void_p)),
        ("blob_bytes", ctypes.CFUNCTYPE(Str, c_void_p)),
        ("blob_free", _void(c_void_p)),
        ("model_compile", _status(c_void_p, Str, Str, _HANDLE_OUT)),
        ("model_load", _status(c_void_p, Str, POINTER(Config), _HANDLE_OUT)),
        ("model_describe", _status(c_void_p, _HANDLE_OUT)),
        (
            "model_predict",
            _status(
                c_void_p, c_void_p, POINTER(Str), POINTER(c_void_p), c_size_t, POINTER(PredictOptions), _HANDLE_OUT
            ),
        ),
        ("model_release", _void(c_void_p)),
        ("result_view", _void(c_void_p, POINTER(ResultView))),
        ("result_free", _void(c_void_p)),
        ("value_kind", ctypes.CFUNCTYPE(c_int32, c_void_p)),
        ("value_retain", _void(c_void_p)),
        ("value_release", _void(c_void_p)),
        ("tensor_new", _status(c_void_p, POINTER(TensorDesc), _HANDLE_OUT)),
        ("tensor_copy", _status(c_void_p, POINTER(TensorDesc), c_void_p, c_size_t, _HANDLE_OUT)),
        (
            "tensor_wrap",
            _status(c_void_p, POINTER(TensorDesc), c_void_p, c_size_t, ReleaseFn, c_void_p, _HANDLE_OUT),
        ),
        ("tensor_desc", _status(c_void_p, POINTER(TensorDesc))),
        ("tensor_with_bytes", _status(c_void_p, c_int32, TensorBytesFn, c_void_p)),
        ("tensor_read", _status(c_void_p, c_int32, c_void_p, c_size_t)),
        ("scalar_new", _status(c_void_p, POINTER(ScalarView), _HANDLE_OUT)),
        ("scalar_view", _status(c_void_p, POINTER(ScalarView))),
        ("dictionary_new", _status(c_void_p, POINTER(Entries), _HANDLE_OUT)),
        ("sequence_new", _status(c_void_p, POINTER(Entries), _HANDLE_OUT)),
        ("entries_view", _status(c_void_p, POINTER(Entries))),
        ("image_new", _status(c_void_p, POINTER(ImageDesc), c_void_p, c_size_t, _HANDLE_OUT)),
        ("image_with_bytes", _status(c_void_p, c_int32, ImageBytesFn, c_void_p)),
        ("state_new", _status(c_void_p, _HANDLE_OUT)),
        ("state_with_bytes", _status(c_void_p, Str, c_int32, TensorBytesFn, c_void_p)),
        ("state_release", _void(c_void_p)),
        ("function_names", _status(c_void_p, Str, _HANDLE_OUT)),
        # Nothing here calls these.
        ("model_predict_batch", c_void_p),
        ("model_predict_async", c_void_p),
        ("model_load_async", c_void_p),
        ("request_cancel", c_void_p),
        ("request_release", c_void_p),
        ("model_structure", _status(c_void_p, Str, _HANDLE_OUT)),
        ("compute_plan", _status(c_void_p, Str, POINTER(Config), _HANDLE_OUT)),
    ]


# What the header's structs measure where a pointer has 8 bytes.
for _struct, _size in [
    (Str, 16),
    (Config, 64),
    (TensorDesc, 40),
    (ErrorView, 72),
    (PredictOptions, 48),
    (Output, 32),
    (ResultView, 48),
    (ScalarView, 40),
    (Entries, 40),
    (ImageDesc, 24),
    (Bridge, 16 + 39 * 8),
]:
    if ctypes.sizeof(_struct) != _size:
        raise ImportError(f"{_struct.__name__} has {ctypes.sizeof(_struct)} bytes here, {_size} in the header")


def _library_path() -> Path:
    chosen = os.environ.get("COREML_PORTABLE_LIBRARY")
    if chosen:
        return Path(chosen)
    name = {"darwin": "libcoreml_portable_c.dylib", "win32": "coreml_portable_c.dll"}.get(
        sys.platform, "libcoreml_portable_c.so"
    )
    return Path(__file__).with_name(name)


def _load() -> tuple[ctypes.CDLL, Bridge]:
    path = _library_path()
    if not path.exists():
        raise ImportError(f"{path} is missing: install the package with pip, or set COREML_PORTABLE_LIBRARY")
    library = ctypes.CDLL(str(path))
    library.cml_bridge_portable.restype = POINTER(Bridge)
    library.cml_bridge_portable.argtypes = []
    library.cml_portable_live_objects.restype = c_size_t
    library.cml_portable_live_objects.argtypes = []
    table = library.cml_bridge_portable().contents
    if table.abi_version != ABI_VERSION or table.struct_size < ctypes.sizeof(Bridge):
        raise ImportError(
            f"{path} has ABI {table.abi_version} with {table.struct_size} bytes; "
            f"this package needs {ABI_VERSION} with {ctypes.sizeof(Bridge)}"
        )
    return library, table


LIBRARY, TABLE = _load()
