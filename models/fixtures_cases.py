"""The cases that `fixtures.py` records: operation, inputs given at run time, parameters fixed in the program.

One function per family of operations, in the order and under the names of coremltools' own modules. Values are never
constant and never tied where an order matters. Every case draws from a generator of its own, seeded by the operation
and the case's number, so that adding a case leaves all others as they are.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """A program of one operation, unless `build` makes it from the inputs; `expected`, if given, says its results."""

    op: str
    inputs: dict[str, Any]
    parameters: dict[str, Any] = field(default_factory=dict)
    opset: str = "iOS15"
    build: Callable[..., Any] | None = None
    expected: Callable[..., Any] | None = None


class Draw:
    """Random values for one operation; each call goes on in the same sequence."""

    def __init__(self, op: str) -> None:
        self._rng = np.random.default_rng(zlib.crc32(op.encode()))

    def normal(self, *shape: int) -> Array:
        return self._rng.standard_normal(shape).astype(np.float32)

    def uniform(self, low: float, high: float, *shape: int) -> Array:
        return self._rng.uniform(low, high, shape).astype(np.float32)

    def integers(self, low: int, high: int, *shape: int) -> Array:
        return self._rng.integers(low, high, shape).astype(np.int32)

    def distinct(self, *shape: int) -> Array:
        """No two alike."""
        return (self._rng.permutation(int(np.prod(shape))).reshape(shape) / 4 - 3).astype(np.float32)

    def bools(self, *shape: int) -> Array:
        return self._rng.random(shape) < 0.5


def elementwise_unary() -> Iterator[Case]:
    ranges = {
        "abs": (-3, 3), "acos": (-0.95, 0.95), "asin": (-0.95, 0.95), "atan": (-5, 5), "atanh": (-0.9, 0.9), "ceil": (-5, 5),
        "cos": (-6, 6), "cosh": (-3, 3), "erf": (-3, 3), "exp": (-5, 3), "exp2": (-5, 5), "floor": (-5, 5), "sign": (-2, 2),
        "sin": (-6, 6), "sinh": (-3, 3), "sqrt": (0.01, 9), "square": (-3, 3), "tan": (-1.4, 1.4), "tanh": (-4, 4),
    }  # fmt: skip
    for op, limits in ranges.items():
        draw = Draw(op)
        for shape in ((7,), (2, 3), (1, 2, 3, 4), (2, 1, 2, 1, 3)):
            yield Case(op, {"x": draw.uniform(*limits, *shape)})
    halves = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.0, -0.3, 0.7, 1.2], np.float32)
    for op in ("round", "ceil", "floor", "sign"):
        yield Case(op, {"x": halves})
    draw = Draw("round")
    for shape in ((7,), (2, 3), (1, 2, 3, 4)):
        yield Case("round", {"x": draw.uniform(-5, 5, *shape)})
    for op, low in (("inverse", 0.2), ("rsqrt", 0.1), ("log", 0.05)):
        draw = Draw(op)
        for epsilon, shape in ((None, (6,)), (None, (2, 3, 4)), (np.float32(0.1), (2, 5)), (np.float32(1e-3), (1, 2, 2, 3))):
            yield Case(op, {"x": draw.uniform(low, 4, *shape)}, {} if epsilon is None else {"epsilon": epsilon})
    draw = Draw("clip")
    for (alpha, beta), shape in (((-1, 1), (9,)), ((0, 6), (2, 6)), ((-0.5, 0.25), (1, 2, 3, 4)), ((1, 1.5), (3, 1, 5))):
        yield Case("clip", {"x": 3 * draw.normal(*shape)}, {"alpha": np.float32(alpha), "beta": np.float32(beta)})
    draw = Draw("threshold")
    for alpha, shape in ((0, (9,)), (-0.5, (2, 6)), (0.75, (1, 2, 3, 4)), (2, (3, 1, 5))):
        yield Case("threshold", {"x": 3 * draw.normal(*shape)}, {"alpha": np.float32(alpha)})
    draw = Draw("logical_not")
    for shape in ((5,), (2, 3), (1, 2, 3, 2), (2, 1, 4)):
        yield Case("logical_not", {"x": draw.bools(*shape)})
    draw = Draw("cast")
    for dtype in ("int32", "bool", "fp16"):
        source = np.array([-2.7, -1.5, -0.5, 0, 0.5, 1.5, 2.7, 9.99], np.float32)
        yield Case("cast", {"x": source}, {"dtype": dtype})
    yield Case("cast", {"x": draw.integers(-9, 9, 2, 3)}, {"dtype": "fp32"})
    yield Case("cast", {"x": np.array([-2, 0, 1, 7], np.int32)}, {"dtype": "bool"})
    yield Case("cast", {"x": draw.bools(2, 5)}, {"dtype": "fp32"})
    yield Case("cast", {"x": draw.uniform(0, 200, 7)}, {"dtype": "uint8"}, "iOS17")
    yield Case("cast", {"x": draw.uniform(-100, 100, 7)}, {"dtype": "int8"}, "iOS17")
    yield Case("cast", {"x": draw.integers(-1000, 1000, 7)}, {"dtype": "int16"}, "iOS17")


def elementwise_binary() -> Iterator[Case]:
    shapes = (((4,), (4,)), ((2, 3), (3,)), ((2, 1, 3), (4, 1)), ((1, 2, 3, 2), (1, 2, 1, 1)), ((3, 1), (2, 3, 4)))
    for op in ("add", "sub", "mul", "maximum", "minimum", "real_div"):
        draw = Draw(op)
        for left, right in shapes:
            x, y = draw.normal(*left), draw.normal(*right)
            yield Case(op, {"x": x, "y": np.where(np.abs(y) < 0.2, y + np.float32(1), y) if op == "real_div" else y})
        yield Case(op, {"x": draw.normal(2, 3)}, {"y": np.float32(1.75)})
    for op in ("add", "sub", "mul", "maximum", "minimum"):
        draw = Draw(f"{op} int32")
        yield Case(op, {"x": draw.integers(-9, 9, 2, 3), "y": draw.integers(-9, 9, 3)})
    for op in ("floor_div", "mod"):
        draw = Draw(op)
        for left, right in shapes:
            sign = np.where(draw.bools(*right), 1, -1).astype(np.float32)
            yield Case(op, {"x": 5 * draw.normal(*left), "y": sign * draw.uniform(0.5, 3, *right)})
        divisors = np.array([3, -3, 2, -2, 5, -5, 7], np.int32)
        yield Case(op, {"x": np.array([7, 7, -7, -7, 10, 10, -1], np.int32), "y": divisors})
    draw = Draw("pow")
    for left, right in shapes:
        yield Case("pow", {"x": draw.uniform(0.1, 3, *left), "y": draw.uniform(-2, 2, *right)})
    yield Case("pow", {"x": draw.normal(2, 4)}, {"y": np.float32(2)})
    yield Case("pow", {"x": draw.normal(2, 4)}, {"y": np.float32(3)})
    for op in ("equal", "not_equal", "greater", "greater_equal", "less", "less_equal"):
        draw = Draw(op)
        for left, right in shapes:
            yield Case(op, {"x": draw.integers(-1, 2, *left).astype(np.float32), "y": draw.integers(-1, 2, *right).astype(np.float32)})
        yield Case(op, {"x": draw.integers(-1, 2, 3, 4), "y": draw.integers(-1, 2, 4)})
    for op in ("logical_and", "logical_or", "logical_xor"):
        draw = Draw(op)
        for left, right in shapes:
            yield Case(op, {"x": draw.bools(*left), "y": draw.bools(*right)})


def activation() -> Iterator[Case]:
    two = {"alpha": (0.5, 1.5, 0.2, 2.0), "beta": (0.25, 1.0, -0.5, 0.7)}
    one = {"alpha": (0.01, 0.3, 1.0, 1.7)}
    table: dict[str, dict[str, tuple[float, ...]]] = {
        "clamped_relu": {"alpha": (0.1, 0.5, 1.0, 0.3), "beta": (1.0, 2.0, 0.5, 6.0)},
        "elu": one, "leaky_relu": one, "linear_activation": two, "relu": {}, "relu6": {}, "scaled_tanh": two, "sigmoid": {},
        "sigmoid_hard": {"alpha": (0.2, 0.5, 0.1, 1.0), "beta": (0.5, 0.3, 0.0, 0.1)}, "silu": {}, "softplus": {}, "softsign": {},
        "thresholded_relu": {"alpha": (1.0, 0.5, 0.0, 2.0)},
    }  # fmt: skip
    for op, parameters in table.items():
        draw = Draw(op)
        for number, shape in enumerate(((11,), (2, 5), (1, 2, 3, 4), (2, 3, 2))):
            scale = 6 if op == "relu6" else 3
            yield Case(op, {"x": scale * draw.normal(*shape)}, {name: np.float32(values[number]) for name, values in parameters.items()})
    draw = Draw("gelu")
    for mode, shape in product(("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"), ((9,), (2, 3, 4))):
        yield Case("gelu", {"x": 2 * draw.normal(*shape)}, {"mode": mode})
    draw = Draw("prelu")
    for shape in ((1, 3, 4), (2, 3, 2, 2), (1, 4, 2, 3), (1, 2, 2, 2, 2)):
        slopes = draw.uniform(0.05, 0.9, shape[1]) if len(shape) == 4 else np.full(shape[1], 0.3, np.float32)  # coremltools' rule
        yield Case("prelu", {"x": draw.normal(*shape)}, {"alpha": slopes})
    draw = Draw("softplus_parametric")
    for shape in ((1, 3, 4), (2, 3, 2, 2), (1, 4, 2, 3), (1, 2, 5)):
        slopes = {"alpha": draw.uniform(0.5, 2, shape[1]), "beta": draw.uniform(0.5, 2, shape[1])}
        yield Case("softplus_parametric", {"x": draw.normal(*shape)}, slopes)
    draw = Draw("softmax")
    for axis, shape in ((-1, (7,)), (1, (2, 5)), (0, (3, 2, 2)), (1, (1, 4, 2, 3)), (-2, (2, 3, 4))):
        yield Case("softmax", {"x": 4 * draw.normal(*shape)}, {"axis": axis})


def linear() -> Iterator[Case]:
    draw = Draw("linear")
    for shape, out, bias in (((3, 4), 5, True), ((2, 3, 4), 2, True), ((1, 6), 3, False), ((1, 2, 2, 5), 4, True), ((8,), 3, True)):
        if len(shape) == 1:
            continue
        parameters = {"weight": draw.normal(out, shape[-1])} | ({"bias": draw.normal(out)} if bias else {})
        yield Case("linear", {"x": draw.normal(*shape)}, parameters)
    whole = {"weight": draw.integers(-9, 9, 5, 4), "bias": draw.integers(-9, 9, 5)}
    yield Case("linear", {"x": draw.integers(-9, 9, 2, 3, 4)}, whole)
    draw = Draw("matmul")
    for left, right, tx, ty in (
        ((3, 4), (4, 2), False, False), ((2, 3, 4), (2, 4, 5), False, False), ((2, 4, 3), (2, 4, 5), True, False),
        ((1, 2, 3, 4), (1, 2, 5, 4), False, True), ((2, 1, 4, 3), (3, 5, 4), True, True), ((5, 1, 4), (4, 2), False, False),
    ):  # fmt: skip
        yield Case("matmul", {"x": draw.normal(*left), "y": draw.normal(*right)}, {"transpose_x": tx, "transpose_y": ty})
    yield Case("matmul", {"x": draw.normal(2, 3, 4)}, {"y": draw.normal(4, 5), "transpose_x": False, "transpose_y": False})
    draw = Draw("einsum")
    for equation, left, right in (
        ("nchw,nwhu->nchu", (1, 2, 3, 4), (1, 4, 3, 5)), ("abcd,adce->abce", (2, 3, 2, 4), (2, 4, 2, 1)),
        ("chw,whr->chr", (2, 3, 4), (4, 3, 5)), ("abc,cbd->abd", (1, 2, 6), (6, 2, 3)),
    ):  # fmt: skip
        values = [draw.normal(*left), draw.normal(*right)]
        yield Case("einsum", {"values": values}, {"equation": equation}, expected=lambda values, equation: np.einsum(equation, *values))


def conv() -> Iterator[Case]:
    draw = Draw("conv")
    for shape, kernel, out, options in (
        ((1, 2, 5, 6), (3, 3), 3, {}),
        ((1, 2, 5, 6), (3, 3), 3, {"pad_type": "same", "strides": [2, 2]}),
        ((1, 3, 7, 6), (3, 2), 2, {"pad_type": "same_lower", "strides": [2, 1]}),
        ((2, 2, 5, 5), (3, 3), 2, {"pad_type": "custom", "pad": [1, 0, 2, 1], "strides": [1, 2]}),
        ((1, 4, 6, 5), (3, 3), 4, {"pad_type": "custom", "pad": [1, 1, 1, 1], "groups": 4}),
        ((1, 4, 6, 5), (3, 3), 6, {"pad_type": "same", "groups": 2}),
        ((1, 2, 8, 7), (3, 2), 2, {"dilations": [2, 3]}),
        ((1, 2, 8, 8), (3, 3), 2, {"pad_type": "same", "dilations": [2, 2]}),
        ((1, 3, 4, 4), (1, 1), 5, {}),
        ((1, 3, 9), (4,), 2, {"strides": [2], "pad_type": "custom", "pad": [1, 2]}),
        ((2, 2, 8), (3,), 4, {"groups": 2, "dilations": [2]}),
        ((1, 2, 4, 5, 4), (2, 3, 2), 2, {"pad_type": "same"}),
        ((1, 2, 4, 5, 4), (2, 3, 2), 3, {"strides": [2, 1, 2]}),
    ):
        weight = draw.normal(out, shape[1] // options.get("groups", 1), *kernel)
        bias = {"bias": draw.normal(out)} if len(kernel) != 1 else {}
        opset = "iOS16" if options.get("pad_type") == "same_lower" else "iOS15"
        yield Case("conv", {"x": draw.normal(*shape)}, {"weight": weight, **bias, **options}, opset)
    draw = Draw("conv_quantized")
    for shape, kernel, out, bits, options in (
        ((1, 2, 5, 6), (3, 3), 3, 8, {}), ((1, 4, 6, 5), (3, 2), 4, 3, {"groups": 2, "pad_type": "same"}),
        ((2, 2, 8), (3,), 2, 1, {"strides": [2]}), ((1, 3, 4, 4), (1, 1), 5, 4, {}),
    ):  # fmt: skip
        scales = out if bits > 3 else 1
        quantized = {"weight": draw.integers(0, 2**bits, out, shape[1] // options.get("groups", 1), *kernel).astype(np.uint8), "nbits": bits}
        factors = {"quant_scale": draw.uniform(0.01, 0.1, scales), "quant_bias": draw.normal(scales)}
        yield Case("conv_quantized", {"x": draw.normal(*shape)}, {**quantized, **factors, "quantization_type": "linear", **options})
    draw = Draw("conv_transpose")
    for shape, kernel, out, options in (
        ((1, 2, 3, 4), (3, 3), 3, {}),
        ((1, 2, 3, 4), (3, 3), 3, {"strides": [2, 2]}),
        ((1, 2, 3, 4), (4, 4), 2, {"strides": [2, 2], "pad_type": "custom", "pad": [1, 1, 1, 1]}),
        ((2, 2, 3, 3), (3, 3), 2, {"strides": [2, 2], "pad_type": "custom", "pad": [1, 0, 1, 0]}),
        ((1, 4, 3, 3), (3, 3), 4, {"strides": [2, 1], "groups": 4}),
        ((1, 4, 3, 3), (2, 3), 6, {"groups": 2}),
        ((1, 2, 3, 3), (2, 3), 2, {"dilations": [2, 2]}),
        ((1, 2, 5), (4,), 3, {"strides": [2], "pad_type": "custom", "pad": [1, 1]}),
        ((1, 2, 3, 3), (4, 4), 2, {"strides": [2, 2], "pad_type": "same"}),
    ):
        weight = draw.normal(shape[1], out // options.get("groups", 1), *kernel)
        yield Case("conv_transpose", {"x": draw.normal(*shape)}, {"weight": weight, "bias": draw.normal(out), **options})


def pool() -> Iterator[Case]:
    shared: list[tuple[tuple[int, ...], dict[str, Any]]] = [
        ((1, 2, 4, 6), {"kernel_sizes": [2, 2], "strides": [2, 2], "pad_type": "valid"}),
        ((1, 2, 5, 6), {"kernel_sizes": [3, 2], "pad_type": "valid"}),
        ((1, 2, 5, 5), {"kernel_sizes": [3, 3], "strides": [2, 2], "pad_type": "custom", "pad": [1, 1, 1, 1]}),
        ((2, 1, 5, 6), {"kernel_sizes": [3, 3], "strides": [2, 2], "pad_type": "same"}),
        ((1, 2, 9), {"kernel_sizes": [3], "strides": [2], "pad_type": "custom", "pad": [1, 0]}),
    ]
    extra = [
        ((1, 2, 5, 6), {"kernel_sizes": [2, 2], "strides": [2, 2], "pad_type": "valid", "ceil_mode": True}),
        ((1, 1, 6, 7), {"kernel_sizes": [3, 3], "strides": [2, 2], "pad_type": "custom", "pad": [1, 1, 1, 1], "ceil_mode": True}),
        ((1, 2, 4, 5, 4), {"kernel_sizes": [2, 3, 2], "strides": [2, 1, 2], "pad_type": "valid"}),
    ]
    for op, cases in (("max_pool", shared + extra), ("avg_pool", [*shared, extra[2]]), ("l2_pool", shared)):
        draw = Draw(op)
        for shape, options in cases:
            yield Case(op, {"x": draw.normal(*shape)}, options)
    draw = Draw("avg_pool without padding")
    for shape, options in (*shared[2:], extra[0], extra[1]):
        yield Case("avg_pool", {"x": draw.normal(*shape)}, options | {"exclude_padding_from_average": True})
    draw = Draw("same_lower")
    for op in ("max_pool", "avg_pool"):
        options = {"kernel_sizes": [2, 3], "strides": [1, 2], "pad_type": "same_lower"}
        yield Case(op, {"x": draw.normal(1, 2, 5, 6)}, options, "iOS16")


def normalization() -> Iterator[Case]:
    draw = Draw("batch_norm")
    for shape, affine in (((1, 3, 4), True), ((2, 3, 2, 3), True), ((1, 4, 3, 2), False), ((1, 2, 2, 3, 2), True)):
        c = shape[1]
        parameters = {"mean": draw.normal(c), "variance": draw.uniform(0.2, 2, c), "epsilon": np.float32(1e-3)}
        if affine:
            parameters |= {"gamma": draw.normal(c), "beta": draw.normal(c)}
        yield Case("batch_norm", {"x": draw.normal(*shape)}, parameters)
    draw = Draw("instance_norm")
    for shape, affine in (((1, 3, 4), True), ((2, 3, 2, 3), True), ((1, 4, 3, 2), False), ((2, 2, 5), False)):
        scales = {"gamma": draw.normal(shape[1]), "beta": draw.normal(shape[1])} if affine else {}
        yield Case("instance_norm", {"x": draw.normal(*shape)}, scales)
    draw = Draw("l2_norm")
    for shape in ((2, 3, 2), (2, 3, 2, 2), (1, 4, 1, 1), (2, 2, 2, 1, 3)):
        yield Case("l2_norm", {"x": draw.normal(*shape)}, {"epsilon": np.float32(1e-5)})
    draw = Draw("layer_norm")
    for shape, axes, affine in (((2, 3, 4), [2], True), ((2, 3, 4), [-1, -2], False), ((2, 3, 4), [1, 2], True), ((1, 5), [1], True), ((2, 3, 2, 2), [1], True)):
        size = tuple(shape[axis] for axis in axes)
        scales = {"gamma": draw.normal(*size), "beta": draw.normal(*size)} if affine else {}
        yield Case("layer_norm", {"x": 2 * draw.normal(*shape) + 1}, {"axes": axes, "epsilon": np.float32(1e-4), **scales})
    draw = Draw("local_response_norm")
    for shape, options in (((1, 6, 2, 2), {"size": 3}), ((1, 5, 3, 2), {"size": 5, "alpha": np.float32(0.5)}), ((2, 7, 3), {"size": 3, "alpha": np.float32(0.1), "beta": np.float32(0.5), "k": np.float32(2)}), ((1, 4, 2, 3), {"size": 1, "alpha": np.float32(1)})):
        yield Case("local_response_norm", {"x": 2 * draw.normal(*shape)}, options)


def reduction() -> Iterator[Case]:
    layouts: tuple[tuple[tuple[int, ...], list[int], bool], ...] = (
        ((6, 2), [0], True), ((2, 3), [-1], False), ((2, 3, 4), [0, 2], False), ((1, 2, 3, 4), [2, 3], True), ((2, 2, 3), [1], False),
    )  # fmt: skip
    for op in ("l1_norm", "l2_norm", "log_sum", "log_sum_exp", "max", "mean", "min", "prod", "sum", "sum_square"):
        draw = Draw(op)
        for shape, axes, keep_dims in layouts:
            x = draw.uniform(0.1, 3, *shape) if op == "log_sum" else draw.normal(*shape)
            yield Case(f"reduce_{op}", {"x": x}, {"axes": axes, "keep_dims": keep_dims})
    for op in ("reduce_argmax", "reduce_argmin"):
        draw = Draw(op)
        for shape, axis, keep_dims in (((6, 2), 0, True), ((2, 3), -1, False), ((2, 3, 4), 1, False), ((1, 2, 3, 4), 3, True)):
            yield Case(op, {"x": draw.distinct(*shape)}, {"axis": axis, "keep_dims": keep_dims})
    for op in ("sum", "max", "min", "prod"):
        yield Case(f"reduce_{op}", {"x": Draw(f"{op} int32").integers(-5, 6, 3, 4)}, {"axes": [1], "keep_dims": False})


def tensor_transformation() -> Iterator[Case]:
    def each(op: str, *variants: tuple[tuple[int, ...], dict[str, Any]], opset: str = "iOS15") -> Iterator[Case]:
        draw = Draw(op)
        for shape, parameters in variants:
            yield Case(op, {"x": draw.normal(*shape)}, parameters, opset)

    yield from each("expand_dims", ((3,), {"axes": [0]}), ((2, 3), {"axes": [1]}), ((2, 3), {"axes": [0, -1]}), ((2,), {"axes": [0, 1, 3]}))
    yield from each("reshape", ((2, 3), {"shape": [3, 2]}), ((2, 3, 4), {"shape": [4, -1]}), ((2, 3, 4), {"shape": [0, -1, 2]}), ((24,), {"shape": [2, -1, 3, 2]}))
    yield Case("reshape", {"x": Draw("reshape iOS17").normal(2, 5)}, {"shape": [1, 0, -1, 0]}, "iOS17")
    yield from each("squeeze", ((1, 3), {"axes": [0]}), ((2, 1, 3, 1), {"axes": [1, -1]}), ((1, 2, 1, 3), {}), ((1, 1, 4), {"axes": [1]}))
    yield from each("transpose", ((2, 3), {"perm": [1, 0]}), ((2, 3, 4), {"perm": [2, 0, 1]}), ((1, 2, 3, 4), {"perm": [0, 2, -1, 1]}), ((2, 1, 2, 3, 2), {"perm": [4, 2, 0, 3, 1]}))
    yield from each("reverse", ((5,), {}), ((2, 3), {"axes": [1]}), ((2, 3, 4), {"axes": [0, -1]}), ((1, 2, 3, 2), {"axes": [2]}))
    yield from each(
        "slice_by_index",
        ((6,), {"begin": [1], "end": [5]}),
        ((6, 4), {"begin": [1, 0], "end": [6, 4], "stride": [2, 3]}),
        ((6, 4), {"begin": [-3, 1], "end": [-1, 3]}),
        ((4, 3, 5), {"begin": [0, 0, 0], "end": [4, 3, 2], "begin_mask": [True, False, False], "end_mask": [True, True, False]}),
        ((4, 3, 5), {"begin": [2, 0, 1], "end": [3, 3, 4], "squeeze_mask": [True, False, False]}),
        ((5, 4), {"begin": [4, 3], "end": [0, 0], "stride": [-1, -2]}),
        ((5, 4), {"begin": [0, 0], "end": [0, 0], "stride": [-1, -1], "begin_mask": [True, True], "end_mask": [True, True]}),
        ((1, 3, 4, 4), {"begin": [0, 1, 0, 1], "end": [1, 3, 4, 4], "stride": [1, 1, 2, 2]}),
    )
    yield from each("slice_by_size", ((6,), {"begin": [1], "size": [3]}), ((3, 4), {"begin": [0, 1], "size": [2, -1]}), ((2, 3, 4), {"begin": [1, 0, 2], "size": [1, 3, 2]}), ((1, 4, 3, 3), {"begin": [0, 1, 1, 0], "size": [-1, 2, -1, 3]}))
    yield from each("depth_to_space", ((1, 4, 2, 3), {"block_size": 2}), ((1, 8, 1, 2), {"block_size": 2}), ((2, 4, 2, 2), {"block_size": 2}), ((1, 18, 1, 2), {"block_size": 3}))
    yield from each("space_to_depth", ((1, 1, 4, 6), {"block_size": 2}), ((1, 2, 4, 2), {"block_size": 2}), ((2, 2, 2, 2), {"block_size": 2}), ((1, 2, 3, 6), {"block_size": 3}))
    yield from each("pixel_shuffle", ((1, 4, 2, 3), {"upscale_factor": 2}), ((1, 8, 1, 2), {"upscale_factor": 2}), ((2, 4, 2, 2), {"upscale_factor": 2}), ((1, 18, 1, 2), {"upscale_factor": 3}))
    factor = {size: {"downscale_factor": np.uint32(size)} for size in (2, 3)}
    yield from each("pixel_unshuffle", ((1, 1, 4, 6), factor[2]), ((1, 2, 4, 2), factor[2]), ((2, 2, 2, 2), factor[2]), ((1, 2, 3, 6), factor[3]), opset="iOS16")
    none, some = np.zeros((2, 2), np.int32), np.array([[1, 1], [0, 2]], np.int32)
    blocks = {name: np.array(value, np.int32) for name, value in (("square", [2, 2]), ("wide", [1, 2]))}
    yield from each("space_to_batch", ((1, 2, 4, 6), {"block_shape": blocks["square"], "paddings": none}), ((2, 1, 4, 4), {"block_shape": blocks["square"], "paddings": some}), ((1, 2, 3, 4), {"block_shape": blocks["wide"], "paddings": none}), ((1, 1, 2, 2), {"block_shape": blocks["square"], "paddings": some}))
    yield from each("batch_to_space", ((4, 2, 2, 3), {"block_shape": blocks["square"], "crops": none}), ((8, 1, 3, 3), {"block_shape": blocks["square"], "crops": some}), ((2, 2, 3, 2), {"block_shape": blocks["wide"], "crops": none}), ((4, 1, 2, 2), {"block_shape": blocks["square"], "crops": np.array([[0, 1], [1, 0]], np.int32)}))
    yield from each("sliding_windows", ((6,), {"axis": 0, "size": 3}), ((2, 6), {"axis": 1, "size": 2, "stride": 2}), ((1, 5, 2, 2), {"axis": 1, "size": 4}), ((2, 3, 5), {"axis": -1, "size": 3, "stride": 2}))
    draw = Draw("reverse_sequence")
    for shape, seq_axis, batch_axis in (((3, 5), 1, 0), ((5, 3), 0, 1), ((3, 4, 2), 1, 0), ((1, 3, 4, 2), 2, 1)):
        lengths = draw.integers(1, shape[seq_axis] + 1, shape[batch_axis])
        yield Case("reverse_sequence", {"x": draw.normal(*shape), "lengths": lengths}, {"seq_axis": seq_axis, "batch_axis": batch_axis})
    draw = Draw("reshape_like")
    for shape, like, begins, ends, masks in (((2, 3, 4), ((3, 8), (5, 1)), [0, 1], [2, 2], [False, False]), ((6, 4), ((2, 3), (4, 9)), [0, 0], [2, 1], [False, False]), ((12,), ((3, 4),), [0], [0], [True]), ((2, 6), ((7, 4, 3),), [1], [3], [False])):
        tensors = [draw.normal(*each_shape) for each_shape in like]
        yield Case("reshape_like", {"x": draw.normal(*shape), "ref_tensors": tensors}, {"begins": begins, "ends": ends, "end_masks": masks}, "iOS16")
    draw = Draw("slice_update")
    for shape, begin, end, stride in (((4, 5), [1, 2], [3, 5], [1, 1]), ((6,), [0], [6], [2]), ((1, 2, 3, 4), [0, 1, 0, 1], [1, 2, 3, 3], [1, 1, 2, 1]), ((3, 4), [2, 0], [3, 4], [1, 1])):
        size = [-(-(b - a) // c) for a, b, c in zip(begin, end, stride, strict=True)]
        yield Case("slice_update", {"x": draw.normal(*shape), "update": draw.normal(*size)}, {"begin": begin, "end": end, "stride": stride}, "iOS18")


def tensor_operation() -> Iterator[Case]:
    draw = Draw("argsort")
    for shape, axis, ascending in (((7,), 0, True), ((2, 5), -1, False), ((3, 2, 2), 0, True), ((1, 2, 4, 3), 2, False)):
        yield Case("argsort", {"x": draw.distinct(*shape)}, {"axis": axis, "ascending": ascending})
    draw = Draw("band_part")
    for shape, lower, upper in (((4, 4), 0, -1), ((3, 5), -1, 0), ((2, 4, 3), 1, 1), ((5, 4), 0, 2)):
        yield Case("band_part", {"x": draw.normal(*shape)}, {"lower": lower, "upper": upper})
    draw = Draw("concat")
    for shapes, axis in ((((2, 3), (4, 3)), 0), (((2, 3), (2, 1), (2, 2)), 1), (((1, 2, 3), (1, 2, 2)), -1), (((1, 2, 2, 2), (1, 3, 2, 2)), 1)):
        yield Case("concat", {"values": [draw.normal(*shape) for shape in shapes]}, {"axis": axis})
    yield Case("concat", {"values": [draw.normal(2, 3), draw.normal(2, 3)]}, {"axis": 1, "interleave": True})
    draw = Draw("cumsum")
    for shape, axis, exclusive, reverse in (((6,), 0, False, False), ((2, 5), 1, False, True), ((3, 2, 2), 0, True, False), ((1, 3, 4), -1, True, True), ((2, 3), 1, True, False)):
        yield Case("cumsum", {"x": draw.normal(*shape)}, {"axis": axis, "exclusive": exclusive, "reverse": reverse})
    draw = Draw("fill")
    for shape, value in (([3], 1.5), ([2, 3], -2.0), ([1, 2, 3], 0.25), ([2, 1, 1, 2], 7.0)):
        x = draw.normal(*shape)
        yield Case("fill", {"x": x}, build=lambda x, s=shape, v=value: mb.add(x=mb.fill(shape=s, value=np.float32(v)), y=x))
    draw = Draw("fill_like")
    for shape, value in (((3,), 1.5), ((2, 3), -2.0), ((1, 2, 3), 0.25), ((2, 1, 1, 2), 7.0)):
        like = {"ref_tensor": draw.normal(*shape)}
        yield Case("fill_like", like, {"value": np.float32(value)}, "iOS16", expected=lambda ref_tensor, value: np.full_like(ref_tensor, value))
    draw = Draw("flatten2d")
    for shape, axis in (((2, 3, 4), 1), ((2, 3, 4), 2), ((1, 2, 3, 2), -1), ((3, 4), 1), ((2, 3), 0)):
        yield Case("flatten2d", {"x": draw.normal(*shape)}, {"axis": axis})
    draw = Draw("identity")
    for shape in ((3,), (2, 3), (1, 2, 3), (1, 1, 2, 3)):
        yield Case("identity", {"x": draw.normal(*shape)})
    draw = Draw("one_hot")
    for shape, size, options in (((4,), 5, {}), ((2, 3), 4, {"axis": 0}), ((3,), 3, {"on_value": np.float32(2.5), "off_value": np.float32(-1)}), ((2, 2), 3, {"axis": 1, "on_value": 7, "off_value": 1})):
        yield Case("one_hot", {"indices": draw.integers(0, size, *shape)}, {"one_hot_vector_size": size, **options})
    draw = Draw("pad")
    for shape, options in (
        ((3,), {"pad": [1, 2]}),
        ((2, 3), {"pad": [1, 0, 2, 1], "constant_val": np.float32(-1.5)}),
        ((1, 2, 3, 4), {"pad": [1, 2, 0, 1]}),
        ((1, 2, 3, 4), {"pad": [1, 2, 2, 1], "mode": "reflect"}),
        ((2, 4), {"pad": [3, 1], "mode": "reflect"}),
        ((1, 2, 3, 4), {"pad": [1, 2, 3, 1], "mode": "replicate"}),
        ((3, 2), {"pad": [2, 1], "mode": "replicate"}),
    ):
        yield Case("pad", {"x": draw.normal(*shape)}, options)
    draw = Draw("range_1d")
    for start, end, step in ((0.0, 5.0, 1.0), (1.0, 10.0, 2.5), (5.0, 0.0, -1.0), (-2.0, 2.0, 0.5)):
        limits = {"start": np.float32(start), "end": np.float32(end), "step": np.float32(step)}
        yield Case("range_1d", {"x": draw.normal(1)}, build=lambda x, limits=limits: mb.mul(x=mb.range_1d(**limits), y=x))
    draw = Draw("shape")
    for shape in ((3,), (2, 3), (1, 2, 3), (2, 1, 1, 3)):
        yield Case("shape", {"x": draw.normal(*shape)})
    draw = Draw("split")
    for shape, options in (((6,), {"num_splits": 3, "axis": 0}), ((2, 6), {"num_splits": 2, "axis": 1}), ((1, 5, 2), {"split_sizes": [2, 3], "axis": 1}), ((2, 2, 6), {"split_sizes": [1, 2, 3], "axis": -1})):
        yield Case("split", {"x": draw.normal(*shape)}, options)
    draw = Draw("stack")
    for shape, count, axis in (((3,), 2, 0), ((2, 3), 3, 1), ((2, 3), 2, -1), ((1, 2, 2), 2, 2)):
        yield Case("stack", {"values": [draw.normal(*shape) for _ in range(count)]}, {"axis": axis})
    draw = Draw("tile")
    for shape, reps in (((3,), [2]), ((2, 3), [1, 3]), ((1, 2, 3), [2, 2, 1]), ((1, 1, 2, 2), [1, 3, 1, 2])):
        yield Case("tile", {"x": draw.normal(*shape)}, {"reps": reps})
    draw = Draw("topk")
    for shape, options in (((7,), {"k": 3, "axis": 0}), ((2, 5), {"k": 2, "axis": -1, "ascending": True}), ((3, 2, 2), {"k": 1, "axis": 0}), ((1, 2, 4, 3), {"k": 4, "axis": 2}), ((1, 6), {"k": 6, "axis": 1, "ascending": True})):
        yield Case("topk", {"x": draw.distinct(*shape)}, options)
    draw = Draw("non_zero")
    for x in (np.array([0, 3, 0, 1, 2], np.float32), draw.integers(0, 2, 3, 4).astype(np.float32)):
        yield Case("non_zero", {"x": x})


def scatter_gather() -> Iterator[Case]:
    modes = ("update", "add", "sub", "mul", "div", "max", "min")
    draw = Draw("gather")
    for shape, indices, axis, opset in (
        ((5, 2), (3,), 0, "iOS15"), ((3, 4), (2, 2), 1, "iOS15"), ((2, 3, 4), (2,), -1, "iOS15"), ((6,), (2, 3), 0, "iOS15"), ((5, 3), (1, 2, 2), 0, "iOS17"), ((2, 5, 2), (4,), 1, "iOS16"),
    ):  # fmt: skip
        yield Case("gather", {"x": draw.normal(*shape), "indices": draw.integers(0, shape[axis], *indices)}, {"axis": axis}, opset)
    yield Case("gather", {"x": draw.normal(5, 2), "indices": np.array([-1, 0, -5], np.int32)}, {"axis": 0})
    batched = {"x": draw.normal(2, 4, 3), "indices": draw.integers(0, 4, 2, 2)}
    chosen = lambda x, indices, axis, batch_dims: np.stack([row[places] for row, places in zip(x, indices, strict=True)])  # noqa: E731
    yield Case("gather", batched, {"axis": 1, "batch_dims": 1}, "iOS16", expected=chosen)
    draw = Draw("gather_along_axis")
    for shape, count, axis in (((4, 3), 2, 0), ((2, 5), 3, 1), ((2, 3, 4), 5, -1), ((1, 3, 2, 2), 2, 1)):
        size = list(shape)
        size[axis] = count
        yield Case("gather_along_axis", {"x": draw.normal(*shape), "indices": draw.integers(0, shape[axis], *size)}, {"axis": axis})
    draw = Draw("gather_nd")
    for shape, indices, options in (((4, 3), (2, 2), {}), ((4, 3), (3, 1), {}), ((2, 3, 4), (2, 2, 2), {}), ((3, 3, 2), (4, 3), {}), ((2, 3, 4), (2, 3, 1), {"batch_dims": 1})):
        limits = shape[options.get("batch_dims", 0) :][: indices[-1]]
        places = np.stack([draw.integers(0, limit, *indices[:-1]) for limit in limits], -1)
        yield Case("gather_nd", {"x": draw.normal(*shape), "indices": places}, options, "iOS16" if options else "iOS15")
    draw = Draw("scatter")
    for number, mode in enumerate(modes):
        shape, axis = (((5, 2), 0), ((3, 6), 1), ((2, 5, 2), 1))[number % 3]
        size = list(shape)
        size[axis] = 3
        indices = np.array([3, 0, 4] if mode in ("update", "div") else [3, 0, 3], np.int32)
        inputs = {"data": draw.normal(*shape), "indices": indices, "updates": draw.uniform(0.5, 2, *size)}
        yield Case("scatter", inputs, {"axis": axis, "mode": mode})
    draw = Draw("scatter_along_axis")
    for number, mode in enumerate(modes):
        axis = number % 2
        places = np.array([[3, 0, 1], [1, 2, 0]] if axis == 0 else [[3, 0], [1, 2], [2, 3]], np.int32)
        inputs = {"data": draw.normal(*((4, 3) if axis == 0 else (3, 4))), "indices": places, "updates": draw.uniform(0.5, 2, *places.shape)}
        yield Case("scatter_along_axis", inputs, {"axis": axis, "mode": mode})
    draw = Draw("scatter_nd")
    for number, mode in enumerate(modes):
        places = (np.array([[1], [3]], np.int32), np.array([[0, 1], [2, 2], [3, 0]], np.int32))[number % 2]
        updates = draw.uniform(0.5, 2, *((2, 3) if number % 2 == 0 else (3,)))
        yield Case("scatter_nd", {"data": draw.normal(4, 3), "indices": places, "updates": updates}, {"mode": mode})


def image_resizing() -> Iterator[Case]:
    modes = ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS")
    draw = Draw("resize_bilinear")
    for number, mode in enumerate(modes):
        for target in ((5, 7), (2, 3)):
            options = {"target_size_height": target[0], "target_size_width": target[1], "sampling_mode": mode}
            yield Case("resize_bilinear", {"x": draw.normal(1, 1 + number % 2, 3, 4)}, options)
    draw = Draw("resize")
    for mode in modes:
        options = {"shape": np.array([1, 5, 7], np.int32), "resized_dims": np.uint32(2), "sampling_mode": mode, "interpolation_mode": "LINEAR"}
        yield Case("resize", {"x": draw.normal(1, 1, 3, 4)}, options, "iOS17")
    options = {"shape": np.array([6, 0], np.int32), "resized_dims": np.uint32(2), "interpolation_mode": "NEAREST_NEIGHBOR"}
    yield Case("resize", {"x": draw.normal(1, 2, 3, 4)}, options, "iOS17")
    for mode in modes:
        options = {"shape": np.array([5, 3], np.int32), "resized_dims": np.uint32(2), "sampling_mode": mode, "interpolation_mode": "NEAREST_NEIGHBOR"}
        yield Case("resize", {"x": draw.normal(1, 3, 4) if mode != "DEFAULT" else draw.integers(-9, 9, 1, 3, 4)}, options, "iOS17")
    for dims, mode in ((1, "OFFSET_CORNERS"), (3, "DEFAULT")):
        options = {"shape": np.array([3, 5, 2], np.int32), "resized_dims": np.uint32(dims), "sampling_mode": mode}
        yield Case("resize", {"x": draw.normal(2, 2, 3, 4)}, options, "iOS17")
    draw = Draw("upsample_bilinear")
    for (height, width), aligned in product(((2, 2), (3, 1)), (True, False)):
        options = {"scale_factor_height": height, "scale_factor_width": width, "align_corners": aligned}
        yield Case("upsample_bilinear", {"x": draw.normal(1, 2, 3, 4)}, options)
    draw = Draw("upsample_nearest_neighbor")
    for shape, height, width in (((1, 2, 3, 4), 2, 2), ((1, 1, 2, 3), 3, 1), ((2, 2, 2), 1, 2), ((1, 2, 1, 3), 2, 3)):
        yield Case("upsample_nearest_neighbor", {"x": draw.normal(*shape)}, {"scale_factor_height": height, "scale_factor_width": width})
    draw = Draw("resize_nearest_neighbor")
    for shape, height, width in (((1, 2, 3, 4), 6, 8), ((1, 1, 2, 3), 6, 3), ((2, 2, 2), 2, 4), ((1, 2, 1, 3), 2, 9)):
        yield Case("resize_nearest_neighbor", {"x": draw.normal(*shape)}, {"target_size_height": height, "target_size_width": width})
    draw = Draw("crop")
    for shape, rows, columns in (((1, 2, 5, 6), [1, 2], [0, 3]), ((2, 4, 4), [0, 0], [1, 1]), ((1, 1, 3, 5), [1, 1], [2, 2]), ((2, 1, 6, 4), [2, 0], [0, 1])):
        yield Case("crop", {"x": draw.normal(*shape)}, {"crop_height": rows, "crop_width": columns})
    draw = Draw("crop_resize")
    corners = np.array([[1, 1, 3, 4], [0, 2, 2, 3]], np.float32)
    for box_mode, mode, height, width in (("CORNERS_HEIGHT_FIRST", "ALIGN_CORNERS", 3, 2), ("CORNERS_HEIGHT_FIRST", "STRICT_ALIGN_CORNERS", 2, 5), ("CORNERS_WIDTH_FIRST", "ALIGN_CORNERS", 1, 1), ("CENTER_SIZE_HEIGHT_FIRST", "ALIGN_CORNERS", 2, 2), ("CENTER_SIZE_WIDTH_FIRST", "ALIGN_CORNERS", 3, 3), ("CORNERS_HEIGHT_FIRST", "OFFSET_CORNERS", 2, 1)):
        boxes = np.array([[2, 2, 2, 2], [2, 3, 2, 1]], np.float32) if box_mode.startswith("CENTER") else corners[:, [1, 0, 3, 2]] if "WIDTH" in box_mode else corners
        options = {"target_height": height, "target_width": width, "box_coordinate_mode": box_mode, "sampling_mode": mode}
        yield Case("crop_resize", {"x": draw.normal(1, 2, 5, 6), "roi": boxes.reshape(2, 1, 4, 1, 1)}, options)
    options = {"target_height": 2, "target_width": 3, "sampling_mode": "ALIGN_CORNERS", "normalized_coordinates": True}
    indexed = np.array([[0, 0.25, 0.2, 0.75, 0.8], [0, 0, 0, 1, 1]], np.float32)
    yield Case("crop_resize", {"x": draw.normal(1, 2, 5, 6), "roi": indexed.reshape(2, 1, 5, 1, 1)}, options)
    inputs = {"x": draw.normal(2, 2, 5, 6), "boxes": indexed[:, 1:], "box_indices": np.array([1, 0], np.int32)}
    yield Case("crop_resize", inputs, options, "iOS17")
    scaled = {"target_height": 2, "target_width": 2, "sampling_mode": "ALIGN_CORNERS", "spatial_scale": np.float32(0.5)}
    yield Case("crop_resize", {"x": draw.normal(1, 2, 5, 6), "boxes": 2 * corners, "box_indices": np.array([0, 0], np.int32)}, scaled, "iOS17")
    fine = np.array([[0.5, 0, 2.75, 5], [1, 2, 1.5, 2]], np.float32)
    for mode, height, width in (("DEFAULT", 2, 3), ("DEFAULT", 1, 1), ("OFFSET_CORNERS", 3, 2), ("UNALIGN_CORNERS", 4, 2), ("STRICT_ALIGN_CORNERS", 1, 2)):
        options = {"target_height": height, "target_width": width, "sampling_mode": mode}
        yield Case("crop_resize", {"x": draw.normal(1, 2, 5, 6), "roi": fine.reshape(2, 1, 4, 1, 1)}, options)
    for boxes in (fine, np.array([[0, 1, 4, 5], [2, 2, 3, 2]], np.uint16)):
        yield Case("crop_resize", {"x": draw.normal(2, 1, 5, 6), "boxes": boxes}, {"target_height": 3, "target_width": 4}, "iOS17")
    draw = Draw("resample")
    for sampling, padding, coordinates, aligned in (
        ("bilinear", "constant", "unnormalized", True), ("bilinear", "border", "normalized_minus_one_to_one", True),
        ("bilinear", "border", "normalized_minus_one_to_one", False), ("bilinear", "reflection", "unnormalized", True),
        ("bilinear", "symmetric", "normalized_minus_one_to_one", False), ("nearest", "constant", "unnormalized", True),
        ("nearest", "border", "normalized_zero_to_one", True),
    ):  # fmt: skip
        low, high = {"unnormalized": (-1.4, 5.4), "normalized_minus_one_to_one": (-1.3, 1.3), "normalized_zero_to_one": (-0.2, 1.2)}[coordinates]
        options = {"sampling_mode": sampling, "padding_mode": padding, "padding_value": np.float32(0.5), "coordinates_mode": coordinates, "align_corners": aligned}
        yield Case("resample", {"x": draw.normal(1, 2, 4, 5), "coordinates": draw.uniform(low, high, 1, 3, 4, 2)}, options)
    draw = Draw("affine")
    fixed = {"sampling_mode": "bilinear", "padding_mode": "constant", "padding_value": np.float32(0), "coordinates_mode": "normalized_minus_one_to_one", "align_corners": True}
    for matrix, height, width in (([1, 0, 0, 0, 1, 0], 4, 5), ([0.5, 0, 0.1, 0, 0.7, -0.2], 3, 6), ([0.8, -0.6, 0, 0.6, 0.8, 0], 4, 4), ([1.3, 0.2, -0.3, -0.1, 0.9, 0.4], 5, 3)):
        inputs = {"x": draw.normal(1, 2, 4, 5), "transform_matrix": np.array([matrix], np.float32)}
        yield Case("affine", inputs, {"output_height": height, "output_width": width, **fixed})


def recurrent() -> Iterator[Case]:
    steps, batch, features, size = 4, 1, 3, 2

    def layer(draw: Draw, gates: int, suffix: str = "") -> dict[str, Array]:
        sizes = {"weight_ih": (gates * size, features), "weight_hh": (gates * size, size), "bias": (gates * size,)}
        return {f"{name}{suffix}": draw.normal(*shape) for name, shape in sizes.items()}

    for op, gates in (("rnn", 1), ("gru", 3)):
        draw = Draw(op)
        for direction, sequence, outer in product(("forward", "reverse"), (True, False), ("tanh", "sigmoid")):
            options = {"direction": direction, "output_sequence": sequence, "activation": outer, **layer(draw, gates)}
            yield Case(op, {"x": draw.normal(steps, batch, features), "initial_h": draw.normal(batch, size)}, options)
    draw = Draw("lstm")
    for direction, sequence, extra in (
        ("forward", True, {}), ("forward", False, {}), ("reverse", True, {}), ("reverse", False, {}), ("bidirectional", True, {}), ("bidirectional", False, {}),
        ("forward", True, {"peephole": draw.normal(3 * size)}), ("forward", True, {"clip": np.float32(0.4)}),
        ("forward", True, {"recurrent_activation": "hard_sigmoid", "cell_activation": "relu", "activation": "linear"}),
    ):  # fmt: skip
        both = direction == "bidirectional"
        options = {"direction": direction, "output_sequence": sequence, **extra, **layer(draw, 4), **(layer(draw, 4, "_back") if both else {})}
        states = {name: draw.normal(2, size * (2 if both else 1)) for name in ("initial_h", "initial_c")}
        yield Case("lstm", {"x": draw.normal(steps, 2, features), **states}, options)


def control_flow() -> Iterator[Case]:
    draw = Draw("select")
    for cond, left, right in (((4,), (4,), (4,)), ((2, 3), (2, 3), (2, 3)), ((2, 1), (2, 3), (2, 3)), ((1, 2, 3), (1, 2, 3), (1, 2, 3))):
        yield Case("select", {"cond": draw.bools(*cond), "a": draw.normal(*left), "b": draw.normal(*right)})
    draw = Draw("cond")

    def branch(x: Any) -> Any:
        positive = mb.squeeze(x=mb.greater(x=mb.reduce_sum(x=x, axes=[0], keep_dims=True), y=np.float32(0)))
        return mb.cond(pred=positive, _true_fn=lambda: mb.mul(x=x, y=np.float32(2)), _false_fn=lambda: mb.sub(x=x, y=np.float32(10)))

    for sign in (1, -1):
        yield Case("cond", {"x": sign * draw.uniform(0, 1, 4)}, build=branch, expected=lambda x: 2 * x if x.sum() > 0 else x - 10)

    def loop(x: Any) -> Any:
        less = lambda count, _: mb.less(x=count, y=5)  # noqa: E731
        step = lambda count, value: (mb.add(x=count, y=1), mb.add(x=mb.mul(x=value, y=np.float32(0.5)), y=np.float32(1)))  # noqa: E731
        return mb.while_loop(_cond=less, _body=step, loop_vars=(mb.const(val=np.int32(0)), x))[1]

    def looped(x: Array) -> Array:
        for _ in range(5):
            x = 0.5 * x + 1
        return x

    draw = Draw("while_loop")
    for shape in ((3,), (2, 3)):
        yield Case("while_loop", {"x": draw.normal(*shape)}, build=loop, expected=looped)

    def listed(x: Any) -> Any:
        items = mb.make_list(init_length=3, elem_shape=(2,), dynamic_length=False)
        items = mb.list_scatter(ls=items, indices=[0, 1, 2], value=x)
        items = mb.list_write(ls=items, index=1, value=np.array([9, -9], np.float32))
        return mb.add(x=mb.list_gather(ls=items, indices=[2, 1, 0]), y=mb.list_read(ls=items, index=0))

    def listed_reference(x: Array) -> Array:
        x = x.copy()
        x[1] = [9, -9]
        return x[::-1] + x[0]

    draw = Draw("make_list")
    for _ in range(2):
        yield Case("make_list", {"x": draw.normal(3, 2)}, build=listed, expected=listed_reference)
    yield from blocks()
    yield from lists()


def as_scalar(x: Any) -> Any:
    """Of a tensor of one element."""
    return mb.squeeze(x=x, axes=[0])


def as_list(x: Any) -> Any:
    """Of a scalar."""
    return mb.expand_dims(x=x, axes=[0])


def blocks() -> Iterator[Case]:
    """Blocks inside blocks, what they capture, and loops whose tensors change their shape."""
    one = np.float32(1)

    def nested(n: Any, x: Any) -> Any:
        """Two levels; one branch only passes on, one gives a constant, and each result leaves twice."""
        count = as_scalar(n)
        double = mb.mul(x=x, y=np.float32(2))

        def positive() -> Any:
            small = lambda: (mb.add(x=double, y=x), mb.identity(x=double))  # noqa: E731
            large = lambda: (mb.identity(x=x), mb.const(val=np.full((2, 3), 7, np.float32)))  # noqa: E731
            return mb.cond(pred=mb.less(x=count, y=5), _true_fn=small, _false_fn=large)

        def negative() -> Any:
            out = mb.sub(x=double, y=mb.cast(x=count, dtype="fp32"))
            return out, mb.exp(x=out)

        return mb.cond(pred=mb.greater(x=count, y=0), _true_fn=positive, _false_fn=negative)

    def nested_reference(n: Array, x: Array) -> tuple[Array, Array]:
        if n[0] > 0:
            return (3 * x, 2 * x) if n[0] < 5 else (x, np.full((2, 3), 7, np.float32))
        return 2 * x - n[0], np.exp(2 * x - n[0])

    draw = Draw("cond nested")
    for n in (3, 9, -1):
        yield Case("cond", {"n": np.array([n], np.int32), "x": draw.normal(2, 3)}, build=nested, expected=nested_reference)

    def power(n: Any, x: Any) -> Any:
        """`x` to the `n`, which may be 0: `x` is captured, not carried."""
        less = lambda i, _: mb.less(x=i, y=as_scalar(n))  # noqa: E731
        step = lambda i, y: (mb.add(x=i, y=1), mb.matmul(x=y, y=x))  # noqa: E731
        identity = mb.const(val=np.eye(3, dtype=np.float32))
        count, product = mb.while_loop(_cond=less, _body=step, loop_vars=(mb.const(val=0), identity))
        return as_list(count), product

    def power_reference(n: Array, x: Array) -> tuple[Array, Array]:
        return n, np.linalg.matrix_power(x, int(n[0]))

    draw = Draw("while_loop power")
    for n in (0, 1, 6):
        yield Case("while_loop", {"n": np.array([n], np.int32), "x": draw.normal(3, 3)}, build=power, expected=power_reference)

    def root(x: Any) -> Any:
        """Heron's method until it stands still; the number of steps depends on the data. Three variables, one of them swapped."""

        def moving(old: Any, new: Any, _: Any) -> Any:
            gap = mb.reduce_max(x=mb.abs(x=mb.sub(x=old, y=new)), axes=[0], keep_dims=False)
            return mb.greater(x=gap, y=np.float32(1e-3))

        def step(_: Any, new: Any, count: Any) -> Any:
            better = mb.mul(x=mb.add(x=new, y=mb.real_div(x=x, y=new)), y=np.float32(0.5))
            return mb.identity(x=new), better, mb.add(x=count, y=1)

        start = (mb.mul(x=x, y=np.float32(0)), mb.add(x=x, y=one), mb.const(val=0))
        return mb.while_loop(_cond=moving, _body=step, loop_vars=start)[1]

    draw = Draw("while_loop root")
    for low, high in ((1, 2), (50, 900)):
        yield Case("while_loop", {"x": draw.uniform(low, high, 4)}, build=root, expected=lambda x: np.sqrt(x))

    def grow(n: Any, x: Any) -> Any:
        """The variable gets longer with every step, so that its declared shape is not known."""
        less = lambda i, _: mb.less(x=i, y=as_scalar(n))  # noqa: E731

        def step(i: Any, y: Any) -> Any:
            row = mb.add(x=x, y=mb.cast(x=i, dtype="fp32"))
            return mb.add(x=i, y=1), mb.concat(values=[y, row], axis=0)

        return mb.while_loop(_cond=less, _body=step, loop_vars=(mb.const(val=0), x))[1]

    def grow_reference(n: Array, x: Array) -> Array:
        return np.concatenate([x, *(x + i for i in range(int(n[0])))])

    draw = Draw("while_loop grow")
    for n in (0, 1, 4):
        yield Case("while_loop", {"n": np.array([n], np.int32), "x": draw.normal(2, 3)}, build=grow, expected=grow_reference)

    def triangle(n: Any, x: Any) -> Any:
        """A loop in a loop with a condition inside: odd steps add, even ones multiply; the inner reads the outer's count."""
        rows = as_scalar(n)

        def inner(i: Any, y: Any) -> Any:
            def step(j: Any, z: Any) -> Any:
                odd = mb.equal(x=mb.mod(x=mb.add(x=i, y=j), y=2), y=1)
                add = lambda: mb.add(x=z, y=x)  # noqa: E731
                scale = lambda: mb.mul(x=z, y=np.float32(0.5))  # noqa: E731
                return mb.add(x=j, y=1), mb.cond(pred=odd, _true_fn=add, _false_fn=scale)

            less = lambda j, _: mb.less_equal(x=j, y=i)  # noqa: E731
            return mb.add(x=i, y=1), mb.while_loop(_cond=less, _body=step, loop_vars=(mb.const(val=0), y))[1]

        less = lambda i, _: mb.less(x=i, y=rows)  # noqa: E731
        return mb.while_loop(_cond=less, _body=inner, loop_vars=(mb.const(val=0), x))[1]

    def triangle_reference(n: Array, x: Array) -> Array:
        y = x
        for i in range(int(n[0])):
            for j in range(i + 1):
                y = y + x if (i + j) % 2 else y * 0.5
        return y

    draw = Draw("while_loop triangle")
    for n in (1, 5):
        yield Case("while_loop", {"n": np.array([n], np.int32), "x": draw.normal(3)}, build=triangle, expected=triangle_reference)


def lists() -> Iterator[Case]:
    """Lists that grow, of each type, with elements of rank 0 to 2, alone and in loops."""

    def collect(n: Any, x: Any) -> Any:
        """A list that a loop fills beyond its first length."""
        less = lambda i, _: mb.less(x=i, y=as_scalar(n))  # noqa: E731

        def step(i: Any, items: Any) -> Any:
            value = mb.mul(x=x, y=mb.cast(x=i, dtype="fp32"))
            return mb.add(x=i, y=1), mb.list_write(ls=items, index=i, value=value)

        items = mb.make_list(init_length=1, elem_shape=(2, 3))
        _, items = mb.while_loop(_cond=less, _body=step, loop_vars=(mb.const(val=0), items))
        return as_list(mb.list_length(ls=items)), mb.list_gather(ls=items, indices=[2, 0, 2, 1])

    def collect_reference(n: Array, x: Array) -> tuple[Array, Array]:
        return n, np.stack([x * 2, x * 0, x * 2, x])

    draw = Draw("list_write collect")
    for n in (3, 8):
        yield Case("list_write", {"n": np.array([n], np.int32), "x": draw.normal(2, 3)}, build=collect, expected=collect_reference)

    def unseen(i: Any, x: Any) -> Any:
        """An element's shape that only the first write tells; the gap before it is zeros."""
        items = mb.make_list(init_length=0, elem_shape=("rows", 2))
        items = mb.list_write(ls=items, index=as_scalar(i), value=x)
        return as_list(mb.list_length(ls=items)), mb.list_read(ls=items, index=as_scalar(i)), mb.list_read(ls=items, index=0)

    def unseen_reference(i: Array, x: Array) -> tuple[Array, Array, Array]:
        return i + 1, x, x if i[0] == 0 else 0 * x

    draw = Draw("list_read unseen")
    for i in (0, 2):
        yield Case("list_read", {"i": np.array([i], np.int32), "x": draw.normal(3, 2)}, build=unseen, expected=unseen_reference)

    def typed(kind: str) -> Callable[..., Any]:
        def build(i: Any, x: Any) -> Any:
            items = mb.make_list(init_length=as_scalar(i), elem_shape=(3,), dtype=kind)
            length = mb.list_length(ls=items)
            items = mb.list_scatter(ls=items, indices=[1, 4], value=mb.cast(x=x, dtype=kind))
            packed = mb.list_gather(ls=items, indices=[0, 1, 2, 3, 4])
            return as_list(length), as_list(mb.list_length(ls=items)), mb.cast(x=packed, dtype="int32"), mb.cast(x=mb.list_read(ls=items, index=4), dtype="int32")

        return build

    def typed_reference(i: Array, x: Array) -> tuple[Array, ...]:
        packed = np.zeros((5, 3), np.int32)
        packed[[1, 4]] = x
        return i, np.maximum(i, 5), packed, x[1]

    draw = Draw("list_scatter typed")
    for kind, low, high in (("fp32", -9, 9), ("fp16", -9, 9), ("int32", -(2**30), 2**30), ("bool", 0, 2)):
        for i in (0, 7):
            inputs = {"i": np.array([i], np.int32), "x": draw.integers(low, high, 2, 3)}
            yield Case("list_scatter", inputs, {"dtype": kind}, build=lambda i, x, dtype=kind, build=typed(kind): build(i, x), expected=lambda i, x, dtype: typed_reference(i, x))

    def places(at: Any, x: Any) -> Any:
        items = mb.make_list(init_length=4, elem_shape=(2,), dynamic_length=False)
        items = mb.list_scatter(ls=items, indices=[3, 1, 0, 2], value=x)
        return mb.list_gather(ls=items, indices=at)

    draw = Draw("list_gather places")
    for count in (1, 6):
        inputs = {"at": draw.integers(0, 4, count), "x": draw.normal(4, 2)}
        yield Case("list_gather", inputs, build=places, expected=lambda at, x: x[np.argsort([3, 1, 0, 2])][at])

    def length(n: Any, x: Any) -> Any:
        """The list is written past its end only where the condition says so."""
        items = mb.make_list(init_length=2, elem_shape=(4,))
        longer = lambda: mb.list_write(ls=items, index=5, value=x)  # noqa: E731
        same = lambda: mb.list_write(ls=items, index=1, value=x)  # noqa: E731
        items = mb.cond(pred=mb.greater(x=as_scalar(n), y=0), _true_fn=longer, _false_fn=same)
        return as_list(mb.list_length(ls=items)), mb.list_read(ls=items, index=1)

    def scalars(x: Any) -> Any:
        """A list of numbers."""
        items = mb.make_list(init_length=1, elem_shape=())
        items = mb.list_scatter(ls=items, indices=[0, 3, 1, 2], value=x)
        return mb.list_gather(ls=items, indices=[3, 2, 1, 0]), as_list(mb.list_read(ls=items, index=3))

    draw = Draw("make_list scalars")
    yield Case("make_list", {"x": draw.normal(4)}, build=scalars, expected=lambda x: (x[[1, 3, 2, 0]], x[[1]]))

    draw = Draw("list_length")
    for n in (1, -1):
        yield Case("list_length", {"n": np.array([n], np.int32), "x": draw.normal(4)}, build=length, expected=lambda n, x: (np.array([6]), 0 * x) if n[0] > 0 else (np.array([2]), x))


def quantization_ops() -> Iterator[Case]:
    draw = Draw("quantize")
    for kind, options in (("uint8", {"scale": np.float32(0.1), "zero_point": np.uint8(20)}), ("int8", {"scale": np.float32(0.05), "zero_point": np.int8(-4)}), ("int8", {"scale": draw.uniform(0.02, 0.1, 3), "zero_point": np.array([0, 3, -5], np.int8), "axis": 0}), ("uint8", {"scale": np.float32(0.02)})):
        yield Case("quantize", {"input": 3 * draw.normal(3, 5)}, {"output_dtype": kind, **options}, "iOS17")
    draw = Draw("dequantize")
    for kind, options in ((np.uint8, {"scale": np.float32(0.1), "zero_point": np.uint8(20)}), (np.int8, {"scale": np.float32(0.05), "zero_point": np.int8(-4)}), (np.int8, {"scale": draw.uniform(0.02, 0.1, 3), "zero_point": np.array([0, 3, -5], np.int8), "axis": 0}), (np.uint8, {"scale": np.float32(0.02)})):
        yield Case("dequantize", {"input": draw.integers(0, 120, 3, 5).astype(kind)}, options, "iOS17")


def transformers() -> Iterator[Case]:
    draw = Draw("scaled_dot_product_attention")
    for shape, keys, mask in (((1, 2, 3, 4), 3, None), ((1, 2, 3, 4), 5, "float"), ((2, 2, 4), 6, "bool"), ((2, 1, 2, 8), 4, None)):
        inputs = {"query": draw.normal(*shape), "key": draw.normal(*shape[:-2], keys, shape[-1]), "value": draw.normal(*shape[:-2], keys, shape[-1])}
        if mask:
            seen = draw.bools(*shape[:-1], keys)
            seen[..., 0] = True
            inputs["attn_mask"] = seen if mask == "bool" else draw.normal(*shape[:-1], keys)
        yield Case("scaled_dot_product_attention", inputs, {}, "iOS18")


FAMILIES: tuple[Callable[[], Iterator[Case]], ...] = (
    activation, control_flow, conv, elementwise_binary, elementwise_unary, image_resizing, linear, normalization, pool,
    quantization_ops, recurrent, reduction, scatter_gather, tensor_operation, tensor_transformation, transformers,
)  # fmt: skip
