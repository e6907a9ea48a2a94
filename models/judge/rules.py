"""The rules that the judging model is trained on, and how a passage that keeps or breaks one is made.

A rule's label is never guessed: a passage keeps a rule because its author wrote it so, and breaks it because we broke it, or because
the author marked it as something else (a listing in a manual).
"""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import dataclass, field

END = "\n<|end|>\n"

RULES = {
    "prose": "The passage is prose, not code or a listing.",
    "complete": "The passage is a complete sentence: nothing is cut off.",
    "order": "The words stand in the order of English.",
    "spelling": "No word is misspelt.",
}
"""The texts are part of the model: a judge must not apply it to a rule that says something else."""

LENGTH = 192
"""Bytes of UTF-8 that the model reads."""

SHORTEST = 24
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
MARKUP = (
    (re.compile(r"``([^`]+)``"), r"`\1`"),
    (re.compile(r":[a-z:]+:`[!~]?([^`<]+?)(?: <[^`]*>)?`"), r"`\1`"),
    (re.compile(r"[A-Z]<+ ?([^<>]+?) ?>+"), r"`\1`"),
    (re.compile(r"\*\*?([^*]+)\*\*?"), r"\1"),
)


@dataclass
class Passages:
    """What a set of documents has."""

    sentences: list[str] = field(default_factory=list)
    listings: list[str] = field(default_factory=list)


def fits(text: str) -> bool:
    return SHORTEST <= len(text.encode()) <= LENGTH


def is_sentence(text: str) -> bool:
    """Begins and ends as one, and is made of words for the most part."""
    words = text.split()
    plain = sum(word.strip(".,;:!?()").isalpha() for word in words)
    return text[0].isupper() and text[-1] in ".!?" and len(words) >= 6 and plain >= 0.7 * len(words) and not text.endswith("..")


def read(document: str, into: Passages) -> None:
    """Paragraphs become sentences. Indented blocks are listings where the document says so: after `::`, or in a POD."""
    pod = re.search(r"^=(head1|over|pod)\b", document, re.M) is not None
    before = ""
    for block in re.split(r"\n\s*\n", document):
        lines = block.split("\n")
        indented = all(line.startswith(("    ", "\t", "   ")) for line in lines if line)
        if indented and (pod or before.rstrip().endswith("::")):
            # White space is not judged: how a text is broken into lines is nobody's style.
            listing = " ".join(" ".join(lines[: random.Random(block).randint(1, 4)]).split())
            if fits(listing):
                into.listings.append(listing)
            continue
        before = block
        if indented or re.match(r"\.\. |=\w|[-*#|+]|\d+\. ", block):
            continue
        text = " ".join(block.split())
        for pattern, plain in MARKUP:
            text = pattern.sub(plain, text)
        into.sentences += [s for s in SENTENCE.split(text.replace("::", ":")) if fits(s) and is_sentence(s)]


def parts(text: str, number: int = 1) -> list[Passages]:
    """The passages of a corpus, in so many parts; a document is in one of them. What occurs twice counts once."""
    found = [Passages() for _ in range(number)]
    for document in text.split(END):
        # The last is large: a seventh of the documents goes to each other one.
        part = sum(document.encode()[:200]) % 7
        read(document, found[min(part, number - 1)])
    for passages in found:
        passages.sentences = sorted(set(passages.sentences))
        passages.listings = sorted(set(passages.listings))
    return found


def vocabulary(sentences: list[str]) -> set[str]:
    """Words that occur: what a misspelling must not be."""
    count = Counter(word for s in sentences for word in re.findall(r"[a-z]+", s.lower()))
    return {word for word, times in count.items() if times >= 3}


def capital(words: list[str]) -> str:
    text = " ".join(words)
    return text[:1].upper() + text[1:]


def cut(sentence: str, rng: random.Random) -> str | None:
    """Without its end or its beginning, dressed as a sentence again most of the time."""
    words = sentence.split()
    most = len(words) - 2
    if rng.random() < 0.6:
        kept = words[: rng.randint(3, most)]
        end = sentence[-1] if rng.random() < 0.7 else ""
        return " ".join(kept).rstrip(".,;:!?") + end
    words = words[rng.randint(1, most - 1) :]
    return capital(words) if rng.random() < 0.7 else " ".join(words)


def swap(sentence: str, rng: random.Random) -> str | None:
    """With two neighbours exchanged."""
    words = sentence.split()
    at = [i for i in range(len(words) - 1) if words[i].isalpha() and words[i + 1].isalpha() and words[i].lower() != words[i + 1].lower()]
    if not at:
        return None
    i = rng.choice(at)
    words[i], words[i + 1] = words[i + 1], words[i]
    if i == 0:
        words[1] = words[1][0].lower() + words[1][1:] if words[1] != "I" else "I"
    return capital(words)


def misspell(sentence: str, rng: random.Random, known: set[str]) -> str | None:
    """With one letter of a word lost, doubled, replaced, or exchanged with the next: a word that is none."""
    words = sentence.split()
    at = [i for i, word in enumerate(words) if len(word) >= 4 and word.isalpha() and word.islower()]
    for _ in range(10):
        if not at:
            return None
        i = rng.choice(at)
        word = words[i]
        j = rng.randrange(len(word) - 1)
        new = rng.choice(
            (
                word[:j] + word[j + 1 :],
                word[:j] + word[j] + word[j:],
                word[:j] + rng.choice(LETTERS) + word[j + 1 :],
                word[:j] + word[j + 1] + word[j] + word[j + 2 :],
            )
        )
        if new not in known:
            return " ".join([*words[:i], new, *words[i + 1 :]])
    return None


def example(passages: Passages, rule: str, kept: bool, known: set[str], rng: random.Random) -> str:
    """A passage that keeps the rule, or breaks it. Other rules it keeps three times out of four, whatever becomes of this one."""
    while True:
        if rule == "prose" and not kept:
            return rng.choice(passages.listings)
        text: str | None = rng.choice(passages.sentences)
        if rng.random() < 0.25:
            other = rng.choice([name for name in ("complete", "order", "spelling") if name != rule])
            text = broken(text, other, known, rng) or text
        if not kept:
            text = broken(text, rule, known, rng)
        if text is not None and fits(text):
            return text


def broken(text: str, rule: str, known: set[str], rng: random.Random) -> str | None:
    if len(text.split()) < 6:
        return None
    match rule:
        case "complete":
            return cut(text, rng)
        case "order":
            return swap(text, rng)
        case "spelling":
            return misspell(text, rng, known)
    raise KeyError(rule)


def encode(text: str, length: int = LENGTH) -> list[int]:
    """Bytes, each one higher, then zeros: what the model reads."""
    data = text.encode()[:length]
    return [byte + 1 for byte in data] + [0] * (length - len(data))
