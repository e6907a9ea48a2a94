"""Core ML models on any system: the portable engine for Python.

    >>> import coreml_portable
    >>> coreml_portable.backend_info()["name"]
    'portable'

:func:`install` makes coremltools predict with it.
"""

from .coremltools import install
from .errors import (
    BusyError,
    CancelledError,
    CoreMLError,
    CorruptModelError,
    FrameworkError,
    InvalidArgumentError,
    NotFoundError,
    OutOfMemoryError,
    TypeMismatchError,
    UnsupportedError,
)
from .model import (
    Model,
    State,
    backend_info,
    compile_model,
    compute_plan,
    function_names,
    live_objects,
    model_structure,
)

__all__ = [
    "BusyError",
    "CancelledError",
    "CoreMLError",
    "CorruptModelError",
    "FrameworkError",
    "InvalidArgumentError",
    "Model",
    "NotFoundError",
    "OutOfMemoryError",
    "State",
    "TypeMismatchError",
    "UnsupportedError",
    "backend_info",
    "compile_model",
    "compute_plan",
    "function_names",
    "install",
    "live_objects",
    "model_structure",
]
