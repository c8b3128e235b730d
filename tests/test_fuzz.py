"""The short form of `make fuzz`: no parser of a file from elsewhere fails in any way but a clear line."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
INPUTS = 1_000


@pytest.mark.timeout(600)
def test_no_input_makes_anything_but_a_clear_error() -> None:
    command = [sys.executable, str(ROOT / "tests" / "fuzz"), "--inputs", str(INPUTS), "--processes", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-8_000:]
    assert "crashes: 0 kinds" in done.stdout
    assert "outside: 0" in done.stdout
    (total,) = [line.split() for line in done.stdout.splitlines() if line.startswith("all ")]
    inputs, different, accepted, errors = (int(number.replace(",", "")) for number in total[1:5])
    assert inputs >= 0.95 * INPUTS
    assert different > 0.95 * inputs
    # Were nothing accepted, or nothing refused, nothing would be tried.
    assert accepted > 0.1 * inputs
    assert errors > 0.1 * inputs


def test_inputs_differ_and_are_the_same_for_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "fuzz"))
    from mutations import mutated

    example = b'{"a": [1, 2, {"b": "text"}], "c": null}'
    for kind in ("json", "binary"):
        made = [mutated(random.Random(i), example, [example], kind=kind) for i in range(200)]
        assert made == [mutated(random.Random(i), example, [example], kind=kind) for i in range(200)]
        assert len(set(made)) > 120


def test_what_happens_outside_is_seen(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, subprocess\n"
        "from sandbox import Watch\n"
        "inside, outside = (pathlib.Path(one) for one in sys.argv[1:])\n"
        "watch = Watch(inside)\n"
        "watch.on = True\n"
        "(inside / 'a').write_text('a')\n"
        "assert watch.seen == []\n"
        "(outside / 'b').write_text('b')\n"
        "(outside / 'b').unlink()\n"
        "subprocess.run(['true'])\n"
        "watch.on = False\n"
        "kinds = [line.split()[0] for line in watch.seen]\n"
        "assert kinds[:2] == ['opens', 'os.remove'] and 'subprocess.Popen' in kinds, watch.seen\n"
    )
    (tmp_path / "inside").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "inside"), str(tmp_path)],
        cwd=ROOT / "tests" / "fuzz",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
