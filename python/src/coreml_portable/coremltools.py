"""Makes coremltools predict with the portable engine where Apple's framework is missing.

coremltools predicts through a native module, `coremltools.libcoremlpython`, which exists on macOS only. :func:`install`
puts a module of that name and interface in its place and tells coremltools that it may predict.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
import types
import weakref
from typing import Any

import numpy as np

from .errors import CoreMLError, FrameworkError, whole_message
from .model import Model, State, compile_model, compute_plan, model_structure

_MODULE = "coremltools.libcoremlpython"
_SPECIFICATION_VERSION = 10
# coremltools' names of what are arguments of Model.
_HINTS = {
    "allowLowPrecisionAccumulationOnGPU": "low_precision_accumulation",
    "reshapeFrequency": "reshape_frequency",
    "specializationStrategy": "specialization",
}


def _failure(error: CoreMLError, context: str = "") -> RuntimeError:
    """The native module raises RuntimeError with one message; the typed chain is its cause."""
    failure = RuntimeError(context + whole_message(error))
    failure.__cause__ = error
    return failure


def _shape_words(feature: dict[str, Any] | None, value: Any) -> str:
    """Core ML's own words for a shape that a flexible input does not take; nothing if it is not that."""
    if not feature or feature["kind"] != "tensor" or not hasattr(value, "shape"):
        return ""
    shape, flexible = list(value.shape), feature["tensor"].get("flexible") or {}
    if "enumerated" in flexible and shape not in flexible["enumerated"]:
        return f"MultiArray Shape ({' x '.join(map(str, shape))}) was not in enumerated set of allowed shapes: "
    for at, (size, (least, most)) in enumerate(zip(shape, flexible.get("ranges", []))):
        if not least <= size <= (size if most < 0 else most):
            return f"Size ({size}) of dimension ({at}) is not in allowed range ({least}..{most}): "
    return ""


def _options(hints: dict[str, str]) -> dict[str, Any]:
    """coremltools' hints, all of them text, as the arguments of :class:`Model`, which knows the values."""
    unknown = hints.keys() - _HINTS.keys()
    if unknown:
        raise ValueError(f"optimization hints are {', '.join(_HINTS)}, not {', '.join(sorted(unknown))}")
    return {_HINTS[key]: value for key, value in hints.items()}


def _input(feature: dict[str, Any] | None, value: Any) -> Any:
    """What the native module's conversion lets through; Core ML itself converts arrays to the declared type."""
    if feature and feature["kind"] == "tensor":
        if isinstance(value, (str, bytes, dict)):
            raise RuntimeError(f"the input {feature['name']} is a multi-array, not a {type(value).__name__}")
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise RuntimeError(f"Unsupported array type: {array.dtype}")
        return array.astype(feature["tensor"]["dtype"], copy=False)
    if isinstance(value, np.ndarray) and value.size == 1:
        return value.item()
    return value.decode() if isinstance(value, bytes) else value


def _output(value: Any) -> Any:
    """The native module has no float16 and hands colour out as RGBA."""
    if isinstance(value, np.ndarray) and value.dtype == np.float16:
        return value.astype(np.float32)
    return value


class _State:
    def __init__(self, state: State) -> None:
        self.state = state

    def read_state(self, name: str) -> np.ndarray:
        try:
            return _output(self.state[name])
        except CoreMLError as error:
            raise _failure(error) from error

    def write_state(self, name: str, value: Any) -> None:
        try:
            self.state[name] = value
        except CoreMLError as error:
            raise _failure(error) from error


class _MLModelAssetProxy:
    def __init__(self, path: str, owned: bool = False) -> None:
        self.path = path
        if owned:
            weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)


class _MLModelProxy:
    def __init__(
        self,
        path: str,
        compute_units: str,
        function_name: str = "",
        optimization_hints: dict[str, str] | None = None,
        asset: _MLModelAssetProxy | None = None,
    ) -> None:
        path = os.fspath(asset.path if asset is not None else path).rstrip("/")
        self._asset = asset
        options = _options(optimization_hints or {})
        begin = time.perf_counter_ns()
        try:
            if path.endswith(".mlmodelc"):
                self._compiled = path
            else:
                # coremltools may delete the source; the compiled model lasts as long as this object.
                self._compiled = compile_model(path)
                weakref.finalize(self, shutil.rmtree, os.path.dirname(self._compiled), ignore_errors=True)
            self._model = Model(self._compiled, function=function_name or None, compute_units=compute_units, **options)
        except CoreMLError as error:
            raise _failure(error) from error
        self._load_ns = time.perf_counter_ns() - begin
        self._predict_ns: int | None = None
        self._features = {feature["name"]: feature for feature in self._model.description.get("inputs", [])}

    def predict(self, data: dict[str, Any], state: _State | None = None) -> dict[str, Any]:
        begin = time.perf_counter_ns()
        inputs = {name: _input(self._features.get(name), value) for name, value in data.items()}
        try:
            outputs = self._model.predict(inputs, state.state if state is not None else None)
        except FrameworkError as error:
            # Core ML's own words for a model that fails while it runs; programs look for them.
            raise _failure(error, "Error computing NN outputs: ") from error
        except CoreMLError as error:
            words = (_shape_words(self._features.get(name), value) for name, value in inputs.items())
            raise _failure(error, next(filter(None, words), "")) from error
        self._predict_ns = time.perf_counter_ns() - begin
        return {name: _output(value) for name, value in outputs.items()}

    def batchPredict(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:  # noqa: N802, the native name
        return [self.predict(data) for data in batch]

    def newState(self) -> _State:  # noqa: N802, the native name
        try:
            return _State(self._model.new_state())
        except CoreMLError as error:
            raise _failure(error) from error

    def get_compiled_model_path(self) -> str:
        return self._compiled

    def get_load_duration_in_nano_seconds(self) -> int:
        return self._load_ns

    def get_last_predict_duration_in_nano_seconds(self) -> int | None:
        return self._predict_ns

    @staticmethod
    def maximum_supported_specification_version() -> int:
        return _SPECIFICATION_VERSION

    @staticmethod
    def auto_set_specification_version(specification: bytes) -> bytes:
        raise RuntimeError("setting the specification version needs Apple's Core ML")

    @staticmethod
    def compileModel(path: str) -> str:  # noqa: N802, the native name
        try:
            return compile_model(path.rstrip("/"))
        except CoreMLError as error:
            raise _failure(error) from error

    @staticmethod
    def create_model_asset_from_path(path: str) -> _MLModelAssetProxy:
        return _MLModelAssetProxy(path)

    @staticmethod
    def create_model_asset_from_memory(spec_data: bytes, blob_mapping: dict[Any, bytes]) -> _MLModelAssetProxy:
        folder = tempfile.mkdtemp(suffix=".mlpackage")
        data = os.path.join(folder, "Data", "com.apple.CoreML")
        os.makedirs(os.path.join(data, "weights"))
        with open(os.path.join(data, "model.mlmodel"), "wb") as file:
            file.write(spec_data)
        for name, content in (blob_mapping or {}).items():
            with open(os.path.join(data, "weights", os.path.basename(str(name))), "wb") as file:
                file.write(content)
        entries = {
            key: {"path": f"com.apple.CoreML/{name}", "name": name, "author": "com.apple.CoreML", "description": ""}
            for key, name in (("model", "model.mlmodel"), ("weights", "weights"))
        }
        manifest = {"fileFormatVersion": "1.0.0", "rootModelIdentifier": "model", "itemInfoEntries": entries}
        with open(os.path.join(folder, "Manifest.json"), "w") as file:
            json.dump(manifest, file)
        return _MLModelAssetProxy(folder, owned=True)

    @staticmethod
    def get_available_compute_devices() -> list[Any]:
        from . import _plan

        return [_plan.device("cpu")]

    @staticmethod
    def get_all_compute_devices() -> list[Any]:
        return _MLModelProxy.get_available_compute_devices()

    @staticmethod
    def get_model_structure(path: str) -> Any:
        from . import _plan

        try:
            return _plan.structure(model_structure(path))
        except CoreMLError as error:
            raise _failure(error) from error

    @staticmethod
    def get_compute_plan(path: str, compute_units: str) -> Any:
        from . import _plan

        try:
            return _plan.plan(compute_plan(path, compute_units=compute_units))
        except CoreMLError as error:
            raise _failure(error) from error


class _MLCPUComputeDeviceProxy:
    pass


class _MLGPUComputeDeviceProxy:
    pass


class _MLNeuralEngineComputeDeviceProxy:
    pass


class _MLComputePlanProxy:
    pass


class _Listed:
    """An op or a layer as the table lists it, and the answer in which it does."""

    def __init__(self, answer: dict[str, Any], listed: dict[str, Any]) -> None:
        self.answer = answer
        self.listed = listed


class _MLModelStructureProgramOperationProxy(_Listed):
    pass


class _MLModelStructureNeuralNetworkLayerProxy(_Listed):
    pass


_NAMES = {
    name: value
    for name, value in list(globals().items())
    if name == "_State" or (name.startswith("_ML") and isinstance(value, type))
}


def install(macos: tuple[int, int] = (26, 0)) -> None:
    """Lets coremltools predict with the portable engine; works before and after `import coremltools`.

    From then on `MLModel.predict`, `make_state`, batches, `CompiledMLModel`, `MLModelStructure` and `MLComputePlan` work
    unchanged::

        import coreml_portable, coremltools
        coreml_portable.install()
        coremltools.models.MLModel("digits.mlmodel").predict({"image": image})

    On a Mac, where coremltools has its own module, that one is replaced too.

    Args:
        macos: the version of macOS whose features coremltools may ask for.
    """
    installed = sys.modules.get(_MODULE)
    if getattr(installed, "_MLModelProxy", None) is _MLModelProxy:
        return
    module = types.ModuleType(_MODULE, __doc__)
    for name, value in _NAMES.items():
        setattr(module, name, value)
    sys.modules[_MODULE] = module

    import coremltools
    import coremltools._deps
    import coremltools.models.compute_plan  # noqa: F401, so that its names are replaced below

    coremltools.libcoremlpython = module

    def version() -> tuple[int, int]:
        return macos

    version.cache_clear = lambda: None
    replaced = {"_is_macos": lambda: True, "_macos_version": version, "_IS_MACOS": True, **_NAMES}
    for name, loaded in list(sys.modules.items()):
        if loaded is not None and name != _MODULE and name.split(".")[0] == "coremltools":
            for attribute, value in replaced.items():
                if attribute in vars(loaded):
                    setattr(loaded, attribute, value)
