"""Collects the text that the handbook model is trained on: the documentation that Debian packages carry.

    apt-get download python3.11-doc postgresql-doc-15 debian-reference-en developers-reference debian-policy perl-doc rust-doc
    for deb in *.deb; do dpkg-deb -x $deb extracted; done
    python models/handbook/corpus.py extracted OUT

writes OUT/train.txt and OUT/held_out.txt. Whole documents go to one or the other, every 40th (by a hash of its name) to the
latter, so nothing of a held-out document was ever seen. A document that occurs twice counts once.
"""

from __future__ import annotations

import argparse
import hashlib
import html.parser
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

HELD_OUT_EVERY = 40
END = "<|end|>"
BETWEEN = f"\n{END}\n"

SOURCES = (
    ("usr/share/doc/python3.11/html/_sources", "*.rst.txt"),
    ("usr/share/doc/postgresql-doc-15/html", "*.html"),
    ("usr/share/debian-reference", "*.en.html"),
    ("usr/share/developers-reference", "*.html"),
    ("usr/share/doc/debian-policy/policy.html", "*.html"),
    ("usr/share/perl", "*.pod"),
    *((f"usr/share/doc/rust-doc/html/{book}", "*.html") for book in ("book", "nomicon", "reference", "rust-by-example", "cargo", "rustc", "rustdoc")),
)


class Text(html.parser.HTMLParser):
    """The words of a page, without navigation, scripts and styles."""

    SKIP = frozenset(("script", "style", "nav", "head", "noscript"))
    BLOCK = frozenset(("p", "pre", "li", "tr", "h1", "h2", "h3", "h4", "div", "dt", "dd", "br"))

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.skipped = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.SKIP:
            self.skipped += 1
        elif tag in self.BLOCK:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.SKIP:
            self.skipped = max(0, self.skipped - 1)

    def handle_data(self, data: str) -> None:
        if not self.skipped:
            self.parts.append(data)


def clean(path: Path) -> str:
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".html":
        page = Text()
        page.feed(text)
        text = "".join(page.parts)
    text = "".join(c if c.isascii() or c.isalpha() else " " for c in text.replace("\r", ""))
    text = re.sub(r"[ \t]+\n", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def documents(root: Path) -> Iterator[tuple[str, str]]:
    seen = set()
    for folder, pattern in SOURCES:
        for path in sorted((root / folder).rglob(pattern)):
            text = clean(path)
            digest = hashlib.sha256(text.encode()).hexdigest()
            if len(text) > 500 and digest not in seen:
                seen.add(digest)
                yield str(path.relative_to(root)), text


def tokens(words: Tokenizer, file: Path) -> list[int]:
    """The tokens of a file that this script wrote, the end of each document among them."""
    texts = file.read_text(encoding="utf-8").split(BETWEEN)
    end = words.token_to_id(END)
    return [i for text in words.encode_batch(texts) for i in (*text.ids, end)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extracted", type=Path, help="the folder that the packages were extracted to")
    parser.add_argument("out", type=Path, help="the folder to write to")
    arguments = parser.parse_args()
    parts: dict[str, list[str]] = {"train": [], "held_out": []}
    for name, text in documents(arguments.extracted):
        held_out = int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELD_OUT_EVERY == 0
        parts["held_out" if held_out else "train"].append(text)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for part, texts in parts.items():
        joined = BETWEEN.join(texts) + BETWEEN
        (arguments.out / f"{part}.txt").write_text(joined, encoding="utf-8")
        print(f"{part}: {len(texts)} documents, {len(joined) / 1e6:.1f} million characters")


if __name__ == "__main__":
    main()
