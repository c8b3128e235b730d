"""Progress: a bar on a terminal, lines in a log file, nothing when silenced; and other libraries' bars."""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from sae_faithful import ExperimentConfig, Progress, interruption, progress, run
from sae_faithful.progress import about, exactly, libraries_as_well, silenced


class Clock:
    """Time as a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def test_a_log_file_gets_a_line_with_rate_and_time_left(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "sae_faithful")
    clock = Clock(monkeypatch)
    with Progress("measuring on news", 12_000) as bar:
        clock.now += 71
        bar.update(3_200)
    # 3,200 rows in 71 s are 45.07 a second; the other 8,800 take 195 s.
    assert caplog.messages == ["measuring on news: 3,200 of 12,000 rows, 45 rows/s, 3 min left"]


def test_lines_come_every_30_seconds_the_first_after_30(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "sae_faithful")
    clock = Clock(monkeypatch)
    seen: list[int] = []
    with Progress("reading", unit="texts") as bar:
        for second in range(1, 101):
            clock.now += 1
            bar.update()
            seen += [second] * (len(caplog.messages) - len(seen))
    assert seen == [30, 60, 90]
    # Without a total nobody knows what is left.
    assert caplog.messages[0] == "reading: 30 texts, 1 texts/s"


def test_parts_that_were_done_before_do_not_count_as_fast(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "sae_faithful")
    clock = Clock(monkeypatch)
    with Progress("training", 1_000, "tokens", done=500) as bar:
        clock.now += 50
        bar.update(100)
    assert caplog.messages == ["training: 600 of 1,000 tokens, 2 tokens/s, 3 min left"]


def test_a_bar_is_drawn_in_a_notebook_and_not_where_one_is_only_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace())
    for kernel, drawn in ((None, False), (object(), True)):
        shell = SimpleNamespace(kernel=kernel)
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert progress.draws_bars() is drawn


def test_nothing_is_said_when_silenced(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "sae_faithful")
    clock = Clock(monkeypatch)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with silenced(), Progress("measuring", 10) as bar:
        clock.now += 100
        bar.update()
    assert caplog.messages == []
    assert capfd.readouterr().err == ""
    assert progress.draws_bars()


def test_an_update_hears_a_lost_ctrl_c() -> None:
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        with interruption.recorded(), pytest.raises(KeyboardInterrupt), Progress("measuring", 2) as bar:
            bar.update()
            os.kill(os.getpid(), signal.SIGINT)
            bar.update()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_terminal_gets_a_bar_that_is_gone_when_the_step_is() -> None:
    program = textwrap.dedent("""
        import logging, time
        from sae_faithful import progress
        logging.basicConfig(level=logging.INFO)
        progress.SECONDS_BETWEEN_LINES = 0.0
        with progress.Progress("measuring on news", 40, "rows") as bar:
            for _ in range(40):
                time.sleep(0.01)
                bar.update()
    """)
    shown = on_a_terminal([sys.executable, "-c", program])
    # Drawn over itself; with rate and time left; no lines of a log file.
    assert re.search(r"measuring on news: +\d+%.* \d+/40 \[.*<.*rows/s\]", shown)
    assert shown.count("\r") > 3
    assert "of 40 rows" not in shown
    assert shown.split("\r")[-1].strip() == ""


def on_a_terminal(command: list[str], **options: Any) -> str:
    """What a process shows on a terminal of its own."""
    ours, theirs = pty.openpty()
    # A terminal without a width shows nothing.
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, **options) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 65_536)
            except OSError:  # Linux's end of a terminal
                break
            if not part:
                break
            shown += part
        assert process.wait() == 0, shown
    os.close(ours)
    return shown.decode()


def bars_of_libraries() -> list[bool]:
    from datasets import utils as of_datasets
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging as of_transformers

    return [
        not of_datasets.are_progress_bars_disabled(),
        of_transformers.is_progress_bar_enabled(),
        not are_progress_bars_disabled(),
    ]


def test_bars_of_other_libraries_are_drawn_only_where_ours_are(monkeypatch: pytest.MonkeyPatch) -> None:
    before = bars_of_libraries()
    assert before == [True, True, True]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with libraries_as_well():
        assert bars_of_libraries() == before
    with silenced(), libraries_as_well():
        assert bars_of_libraries() == [False, False, False]
    assert bars_of_libraries() == before
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    with libraries_as_well():
        assert bars_of_libraries() == [False, False, False]
    assert bars_of_libraries() == before


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_training_tells_each_step_in_lines_of_ours(
    tiny_config: dict[str, Any],
    seeds: list[int],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    sae = {**tiny_config["sae"], "normalize_activations": "expected_average_only_in"}
    changes = {"sae_seeds": seeds, "sae": sae, "n_batches_for_norm_estimate": 3, "training_tokens": 640}
    caplog.set_level(logging.INFO, "sae_faithful")
    run(ExperimentConfig.from_dict({**tiny_config, **changes}), until="saes")
    told = [
        line.partition(" tokens")[0] for line in caplog.messages if line.startswith("training faithful: ")
    ]
    # Ten steps of 64 tokens, whether there is one SAE or several; SAELens's own bar moves once in 100.
    assert told[-10:] == [f"training faithful: {64 * step} of 640" for step in range(1, 11)]
    if seeds == [0]:
        assert any(
            line.startswith("training faithful: estimating the norm: 3 of 3") for line in caplog.messages
        )
    assert "\r" not in capfd.readouterr().err


def write(config: dict[str, Any], folder: Path) -> str:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**config, "evaluators": [{"reconstruction": {"ce_tokens": 100}}]}))
    return str(path)


def test_quiet_says_nothing_but_where_the_output_is(
    tiny_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_faithful.cli import main

    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    result = CliRunner().invoke(main, ["--quiet", "run", write(tiny_config, tmp_path)])
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    folder = tmp_path / "run"
    assert result.stdout.splitlines() == [
        f"results: {folder / 'results.jsonl'}",
        f"features: {folder / 'features.parquet'}",
        f"report: {folder / 'report.md'}",
        f"to look at: {(folder / 'report.html').as_uri()}",
    ]
    assert "WANDB_SILENT" not in os.environ
    assert logging.root.manager.disable == logging.NOTSET


def test_a_log_file_holds_plain_lines(tiny_config: dict[str, Any], tmp_path: Path, cache: Path) -> None:
    program = Path(sys.executable).parent / "sae-faithful"
    done = subprocess.run(
        [str(program), "run", write(tiny_config, tmp_path)], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert b"\r" not in done.stderr
    assert b"saes/faithful: training 2 SAEs on 2,000 tokens" in done.stderr


@pytest.mark.parametrize(
    ("seconds", "rough", "exact"),
    [
        (0.2, "under 1 s", "0.2 s"),
        (7.4, "7 s", "7.4 s"),
        (38, "40 s", "38 s"),
        (200, "3 min", "3 min 20 s"),
        (1_430, "25 min", "23 min 50 s"),
        (9_000, "2.5 h", "2 h 30 min"),
        (100_000, "28 h", "27 h 46 min"),
        (400_000, "5 days", "111 h 6 min"),
    ],
)
def test_times_have_as_many_digits_as_they_deserve(seconds: float, rough: str, exact: str) -> None:
    assert about(seconds) == rough
    assert exactly(seconds) == exact
