"""One description of a network, two models: Core ML (through MIL) and ONNX, with the same weights.

Every method of `Twin` adds one operation to both sides at once, in the words that a conversion from PyTorch would
use on each, so the two cannot drift apart. Values are known by name; shapes are each side's own business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import packages  # before coremltools, which it quietens
import numpy as np
import onnx
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, Program, types
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference

Value = str
Array = NDArray[Any]

OPSET = 20  # has LayerNormalization (17) and an exact Gelu (20)


@dataclass(frozen=True)
class Step:
    """One operation on the Core ML side."""

    name: str
    build: Callable[[dict[str, Any]], Any]


class Twin:
    """A network under construction."""

    def __init__(self) -> None:
        self._inputs: dict[str, Array] = {}
        self._steps: list[Step] = []
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._taken: dict[str, int] = {}

    # Leaves

    def input(self, name: str, example: Array) -> Value:
        """An input of the shape and type of `example` (float32 or int32), which `write` stores for benchmarks."""
        self._inputs[name] = example
        return name

    def const(self, value: Array, name: str = "const") -> Value:
        """A weight or other constant that both sides see as a value."""
        name = self._name(name)
        self._steps.append(Step(name, lambda _: mb.const(val=value, name=name)))
        return self._initializer(value, name)

    # Operations, in the order of Core ML's groups

    def relu(self, x: Value) -> Value:
        return self._both("relu", "Relu", [x], lambda v, name: mb.relu(x=v[x], name=name))

    def relu6(self, x: Value) -> Value:
        limits = [self._initializer(np.float32(limit)) for limit in (0, 6)]
        return self._both("relu6", "Clip", [x, *limits], lambda v, name: mb.relu6(x=v[x], name=name))

    def gelu(self, x: Value) -> Value:
        """The exact one, with erf."""
        return self._both("gelu", "Gelu", [x], lambda v, name: mb.gelu(x=v[x], mode="EXACT", name=name))

    def gelu_tanh(self, x: Value) -> Value:
        """The approximation that GPT-2 was trained with."""
        return self._both(
            "gelu", "Gelu", [x], lambda v, name: mb.gelu(x=v[x], mode="TANH_APPROXIMATION", name=name), approximate="tanh"
        )

    def softmax(self, x: Value) -> Value:
        """Along the last axis."""
        return self._both("softmax", "Softmax", [x], lambda v, name: mb.softmax(x=v[x], axis=-1, name=name), axis=-1)

    def add(self, x: Value, y: Value) -> Value:
        return self._both("add", "Add", [x, y], lambda v, name: mb.add(x=v[x], y=v[y], name=name))

    def sub(self, x: Value, y: Value) -> Value:
        return self._both("sub", "Sub", [x, y], lambda v, name: mb.sub(x=v[x], y=v[y], name=name))

    def mul(self, x: Value, y: Value) -> Value:
        return self._both("mul", "Mul", [x, y], lambda v, name: mb.mul(x=v[x], y=v[y], name=name))

    def div(self, x: Value, y: Value, name: str = "div") -> Value:
        return self._both(name, "Div", [x, y], lambda v, name: mb.real_div(x=v[x], y=v[y], name=name))

    def maximum(self, x: Value, y: Value) -> Value:
        return self._both("maximum", "Max", [x, y], lambda v, name: mb.maximum(x=v[x], y=v[y], name=name))

    def to_float(self, x: Value) -> Value:
        return self._both("cast", "Cast", [x], lambda v, name: mb.cast(x=v[x], dtype="fp32", name=name), to=TensorProto.FLOAT)

    def conv(self, x: Value, weight: Array, bias: Array, *, stride: int = 1, groups: int = 1) -> Value:
        """Square kernel, padded so that stride 1 keeps the size."""
        edge = weight.shape[-1] // 2
        return self._both(
            "conv",
            "Conv",
            [x, self._initializer(weight), self._initializer(bias)],
            lambda v, name: mb.conv(
                x=v[x], weight=weight, bias=bias, strides=[stride] * 2, pad_type="custom", pad=[edge] * 4, groups=groups, name=name
            ),
            kernel_shape=weight.shape[2:],
            strides=[stride] * 2,
            pads=[edge] * 4,
            group=groups,
        )

    def max_pool(self, x: Value, *, size: int, stride: int) -> Value:
        """Square window, padded like `conv`."""
        edge = size // 2
        return self._both(
            "max_pool",
            "MaxPool",
            [x],
            lambda v, name: mb.max_pool(
                x=v[x], kernel_sizes=[size] * 2, strides=[stride] * 2, pad_type="custom", pad=[edge] * 4, name=name
            ),
            kernel_shape=[size] * 2,
            strides=[stride] * 2,
            pads=[edge] * 4,
        )

    def linear(self, x: Value, weight: Array, bias: Array, name: str = "linear") -> Value:
        """`x` times the transpose of `weight` [out, in], plus `bias`; ONNX gets MatMul and Add, as from PyTorch."""
        product = self._name("product")
        self._node("MatMul", [x, self._initializer(np.ascontiguousarray(weight.T))], product)
        return self._both(
            name, "Add", [product, self._initializer(bias)], lambda v, name: mb.linear(x=v[x], weight=weight, bias=bias, name=name)
        )

    def matmul(self, x: Value, y: Value, *, transpose_y: bool = False) -> Value:
        """Of values of rank 4."""
        right = y
        if transpose_y:
            right = self._name("transposed")
            self._node("Transpose", [y], right, perm=[0, 1, 3, 2])
        return self._both(
            "matmul", "MatMul", [x, right], lambda v, name: mb.matmul(x=v[x], y=v[y], transpose_y=transpose_y, name=name)
        )

    def layer_norm(self, x: Value, gamma: Array, beta: Array, *, epsilon: float, name: str = "layer_norm") -> Value:
        """Along the last axis."""
        return self._both(
            name,
            "LayerNormalization",
            [x, self._initializer(gamma), self._initializer(beta)],
            lambda v, name: mb.layer_norm(x=v[x], axes=[-1], gamma=gamma, beta=beta, epsilon=np.float32(epsilon), name=name),
            axis=-1,
            epsilon=epsilon,
        )

    def reduce_mean(self, x: Value, axes: list[int], *, keep_dims: bool) -> Value:
        return self._reduce("reduce_mean", "ReduceMean", x, axes, keep_dims)

    def reduce_sum(self, x: Value, axes: list[int], *, keep_dims: bool) -> Value:
        return self._reduce("reduce_sum", "ReduceSum", x, axes, keep_dims)

    def reduce_l2_norm(self, x: Value, axes: list[int], *, keep_dims: bool) -> Value:
        return self._reduce("reduce_l2_norm", "ReduceL2", x, axes, keep_dims)

    def gather(self, x: Value, indices: Value) -> Value:
        """Rows of `x`."""
        return self._both(
            "gather", "Gather", [x, indices], lambda v, name: mb.gather(x=v[x], indices=v[indices], axis=0, name=name), axis=0
        )

    def reshape(self, x: Value, shape: list[int]) -> Value:
        return self._both(
            "reshape", "Reshape", [x, self._integers(shape)], lambda v, name: mb.reshape(x=v[x], shape=shape, name=name)
        )

    def expand_dims(self, x: Value, axes: list[int]) -> Value:
        return self._both(
            "expand_dims", "Unsqueeze", [x, self._integers(axes)], lambda v, name: mb.expand_dims(x=v[x], axes=axes, name=name)
        )

    def transpose(self, x: Value, perm: list[int], name: str = "transpose") -> Value:
        return self._both(name, "Transpose", [x], lambda v, name: mb.transpose(x=v[x], perm=perm, name=name), perm=perm)

    def concat(self, values: list[Value], *, axis: int) -> Value:
        return self._both(
            "concat", "Concat", values, lambda v, name: mb.concat(values=[v[x] for x in values], axis=axis, name=name), axis=axis
        )

    # The two models

    def core_ml(self, outputs: list[Value], *, half: bool) -> Any:
        """An ML program with arithmetic in float16 (`half`) or float32; its inputs and outputs stay as they are."""
        kinds = {np.dtype(np.float32): types.fp32, np.dtype(np.int32): types.int32}
        placeholders = {name: mb.placeholder(shape=value.shape, dtype=kinds[value.dtype]) for name, value in self._inputs.items()}
        with Function(placeholders, opset_version=packages.ct.target.iOS15) as function:
            values = dict(function.inputs)
            for step in self._steps:
                values[step.name] = step.build(values)
            function.set_outputs([values[name] for name in outputs])
        program = Program()
        program.add_function("main", function)
        return packages.convert(program, half=half)

    def onnx(self, outputs: list[Value]) -> onnx.ModelProto:
        """The same as an ONNX model in float32."""
        kinds = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int32): TensorProto.INT32}
        graph = helper.make_graph(
            self._nodes,
            "twin",
            [helper.make_tensor_value_info(name, kinds[value.dtype], value.shape) for name, value in self._inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            self._constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
        model = shape_inference.infer_shapes(model, strict_mode=True)
        del model.graph.value_info[:]
        onnx.checker.check_model(model)
        return model

    def write(self, folder: Path, name: str, outputs: list[Value], *, kinds: list[str], **metadata: str) -> None:
        """Writes `<name>.onnx`, `<name>-<kind>.mlpackage` for each kind (f32, f16) and `<name>.inputs/<input>.npy`."""
        inputs = folder / f"{name}.inputs"
        inputs.mkdir(parents=True, exist_ok=True)
        for input_name, value in self._inputs.items():
            np.save(inputs / f"{input_name}.npy", value)
        onnx.save(self.onnx(outputs), folder / f"{name}.onnx")
        for kind in kinds:
            packages.save(self.core_ml(outputs, half=kind == "f16"), folder / f"{name}-{kind}.mlpackage", **metadata)

    # Plumbing

    def _name(self, stem: str) -> str:
        count = self._taken[stem] = self._taken.get(stem, -1) + 1
        return f"{stem}_{count}" if count else stem

    def _initializer(self, value: Any, name: str | None = None) -> str:
        name = name or self._name("weight")
        self._constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _integers(self, values: list[int]) -> str:
        return self._initializer(np.asarray(values, np.int64))

    def _node(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self._nodes.append(helper.make_node(op_type, inputs, [output], name=output, **attributes))

    def _both(
        self, stem: str, onnx_type: str, onnx_inputs: list[str], mil: Callable[[dict[str, Any], str], Any], **attributes: Any
    ) -> Value:
        name = self._name(stem)
        self._node(onnx_type, onnx_inputs, name, **attributes)
        self._steps.append(Step(name, lambda values: mil(values, name)))
        return name

    def _reduce(self, op: str, onnx_type: str, x: Value, axes: list[int], keep_dims: bool) -> Value:
        return self._both(
            op,
            onnx_type,
            [x, self._integers(axes)],
            lambda v, name: getattr(mb, op)(x=v[x], axes=axes, keep_dims=keep_dims, name=name),
            keepdims=int(keep_dims),
        )
