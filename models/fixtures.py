"""Records what MIL operations compute, as small programs with inputs and expected outputs, for any engine to repeat.

    python models/fixtures.py            # writes models/ops/<operation>.json
    python models/fixtures.py --check    # compares what is there with what would be written

A file has a family, an operation and a list of cases. A case has the operation set (`iOS15` ...), the parameters in
words (for people), `spec`, a whole model (a serialised `Model`, weights inline) in base64, and `inputs` and `outputs`:
lists of `{name, dtype, shape, data}`, where `data` is the little-endian bytes in base64, in row-major order, and
`dtype` is `float32` or `int32`. `source` says who computed the outputs: `coremltools` evaluated the operation itself;
`reference` is `fixtures_reference.py` or a formula beside the case. Where both can, they must agree.

Core ML's features are only float32 and int32 here; an operation on other types has a `cast` before or after it, and
Booleans travel as int32.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import packages
import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, Program, types
from numpy.typing import NDArray

import fixtures_reference
from fixtures_cases import FAMILIES, Case

Array = NDArray[Any]
ct = packages.ct

FEATURES = {np.dtype(np.float32): "fp32", np.dtype(np.int32): "int32"}
MISEVALUATED = {"concat", "scatter_along_axis"}  # coremltools 9.0 ignores `interleave` and `mode`
NAMES = {np.dtype(np.bool_): "bool", np.dtype(np.uint8): "uint8", np.dtype(np.int8): "int8", np.dtype(np.int16): "int16", np.dtype(np.uint16): "uint16"}


def flat(inputs: dict[str, Any]) -> Iterator[tuple[str, Array]]:
    """Lists of tensors taken apart: `values` becomes `values_0`, `values_1` ..."""
    for name, value in inputs.items():
        if isinstance(value, list):
            yield from ((f"{name}_{number}", item) for number, item in enumerate(value))
        else:
            yield name, value


def feature(value: Array) -> Array:
    """As it crosses Core ML's boundary."""
    return value if value.dtype in FEATURES else value.astype(np.int32)


def operate(case: Case, values: dict[str, Any]) -> list[Any]:
    """The operation on variables or on constants, inside a function that is being built."""
    out = case.build(**values) if case.build else getattr(mb, case.op)(**values, **case.parameters)
    return list(out) if isinstance(out, (list, tuple)) else [out]


def program(case: Case) -> Any:
    """A program whose inputs are the case's."""
    placeholders = {
        name: mb.placeholder(shape=value.shape, dtype=types.string_to_builtin(FEATURES[feature(value).dtype]))
        for name, value in flat(case.inputs)
    }
    with Function(placeholders, opset_version=getattr(ct.target, case.opset)) as function:
        variables = {
            name: variable if (kind := dict(flat(case.inputs))[name].dtype) in FEATURES else mb.cast(x=variable, dtype=NAMES[kind])
            for name, variable in function.inputs.items()
        }
        arguments = {
            name: [variables[f"{name}_{number}"] for number in range(len(value))] if isinstance(value, list) else variables[name]
            for name, value in case.inputs.items()
        }
        outputs = []
        for number, variable in enumerate(operate(case, arguments)):
            kind = "fp32" if types.is_float(variable.dtype) else "int32"
            same = types.builtin_to_string(variable.dtype) == kind
            name = f"output_{number}"
            outputs.append(mb.identity(x=variable, name=name) if same else mb.cast(x=variable, dtype=kind, name=name))
        function.set_outputs(outputs)
    built = Program()
    built.add_function("main", function)
    return built


def serialise(case: Case) -> Any:
    """The program as a model, with its weights inside."""
    with mock.patch("coremltools.converters.mil.backend.mil.load.should_use_weight_file", lambda *_: False):
        model = ct.convert(
            program(case),
            source="milinternal",
            convert_to="mlprogram",
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=getattr(ct.target, case.opset),
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )
    spec = model.get_spec()
    spec.description.ClearField("metadata")
    return spec


def evaluate(case: Case) -> list[Array] | None:
    """What coremltools makes of the operation on constants, if it can."""
    if case.op in MISEVALUATED:
        return None
    try:
        with Function({}, opset_version=getattr(ct.target, case.opset)):
            outputs = operate(case, case.inputs)
            values = [variable.val for variable in outputs]
    except (TypeError, ValueError, IndexError, NotImplementedError):
        return None
    return None if any(value is None for value in values) else [np.asarray(value) for value in values]


def refer(case: Case) -> list[Array] | None:
    """What the reference makes of it, if there is one."""
    function: Callable[..., Any] | None = case.expected or getattr(fixtures_reference, case.op, None)
    if function is None or (case.build and not case.expected):
        return None
    with np.errstate(all="ignore"):
        out = function(**case.inputs, **case.parameters)
    return [np.asarray(value) for value in out] if isinstance(out, tuple) else [np.asarray(out)]


def encode(name: str, value: Array) -> dict[str, Any]:
    value = np.ascontiguousarray(feature(value))
    data = base64.b64encode(value.astype(value.dtype.newbyteorder("<")).tobytes()).decode()
    return {"name": name, "dtype": str(value.dtype), "shape": list(value.shape), "data": data}


def words(value: Any) -> Any:
    """A parameter for people to read."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}" if value.size > 6 else value.tolist()
    return value.item() if isinstance(value, np.generic) else value


def record(case: Case) -> dict[str, Any]:
    """A case as it is stored."""
    theirs, ours = evaluate(case), refer(case)
    expected = theirs if theirs is not None else ours
    assert expected is not None, f"nobody knows what {case.op} gives"
    if theirs is not None and ours is not None:
        for left, right in zip(theirs, ours, strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5, err_msg=f"{case.op} {case.parameters}")

    spec = serialise(case)
    outputs = []
    for output, value in zip(spec.description.output, expected, strict=True):
        shape = tuple(output.type.multiArrayType.shape)
        kind = np.float32 if output.type.multiArrayType.dataType == ct.proto.FeatureTypes_pb2.ArrayFeatureType.FLOAT32 else np.int32
        assert not shape or shape == (value.shape or (1,)), f"{case.op} declares {shape} and gives {value.shape}"
        outputs.append(encode(output.name, value.astype(kind)))
    return {
        "opset": case.opset,
        "parameters": {name: words(value) for name, value in case.parameters.items()},
        "source": "coremltools" if theirs is not None else "reference",
        "inputs": [encode(name, value) for name, value in flat(case.inputs)],
        "outputs": outputs,
        "spec": base64.b64encode(spec.SerializeToString(deterministic=True)).decode(),
    }


def files() -> Iterator[tuple[str, str]]:
    """Name and text of every file."""
    for family in FAMILIES:
        cases: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for case in family():
            cases[case.op].append(record(case))
        for op, recorded in cases.items():
            lines = ",\n".join(json.dumps(case) for case in recorded)
            head = f'{{"op": "{op}", "family": "{family.__name__}", "cases": [\n'
            yield f"{op}.json", f"{head}{lines}\n]}}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "ops", metavar="DIR", help="default: models/ops")
    parser.add_argument("--check", action="store_true", help="compare DIR with what would be written; change nothing")
    options = parser.parse_args()

    made = dict(files())
    there = {path.name: path for path in options.out.glob("*.json")}
    if options.check:
        wrong = sorted(name for name in made.keys() | there if name not in made or name not in there or there[name].read_text() != made[name])
        print(*(f"{name}: differs" for name in wrong), sep="\n")
        return 1 if wrong else 0
    options.out.mkdir(parents=True, exist_ok=True)
    for name in there.keys() - made:
        there[name].unlink()
    for name, text in made.items():
        (options.out / name).write_text(text)
    print(f"{len(made)} operations, {sum(text.count(chr(10)) - 2 for text in made.values())} cases, {sum(map(len, made.values())) / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
