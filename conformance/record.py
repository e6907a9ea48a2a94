"""Records cases of coremltools' tests that passed, for `coreml-engine/tests/conformance.rs` to replay without Python.

A line of JSON holds a whole small model, its inputs and the outputs that the test found right. One case of a test, kind of
model and opset is kept, and none that is large, random or has images.
"""

import base64
import json
import os
import re

import numpy as np

LARGEST = 16_000
EACH = 1
_kept = {}


def _value(value):
    if isinstance(value, (bool, int, np.integer)):
        return {"int64": int(value)}
    if isinstance(value, (float, np.floating)):
        return {"double": float(value)}
    if isinstance(value, str):
        return {"string": value}
    if isinstance(value, dict):
        keys = list(value)
        kind = "strings" if any(isinstance(key, str) for key in keys) else "integers"
        return {"keys": {kind: keys}, "values": [float(number) for number in value.values()]}
    if isinstance(value, np.ndarray):
        dtype = value.dtype.newbyteorder("<")
        data = np.ascontiguousarray(value).astype(dtype).tobytes()
        return {"dtype": value.dtype.name, "shape": value.shape, "data": base64.b64encode(data).decode()}
    raise TypeError(type(value).__name__)


def read(path):
    """The bytes of specification and weights of a small model; None if it is large or has other files."""
    folder = os.path.join(path, "Data", "com.apple.CoreML")
    try:
        specification = next(name for name in os.listdir(folder) if name.endswith(".mlmodel"))
    except (OSError, StopIteration):
        return None
    files = [os.path.join(folder, specification), os.path.join(folder, "weights", "weight.bin")]
    files = [file for file in files if os.path.exists(file)]
    if sum(os.path.getsize(file) for file in files) > LARGEST:
        return None
    contents = []
    for file in files:
        with open(file, "rb") as opened:
            contents.append(opened.read())
    return contents


def stratum(identity):
    """What cases of a test have in common: its name, the op where that is a parameter, and the kind of model, precision and opset."""
    name = re.sub(r"\[.*", "", identity)
    backend = re.search(r"backend='(\w+)', precision='(\w+)', opset_version=<?(?:AvailableTarget\.)?(\w+)", identity)
    mode = re.search(r"-(?:mode|op_name)='?(\w+)", identity)
    return (name, backend.groups() if backend else None, mode and mode[1])


def keep(folder, identity, recorded):
    """Appends the first of the predictions of a test that passed."""
    key = stratum(identity)
    if not recorded or _kept.get(key, 0) >= EACH or re.search("random|categorical|bernoulli|dropout", identity.lower()):
        return
    files, function, inputs, outputs = recorded[0]
    if files is None or function:
        return
    try:
        line = {
            "id": identity,
            "inputs": {name: _value(value) for name, value in inputs.items()},
            "outputs": {name: _value(value) for name, value in outputs.items()},
            "spec": base64.b64encode(files[0]).decode(),
        }
    except TypeError:
        return
    if len(files) > 1:
        line["weights"] = base64.b64encode(files[1]).decode()
    text = json.dumps(line)
    if len(text) > 2 * LARGEST:
        return
    _kept[key] = _kept.get(key, 0) + 1
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, os.environ.get("PYTEST_XDIST_WORKER", "main") + ".jsonl"), "a") as file:
        file.write(text + "\n")
