"""Records cases of coremltools' tests that passed, for `coreml-engine/tests/conformance.rs` to replay without Python.

A line of JSON holds a whole small model, the calls that a test made of it (on one state, if the model has states) and the
outputs that the test found right; and its strata, which say what the case is an example of. `cargo xtask conformance record`
keeps the smallest cases of every stratum. None is kept that is large or makes random numbers.
"""

import base64
import copy
import json
import os
import re

import numpy as np

import coreml_portable.model
from coreml_portable import _values

# Bytes of a case: of its model, and of its line.
LARGEST = 64_000
LONGEST = 100_000
# The first calls of a model.
CALLS = 4
# So many tests run for each of `stratum`.
EACH = 6
_RANDOM = re.compile("random|categoricalDistribution")
_made = []


class State(coreml_portable.model.State):
    """Remembers what a test writes before a call, and what it reads after it."""

    def __init__(self, model, handle):
        super().__init__(model, handle)
        self.written = {}
        self.read = {}

    def __getitem__(self, name):
        value = super().__getitem__(name)
        self.read[name] = value.copy()
        return value

    def __setitem__(self, name, value):
        super().__setitem__(name, value)
        self.written[name] = super().__getitem__(name)


class Model(coreml_portable.model.Model):
    """Remembers its first calls (on one state, if it has states), if it is an example of what no earlier model of the test is."""

    def __init__(self, path, *, function=None, **options):
        super().__init__(path, function=function, **options)
        self.folder = os.path.join(path, "Data", "com.apple.CoreML")
        self.function = function
        self.calls = None
        self.state = None

    def predict(self, inputs, state=None, **options):
        outputs = super().predict(inputs, state, **options)
        if self.calls is None:
            self.calls, self.state = [], state
            if any(map(_tells, outputs.values())):
                self._remember()
        if self in _made and state is self.state and len(self.calls) < CALLS:
            inputs = {name: self._read_back(name, value) for name, value in inputs.items()}
            # A test may change what it is given.
            call = {"inputs": inputs, "outputs": copy.deepcopy(outputs)}
            if state is not None:
                call["written"], state.written = state.written, {}
                # What the test reads until the next call.
                call["read"] = state.read = {}
            self.calls.append(call)
        return outputs

    def _remember(self):
        from coremltools.proto import Model_pb2

        read = _read(self.folder)
        if read is None:
            return
        self.specification, self.files = read
        model = Model_pb2.Model()
        model.ParseFromString(self.specification)
        self.strata = set(strata(model))
        random = any(map(_RANDOM.match, self.strata))
        if not random and not self.strata <= {one for made in _made for one in made.strata}:
            _made.append(self)

    def _read_back(self, name, value):
        """The input as the engine was given it."""
        made = self._value(name, value)
        kind = _values.TABLE.value_kind(made.handle)
        return _values.read_image(made.handle) if kind == _values.IMAGE else _values.read(made.handle)


def install(binding):
    """Has the product's proxy make models that remember."""
    binding.Model = Model
    coreml_portable.model.State = State


def forget():
    """Forgets the models of a test."""
    _made.clear()


def _read(folder):
    """The specification of a small model, and its other files by their paths beside it; None if it is large."""
    contents = {}
    for here, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(here, name)
            with open(path, "rb") as file:
                contents[os.path.relpath(path, folder).replace(os.sep, "/")] = file.read()
    specification = next((name for name in contents if name.endswith(".mlmodel")), None)
    if specification is None or sum(map(len, contents.values())) > LARGEST:
        return None
    return contents.pop(specification), contents


def _text(data):
    return base64.b64encode(data).decode()


def _keys(keys):
    return {"strings" if any(isinstance(key, str) for key in keys) else "integers": keys}


def _number(value):
    """JSON has no numbers that are not finite: those are text."""
    return float(value) if np.isfinite(value) else str(float(value))


def _image(pixels):
    """An array as `_values.read_image` makes it, or that of a PIL image: colour is RGBA, gray is bytes or floats."""
    height, width = pixels.shape[:2]
    if pixels.ndim == 3:
        layout, pixels = "Bgra8", pixels[..., [2, 1, 0, 3]]
    elif pixels.dtype == np.uint8:
        layout = "Gray8"
    else:
        layout, pixels = "Gray16F", pixels.astype("<f2")
    data = _text(np.ascontiguousarray(pixels).tobytes())
    return {"pixels": layout, "width": width, "height": height, "data": data}


def _value(value, image=False):
    if isinstance(value, (bool, int, np.integer)):
        return {"int64": int(value)}
    if isinstance(value, (float, np.floating)):
        return {"double": _number(value)}
    if isinstance(value, str):
        return {"string": value}
    if isinstance(value, dict):
        return {"keys": _keys(list(value)), "values": [_number(number) for number in value.values()]}
    if isinstance(value, list):
        return {"sequence": _keys(value)}
    if image or hasattr(value, "mode"):
        return _image(np.asarray(value))
    if isinstance(value, np.ndarray):
        dtype = value.dtype.newbyteorder("<")
        data = np.ascontiguousarray(value).astype(dtype).tobytes()
        return {"dtype": value.dtype.name, "shape": value.shape, "data": _text(data)}
    raise TypeError(type(value).__name__)


def _tells(value):
    """Whether a wrong answer could look different."""
    if isinstance(value, np.ndarray):
        return value.size > 0 and bool(np.isfinite(value).any())
    if isinstance(value, (dict, list, str)):
        return len(value) > 0
    return True


def _test(identity):
    """The name of a test, and what `backend` is, if that is a parameter."""
    name = re.sub(r"(?s)\[.*|#\d+$", "", identity).split("::", 1)[-1]
    backend = re.search(r"backend='(\w+)', precision='(\w+)', opset_version=<?(?:AvailableTarget\.)?(\w+)", identity)
    return name, backend.groups() if backend else ()


def stratum(identity):
    """What cases of a test have in common: its name, the op where that is a parameter, and the kind of model, precision and opset."""
    mode = re.search(r"[-\[](?:mode|op_name)='?(\w+)", identity)
    return identity.split("::")[0], *_test(identity), mode and mode[1]


def _feature(feature):
    """`array float32`, `image RGB`, `dictionary string`, `sequence int64`, `int64`, …"""
    kind = feature.type.WhichOneof("Type").removesuffix("Type")
    inside = getattr(feature.type, kind + "Type")
    if kind == "state":
        kind, inside = "multiArray", inside.arrayType
    if kind == "multiArray":
        return "array " + inside.ArrayDataType.Name(inside.dataType).lower()
    if kind == "image":
        return "image " + inside.ColorSpace.Name(inside.colorSpace).lower()
    if kind == "dictionary":
        return "dictionary " + inside.WhichOneof("KeyType").removesuffix("KeyType")
    if kind == "sequence":
        return "sequence " + inside.WhichOneof("Type").removesuffix("Type")
    return kind


def _ops(block, opset):
    """Each op with the type of what it makes first, and the opset."""
    for op in block.operations:
        if op.type != "const":
            yield " ".join([op.type, *map(_made_type, op.outputs[:1]), opset])
        for inside in op.blocks:
            yield from _ops(inside, opset)


def _made_type(output):
    from coremltools.proto import MIL_pb2

    kind = output.type.WhichOneof("type")
    return MIL_pb2.DataType.Name(output.type.tensorType.dataType).lower() if kind == "tensorType" else kind


def _messages(message):
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            yield from value if field.is_repeated else [value]


def _weights(message):
    """How the first weights of a layer are kept, if it has any."""
    for inside in _messages(message):
        name = inside.DESCRIPTOR.name
        if name == "WeightParams":
            kinds = ("quantization", "float16Value", "int8RawValue", "rawValue")
            return next((kind for kind in kinds if kind in {field.name for field, _ in inside.ListFields()}), "float32")
        if name != "NeuralNetwork" and (found := _weights(inside)):
            return found
    return None


def _layers(network, version):
    """Each layer with the first of its modes, how its weights are kept, and the version of the format."""
    for layer in network.layers:
        name = layer.WhichOneof("layer")
        parameters = getattr(layer, name)
        oneofs = [parameters.WhichOneof(one.name) for one in parameters.DESCRIPTOR.oneofs]
        modes = [
            field.enum_type.values_by_number[value].name
            for field, value in parameters.ListFields()
            if field.enum_type and not field.is_repeated
        ]
        what = [*oneofs[:1], *modes[:1], _weights(parameters)]
        yield " ".join([name, *filter(None, what), version])
        for inside in _messages(parameters):
            if inside.DESCRIPTOR.name == "NeuralNetwork":
                yield from _layers(inside, version)


def strata(model):
    """What a model is an example of: each op or layer, the kind with the types of its features; of a pipeline all that of its models."""
    kind = model.WhichOneof("Type")
    version = f"v{model.specificationVersion}"
    body = getattr(model, kind)
    described = model.description
    opsets = sorted({function.opset for function in body.functions.values()}) if kind == "mlProgram" else [version]
    # Of a model with several functions each describes itself.
    for of in described.functions or [described]:
        sides = {"input": of.input, "output": of.output, "state": of.state}
        for side, features in sides.items():
            for name in sorted({_feature(feature) for feature in features}):
                yield f"{kind} {side} {name} {opsets[0]}"
    if kind == "mlProgram":
        for function in body.functions.values():
            yield from _ops(function.block_specializations[function.opset], function.opset)
        return
    types = [sorted({_feature(feature) for feature in side}) for side in (described.input, described.output)]
    yield f"{kind} {', '.join(types[0])} to {', '.join(types[1])}"
    if kind.startswith("neuralNetwork"):
        yield from _layers(body, version)
    if kind.startswith("pipeline"):
        for inside in (body if kind == "pipeline" else body.pipeline).models:
            yield from strata(inside)


def _line(identity, made):
    name, backend = _test(identity)
    images = {feature["name"] for feature in made.description.get("inputs", []) if feature["kind"] == "image"}
    calls = [
        {
            part: {name: _value(value, part == "inputs" and name in images) for name, value in values.items()}
            for part, values in call.items()
            if values
        }
        for call in made.calls
    ]
    line = {
        "id": identity,
        "strata": [*sorted(made.strata), " ".join([name, *backend])],
        "calls": calls,
        "spec": _text(made.specification),
    }
    if made.files:
        line["files"] = {path: _text(content) for path, content in made.files.items()}
    if made.function:
        line["function"] = made.function
    if made.state is not None:
        line["state"] = True
    return json.dumps(line, allow_nan=False)


def keep(folder, identity):
    """Appends the models of a test that passed, each a case; those after the first are numbered."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, os.environ.get("PYTEST_XDIST_WORKER", "main") + ".jsonl"), "a") as file:
        for nth, made in enumerate(_made, 1):
            line = _line(identity if nth == 1 else f"{identity}#{nth}", made)
            if len(line) <= LONGEST:
                file.write(line + "\n")
