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

from baseline import FiveGram, asked, perplexity, windows
from corpus import tokens
from shape import Shape

def log_probabilities(model: Model, window: NDArray[np.int64]) -> NDArray[np.float64]:
    """Natural logarithm of the probability of each token of the window's second half, given those before it."""
    length = len(window) - 1
    mask = np.triu(np.full((length, length), -np.inf, np.float16), 1)[None, None]
    inputs = {"inputIds": window[None, :-1].astype(np.int32), "causalMask": mask}
    logits = model.predict(inputs, model.new_state())["logits"][0, length // 2 :].astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    wanted = window[1 + length // 2 :]
    return logits[np.arange(len(wanted)), wanted] - np.log(np.exp(logits).sum(axis=-1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("package", type=Path)
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    arguments = parser.parse_args()
    length = arguments.length
    words = Tokenizer.from_file(str(arguments.package.parent / "tokenizer.json"))
    held_out = np.array(tokens(words, arguments.data / "held_out.txt"), np.int64)
    model = Model(str(arguments.package), compute_units="CPU_ONLY")
    starts = windows(len(held_out), length)
    log_p: list[NDArray[np.float64]] = []
    for i, start in enumerate(starts):
        log_p.append(log_probabilities(model, held_out[start : start + length + 1]))
        if i % 50 == 0:
            print(f"window {i + 1} of {len(starts)}: perplexity {perplexity(np.concatenate(log_p))}", flush=True)
    grams = FiveGram(np.array(tokens(words, arguments.data / "train.txt")), Shape.vocabulary)
    places = asked(starts, length)
    figures = {
        "held-out tokens": len(places),
        "perplexity of the package": perplexity(np.concatenate(log_p)),
        "perplexity of the 5-gram model": perplexity(grams.log_probabilities(held_out)[places]),
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
