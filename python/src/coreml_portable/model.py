"""Models and their states."""

from __future__ import annotations

import ctypes
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from ctypes import byref, c_void_p, sizeof
from typing import Any, TypeVar

import numpy as np

from . import _values
from ._table import LIBRARY, TABLE, Config, PredictOptions, ResultView, Str
from ._values import Value, call

_KEYS = {"int64": _values.INT64, "string": _values.STRING}
_UNITS = {"CPU_ONLY": 0, "CPU_AND_GPU": 1, "ALL": 2, "CPU_AND_NE": 3}
_RESHAPES = {"Frequent": 0, "Infrequent": 1}
_SPECIALIZATIONS = {"Default": 0, "FastPrediction": 1}
_LOW_PRECISION = {"False": 0, "True": 1}


def live_objects() -> int:
    """How many objects of the library are alive in this process; 0 after everything was closed."""
    return LIBRARY.cml_portable_live_objects()


def _json(blob: c_void_p) -> Any:
    try:
        return json.loads(TABLE.blob_bytes(blob).text())
    finally:
        TABLE.blob_free(blob)


def backend_info() -> dict[str, Any]:
    """Name, version, element types, features and devices of the engine."""
    blob = c_void_p()
    call(TABLE.backend_info, TABLE.self_, byref(blob))
    return _json(blob)


def compile_model(source: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None) -> str:
    """Compiles a ``.mlmodel`` or ``.mlpackage`` and returns the path of the ``.mlmodelc`` inside `folder`.

    With no folder the result is in a temporary one, which is the caller's to delete.

    Raises:
        CoreMLError: in one of its subclasses, if the model does not load.
    """
    blob = c_void_p()
    into = Str.of(os.fsencode(folder) if folder is not None else None)
    call(TABLE.model_compile, TABLE.self_, Str.of(os.fsencode(source)), into, byref(blob))
    try:
        return TABLE.blob_bytes(blob).text()
    finally:
        TABLE.blob_free(blob)


def _number(numbers: Mapping[str, int], name: str, what: str) -> int:
    """The table's number for one of the names that an option takes."""
    if name not in numbers:
        raise ValueError(f"{what} is one of {', '.join(numbers)}, not {name!r}")
    return numbers[name]


def _config(
    function: str | None,
    compute_units: str,
    *,
    threads: int = 0,
    reshape_frequency: str = "Frequent",
    specialization: str = "Default",
    low_precision_accumulation: bool = False,
) -> Config:
    name = Str.of(function or None)
    config = Config(
        size=sizeof(Config),
        compute_units=_number(_UNITS, compute_units, "compute_units"),
        flags=_number(_LOW_PRECISION, str(low_precision_accumulation), "low_precision_accumulation"),
        threads=threads,
        function_name=name,
        reshape_frequency=_number(_RESHAPES, reshape_frequency, "reshape_frequency"),
        specialization=_number(_SPECIALIZATIONS, specialization, "specialization"),
    )
    config.keep = name
    return config


def _about(slot: Callable[..., int], path: str | os.PathLike[str], *arguments: Any) -> Any:
    """What a slot answers about the model at a path."""
    blob = c_void_p()
    call(slot, TABLE.self_, Str.of(os.fsencode(path)), *arguments, byref(blob))
    return _json(blob)


def function_names(path: str | os.PathLike[str]) -> list[str]:
    """The names of the functions of a model, which need not be one that the engine can run.

    Raises:
        CoreMLError: in one of its subclasses, if the model cannot be read.
    """
    return _about(TABLE.function_names, path)


def model_structure(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What is inside a model: functions and ops, or layers, in the form that ``docs/abi.md`` calls the structure.

    The model need not be one that the engine can run.

    Raises:
        CoreMLError: in one of its subclasses, if the model cannot be read.
    """
    return _about(TABLE.model_structure, path)


def compute_plan(
    path: str | os.PathLike[str], *, function: str | None = None, compute_units: str = "ALL"
) -> dict[str, Any]:
    """The structure, in which each op of the chosen function has its ``devices``, and its ``weight`` where that is known.

    The weight is the op's share of the multiply-adds that the declared shapes imply.

    Args:
        path: the file or folder.
        function: the function to plan, for models with several; the default one if None.
        compute_units: as :class:`Model` takes it.

    Raises:
        CoreMLError: in one of its subclasses, if the engine cannot run the model.
    """
    return _about(TABLE.compute_plan, path, byref(_config(function, compute_units)))


_H = TypeVar("_H", bound="_Handle")


class _Handle:
    """An object of the library: used by one thread at a time, released once, at the latest with the Python object."""

    def __init__(self, handle: int | None, release: Callable[[int], None]) -> None:
        self._handle = handle
        self._release = release
        self._lock = threading.Lock()

    def _live(self, what: str) -> int:
        """The handle, for a call under the lock."""
        if self._handle is None:
            raise ValueError(f"the {what} is closed")
        return self._handle

    def close(self) -> None:
        """Releases it. Closing twice is allowed."""
        with self._lock:
            handle, self._handle = self._handle, None
            if handle is not None:
                self._release(handle)

    def __enter__(self: _H) -> _H:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()


class State(_Handle):
    """The memory of a stateful model, which :meth:`Model.new_state` makes; a mapping from name to array.

    Reading copies out, writing copies in::

        state["cache"] = numpy.zeros_like(state["cache"])
    """

    def __init__(self, model: "Model", handle: int) -> None:
        super().__init__(handle, TABLE.state_release)
        self._model = model

    def _visit(self, name: str, writable: bool, visit) -> None:
        with self._lock:
            handle = self._live("state")
            _values.visit_tensor(TABLE.state_with_bytes, handle, Str.of(name), writable=writable, visit=visit)

    def __getitem__(self, name: str) -> np.ndarray:
        seen: list[np.ndarray] = []
        self._visit(name, False, lambda array: seen.append(array.copy()))
        return seen[0]

    def __setitem__(self, name: str, value: Any) -> None:
        value = np.asarray(value)

        def write(array: np.ndarray) -> None:
            if array.shape != value.shape:
                raise ValueError(f"the state {name} has the shape {array.shape}, not {value.shape}")
            array[...] = value

        self._visit(name, True, write)


class Model(_Handle):
    """A loaded Core ML model (``.mlmodel``, ``.mlpackage``)::

        with Model("digits.mlmodel") as model:
            outputs = model.predict({"image": numpy.zeros((1, 1, 8, 8), "float32")})

    Any thread may call a model; the calls run one after the other. States of a closed model live on, of no more use.

    Args:
        path: the file or folder.
        function: the function to run, for models with several; the default one if None.
        threads: CPU threads inside one prediction; 0 leaves the choice to the engine.
        compute_units: ``"CPU_ONLY"``, ``"CPU_AND_GPU"``, ``"CPU_AND_NE"`` or ``"ALL"``; this engine has the CPU only.
        reshape_frequency: ``"Frequent"`` if new shapes should be quick, ``"Infrequent"`` if shapes seen before should be.
        specialization: ``"Default"``, or ``"FastPrediction"`` even if loading takes longer.
        low_precision_accumulation: lets a GPU sum in float16.

    The last three are hints, which this engine need not act on: it packs weights when it loads, plans shapes when they
    change, and sums in float32 whatever they say.

    Raises:
        CoreMLError: in one of its subclasses, if the model cannot be loaded.
        ValueError: if an option has a value that it cannot have.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        function: str | None = None,
        threads: int = 0,
        compute_units: str = "ALL",
        reshape_frequency: str = "Frequent",
        specialization: str = "Default",
        low_precision_accumulation: bool = False,
    ) -> None:
        super().__init__(None, TABLE.model_release)
        self.timings: dict[str, int] = {}
        config = _config(
            function,
            compute_units,
            threads=threads,
            reshape_frequency=reshape_frequency,
            specialization=specialization,
            low_precision_accumulation=low_precision_accumulation,
        )
        out = c_void_p()
        call(TABLE.model_load, TABLE.self_, Str.of(os.fsencode(path)), byref(config), byref(out))
        self._handle = out.value
        blob = c_void_p()
        call(TABLE.model_describe, self._handle, byref(blob))
        #: What ``docs/abi.md`` calls the description: inputs, outputs, states, functions, labels, metadata.
        self.description: dict[str, Any] = _json(blob)
        self._inputs = {feature["name"]: feature for feature in self.description.get("inputs", [])}

    def _value(self, name: str, value: Any) -> Value:
        """Puts a value into the form that the model's input has."""
        feature = self._inputs.get(name)
        kind = feature["kind"] if feature else None
        if kind == "tensor" and not isinstance(value, (str, bytes, Mapping)) and not hasattr(value, "mode"):
            return _values.tensor(_cast(np.asarray(value), np.dtype(feature["tensor"]["dtype"]), name))
        if kind == "image":
            return _values.image(value)
        if kind == "dictionary" and isinstance(value, Mapping):
            return _values.dictionary(value, _KEYS[feature["dictionary"]["key"]])
        if kind == "sequence" and not isinstance(value, (str, bytes, Mapping)):
            return _values.sequence(list(value), _KEYS[feature["sequence"]["element"]])
        if kind in ("int64", "double") and isinstance(value, np.ndarray) and value.size == 1:
            value = value.item()
        if kind == "double" and isinstance(value, (int, np.integer)):
            value = float(value)
        if kind != "tensor" and isinstance(value, (bool, int, float, str, np.integer, np.floating)):
            return _values.scalar(value)
        if isinstance(value, np.ndarray):
            return _values.tensor(value)
        raise TypeError(f"the input {name} ({kind or 'unknown'}) cannot be a {type(value).__name__}")

    def predict(
        self,
        inputs: Mapping[str, Any],
        state: State | None = None,
        *,
        outputs: Iterable[str] | None = None,
    ) -> dict[str, Any]:
        """Runs one prediction and returns the outputs by name.

        Tensors are NumPy arrays, images PIL images. Arrays of another floating type, and integers that fit, are
        converted to what the model declares.

        Args:
            inputs: a value for each input; an optional one may be left out.
            state: the memory of a stateful model, which the prediction reads and writes.
            outputs: the names to return; all if None.

        Raises:
            CoreMLError: in one of its subclasses, as the engine reports it.
            TypeError: if a value cannot be what the input is.
        """
        values = {name: self._value(name, value) for name, value in inputs.items()}
        texts = [Str.of(name) for name in values]
        names = (Str * max(len(texts), 1))(*texts)
        handles = (c_void_p * max(len(values), 1))(*(value.handle for value in values.values()))
        options = None
        if outputs is not None:
            wanted_texts = [Str.of(name) for name in outputs]
            wanted = (Str * max(len(wanted_texts), 1))(*wanted_texts)
            options = PredictOptions(size=sizeof(PredictOptions), wanted=wanted, n_wanted=len(wanted_texts))
        result = c_void_p()
        if state is not None and state._model is not self:
            raise ValueError("the state belongs to another model")
        with self._lock:
            handle = self._live("model")
            arguments = (names, handles, len(values), byref(options) if options else None, byref(result))
            if state is None:
                call(TABLE.model_predict, handle, None, *arguments)
            else:
                with state._lock:
                    call(TABLE.model_predict, handle, state._live("state"), *arguments)
        try:
            view = ResultView(size=sizeof(ResultView))
            TABLE.result_view(result, byref(view))
            self.timings = {part: getattr(view, part) for part in ("prepare_ns", "run_ns", "collect_ns")}
            found = view.outputs[: view.n_outputs] if view.n_outputs else []
            return {output.name.text(): _values.read(output.value) for output in found}
        finally:
            TABLE.result_free(result)

    def new_state(self) -> State:
        """A state with the model's initial values."""
        out = c_void_p()
        with self._lock:
            call(TABLE.state_new, self._live("model"), byref(out))
        return State(self, out.value)

    def __repr__(self) -> str:
        return f"<Model {list(self._inputs)} -> {[f['name'] for f in self.description.get('outputs', [])]}>"


def _cast(array: np.ndarray, wanted: np.dtype, name: str) -> np.ndarray:
    """Floats become floats, integers become anything that holds them; nothing else is converted silently."""
    if array.dtype == wanted:
        return array
    have, want = array.dtype.kind, wanted.kind
    if have in "iub" and want == "i":
        limits = np.iinfo(wanted)
        if array.size and not (limits.min <= int(array.min()) and int(array.max()) <= limits.max):
            raise OverflowError(f"the input {name} holds numbers that {wanted} cannot")
        return array.astype(wanted)
    if have in "iubf" and want == "f":
        return array.astype(wanted)
    raise TypeError(f"the input {name} takes {wanted}, not {array.dtype}")
