"""What evaluators say in words: which part of it a report shows, and the little Markdown that it is written in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sae_faithful.stored import blamed_on

if TYPE_CHECKING:
    from sae_faithful.run_folder import RunFolder

MOST_LINES = 60
"""Of a text that an evaluator wrote, in the report."""
FENCE = "```"

ITEM = re.compile(r"( *)- (.*)")
MARKED = re.compile(r"\*\*(?P<strong>.+?)\*\*|`(?P<code>[^`]+)`")
# What a terminal, a browser or an editor would obey or hide instead of showing it: control characters but line break
# and tab, marks that change the direction of what follows, separators of lines, surrogates without their partner, and
# what takes no room. The joiner of emoji (U+200D) stays.
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


@dataclass(frozen=True)
class Piece:
    """A few words in one dress."""

    kind: Literal["plain", "strong", "code"]
    text: str


@dataclass(frozen=True)
class Block:
    """A paragraph, an item of a list, or lines to be shown as they are."""

    kind: Literal["paragraph", "item", "code"]
    depth: int
    """Of an item: 0 at the outermost."""
    pieces: list[Piece]


def visible(text: str) -> str:
    r"""The text with what cannot be seen written out: NUL becomes `\x00`, a right-to-left override `\u202e`."""
    return HIDDEN.sub(lambda found: _escape(found[0]), text)


def evaluator_texts(folder: RunFolder, evaluator: str) -> dict[str, str]:
    """What the evaluator says in words, by file name; of a long text the beginning, and where the rest is."""
    texts: dict[str, str] = {}
    for path in sorted((folder.result_dir(evaluator) / "artifacts").glob("*.txt")):
        folder.check_inside(path)
        with blamed_on(path):
            lines = path.read_text(encoding="utf-8").strip().splitlines()
        shown = lines[:MOST_LINES]
        if len(lines) > len(shown):
            if sum(line.startswith(FENCE) for line in shown) % 2:
                shown.append(FENCE)
            rest = path.relative_to(folder.root).as_posix()
            shown += ["", f"({len(lines) - MOST_LINES} more lines: `{rest}`)"]
        texts[path.name] = "\n".join(shown)
    return texts


def blocks_of(text: str) -> list[Block]:
    """Markdown of the kind that evaluators write: paragraphs, lists, fences, `**bold**` and code; no HTML."""
    blocks: list[Block] = []
    fenced: list[str] | None = None
    for line in text.splitlines():
        if line.startswith(FENCE):
            if fenced is not None:
                blocks.append(Block("code", 0, [Piece("plain", "\n".join(fenced))]))
            fenced = [] if fenced is None else None
        elif fenced is not None:
            fenced.append(line)
        elif item := ITEM.fullmatch(line):
            blocks.append(Block("item", len(item[1]) // 2, pieces_of(item[2])))
        elif line.strip():
            blocks.append(Block("paragraph", 0, pieces_of(line)))
    if fenced:
        blocks.append(Block("code", 0, [Piece("plain", "\n".join(fenced))]))
    return blocks


def pieces_of(line: str) -> list[Piece]:
    """One line, cut where its dress changes."""
    pieces: list[Piece] = []
    end = 0
    for found in MARKED.finditer(line):
        strong, code = found["strong"], found["code"]
        pieces.append(Piece("plain", line[end : found.start()]))
        pieces.append(Piece("code", code) if strong is None else Piece("strong", strong))
        end = found.end()
    pieces.append(Piece("plain", line[end:]))
    return [piece for piece in pieces if piece.text]


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
