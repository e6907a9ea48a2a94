"""What MIL operations mean, in plain NumPy, for those that coremltools cannot evaluate itself.

Each function is named after its operation and takes the operation's parameters by their names. The text followed is
the operations' documentation in coremltools 9.0; where that is silent, what coremltools' own tests expect of Core ML.
Arithmetic is float64; `fixtures.py` rounds the results to the type that the operation declares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Ints = Sequence[int]


# Convolution and pooling

def _pads(pad_type: str, pad: Ints | None, sizes: Ints, spans: Ints, strides: Ints) -> list[tuple[int, int]]:
    """Before and after, per spatial dimension; `spans` are the sizes of the dilated kernel."""
    if pad_type == "valid":
        return [(0, 0)] * len(sizes)
    if pad_type == "custom":
        assert pad is not None
        return [(pad[2 * i], pad[2 * i + 1]) for i in range(len(sizes))]
    totals = [max((-(-size // stride) - 1) * stride + span - size, 0) for size, span, stride in zip(sizes, spans, strides, strict=True)]
    lower = pad_type == "same_lower"
    return [(total - total // 2, total // 2) if lower else (total // 2, total - total // 2) for total in totals]


def conv(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Array:
    kernel = weight.shape[2:]
    strides, dilations = strides or [1] * len(kernel), dilations or [1] * len(kernel)
    spans = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    pads = _pads(pad_type, pad, x.shape[2:], spans, strides)
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *pads])
    sizes = [(padded.shape[2 + i] - spans[i]) // strides[i] + 1 for i in range(len(kernel))]
    split = padded.reshape(len(x), groups, -1, *padded.shape[2:])
    filters = weight.astype(np.float64).reshape(groups, -1, *weight.shape[1:])
    out: Any = 0
    for place in np.ndindex(*kernel):
        starts = [at * dilation for at, dilation in zip(place, dilations, strict=True)]
        window = tuple(slice(start, start + (size - 1) * step + 1, step) for start, size, step in zip(starts, sizes, strides, strict=True))
        out = out + np.einsum("ngc...,goc->ngo...", split[(..., *window)], filters[(..., *place)])
    out = out.reshape(len(x), -1, *sizes)
    return out if bias is None else out + bias.reshape(-1, *[1] * len(kernel))


def conv_quantized(x: Array, weight: Array, quantization_type: str, quant_scale: Array, quant_bias: Array, nbits: int = 8, **options: Any) -> Array:
    assert quantization_type == "linear" and weight.max() < 2**nbits
    scale, bias = (part.reshape(-1, *[1] * (weight.ndim - 1)) for part in (quant_scale, quant_bias))
    return conv(x, weight * scale.astype(np.float64) + bias, **options)


def conv_transpose(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
    output_shape: Ints | None = None,
) -> Array:
    kernel, n = weight.shape[2:], len(x)
    strides, dilations = strides or [1] * len(kernel), dilations or [1] * len(kernel)
    spans = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    full = [(size - 1) * stride + span for size, stride, span in zip(x.shape[2:], strides, spans, strict=True)]
    split = x.astype(np.float64).reshape(n, groups, -1, *x.shape[2:])
    filters = weight.astype(np.float64).reshape(groups, -1, *weight.shape[1:])
    out = np.zeros((n, groups, weight.shape[1], *full))
    for place in np.ndindex(*kernel):
        window = tuple(
            slice(at * dilation, at * dilation + (size - 1) * stride + 1, stride)
            for at, dilation, size, stride in zip(place, dilations, x.shape[2:], strides, strict=True)
        )
        out[(..., *window)] += np.einsum("ngc...,gco->ngo...", split, filters[(..., *place)])
    out = out.reshape(n, -1, *full)
    if pad_type == "same":
        cuts = [(span - stride) // 2 for span, stride in zip(spans, strides, strict=True)]
        ends = [cut + size * stride for cut, size, stride in zip(cuts, x.shape[2:], strides, strict=True)]
    elif pad_type == "custom":
        assert pad is not None
        cuts = list(pad[::2])
        ends = [size - after for size, after in zip(full, pad[1::2], strict=True)]
    else:
        cuts, ends = [0] * len(full), full
    if output_shape is not None:
        ends = [cut + size for cut, size in zip(cuts, output_shape[2:], strict=True)]
    out = out[(..., *(slice(cut, end) for cut, end in zip(cuts, ends, strict=True)))]
    return out if bias is None else out + bias.reshape(-1, *[1] * len(kernel))


def _pool(x: Array, outside: float, sizes: Ints, strides: Ints | None, pad_type: str, pad: Ints | None, ceil_mode: bool) -> Array:
    """Every window, flat, in a last dimension of its own."""
    strides = strides or [1] * len(sizes)
    pads = _pads(pad_type, pad, x.shape[2:], sizes, strides)
    if ceil_mode:
        for i, (before, after) in enumerate(pads):
            room = x.shape[2 + i] + before + after - sizes[i]
            steps = -(-room // strides[i])
            if steps * strides[i] >= x.shape[2 + i] + before and before + after > 0:
                steps -= 1
            pads[i] = (before, after + max(steps * strides[i] - room, 0))
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *pads], constant_values=outside)
    windows = np.lib.stride_tricks.sliding_window_view(padded, sizes, axis=tuple(range(2, x.ndim)))
    windows = windows[(slice(None), slice(None), *(slice(None, None, step) for step in strides))]
    return windows.reshape(*windows.shape[: x.ndim], -1)


def max_pool(
    x: Array, kernel_sizes: Ints, pad_type: str, strides: Ints | None = None, pad: Ints | None = None, ceil_mode: bool = False
) -> Array:
    return _pool(x, -np.inf, kernel_sizes, strides, pad_type, pad, ceil_mode).max(-1)


def avg_pool(
    x: Array,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Array:
    windows = _pool(x, np.nan, kernel_sizes, strides, pad_type, pad, ceil_mode)
    return np.nanmean(windows, -1) if exclude_padding_from_average else np.nan_to_num(windows).mean(-1)


def l2_pool(x: Array, kernel_sizes: Ints, pad_type: str, strides: Ints | None = None, pad: Ints | None = None) -> Array:
    return np.sqrt((_pool(x, 0, kernel_sizes, strides, pad_type, pad, False) ** 2).sum(-1))


# Normalisation

def _per_channel(x: Array, value: Array | None, default: float) -> Array:
    return np.full(1, default) if value is None else value.astype(np.float64).reshape(-1, *[1] * (x.ndim - 2))


def batch_norm(
    x: Array, mean: Array, variance: Array, gamma: Array | None = None, beta: Array | None = None, epsilon: float = 1e-5
) -> Array:
    scaled = (x - _per_channel(x, mean, 0)) / np.sqrt(_per_channel(x, variance, 1) + epsilon)
    return scaled * _per_channel(x, gamma, 1) + _per_channel(x, beta, 0)


def instance_norm(x: Array, gamma: Array | None = None, beta: Array | None = None, epsilon: float = 1e-5) -> Array:
    x = x.astype(np.float64)
    axes = tuple(range(2, x.ndim))
    scaled = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)
    return scaled * _per_channel(x, gamma, 1) + _per_channel(x, beta, 0)


def local_response_norm(x: Array, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Array:
    x = x.astype(np.float64)
    sums = np.zeros_like(x)
    for channel in range(x.shape[1]):
        near = x[:, max(channel - (size - 1) // 2, 0) : channel + size // 2 + 1]
        sums[:, channel] = (near**2).sum(1)
    return x / (k + alpha / size * sums) ** beta


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x.astype(np.float64)))


# Images

def _grid(mode: str, size: float, target: int) -> Array:
    """Where along an edge of `size` pixels each of the `target` samples lies; the table in `resize_bilinear`. A box may be of part of a pixel."""
    i = np.arange(target)
    if mode == "ALIGN_CORNERS" and target == 1:
        points = np.array([(size - 1) / 2])
    elif mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        points = i * (size - 1) / max(target - 1, 1)
    elif mode == "DEFAULT":
        points = i * size / target
    elif mode == "OFFSET_CORNERS":
        points = (0.5 + i) * max(1, size - 1) / target
    else:
        points = (i + 0.5) * size / target - 0.5
    return np.clip(points, min(0, size - 1), max(0, size - 1))


def _sample(x: Array, axis: int, points: Array) -> Array:
    """Linear interpolation along one axis."""
    low = np.floor(points).astype(int)
    high = np.minimum(low + 1, x.shape[axis] - 1)
    share = (points - low).reshape(-1, *[1] * (-axis - 1))
    return np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share


def resize_bilinear(x: Array, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT") -> Array:
    rows = _sample(x.astype(np.float64), -2, _grid(sampling_mode, x.shape[-2], target_size_height))
    return _sample(rows, -1, _grid(sampling_mode, x.shape[-1], target_size_width))


def upsample_bilinear(x: Array, scale_factor_height: float = 1, scale_factor_width: float = 1, align_corners: bool = True) -> Array:
    height, width = int(x.shape[-2] * scale_factor_height), int(x.shape[-1] * scale_factor_width)
    return resize_bilinear(x, height, width, "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS")


def upsample_nearest_neighbor(x: Array, scale_factor_height: int = 1, scale_factor_width: int = 1) -> Array:
    return x.repeat(scale_factor_height, -2).repeat(scale_factor_width, -1)


def resize_nearest_neighbor(x: Array, target_size_height: int, target_size_width: int) -> Array:
    return x.repeat(target_size_height // x.shape[-2], -2).repeat(target_size_width // x.shape[-1], -1)


def resize(
    x: Array, shape: Array, resized_dims: int, interpolation_mode: str = "LINEAR", sampling_mode: str = "DEFAULT"
) -> Array:
    out = x.astype(np.float64)
    for axis in range(-int(resized_dims), 0):
        target = int(shape[axis]) or x.shape[axis]
        if interpolation_mode == "LINEAR":
            out = _sample(out, axis, _grid(sampling_mode, x.shape[axis], target))
        else:
            mode = "UNALIGN_CORNERS" if sampling_mode == "DEFAULT" else sampling_mode
            out = np.take(out, np.floor(_grid(mode, x.shape[axis], target) + 0.5).astype(int), axis)
    return out


def crop(x: Array, crop_height: Ints, crop_width: Ints) -> Array:
    return x[..., crop_height[0] : x.shape[-2] - crop_height[1], crop_width[0] : x.shape[-1] - crop_width[1]]


def _crop_box(image: Array, box: Array, target: tuple[int, int], normalized: bool, scale: float, order: str, mode: str) -> Array:
    """One box out of [C, H, W]: sampled as an image is whose pixels lie from its start to its end."""
    corners = np.asarray(box, np.float64).reshape(4)
    if order.endswith("WIDTH_FIRST"):
        corners = corners[[1, 0, 3, 2]]
    if order.startswith("CENTER"):
        corners = np.concatenate([corners[:2] - corners[2:] / 2, corners[:2] + corners[2:] / 2])
    for axis, size in ((-2, target[0]), (-1, target[1])):
        extent = image.shape[axis] - 1
        start, end = (corners[0], corners[2]) if axis == -2 else (corners[1], corners[3])
        start, end = (edge * scale * (extent if normalized else 1) for edge in (start, end))
        points = start + _grid(mode, end - start + 1, size)
        image = _sample(image, axis, points)
    return image


def crop_resize(
    x: Array,
    roi: Array | None = None,
    boxes: Array | None = None,
    box_indices: Array | None = None,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
) -> Array:
    x = x.astype(np.float64)
    rest = ((target_height, target_width), normalized_coordinates, spatial_scale, box_coordinate_mode, sampling_mode)
    if boxes is not None:
        indices = range(len(boxes)) if box_indices is None else box_indices
        return np.stack([_crop_box(x[index], box, *rest) for index, box in zip(indices, boxes, strict=True)])
    assert roi is not None
    if roi.shape[2] == 5:
        return np.stack([_crop_box(x[int(row[0])], row[1:], *rest)[None] for row in roi.reshape(-1, 5)])
    return np.stack([np.stack([_crop_box(image, row, *rest) for image in x]) for row in roi.reshape(-1, 4)])


def _fetch(image: Array, columns: Array, rows: Array, padding: str, value: float) -> Array:
    """Pixels of [C, H, W] at integer places, outside by the rule of `padding`."""

    def inside(places: Array, size: int) -> Array:
        if padding == "reflection":
            places = np.abs(places) % max(2 * (size - 1), 1)
            return np.minimum(places, 2 * (size - 1) - places)
        if padding == "symmetric":
            places = places % (2 * size)
            return np.minimum(places, 2 * size - 1 - places)
        return np.clip(places, 0, size - 1)

    height, width = image.shape[-2:]
    found = image[:, inside(rows, height), inside(columns, width)]
    if padding == "constant":
        found = np.where((rows >= 0) & (rows < height) & (columns >= 0) & (columns < width), found, value)
    return found


def resample(
    x: Array,
    coordinates: Array,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Array:
    out = []
    for image, places in zip(x.astype(np.float64), coordinates.astype(np.float64), strict=True):
        if coordinates_mode != "unnormalized":
            share = (places + 1) / 2 if coordinates_mode == "normalized_minus_one_to_one" else places
            sizes = np.array(image.shape[:0:-1])
            places = share * (sizes - 1) if align_corners else share * sizes - 0.5
        columns, rows = places[..., 0], places[..., 1]
        if sampling_mode == "nearest":
            out.append(_fetch(image, np.rint(columns).astype(int), np.rint(rows).astype(int), padding_mode, padding_value))
            continue
        left, top = np.floor(columns).astype(int), np.floor(rows).astype(int)
        total: Any = 0
        for right, below in product((0, 1), repeat=2):
            share = np.abs(1 - right - (columns - left)) * np.abs(1 - below - (rows - top))
            total = total + share * _fetch(image, left + right, top + below, padding_mode, padding_value)
        out.append(total)
    return np.stack(out)


def affine(x: Array, transform_matrix: Array, output_height: int, output_width: int, **modes: Any) -> Array:
    down, across = np.meshgrid(np.linspace(-1, 1, output_height), np.linspace(-1, 1, output_width), indexing="ij")
    grid = np.stack([across, down, np.ones_like(across)], -1)
    matrices = np.broadcast_to(transform_matrix.reshape(-1, 2, 3), (len(x), 2, 3))
    return resample(x, np.einsum("hwk,bck->bhwc", grid, matrices), **modes)


# Moving elements

def depth_to_space(x: Array, block_size: int) -> Array:
    n, c, h, w = x.shape
    blocks = x.reshape(n, block_size, block_size, c // block_size**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    return blocks.reshape(n, -1, h * block_size, w * block_size)


def space_to_depth(x: Array, block_size: int) -> Array:
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // block_size, block_size, w // block_size, block_size).transpose(0, 3, 5, 1, 2, 4)
    return blocks.reshape(n, -1, h // block_size, w // block_size)


def pixel_shuffle(x: Array, upscale_factor: int) -> Array:
    n, c, h, w = x.shape
    f = upscale_factor
    return x.reshape(n, c // f**2, f, f, h, w).transpose(0, 1, 4, 2, 5, 3).reshape(n, -1, h * f, w * f)


def pixel_unshuffle(x: Array, downscale_factor: Any) -> Array:
    n, c, h, w = x.shape
    f = int(downscale_factor)
    return x.reshape(n, c, h // f, f, w // f, f).transpose(0, 1, 3, 5, 2, 4).reshape(n, -1, h // f, w // f)


def space_to_batch(x: Array, block_shape: Array, paddings: Array) -> Array:
    x = np.pad(x, [(0, 0), (0, 0), *(tuple(row) for row in paddings)])
    n, c, h, w = x.shape
    a, b = block_shape
    return x.reshape(n, c, h // a, a, w // b, b).transpose(3, 5, 0, 1, 2, 4).reshape(-1, c, h // a, w // b)


def batch_to_space(x: Array, block_shape: Array, crops: Array) -> Array:
    n, c, h, w = x.shape
    a, b = block_shape
    x = x.reshape(a, b, -1, c, h, w).transpose(2, 3, 4, 0, 5, 1).reshape(-1, c, h * a, w * b)
    return crop(x, crops[0], crops[1])


def sliding_windows(x: Array, axis: int, size: int, stride: int = 1) -> Array:
    axis %= x.ndim
    windows = np.lib.stride_tricks.sliding_window_view(x, size, axis)
    return np.moveaxis(windows.take(range(0, windows.shape[axis], stride), axis), -1, axis + 1)


def reshape_like(x: Array, ref_tensors: list[Array], begins: Ints, ends: Ints, end_masks: Sequence[bool]) -> Array:
    shape: list[int] = []
    for tensor, begin, end, masked in zip(ref_tensors, begins, ends, end_masks, strict=True):
        shape += tensor.shape[begin : None if masked else end]
    return x.reshape(shape)


def one_hot(indices: Array, one_hot_vector_size: int, axis: int = -1, on_value: Any = 1, off_value: Any = 0) -> Array:
    out = np.where(indices[..., None] == np.arange(one_hot_vector_size), on_value, off_value)
    return np.moveaxis(out, -1, axis)


# Scattering and gathering

MODES: dict[str, Callable[[Array, Any, Array], None]] = {
    "update": lambda data, at, value: data.__setitem__(at, value),
    "add": np.add.at,
    "sub": np.subtract.at,
    "mul": np.multiply.at,
    "div": np.divide.at,
    "max": np.maximum.at,
    "min": np.minimum.at,
}


def scatter(data: Array, indices: Array, updates: Array, axis: int = 0, mode: str = "add", **_: Any) -> Array:
    out = np.moveaxis(data.astype(np.float64), axis, 0)
    MODES[mode](out, indices, np.moveaxis(updates, axis, 0))
    return np.moveaxis(out, 0, axis)


def scatter_along_axis(data: Array, indices: Array, updates: Array, axis: int = 0, mode: str = "add", **_: Any) -> Array:
    out = data.astype(np.float64)
    places = list(np.indices(indices.shape, sparse=True))
    places[axis] = indices
    MODES[mode](out, tuple(places), updates)
    return out


def scatter_nd(data: Array, indices: Array, updates: Array, mode: str = "add", **_: Any) -> Array:
    out = data.astype(np.float64)
    MODES[mode](out, tuple(np.moveaxis(indices, -1, 0)), updates)
    return out


def gather_nd(x: Array, indices: Array, batch_dims: int = 0, **_: Any) -> Array:
    batch = x.shape[:batch_dims]
    rows = [x[i][tuple(np.moveaxis(indices[i], -1, 0))] for i in np.ndindex(*batch)]
    return rows[0] if not batch else np.stack(rows).reshape(*batch, *rows[0].shape)


def slice_update(x: Array, update: Array, begin: Ints, end: Ints, stride: Ints | None = None) -> Array:
    out = x.copy()
    out[tuple(slice(a, b, c) for a, b, c in zip(begin, end, stride or [1] * x.ndim, strict=True))] = update
    return out


def dequantize(input: Array, scale: Array, zero_point: Array | None = None, axis: int | None = None) -> Array:
    def along(value: Any) -> Array:
        value = np.asarray(value, np.float64)
        return value if value.ndim == 0 else value.reshape([-1 if i == axis % input.ndim else 1 for i in range(input.ndim)])

    return (input.astype(np.float64) - (0 if zero_point is None else along(zero_point))) * along(scale)


# Recurrent layers: sequences are [steps, batch, features]; "reverse" gives its outputs in the order of processing

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "hard_sigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
}


def rnn(
    x: Array,
    initial_h: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias: Any = 0.0,
    direction: str = "forward",
    output_sequence: bool = False,
    activation: str = "tanh",
) -> tuple[Array, Array]:
    h, outputs = initial_h.astype(np.float64), []
    for step in x if direction == "forward" else x[::-1]:
        h = ACTIVATIONS[activation](step @ weight_ih.T + h @ weight_hh.T + bias)
        outputs.append(h)
    return np.stack(outputs if output_sequence else outputs[-1:]), h


def gru(
    x: Array,
    initial_h: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias: Array | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
) -> tuple[Array, Array]:
    """The reset gate acts on the state before its matrix, as coremltools' test expects (the documentation differs)."""
    inner, outer = ACTIVATIONS[recurrent_activation], ACTIVATIONS[activation]
    h, outputs = initial_h.astype(np.float64), []
    size = h.shape[-1]
    b_r, b_o, b_z = np.split(np.zeros(3 * size) if bias is None else bias, 3)
    (w_r, w_o, w_z), (u_r, u_o, u_z) = np.split(weight_ih, 3), np.split(weight_hh, 3)
    for step in x if direction == "forward" else x[::-1]:
        r = inner(step @ w_r.T + h @ u_r.T + b_r)
        z = inner(step @ w_z.T + h @ u_z.T + b_z)
        h = (1 - z) * outer(step @ w_o.T + (r * h) @ u_o.T + b_o) + z * h
        outputs.append(h)
    return np.stack(outputs if output_sequence else outputs[-1:]), h


def lstm(
    x: Array,
    initial_h: Array,
    initial_c: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias: Array | None = None,
    peephole: Array | None = None,
    weight_ih_back: Array | None = None,
    weight_hh_back: Array | None = None,
    bias_back: Array | None = None,
    peephole_back: Array | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: float = np.inf,
) -> tuple[Array, Array, Array]:
    gate, cell, outer = (ACTIVATIONS[name] for name in (recurrent_activation, cell_activation, activation))

    def run(sequence: Array, h: Array, c: Array, w: Array, u: Array, b: Array | None, p: Array | None) -> tuple[Array, Array, Array]:
        p_i, p_f, p_o = np.split(np.zeros(3 * h.shape[-1]) if p is None else p, 3)
        outputs = []
        for step in sequence:
            i, f, o, z = np.split(step @ w.T + h @ u.T + (0 if b is None else b), 4, -1)
            c = np.clip(gate(f + c * p_f) * c + gate(i + c * p_i) * cell(z), -clip, clip)
            h = gate(o + c * p_o) * outer(c)
            outputs.append(h)
        return np.stack(outputs), h, c

    x, h, c = (value.astype(np.float64) for value in (x, initial_h, initial_c))
    if direction != "bidirectional":
        out, h, c = run(x if direction == "forward" else x[::-1], h, c, weight_ih, weight_hh, bias, peephole)
        return (out if output_sequence else out[-1:]), h, c
    assert weight_ih_back is not None and weight_hh_back is not None
    size = h.shape[-1] // 2
    ahead, ahead_h, ahead_c = run(x, h[:, :size], c[:, :size], weight_ih, weight_hh, bias, peephole)
    back, back_h, back_c = run(x[::-1], h[:, size:], c[:, size:], weight_ih_back, weight_hh_back, bias_back, peephole_back)
    out = np.concatenate([ahead, back[::-1]], -1) if output_sequence else np.concatenate([ahead[-1:], back[-1:]], -1)
    return out, np.concatenate([ahead_h, back_h], -1), np.concatenate([ahead_c, back_c], -1)


# Operations whose evaluation in coremltools 9.0 fails, or is wrong, for some parameters

def concat(values: list[Array], axis: int, interleave: bool = False) -> Array:
    if not interleave:
        return np.concatenate(values, axis)
    shape = list(values[0].shape)
    shape[axis] *= len(values)
    return np.stack(values, axis % len(shape) + 1).reshape(shape)


def cumsum(x: Array, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Array:
    x = np.flip(x, axis) if reverse else x
    out = x.cumsum(axis) - (x if exclusive else 0)
    return np.flip(out, axis) if reverse else out


def band_part(x: Array, lower: int = -1, upper: int = -1) -> Array:
    row, column = np.indices(x.shape[-2:])
    return x * (((lower < 0) | (row - column <= lower)) & ((upper < 0) | (column - row <= upper)))


def prelu(x: Array, alpha: Array) -> Array:
    return np.maximum(x, 0) + np.minimum(x, 0) * alpha.reshape(-1, *[1] * (x.ndim - 2))


def flatten2d(x: Array, axis: int = 1) -> Array:
    return x.reshape(int(np.prod(x.shape[:axis])), -1)


def reshape(x: Array, shape: Ints) -> Array:
    """A 0 stands for the dimension of `x` at the same place, counted from the right, or for 1 where there is none."""
    missing = [1] * max(len(shape) - x.ndim, 0)
    aligned = [*missing, *x.shape[max(x.ndim - len(shape), 0) :]]
    return x.reshape([size or same for size, same in zip(shape, aligned, strict=True)])


def reverse_sequence(x: Array, lengths: Array, seq_axis: int = 0, batch_axis: int = 0) -> Array:
    out = np.moveaxis(x, (batch_axis, seq_axis), (0, 1)).copy()
    for row, length in zip(out, lengths, strict=True):
        row[:length] = row[:length][::-1].copy()
    return np.moveaxis(out, (0, 1), (batch_axis, seq_axis))
