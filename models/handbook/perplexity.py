"""Measures the package itself: the perplexity of its 8-bit weights and float16 caches on held-out text, as the portable engine runs
it, beside that of the 5-gram model.

    python models/handbook/corpus.py EXTRACTED DATA
    python models/handbook/perplexity.py DATA models/handbook/handbook.mlpackage

Needs NumPy, `tokenizers` and the package in `python/`. Windows are those of `train.py compare`: the first half is only context.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from coreml_portable import Model
from numpy.typing import NDArray
from tokenizers import Tokenizer

from baseline import FiveGram
from shape import Shape

END = "<|end|>"


def tokens(words: Tokenizer, file: Path) -> NDArray[np.int64]:
    documents = file.read_text(encoding="utf-8").split(f"\n{END}\n")
    end = words.token_to_id(END)
    return np.array([i for text in words.encode_batch(documents) for i in (*text.ids, end)], np.int64)


def loss(model: Model, window: NDArray[np.int64]) -> NDArray[np.float64]:
    """Negative log-likelihood of each token of the window's second half, given those before it."""
    length = len(window) - 1
    mask = np.triu(np.full((length, length), -np.inf, np.float16), 1)[None, None]
    inputs = {"inputIds": window[None, :-1].astype(np.int32), "causalMask": mask}
    logits = model.predict(inputs, model.new_state())["logits"][0, length // 2 :].astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    wanted = window[1 + length // 2 :]
    return np.log(np.exp(logits).sum(axis=-1)) - logits[np.arange(len(wanted)), wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("package", type=Path)
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    arguments = parser.parse_args()
    length = arguments.length
    words = Tokenizer.from_file(str(arguments.package.parent / "tokenizer.json"))
    held_out = tokens(words, arguments.data / "held_out.txt")
    model = Model(str(arguments.package), compute_units="CPU_ONLY")
    starts = range(0, len(held_out) - length - 1, length // 2)
    losses = []
    for i, start in enumerate(starts):
        losses.append(loss(model, held_out[start : start + length + 1]))
        if i % 50 == 0:
            print(f"window {i + 1} of {len(starts)}: perplexity {np.exp(np.concatenate(losses).mean()):.2f}", flush=True)
    grams = FiveGram(tokens(words, arguments.data / "train.txt"), Shape.vocabulary)
    asked = np.concatenate([np.arange(s + length // 2 + 1, s + length + 1) for s in starts])
    figures = {
        "held-out tokens": len(asked),
        "perplexity of the package": round(float(np.exp(np.concatenate(losses).mean())), 2),
        "perplexity of the 5-gram model": round(float(np.exp(-grams.log_probabilities(held_out)[asked].mean())), 2),
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
