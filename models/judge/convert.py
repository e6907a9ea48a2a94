"""Makes the trained judging model a Core ML model, and records what it says of held-out passages.

    python models/judge/train.py DATA
    python models/judge/convert.py DATA

writes models/judge/judge.mlpackage: inputs `text` (int32 [1, 192], see `rules.encode`) and `rule` (int32 [1]), output `probabilities`
(float16 arithmetic, [1, 2]: kept, broken). Only rules on which the training measured an accuracy above SHARE are in it; its metadata names
them. models/judge/held_out.json has passages of held-out documents, from Python's documentation alone, with their labels and what this
script's own forward pass in float32 says of them.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rules import END, LENGTH, RULES, SHORTEST, encode, example, parts, vocabulary

sys.path.append(str(Path(__file__).parent.parent))

Weights = dict[str, NDArray[np.float32]]

SHARE = 0.6
RECORDED = 300
STRIDES = (2, 2, 1, 1)


def forward(weights: Weights, text: list[int], rule: int) -> NDArray[np.float32]:
    x = weights["bytes"][text].T
    for i, stride in enumerate(STRIDES):
        kernel = weights[f"{i}.weight"]
        width = kernel.shape[2]
        padded = np.pad(x, ((0, 0), (width // 2, width // 2)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, width, axis=1)[:, ::stride]
        y = np.einsum("clk,ock->ol", windows, kernel, optimize=True) + weights[f"{i}.bias"][:, None]
        scale, shift = np.split(weights[f"{i}.rule"][rule][:, None], 2)
        y = np.maximum(y * (1 + scale) + shift, 0)
        x = x + y if i == 3 else y
    hidden = np.maximum(weights["hidden.weight"] @ x.max(-1) + weights["hidden.bias"] + weights["rule"][rule], 0)
    logits = weights["logits.weight"] @ hidden + weights["logits.bias"]
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def build(weights: Weights) -> Any:
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    @mb.program(
        input_specs=[mb.TensorSpec(shape=(1, LENGTH), dtype=types.int32), mb.TensorSpec(shape=(1,), dtype=types.int32)]
    )
    def program(text: Any, rule: Any) -> Any:
        x = mb.transpose(x=mb.gather(x=weights["bytes"], indices=text, axis=0), perm=[0, 2, 1])
        for i, stride in enumerate(STRIDES):
            kernel = weights[f"{i}.weight"]
            pad = kernel.shape[2] // 2
            y = mb.conv(x=x, weight=kernel, bias=weights[f"{i}.bias"], strides=[stride], pad_type="custom", pad=[pad, pad])
            both = mb.expand_dims(x=mb.gather(x=weights[f"{i}.rule"], indices=rule, axis=0), axes=[2])
            scale, shift = mb.split(x=both, num_splits=2, axis=1)
            y = mb.relu(x=mb.add(x=mb.add(x=y, y=mb.mul(x=y, y=scale)), y=shift))
            x = mb.add(x=x, y=y) if i == 3 else y
        x = mb.reduce_max(x=x, axes=[2], keep_dims=False)
        x = mb.linear(x=x, weight=weights["hidden.weight"], bias=weights["hidden.bias"])
        x = mb.relu(x=mb.add(x=x, y=mb.gather(x=weights["rule"], indices=rule, axis=0)))
        logits = mb.linear(x=x, weight=weights["logits.weight"], bias=weights["logits.bias"])
        return mb.softmax(x=logits, axis=-1, name="probabilities")

    return program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--trained", type=Path, help="the folder with judge.npz and judge.json; default: DATA")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    trained = options.trained or options.data
    weights = dict(np.load(trained / "judge.npz"))
    measured = json.loads((trained / "judge.json").read_text())["accuracy"]
    chosen = [(i, name) for i, name in enumerate(RULES) if measured[name] > SHARE]
    numbers = [i for i, _ in chosen]
    for name in ("rule", *(f"{i}.rule" for i in range(len(STRIDES)))):
        weights[name] = weights[name][numbers]

    import packages

    model = packages.convert(build(weights), half=True)
    model.user_defined_metadata["rules"] = json.dumps([(name, RULES[name]) for _, name in chosen])
    model.user_defined_metadata["shortest"] = str(SHORTEST)
    packages.save(
        model,
        options.out / "judge.mlpackage",
        description="Tells how likely a passage keeps a rule or breaks it.",
        author="coreml-judge",
        version="1.0",
        license="MIT OR Apache-2.0",
    )

    documents = (options.data / "held_out.txt").read_text(encoding="utf-8").split(END)
    python = [text for text in documents if "\n.. " in text and "\n=head1" not in text]
    (passages,) = parts(END.join(python))
    rng = random.Random(20261124)
    known = vocabulary(passages.sentences)
    recorded = []
    for i in range(RECORDED):
        rule = i % len(chosen)
        kept = i // len(chosen) % 2 == 0
        text = example(passages, chosen[rule][1], kept, known, rng)
        broken = round(float(forward(weights, encode(text), rule)[1]), 5)
        recorded.append({"rule": chosen[rule][1], "text": text, "kept": kept, "broken": broken})
    lines = ",\n".join(json.dumps(one, ensure_ascii=False) for one in recorded)
    (options.out / "held_out.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    for _, name in chosen:
        own = [one for one in recorded if one["rule"] == name]
        right = sum((one["broken"] < 0.5) == one["kept"] for one in own)
        print(f"{name}: {right} of {len(own)} recorded passages")


if __name__ == "__main__":
    main()
