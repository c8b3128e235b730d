from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from sae_faithful.hashing import derive_seed, first_damage, hash_file, hash_settings


def test_settings_hash_is_the_sha256_of_canonical_json() -> None:
    # Sorted keys, no spaces, ASCII only: written out by hand.
    by_hand = b'{"a":[1,2.5,null],"b":{"c":true,"d":"\\u00e9"}}'
    settings = {"b": {"d": "é", "c": True}, "a": [1, 2.5, None]}
    assert hash_settings(settings) == hashlib.sha256(by_hand).hexdigest()[:16]


def test_settings_hash_does_not_depend_on_the_order_of_keys() -> None:
    assert hash_settings({"k": 1, "lr": 2}) == hash_settings({"lr": 2, "k": 1})


@pytest.mark.parametrize("other", [{"k": 2}, {"k": "1"}, {"k": [1]}, {"j": 1}, {"k": 1, "j": None}, {}])
def test_settings_hash_tells_different_settings_apart(other: object) -> None:
    assert hash_settings({"k": 1}) != hash_settings(other)


def test_settings_that_json_cannot_say_are_refused() -> None:
    with pytest.raises(TypeError):
        hash_settings({"path": Path("somewhere")})
    with pytest.raises(ValueError, match="JSON"):
        hash_settings({"lr": float("nan")})


def test_file_hash_is_the_sha256_of_the_bytes(tmp_path: Path) -> None:
    file = tmp_path / "ids.bin"
    file.write_bytes(b"abc")
    # The test vector of FIPS 180-2 for "abc".
    assert hash_file(file) == "ba7816bf8f01cfea"


@pytest.mark.parametrize("name", ["b.bin", "long" * 100, "\0", "../none"])
def test_a_file_that_is_not_there_is_named_whatever_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.bin").write_bytes(b"abc")
    assert first_damage(tmp_path, {"a.bin": "ba7816bf8f01cfea", name: "0"}) == f"{name} is missing"


def test_seed_is_the_first_63_bits_of_the_sha256_of_its_parts() -> None:
    digest = hashlib.sha256(b'[0, "generation", 3]').digest()
    assert derive_seed(0, "generation", 3) == int.from_bytes(digest[:8], "big") // 2


def test_seed_is_the_same_in_every_process() -> None:
    # A salted hash (of strings, by the interpreter) would differ.
    code = "from sae_faithful.hashing import derive_seed; print(derive_seed(7, 'order', 'news'))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == derive_seed(7, "order", "news")


def test_seeds_differ_wherever_a_part_differs() -> None:
    parts = [(0,), (1,), ("0",), (0, 0), (0, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), ("a", 0), ([0, "a"],)]
    assert len({derive_seed(*part) for part in parts}) == len(parts)


def test_seeds_fill_63_bits_and_no_more() -> None:
    seeds = [derive_seed(number) for number in range(1_000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Of 1,000 uniform seeds about half lie in the upper half: 500 ± 4 · √250.
    assert 437 < sum(seed >= 2**62 for seed in seeds) < 563
