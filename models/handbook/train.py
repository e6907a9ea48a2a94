"""Trains the tokenizer and the handbook model, and compares the latter with a 5-gram model on text that neither has seen.

    python models/handbook/corpus.py EXTRACTED DATA
    python models/handbook/train.py tokenizer DATA
    python models/handbook/train.py model DATA --minutes 120      # goes on from DATA/checkpoint.pt, if there is one
    python models/handbook/train.py compare DATA

Both models see the same training tokens and are asked for the same held-out tokens; figures are perplexities per token.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from baseline import FiveGram, asked, perplexity, windows
from corpus import END
from corpus import tokens as encoded
from model import Llama
from shape import Shape

SEED = 20261123


def tokenizer(data: Path) -> None:
    """Byte-pair encoding of bytes, as GPT-2's; trained on every 8th megabyte."""
    text = (data / "train.txt").read_text(encoding="utf-8")
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=Shape.vocabulary,
        special_tokens=[END, "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator((text[i : i + 10_000] for i in range(0, len(text), 80_000)), trainer)
    words.save(str(data / "tokenizer.json"))
    for part in ("train", "held_out"):
        ids = encoded(words, data / f"{part}.txt")
        np.array(ids, dtype=np.uint16).tofile(data / f"{part}.u16")
        print(f"{part}: {len(ids) / 1e6:.2f} million tokens")


def tokens(data: Path, part: str) -> torch.Tensor:
    return torch.from_numpy(np.fromfile(data / f"{part}.u16", dtype=np.uint16).astype(np.int64))


def rate(step: int, total: int, peak: float) -> float:
    """Up in 50 steps, level for half of them, then down a straight line to a twentieth."""
    falling = max(0.0, (step - total / 2) / (total / 2))
    return peak * min(1.0, (step + 1) / 50) * (1 - 0.95 * min(1.0, falling))


def held_out_loss(model: Llama, ids: torch.Tensor, length: int, most: int) -> float:
    """Mean negative log-likelihood of held-out tokens, in windows; the first half of a window is only context."""
    model.eval()
    losses = []
    with torch.no_grad():
        for start in range(0, min(len(ids) - length - 1, most), length // 2):
            window = ids[start : start + length + 1]
            logits = model(window[None, :-1])[0, length // 2 :]
            losses.append(F.cross_entropy(logits, window[1 + length // 2 :]).item())
    model.train()
    return sum(losses) / len(losses)


def train(data: Path, minutes: float, length: int, batch: int, total: int, peak: float) -> None:
    torch.manual_seed(SEED)
    model = Llama(Shape())
    # Muon for the matrices that map one width to another, which it trains with about half the steps; AdamW for words and norms.
    matrices = [p for p in model.layers.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    optimisers = [
        torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", weight_decay=0.1),
        torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    ids, held_out = tokens(data, "train"), tokens(data, "held_out")
    checkpoint = data / "checkpoint.pt"
    step = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        for optimiser, state in zip(optimisers, saved["optimisers"]):
            optimiser.load_state_dict(state)
        step = saved["step"]
    count = sum(p.numel() for p in model.parameters())
    print(f"{count / 1e6:.2f} million parameters, step {step} of {total}", flush=True)

    def save() -> None:
        states = [optimiser.state_dict() for optimiser in optimisers]
        torch.save({"model": model.state_dict(), "optimisers": states, "step": step}, checkpoint)

    until, begun, first = time.monotonic() + 60 * minutes, time.monotonic(), step
    while step < total and time.monotonic() < until:
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate(step, total, peak)
        # Each step has its own numbers, so a run that was interrupted goes on as if it had not been.
        generator = torch.Generator().manual_seed(SEED + step)
        starts = torch.randint(len(ids) - length - 1, (batch,), generator=generator)
        windows = torch.stack([ids[s : s + length + 1] for s in starts.tolist()])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(windows[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        step += 1
        if step % 50 == 0:
            speed = (step - first) * batch * length / (time.monotonic() - begun)
            print(f"step {step}: loss {loss.item():.3f}, {speed:.0f} tokens/s", flush=True)
        if step % 100 == 0:
            save()
        if step % 500 == 0:
            print(f"  held out: perplexity {math.exp(held_out_loss(model, held_out, length, 60_000)):.2f}", flush=True)
    save()


def compare(data: Path, length: int) -> None:
    ids, held_out = tokens(data, "train"), tokens(data, "held_out")
    model = Llama(Shape())
    saved = torch.load(data / "checkpoint.pt")
    model.load_state_dict(saved["model"])
    loss = held_out_loss(model, held_out, length, len(held_out))
    grams = FiveGram(ids.numpy(), Shape.vocabulary)
    places = asked(windows(len(held_out), length), length)
    figures = {
        "training tokens": len(ids),
        "steps": saved["step"],
        "held-out tokens": len(places),
        "perplexity": round(math.exp(loss), 2),
        "perplexity of the 5-gram model": perplexity(grams.log_probabilities(held_out.numpy())[places]),
    }
    print(json.dumps(figures, indent=2))
    (data / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")


def export(data: Path) -> None:
    """For the converter, which needs no PyTorch."""
    weights = torch.load(data / "checkpoint.pt")["model"]
    np.savez(data / "model.npz", **{name: tensor.numpy() for name, tensor in weights.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tokenizer", "model", "compare", "export"))
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--length", type=int, default=512, help="tokens of a window, in training and in comparing")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3000, help="of the whole training, over all runs")
    parser.add_argument("--rate", type=float, default=3e-3)
    arguments = parser.parse_args()
    match arguments.what:
        case "tokenizer":
            tokenizer(arguments.data)
        case "model":
            train(arguments.data, arguments.minutes, arguments.length, arguments.batch, arguments.steps, arguments.rate)
        case "compare":
            compare(arguments.data, arguments.length)
        case "export":
            export(arguments.data)


if __name__ == "__main__":
    main()
