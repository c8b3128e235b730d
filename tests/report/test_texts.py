"""Texts of evaluators: what is shown of them, and nothing in them that hides or acts."""

from __future__ import annotations

from typing import Any

import pytest

from sae_faithful.report.texts import blocks_of, evaluator_texts, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x00b\x1b[31m", r"a\x00b\x1b[31m"),
        ("\x7f\x85\xad", r"\x7f\x85\xad"),
        ("user\u202etxt.exe\u2066", r"user\u202etxt.exe\u2066"),
        ("\u200bzero\ufeff\u2028", r"\u200bzero\ufeff\u2028"),
        # Half of an emoji, as a byte-level token is; a whole one, with its joiner, is text.
        ("\ud83d", r"\ud83d"),
        ("👩\u200d💻 é עברית", "👩\u200d💻 é עברית"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
    ],
)
def test_what_cannot_be_seen_is_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown


def shape(text: str) -> list[tuple[str, int, list[tuple[str, str]]]]:
    return [
        (block.kind, block.depth, [(piece.kind, piece.text) for piece in block.pieces])
        for block in blocks_of(text)
    ]


def test_the_markdown_of_evaluators_is_taken_apart() -> None:
    text = "**Latent 3** at `a<b`, **\n- one\n  - two\n\n```text\n- **as it is**\n  x\n```\nLast."
    assert shape(text) == [
        ("paragraph", 0, [("strong", "Latent 3"), ("plain", " at "), ("code", "a<b"), ("plain", ", **")]),
        ("item", 0, [("plain", "one")]),
        ("item", 1, [("plain", "two")]),
        ("code", 0, [("plain", "- **as it is**\n  x")]),
        ("paragraph", 0, [("plain", "Last.")]),
    ]


def test_an_open_fence_loses_nothing() -> None:
    assert shape("```\nline") == [("code", 0, [("plain", "line")])]


def test_of_a_long_text_the_beginning_is_shown(write_run: Any) -> None:
    files = {
        "results/some/artifacts/b.txt": "\n".join(f"line {i}" for i in range(70)),
        "results/some/artifacts/a.txt": "short\n",
        "results/some/artifacts/c.json": {},
    }
    texts = evaluator_texts(write_run([], files=files), "some")
    assert list(texts) == ["a.txt", "b.txt"]
    assert texts["a.txt"] == "short"
    assert texts["b.txt"].splitlines()[59:] == [
        "line 59", "", "(10 more lines: `results/some/artifacts/b.txt`)",
    ]  # fmt: skip
