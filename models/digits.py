"""Makes the digits model: a small convolutional network trained on scikit-learn's handwritten digits.

The network is trained in NumPy alone with a fixed seed, then written three times by coremltools, with the same
weights: as a float16 ML program, as a float32 ML program and as a neural network. Beside them lie the held-out
images with their labels and what this script's own float32 forward pass says of them, which is what an engine is
compared with.

    python models/digits.py            # trains (a quarter of a minute) and writes models/digits
    python models/digits.py --check    # remakes every file from the weights that are there and compares

Training again on another kind of processor ends in slightly other weights, because sums round differently; so the
check starts from the weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Weights = dict[str, Array]

SEED = 20240
EPOCHS = 30
BATCH = 64
TEST_SHARE = 0.2
SHAPES = {"conv1": (16, 1, 3, 3), "conv2": (32, 16, 3, 3), "hidden": (48, 512), "logits": (10, 48)}
METADATA = {
    "description": "Recognises a handwritten digit on a square of 8 by 8 pixels, 0 for paper and 1 for ink.",
    "author": "The coreml-bridge authors; trained on the UCI/scikit-learn handwritten digits",
    "version": "1.0",
    "license": "MIT OR Apache-2.0",
}
FEATURES = {
    "image": "One greyscale image, [1, 1, 8, 8], from 0 (paper) to 1 (ink).",
    "logits": "The scores before softmax, [1, 10].",
    "probabilities": "How likely each of the digits 0 to 9 is, [1, 10]; sums to 1.",
}


# Data

def load_digits() -> tuple[Array, NDArray[np.uint8], Array, NDArray[np.uint8]]:
    """Training images, training labels, held-out images, held-out labels; every digit in the same proportion."""
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    digits = datasets.load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    labels = digits.target.astype(np.uint8)
    train, test = train_test_split(np.arange(len(labels)), test_size=TEST_SHARE, stratify=labels, random_state=SEED)
    return images[train], labels[train], images[test], labels[test]


def shift(images: Array, rng: np.random.Generator) -> Array:
    """Every second image moved by up to one pixel: what the network sees in training is never quite the same."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    moved = np.empty_like(images)
    for index, moves in enumerate(rng.random(len(images)) < 0.5):
        row, column = rng.integers(0, 3, 2) if moves else (1, 1)
        moved[index] = padded[index, :, row : row + 8, column : column + 8]
    return moved


# The network: forward, backward, training

def unfold(x: Array) -> Array:
    """[n, c, h, w] to [n, h, w, c * 9]: the 3 by 3 surroundings of every pixel, zero outside ("im2col")."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    n, c, h, w = x.shape
    return np.ascontiguousarray(windows.transpose(0, 2, 3, 1, 4, 5)).reshape(n, h, w, c * 9)


def fold(columns: Array, channels: int) -> Array:
    """The adjoint of `unfold`: adds every surrounding back to the pixels it came from."""
    n, h, w, _ = columns.shape
    windows = columns.reshape(n, h, w, channels, 3, 3)
    padded = np.zeros((n, channels, h + 2, w + 2), np.float32)
    for row in range(3):
        for column in range(3):
            padded[:, :, row : row + h, column : column + w] += windows[..., row, column].transpose(0, 3, 1, 2)
    return padded[:, :, 1:-1, 1:-1]


def softmax(logits: Array) -> Array:
    """Along the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def initial_weights(rng: np.random.Generator) -> Weights:
    """He initialisation."""
    weights: Weights = {}
    for name, shape in SHAPES.items():
        weights[f"{name}.weight"] = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)
        weights[f"{name}.bias"] = np.zeros(shape[0], np.float32)
    return weights


def forward(weights: Weights, images: Array) -> tuple[Array, dict[str, Array]]:
    """The logits, and what `backward` needs to know of the way there."""

    def conv(name: str, columns: Array) -> Array:
        kernel = weights[f"{name}.weight"]
        out = columns @ kernel.reshape(len(kernel), -1).T + weights[f"{name}.bias"]
        return np.maximum(out, 0).transpose(0, 3, 1, 2)

    seen: dict[str, Array] = {"columns1": unfold(images)}
    seen["conv1"] = conv("conv1", seen["columns1"])
    seen["columns2"] = unfold(seen["conv1"])
    seen["conv2"] = conv("conv2", seen["columns2"])
    n = len(images)
    seen["quads"] = seen["conv2"].reshape(n, 32, 4, 2, 4, 2).transpose(0, 1, 2, 4, 3, 5).reshape(n, 32, 4, 4, 4)
    seen["flat"] = seen["quads"].max(-1).reshape(n, 512)
    seen["hidden"] = np.maximum(seen["flat"] @ weights["hidden.weight"].T + weights["hidden.bias"], 0)
    return seen["hidden"] @ weights["logits.weight"].T + weights["logits.bias"], seen


def backward(weights: Weights, seen: dict[str, Array], error: Array) -> Weights:
    """The gradient of the loss whose gradient with respect to the logits is `error`."""
    gradient: Weights = {"logits.weight": error.T @ seen["hidden"], "logits.bias": error.sum(0)}
    error = (error @ weights["logits.weight"]) * (seen["hidden"] > 0)
    gradient |= {"hidden.weight": error.T @ seen["flat"], "hidden.bias": error.sum(0)}
    error = error @ weights["hidden.weight"]

    n = len(error)
    first = seen["quads"].argmax(-1)[..., None]
    quads = np.zeros_like(seen["quads"])
    np.put_along_axis(quads, first, error.reshape(n, 32, 4, 4, 1), -1)
    error = quads.reshape(n, 32, 4, 4, 2, 2).transpose(0, 1, 2, 4, 3, 5).reshape(n, 32, 8, 8)

    for layer in ("2", "1"):
        kernel = weights[f"conv{layer}.weight"]
        error = (error * (seen[f"conv{layer}"] > 0)).transpose(0, 2, 3, 1)
        rows = error.reshape(-1, len(kernel))
        columns = seen[f"columns{layer}"]
        gradient[f"conv{layer}.weight"] = (rows.T @ columns.reshape(len(rows), -1)).reshape(kernel.shape)
        gradient[f"conv{layer}.bias"] = rows.sum(0)
        if layer == "2":
            error = fold(error @ kernel.reshape(len(kernel), -1), kernel.shape[1])
    return gradient


def train(images: Array, labels: NDArray[np.uint8]) -> Weights:
    """Adam on the cross-entropy; the rate falls along a half cosine; the weights are a running mean."""
    rng = np.random.default_rng(SEED)
    weights = initial_weights(rng)
    mean = {name: value.copy() for name, value in weights.items()}
    moments = {name: [np.zeros_like(value), np.zeros_like(value)] for name, value in weights.items()}
    targets = np.eye(10, dtype=np.float32)[labels]
    steps = EPOCHS * (len(images) // BATCH)
    step = 0
    for _ in range(EPOCHS):
        order = rng.permutation(len(images))
        for start in range(0, len(images) // BATCH * BATCH, BATCH):
            step += 1
            chosen = order[start : start + BATCH]
            logits, seen = forward(weights, shift(images[chosen], rng))
            gradient = backward(weights, seen, (softmax(logits) - targets[chosen]) / BATCH)
            rate = 2e-3 * 0.5 * (1 + np.cos(np.pi * step / steps))
            for name, value in weights.items():
                slope = gradient[name] + np.float32(1e-4) * value
                first, second = moments[name]
                first += 0.1 * (slope - first)
                second += 0.001 * (slope * slope - second)
                value -= np.float32(rate) * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
                mean[name] += 0.01 * (value - mean[name])
    return mean


# The models

def build(weights: Weights) -> Any:
    """The network as a MIL program with the input `image` and the outputs `logits` and `probabilities`."""
    from coremltools.converters.mil.mil import Builder as mb

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 1, 8, 8))])
    def program(image: Any) -> Any:
        x = image
        for name in ("conv1", "conv2"):
            x = mb.conv(
                x=x, weight=weights[f"{name}.weight"], bias=weights[f"{name}.bias"], pad_type="custom", pad=[1, 1, 1, 1], name=name
            )
            x = mb.relu(x=x)
        x = mb.max_pool(x=x, kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid")
        x = mb.reshape(x=x, shape=[1, 512])
        x = mb.relu(x=mb.linear(x=x, weight=weights["hidden.weight"], bias=weights["hidden.bias"], name="hidden"))
        logits = mb.linear(x=x, weight=weights["logits.weight"], bias=weights["logits.bias"], name="logits")
        return logits, mb.softmax(x=logits, axis=-1, name="probabilities")

    return program


def write(weights: Weights, folder: Path) -> float:
    """Writes the models, the held-out set and the reference to `folder`; returns the accuracy on the held-out set."""
    import packages

    _, _, images, labels = load_digits()
    probabilities = softmax(forward(weights, images)[0])

    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "test_images.npy", images)
    np.save(folder / "test_labels.npy", labels)
    np.save(folder / "reference_probabilities.npy", probabilities)

    models = {
        "digits.mlpackage": packages.convert(build(weights), half=True),
        "digits-f32.mlpackage": packages.convert(build(weights)),
        "digits.mlmodel": packages.ct.convert(build(weights), source="milinternal", convert_to="neuralnetwork"),
    }
    for name, model in models.items():
        model.input_description["image"] = FEATURES["image"]
        for output in ("logits", "probabilities"):
            model.output_description[output] = FEATURES[output]
        packages.save(model, folder / name, **METADATA)
    return float((probabilities.argmax(-1) == labels).mean())


# Checking

def read(folder: Path) -> Weights:
    """The trained weights, out of the neural network in `folder` (which keeps them as they are, in float32)."""
    import packages

    spec = packages.ct.proto.Model_pb2.Model.FromString((folder / "digits.mlmodel").read_bytes())
    layers = {layer.name: getattr(layer, layer.WhichOneof("layer")) for layer in spec.neuralNetwork.layers}
    weights: Weights = {}
    for name, shape in SHAPES.items():
        weights[f"{name}.weight"] = np.asarray(layers[name].weights.floatValue, np.float32).reshape(shape)
        weights[f"{name}.bias"] = np.asarray(layers[name].bias.floatValue, np.float32)
    return weights


def differences(old: Path, new: Path) -> list[str]:
    """The files in which two folders differ; arrays may do so by a rounding error."""

    def same(left: Path, right: Path) -> bool:
        if not (left.is_file() and right.is_file()):
            return False
        if left.suffix == ".npy":
            a, b = np.load(left), np.load(right)
            return a.dtype == b.dtype and a.shape == b.shape and np.allclose(a, b, rtol=0, atol=1e-5)
        if left.suffix == ".json":  # coremltools reorders a manifest when it opens the package
            return json.loads(left.read_text()) == json.loads(right.read_text())
        return left.read_bytes() == right.read_bytes()

    # A picture is one of the images again, for people.
    files = (path for folder in (old, new) for path in folder.rglob("*") if path.is_file() and path.suffix != ".png")
    names = {path.relative_to(new if path.is_relative_to(new) else old) for path in files}
    return [f"{name}: differs" for name in sorted(names) if not same(old / name, new / name)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "digits", metavar="DIR", help="default: models/digits")
    parser.add_argument("--check", action="store_true", help="compare DIR with what its own weights give; change nothing")
    options = parser.parse_args()

    found: list[str] = []
    if options.check:
        with tempfile.TemporaryDirectory() as scratch:
            accuracy = write(read(options.out), Path(scratch))
            found = differences(options.out, Path(scratch))
    else:
        images, labels, _, _ = load_digits()
        accuracy = write(train(images, labels), options.out)
    print(f"held-out accuracy: {accuracy:.4f}", *found, sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
