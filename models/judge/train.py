"""Trains the judging model: does a passage keep a rule or break it?

    python models/handbook/corpus.py EXTRACTED DATA
    python models/judge/train.py DATA --minutes 40

writes DATA/judge.npz, what `convert.py` makes a package of, and DATA/judge.json, what it measured. The text is read byte by byte, by
convolutions; the rule scales and shifts what they see. Training, calibration and test use different documents: those of train.txt but
for two sevenths; those two sevenths; those of held_out.txt.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rules import LENGTH, RULES, Passages, encode, example, parts, vocabulary

SEED = 20261123
BATCH = 128
TEST = 8_000


class Block(nn.Module):
    """A convolution, normalised, that the rule may scale and shift."""

    def __init__(self, inputs: int, outputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(inputs, outputs, width, stride=stride, padding=width // 2, bias=False)
        self.norm = nn.BatchNorm1d(outputs)
        self.rule = nn.Embedding(len(RULES), 2 * outputs)
        nn.init.zeros_(self.rule.weight)

    def forward(self, x: Tensor, rule: Tensor) -> Tensor:
        scale, shift = self.rule(rule)[..., None].chunk(2, dim=1)
        return F.relu(self.norm(self.convolution(x)) * (1 + scale) + shift)


class Judge(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bytes = nn.Embedding(257, 24)
        self.blocks = nn.ModuleList((Block(24, 64, 7, 2), Block(64, 96, 5, 2), Block(96, 160, 5, 1), Block(160, 160, 3, 1)))
        self.rule = nn.Embedding(len(RULES), 64)
        self.hidden = nn.Linear(160, 64)
        self.logits = nn.Linear(64, 2)

    def forward(self, text: Tensor, rule: Tensor) -> Tensor:
        x = self.bytes(text).transpose(1, 2)
        for i, block in enumerate(self.blocks):
            y = block(x, rule)
            x = x + y if i == 3 else y
        return self.logits(F.relu(self.hidden(x.amax(-1)) + self.rule(rule)))


def draw(passages: Passages, known: set[str], rng: random.Random, count: int) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    """Examples: each rule and each label equally often."""
    names = list(RULES)
    rules = [i % len(names) for i in range(count)]
    labels = [i // len(names) % 2 for i in range(count)]
    texts = [example(passages, names[r], label == 0, known, rng) for r, label in zip(rules, labels, strict=True)]
    return torch.tensor([encode(text) for text in texts]), torch.tensor(rules), torch.tensor(labels), texts


def batches(passages: Passages, known: set[str], rng: random.Random) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Without end. A batch has passages of like length and is as long as they and some zeros: less to compute, and no other answer."""
    while True:
        texts, rules, labels, plain = draw(passages, known, rng, 8 * BATCH)
        lengths = torch.tensor([len(text.encode()) for text in plain])
        order = lengths.argsort().split(BATCH)
        for i in rng.sample(range(8), 8):
            chosen = order[i]
            length = min(LENGTH, int(lengths[chosen].max()) + 32)
            yield texts[chosen, :length], rules[chosen], labels[chosen]


@torch.inference_mode()
def answers(model: Judge, texts: Tensor, rules: Tensor) -> Tensor:
    model.eval()
    found = torch.cat([model(t, r) for t, r in zip(texts.split(500), rules.split(500), strict=True)])
    model.train()
    return found


def folded(model: Judge, temperature: float) -> dict[str, np.ndarray]:
    """The weights with each normalisation in its convolution, and the temperature in the last layer."""
    out = {"bytes": model.bytes.weight, "rule": model.rule.weight, "hidden.weight": model.hidden.weight, "hidden.bias": model.hidden.bias}
    out |= {"logits.weight": model.logits.weight / temperature, "logits.bias": model.logits.bias / temperature}
    for i, block in enumerate(model.blocks):
        norm = block.norm
        factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        out[f"{i}.weight"] = block.convolution.weight * factor[:, None, None]
        out[f"{i}.bias"] = norm.bias - norm.running_mean * factor
        out[f"{i}.rule"] = block.rule.weight
    return {name: value.detach().numpy().astype(np.float32) for name, value in out.items()}


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """By what the logits are divided so that the cross-entropy is least: the probabilities then mean what they say."""
    candidates = [0.5 * 1.05**i for i in range(45)]
    return min(candidates, key=lambda t: F.cross_entropy(logits / t, labels).item())


def calibration_error(probability: Tensor, right: Tensor) -> float:
    """How far confidence and accuracy are apart, in ten bins of confidence."""
    error = 0.0
    for low in torch.arange(0.5, 1.0, 0.05):
        chosen = (probability >= low) & (probability < low + 0.05) | (low > 0.94) & (probability >= 1)
        if chosen.any():
            error += (chosen.float().mean() * (probability[chosen].mean() - right[chosen].float().mean()).abs()).item()
    return error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=40, help="for training; the rate falls to zero over them")
    parser.add_argument("--out", type=Path, help="default: DATA")
    options = parser.parse_args()
    out = options.out or options.data

    torch.manual_seed(SEED)
    calibration, _, training = three(options.data)
    (test,) = parts((options.data / "held_out.txt").read_text(encoding="utf-8"))
    known = vocabulary(training.sentences)
    for name, p in (("training", training), ("calibration", calibration), ("test", test)):
        print(f"{name}: {len(p.sentences)} sentences, {len(p.listings)} listings", flush=True)

    model = Judge()
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    stream = batches(training, known, random.Random(SEED))
    begin, step = time.monotonic(), 0
    while (part := (time.monotonic() - begin) / (60 * options.minutes)) < 1:
        rate = 3e-3 * min((step + 1) / 200, 0.5 * (1 + math.cos(math.pi * part)))
        optimizer.param_groups[0]["lr"] = rate
        texts, rules, labels = next(stream)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(texts, rules)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % 500 == 0:
            print(f"step {step}, {100 * part:.0f} %: loss {loss.item():.3f}", flush=True)
            np.savez(out / "judge.npz", **folded(model, 1.0))

    texts, rules, labels, _ = draw(calibration, known, random.Random(SEED + 1), TEST)
    temperature = best_temperature(answers(model, texts, rules), labels)
    texts, rules, labels, _ = draw(test, known, random.Random(SEED + 2), TEST)
    logits = answers(model, texts, rules) / temperature
    right = logits.argmax(1) == labels
    confidence = logits.softmax(1).amax(1)
    measured = {
        "steps": step,
        "temperature": temperature,
        "accuracy": {name: right[rules == i].float().mean().item() for i, name in enumerate(RULES)},
        "majority": {name: (labels[rules == i].bincount().max() / (rules == i).sum()).item() for i, name in enumerate(RULES)},
        "calibration_error": calibration_error(confidence, right),
        "decided": (confidence >= 0.75).float().mean().item(),
        "accuracy_where_decided": right[confidence >= 0.75].float().mean().item(),
    }
    np.savez(out / "judge.npz", **folded(model, temperature))
    (out / "judge.json").write_text(json.dumps(measured, indent=1) + "\n")
    print(json.dumps(measured, indent=1))


def three(data: Path) -> tuple[Passages, Passages, Passages]:
    found = parts((data / "train.txt").read_text(encoding="utf-8"), 3)
    return found[0], found[1], found[2]


if __name__ == "__main__":
    main()
