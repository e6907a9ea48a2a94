"""Exceptions: one class per status of the table. The chain of causes is the exception's `__cause__`."""

from __future__ import annotations

import ctypes

from ._table import TABLE, ErrorView


class CoreMLError(RuntimeError):
    """Something that the engine reports.

    Attributes:
        domain: who reports it, such as ``"coreml.portable"``.
        code: the reporter's own number.
        reason: why, if known, else ``""``.
    """

    def __init__(self, message: str, *, domain: str = "", code: int = 0, reason: str = "") -> None:
        super().__init__(f"{message}: {reason}" if reason else message)
        self.message = message
        self.domain = domain
        self.code = code
        self.reason = reason


class InvalidArgumentError(CoreMLError, ValueError):
    """The call itself is wrong."""


class NotFoundError(CoreMLError, LookupError):
    """No such file, function, feature or state."""


class UnsupportedError(CoreMLError, NotImplementedError):
    """Understood, but not possible with this engine."""


class FrameworkError(CoreMLError):
    """The engine failed while it loaded or ran a model."""


class OutOfMemoryError(CoreMLError, MemoryError):
    """There is not enough memory."""


class CancelledError(CoreMLError):
    """The prediction was cancelled."""


class BusyError(CoreMLError):
    """Two calls at once on one handle."""


class TypeMismatchError(CoreMLError, TypeError):
    """Wrong kind, element type, rank or shape of a value."""


class CorruptModelError(CoreMLError, ValueError):
    """The model file is damaged, or is not a model."""


_BY_STATUS: dict[int, type[CoreMLError]] = {
    1: InvalidArgumentError,
    2: NotFoundError,
    3: UnsupportedError,
    7: OutOfMemoryError,
    8: CancelledError,
    9: BusyError,
    10: TypeMismatchError,
    11: CorruptModelError,
}


def take(status: int, handle: int | None) -> CoreMLError:
    """The exception for a failed call; frees the error."""
    if not handle:
        return _BY_STATUS.get(status, FrameworkError)(f"status {status}")
    chain: list[CoreMLError] = []
    try:
        depth = 0
        while True:
            view = ErrorView(size=ctypes.sizeof(ErrorView))
            TABLE.error_view(handle, depth, ctypes.byref(view))
            kind = _BY_STATUS.get(view.status, FrameworkError)
            chain.append(
                kind(view.message.text(), domain=view.domain.text(), code=view.code, reason=view.reason.text())
            )
            if view.depth_left == 0:
                break
            depth += 1
    finally:
        TABLE.error_free(handle)
    for outer, inner in zip(chain, chain[1:]):
        outer.__cause__ = inner
    return chain[0]


def whole_message(error: BaseException) -> str:
    """The messages of an error and of all its causes in one line."""
    messages: list[str] = []
    at: BaseException | None = error
    while at is not None:
        text = str(at)
        if not messages or text not in messages[-1]:
            messages.append(text)
        at = at.__cause__
    return ": ".join(messages)
