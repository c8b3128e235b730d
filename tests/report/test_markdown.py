"""The report, from a run folder written by hand."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest

from sae_faithful import EvalResult, RunError, UsageError
from sae_faithful.report import render, terminal_table, write_report
from sae_faithful.run_folder import RunFolder, write_json, write_text

if TYPE_CHECKING:
    from pathlib import Path

HOOK = "model.layers.3"


def row(evaluator: str, metric: str, value: float | None, unit: str = "share", **fields: Any) -> EvalResult:
    return EvalResult(evaluator=evaluator, metric=metric, value=value, unit=unit, **fields)


def shared(source: str, value: float | None, **fields: Any) -> EvalResult:
    """A number of one source."""
    return row(
        "shared_features", "sfr", value, **{"source": source, "hook": HOOK, "variant": "base", **fields}
    )


ROWS = [
    row("typicality", "typicality_gap", 0.00124, "nats/token", dataset="faithful", n=12_345,
        ci_low=-0.0106, ci_high=0.01),
    row("typicality", "typicality_z", 0.248, "SD", dataset="faithful", n=12_345, reason="a deviate"),
    row("typicality", "typicality_gap", 12.3456, "nats/token", dataset="news", n=900, reason="one document"),
    row("typicality", "typicality_z", -1_234.5, "SD", dataset="news", n=900, reason="a deviate"),
    shared("faithful", 0.12345, ci_low=0.1, ci_high=0.15, condition="cosine>0.7", subset="alive", headline=True),
    shared("news", 0.5, reason="one pair", condition="cosine>0.7", subset="alive", headline=True),
    shared("faithful", 0.2, ci_low=0.19, ci_high=0.21, condition="|cosine|>0.7", headline=True),
    # Not for the short table: no headline, one SAE's own, another's text.
    shared("faithful", 0.7777, reason="none", condition="cosine>0.5"),
    shared("faithful", 0.8888, reason="none", condition="cosine>0.7", headline=True, seed=0),
    shared("elsewhere", 0.9999, reason="none", condition="cosine>0.7", headline=True),
    row("l0", "l0", 31.96, "latents/token", source="faithful", hook=HOOK, variant="base", dataset="news",
        ci_low=8.0, ci_high=55.25),
    row("l0", "dead", None, "share", source="news", hook=HOOK, variant="base", reason="nothing fired"),
]  # fmt: skip


def make_folder(root: Path, rows: list[EvalResult] = ROWS, **manifest: Any) -> RunFolder:
    folder = RunFolder(root)
    write_text(folder.results_file, "".join(json.dumps(asdict(row)) + "\n" for row in rows))
    write_json(
        folder.manifest_file,
        {
            "model": "org/model@abc#12",
            "versions": {"sae-lens": "6.54.12", "torch": "2.13.0"},
            "device": "cpu",
            "threads": 2,
            "summary": "topk, 1,152 latents; seeds 0, 1",
            "sources": ["faithful", "news"],
            "evaluators": ["shared_features", "l0"],
            **manifest,
        },
    )
    return folder


def cells(line: str) -> list[str]:
    """Cells of a table's line; an escaped pipe is not a border."""
    parts = line.strip().strip("|").replace(r"\|", "\0").split("|")
    return [part.strip().replace("\0", "|") for part in parts]


def tables(text: str) -> list[list[list[str]]]:
    """Every Markdown table, as rows of cells without the line under the header."""
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    return [[cells(line) for i, line in enumerate(block) if i != 1] for block in blocks]


def test_the_typicality_table_has_a_line_a_text(tmp_path: Path) -> None:
    typicality, *_ = tables(render(make_folder(tmp_path)))
    assert typicality == [
        ["text", "typicality gap (nats/token)", "z", "tokens scored"],
        # Four places below ten, one place from there on; z to two places with its sign.
        ["faithful", "0.0012 [-0.0106, 0.0100]", "+0.25", "12,345"],
        ["news", "12.3", "-1234.50", "900"],
    ]


def test_an_evaluators_table_has_a_column_a_source_and_a_line_a_number(tmp_path: Path) -> None:
    _, shared_features, l0 = tables(render(make_folder(tmp_path)))
    # Only what is marked for the short table; columns that say nothing are left out; notes are numbered.
    assert shared_features == [
        ["metric", "condition", "latents", "unit", "faithful", "news"],
        ["sfr", "cosine>0.7", "alive", "share", "0.1235 [0.1000, 0.1500]", "0.5000 [1]"],
        ["sfr", "|cosine|>0.7", "all", "share", "0.2000 [0.1900, 0.2100]", ""],
    ]
    # This evaluator marks nothing, so everything of its sources is shown; no value is a dash.
    assert l0 == [
        ["metric", "latents", "on", "unit", "faithful", "news"],
        ["l0", "all", "news", "latents/token", "32.0 [8.0000, 55.2]", ""],
        ["dead", "all", "", "share", "", "– [1]"],
    ]


def test_a_number_without_an_interval_says_why_below_its_table(tmp_path: Path) -> None:
    text = render(make_folder(tmp_path))
    assert "\n\n[1] one pair\n\n" in text
    assert "\n\n[1] nothing fired\n\n" in text
    # Notes of rows that are not shown are not shown either.
    assert "[2]" not in text
    assert "none" not in text


def test_equal_reasons_share_a_note_and_others_have_their_own(tmp_path: Path) -> None:
    rows = [
        shared("faithful", 0.1, reason="one pair", condition="a"),
        shared("news", 0.2, reason="no pair", condition="a"),
        shared("faithful", 0.3, reason="one pair", condition="b"),
    ]
    text = render(make_folder(tmp_path, rows, evaluators=["shared_features"]))
    (table,) = tables(text)
    assert [line[-2:] for line in table[1:]] == [["0.1000 [1]", "0.2000 [2]"], ["0.3000 [1]", ""]]
    assert "[1] one pair\n\n[2] no pair\n" in text


def test_pipes_inside_cells_are_escaped(tmp_path: Path) -> None:
    text = render(make_folder(tmp_path))
    assert r"| \|cosine\|>0.7 |" in text
    # Every line of every table has as many borders as its header.
    for block in (block for block in text.split("\n\n") if block.startswith("|")):
        borders = {line.replace(r"\|", "").count("|") for line in block.splitlines()}
        assert len(borders) == 1


def test_several_hooks_or_variants_are_told_apart(tmp_path: Path) -> None:
    rows = [
        shared("faithful", 0.1, ci_low=0.0, ci_high=0.2),
        shared("faithful", 0.3, ci_low=0.2, ci_high=0.4, variant="wide"),
        shared("faithful", 0.5, ci_low=0.4, ci_high=0.6, hook="model.layers.9"),
    ]
    (table,) = tables(render(make_folder(tmp_path, rows, evaluators=["shared_features"])))
    assert table == [
        ["metric", "latents", "hook/variant", "unit", "faithful", "news"],
        ["sfr", "all", "model.layers.3/base", "share", "0.1000 [0.0000, 0.2000]", ""],
        ["sfr", "all", "model.layers.3/wide", "share", "0.3000 [0.2000, 0.4000]", ""],
        ["sfr", "all", "model.layers.9/base", "share", "0.5000 [0.4000, 0.6000]", ""],
    ]


def test_the_report_says_what_was_run(tmp_path: Path) -> None:
    text = render(make_folder(tmp_path))
    assert text.startswith("# org/model: SAEs on faithful, news\n\n")
    assert (
        "Model `org/model@abc#12`; topk, 1,152 latents; seeds 0, 1. 2 threads, device cpu; sae-lens 6.54.12, "
        "torch 2.13.0."
    ) in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Verdicts", "## Is the text the model's own?", "## shared_features", "## l0",
    ]  # fmt: skip
    assert text.endswith("\n")


VERDICT_ROWS = [
    # Differences of the alive ones .1, .11, .12: mean .11, jackknife SE .0115470, t with two degrees 4.3027.
    *(shared(source, value, reason="one pair", seed=i, other_seed=j, subset=subset, condition="cosine>0.7")
      for source, values in (("faithful", (0.4, 0.41, 0.42)), ("news", (0.3, 0.3, 0.3)))
      for (i, j), value in zip(((0, 1), (0, 2), (1, 2)), values, strict=True)
      for subset in ("alive", "all")),
]  # fmt: skip


def test_verdicts_come_first_as_sentences_then_as_a_table(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, VERDICT_ROWS, own_text=["faithful"])
    text = render(folder)
    sentence = (
        "- SFR of alive latents (cosine > 0.7) is higher for SAEs on faithful than on news: "
        "+0.1100 [+0.0603, +0.1597], supported."
    )
    assert f"## Verdicts\n\n{sentence}\n\nVerdicts at 95 % each, 2 in all, 1 primary: were there" in text
    table, by_definition = tables(text)
    common = ["faithful - news", "+0.1100 [+0.0603, +0.1597]", "share", "3", "supported"]
    # Columns that say nothing are left out: one place, no text, nothing left to decide.
    assert table == [
        ["metric", "condition", "latents", "sources", "difference", "unit", "seeds", "verdict"],
        ["sfr", "cosine>0.7", "alive", *common],
        ["sfr", "cosine>0.7", "all", *common],
    ]
    # Alive latents say what all latents say.
    assert by_definition[1] == ["sfr", "1", "0", "0", "0"]
    # The terminal has the primary sentence and no table of verdicts.
    assert terminal_table(folder).startswith(f"{sentence}\n\nVerdicts at 95 % each")
    assert tables(terminal_table(folder)) == []


def test_the_table_of_verdicts_tells_places_apart_and_says_what_would_decide(tmp_path: Path) -> None:
    rows = [
        shared(source, value, reason="one pair", seed=0, other_seed=1, subset="alive", condition="cosine>0.7",
               variant=variant)
        for variant in ("base", "wide")
        for source, value in (("faithful", 0.4), ("news", 0.3))
    ]  # fmt: skip
    table, _ = tables(render(make_folder(tmp_path, rows, own_text=["faithful"])))
    assert [line[3] for line in table] == ["hook/variant", "model.layers.3/base", "model.layers.3/wide"]
    assert [line[5] for line in table[1:]] == ["+0.1000", "+0.1000"]
    assert [line[-1] for line in table] == ["would decide", *["at least 3 seeds of both sources"] * 2]


def test_a_run_without_verdicts_says_why_in_report_and_terminal(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    for text in (render(folder), terminal_table(folder)):
        assert "does not say whose text its sources are." in text


def test_what_an_evaluator_says_in_words_stands_above_its_table(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    write_text(folder.result_dir("shared_features") / "artifacts" / "reading.txt", "More than chance.\n")
    assert "## shared_features\n\nMore than chance.\n\n| metric" in render(folder)
    assert "shared_features\n\nMore than chance.\n\n| metric" in terminal_table(folder)


def test_of_a_long_text_the_report_has_the_beginning_and_says_where_the_rest_is(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    lines = ["First.", "```text", *(f"line {i}" for i in range(70)), "```", "Last."]
    write_text(folder.result_dir("shared_features") / "artifacts" / "cases.txt", "\n".join(lines) + "\n")
    text = render(folder)
    # 60 of 74 lines; the fence that they leave open is closed.
    assert "line 57\n```\n\n(14 more lines: `results/shared_features/artifacts/cases.txt`)\n" in text
    assert "line 58" not in text
    assert "Last." not in text


def test_the_terminal_shows_the_same_tables(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    assert tables(terminal_table(folder)) == tables(render(folder))
    assert "#" not in terminal_table(folder).replace("org/model@abc#12", "")


def test_a_run_without_evaluators_still_reports_its_texts(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, ROWS[:4], evaluators=[])
    assert len(tables(render(folder))) == 1
    assert len(tables(terminal_table(folder))) == 1


def test_the_report_is_written_into_the_folder(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    write_report(folder)
    assert folder.report_file.read_text(encoding="utf-8") == render(folder)


@pytest.mark.parametrize("report", [render, terminal_table, write_report])
def test_a_folder_without_a_finished_run_is_refused(report: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere holds no finished run: there is no results\.jsonl"):
        report(RunFolder(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


def test_a_manifest_without_what_every_run_has_is_told_field_by_field(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    kept = json.loads(folder.manifest_file.read_text())
    write_json(
        folder.manifest_file,
        {"sources": "faithful", **{k: kept[k] for k in ("model", "versions", "device", "evaluators")}},
    )
    with pytest.raises(RunError, match=r"manifest\.json cannot be read: ") as error:
        write_report(folder)
    said = str(error.value)
    assert "threads: Field required; summary: Field required; sources: Input should be a valid list" in said
    assert "\n" not in said
    assert "pydantic" not in said
