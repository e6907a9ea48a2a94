"""A pytest plug-in that runs coremltools' own tests against the portable engine: `pytest -p plugin`.

It must be imported before coremltools. Environment:

    CONFORMANCE_ENGINE   `portable` (the default), or a planted wrong engine: `skewed` (outputs x 1.1 + 0.05, and more of it
                         with each further model that a test loads, for many compare two models), `zeros`
    CONFORMANCE_SAMPLE   `k/n` keeps the tests whose stable hash modulo n is below k
    CONFORMANCE_STRICT   `0` leaves coremltools' tolerance for float16 (atol 0.5, rtol 0.05), which proves little
    CONFORMANCE_LOG      where a line of JSON per test goes: id, outcome, seconds, loads, predictions, refusals
    CONFORMANCE_CORPUS   a folder to which the cases that pass are recorded
"""

import json
import os
import platform
import random
import re
import shutil
import sys
import tempfile
import zlib

import numpy as np
import pytest

import coreml_portable
import coreml_portable.coremltools as binding
import record

ENGINE = os.environ.get("CONFORMANCE_ENGINE", "portable")
CORPUS = os.environ.get("CONFORMANCE_CORPUS")
SEEN = {"loads": 0, "predictions": 0, "errors": []}


def _skewed(value, nth):
    factor, offset = 1 + 0.1 * nth, 0.05 * nth
    if isinstance(value, np.ndarray):
        return (value * factor + offset).astype(value.dtype) if value.dtype.kind == "f" else value + nth
    if isinstance(value, (int, float)):
        return value * factor + offset
    if isinstance(value, dict):
        return {key: number * factor + offset for key, number in value.items()}
    if hasattr(value, "point"):
        return value.point(lambda level: level * factor + 100 * offset)
    return value


def _zeros(value, _):
    if isinstance(value, np.ndarray):
        return np.zeros_like(value)
    if isinstance(value, (int, float)):
        return type(value)(0)
    if isinstance(value, dict):
        return {key: 0.0 for key in value}
    if hasattr(value, "point"):
        return value.point(lambda level: 0)
    return value


_PLANTED = {"portable": None, "skewed": _skewed, "zeros": _zeros}[ENGINE]


class _Counted(binding._MLModelProxy):
    """The product's proxy, counted."""

    def __init__(self, path, compute_units, function_name="", optimization_hints=None, asset=None):
        SEEN["loads"] += 1
        self.nth = SEEN["loads"]
        try:
            super().__init__(path, compute_units, function_name, optimization_hints, asset)
        except RuntimeError as error:
            SEEN["errors"].append(str(error)[:400])
            raise

    def predict(self, data, state=None):
        SEEN["predictions"] += 1
        try:
            outputs = super().predict(data, state)
        except Exception as error:
            SEEN["errors"].append(str(error)[:400])
            raise
        return outputs if _PLANTED is None else {name: _PLANTED(value, self.nth) for name, value in outputs.items()}


_Counted.__name__ = "_MLModelProxy"
binding._MLModelProxy = _Counted
binding._NAMES["_MLModelProxy"] = _Counted
if CORPUS:
    record.install(binding)
coreml_portable.install()
# Some tests are for one architecture.
platform.machine = lambda: "arm64"


def _old_libsvm():
    """libsvm asks SciPy for names of NumPy that SciPy no longer passes on."""
    try:
        import scipy
    except ImportError:
        return
    for name in dir(np):
        if not name.startswith("_") and name not in vars(scipy):
            setattr(scipy, name, getattr(np, name))


_old_libsvm()


def _houses():
    """In place of the table of houses in Boston that the tests would download: as many rows, of the same kinds of columns.

    The tests train on it and compare what the trained model says in two ways, so that any numbers do that can be learned from.
    """
    random = np.random.RandomState(0)
    rows = 506
    data = np.round(random.gamma(2.0, 5.0, (rows, 13)), 2)
    data[:, 3] = random.rand(rows) < 0.07  # CHAS, yes or no
    data[:, 8] = random.choice([1, 2, 3, 4, 5, 6, 7, 8, 24], rows)  # RAD, one of nine
    target = 22 + 0.3 * data[:, 5] - 0.4 * data[:, 12] + 2 * data[:, 3] + random.normal(0, 2, rows)
    names = ["CRIM", "ZN", "INDUS", "CHAS", "NOX", "RM", "AGE", "DIS", "RAD", "TAX", "PTRATIO", "B", "LSTAT"]
    return {"data": data, "target": np.round(np.clip(target, 5, 50), 1), "feature_names": np.array(names)}


def _without_downloads():
    try:
        import coremltools.test.utils as utils
    except ImportError:
        return
    utils.load_boston = _houses


_without_downloads()


def _identity(item):
    return item.nodeid.split("site-packages/")[-1]


def _hash(item):
    return zlib.crc32(_identity(item).encode())


@pytest.hookimpl(tryfirst=True)
def pytest_make_parametrize_id(val, argname):
    """A test that is named after an object, with its address, would have another name in each worker."""
    name = f"{argname}={val}"
    stable = re.sub(r" at 0x[0-9a-f]+", "", name)
    return stable if stable != name else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    sample = os.environ.get("CONFORMANCE_SAMPLE")
    kept = items[:]
    if sample:
        least, modulus = (int(number) for number in sample.split("/"))
        kept = [item for item in items if _hash(item) % modulus < least]
    if CORPUS:
        # A corpus wants every test of the sample a few times for each kind of model and opset, rather than one test often.
        first = {}
        for item in sorted(kept, key=_hash):
            first.setdefault(record.stratum(_identity(item)), []).append(item)
        chosen = {id(item) for items in first.values() for item in items[: record.EACH]}
        kept = [item for item in kept if id(item) in chosen]
    chosen = {id(item) for item in kept}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in chosen])
    items[:] = kept


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    seed = zlib.crc32(_identity(item).encode())
    random.seed(seed)
    np.random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)
    SEEN.update(loads=0, predictions=0, errors=[])
    record.forget()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.when == "setup" and report.outcome == "passed" or report.when == "teardown":
        return
    log = os.environ.get("CONFORMANCE_LOG")
    if log:
        line = {
            "id": _identity(item),
            "outcome": "xfail" if hasattr(report, "wasxfail") else report.outcome,
            "seconds": round(report.duration, 4),
            "why": str(call.excinfo.value)[:600] if report.outcome != "passed" and call.excinfo else "",
            **SEEN,
        }
        with open(log + os.environ.get("PYTEST_XDIST_WORKER", ""), "a") as file:
            file.write(json.dumps(line) + "\n")
    if CORPUS and report.when == "call" and report.outcome == "passed":
        record.keep(CORPUS, _identity(item))
    record.forget()


_LOOSE = ("compare_backend", "convert_and_compare")


def pytest_sessionstart(session):
    """Judges float16 by 2e-2. `compare_backend` judges a second time with `isclose`, so that is tightened too."""
    if os.environ.get("CONFORMANCE_STRICT") == "0":
        return
    allclose, isclose = np.testing.assert_allclose, np.isclose

    def strict_allclose(actual, desired, rtol=1e-7, atol=0, *rest, **named):
        if sys._getframe(1).f_code.co_name in _LOOSE and atol >= 0.5:
            rtol = atol = 2e-2
        return allclose(actual, desired, rtol, atol, *rest, **named)

    def strict_isclose(a, b, rtol=1e-5, atol=1e-8, *rest, **named):
        if sys._getframe(1).f_code.co_name in _LOOSE and atol >= 0.5:
            rtol = atol = 2e-2
        return isclose(a, b, rtol, atol, *rest, **named)

    np.testing.assert_allclose = strict_allclose
    np.isclose = strict_isclose
