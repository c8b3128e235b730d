"""Valid examples made invalid: bytes flipped, cut and spliced; JSON trees with other values, keys and depths."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from typing import Any

MOST_BYTES = 50_000
DEEP = 3_000
"""Levels, more than Python's stack has frames."""

VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    0.5,
    -0.0,
    1e308,
    2**31,
    2**63,
    -(2**63) - 1,
    10**400,
    float("nan"),
    float("inf"),
    "",
    " ",
    "0",
    "nan",
    "../../outside",
    "/outside",
    "~/outside",
    "..",
    ".",
    "a/b",
    "a\\b",
    "C:\\outside",
    "NUL",
    "a\0b",
    "two\nlines",
    "\ud800",
    "\u202eabc",
    "x" * 5_000,
    "é" * 300,
    "<script>",
    "{{ 7 * 7 }}",
    "%s%n",
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"plugin": None},
    ["../x"],
    {"a": {"b": {"c": []}}},
    [0] * 1_000,
)
"""What stands in the place of a value."""
SNIPPETS = (
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 5_000,
    b"\n\n",
    b"\r",
    b"[" * DEEP,
    b'{"a":' * DEEP,
    b"!!python/object/apply:os.system ['true']",
    b"&a [*a]",
    b"*a",
    b"<<: *a",
    b"\x1b[2J",
    b"../../outside",
    b'"',
    b"{",
    b"}",
    b"\\ud800",
    b"\\u0000",
    b": ",
    b"- ",
    b"#",
    b"%YAML 9.9\n---\n",
    b"\xe2\x80\xa8",
)
"""What is put between bytes."""


def mutated(rng: random.Random, example: bytes, others: Sequence[bytes], *, kind: str) -> bytes:
    """One input: `example` as it is (rarely), or changed once to a few times. `kind`: json, lines, text or binary."""
    data = example
    draw = rng.random()
    if draw < 0.02:
        return data
    if kind in ("json", "lines") and draw < 0.75:
        data = _other_tree(rng, data, lines=kind == "lines")
        if draw < 0.65:
            return data
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        data = _other_bytes(rng, data, others)
    return data[:MOST_BYTES]


def _other_bytes(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    if not data:
        return rng.choice(SNIPPETS)
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.choice((1, 2, 8, 64, 1_000)))
    way = rng.randrange(8)
    if way <= 1:
        flipped = bytearray(data)
        for _ in range(rng.choice((1, 1, 4, 32))):
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if way == 2:
        return data[:start]
    if way == 3:
        return data[:start] + data[end:]
    if way == 4:
        return data[:end] + data[start:end] * rng.choice((1, 2, 50)) + data[end:]
    if way == 5:
        other = rng.choice(others)
        return data[:start] + other[rng.randrange(len(other) + 1) :]
    if way == 6:
        return data[:start] + rng.choice(SNIPPETS) + data[start:]
    return data[:start] + bytes(rng.randrange(256) for _ in range(end - start)) + data[end:]


def _other_tree(rng: random.Random, data: bytes, *, lines: bool) -> bytes:
    """JSON with other nodes; of JSON lines, one line."""
    if lines:
        rows = data.splitlines()
        if not rows:
            return data
        at = rng.randrange(len(rows))
        rows[at] = _other_tree(rng, rows[at], lines=False)
        return b"\n".join(rows) + b"\n"
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return data
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        tree = _with_another_node(rng, tree)
    text = json.dumps(tree)
    if rng.random() < 0.03:
        # A key twice, which JSON permits.
        text = text.replace("{", '{"name": 1, "name": [], ', 1)
    if rng.random() < 0.02:
        text = "[" * DEEP + text + "]" * DEEP
    return text.encode()


def _with_another_node(rng: random.Random, tree: Any) -> Any:
    places = _places(tree)
    if not places:
        return _value(rng)
    holder, key = rng.choice(places)
    way = rng.randrange(9)
    if way <= 3:
        holder[key] = _value(rng)
    elif way == 4:
        del holder[key]
    elif way == 5:
        other, name = rng.choice(places)
        holder[key] = copy.deepcopy(other[name]) if name in _keys(other) else None
    elif way == 6:
        holder[key] = [holder[key]] if rng.random() < 0.5 else {"value": holder[key]}
    elif way == 7 and isinstance(holder, dict):
        holder[str(_value(rng))[:300]] = holder.pop(key)
    elif isinstance(holder, list):
        holder.extend(copy.deepcopy(holder[:1]) * rng.choice((1, 3, 100)))
    else:
        holder[key] = str(holder[key])[:1_000]
    return tree


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every node but the root, as its holder and its key there."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        holder = waiting.pop()
        for key in _keys(holder):
            found.append((holder, key))
            waiting.append(holder[key])
    return found


def _keys(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node)
    return list(range(len(node))) if isinstance(node, list) else []


def _value(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(VALUES))
