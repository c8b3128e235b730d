"""FaithfulSAE's question, asked of a tiny model for real: five sources, verdicts, definitions, distance."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from sae_faithful.metrics.correlation import SAME_VALUES
from sae_faithful.report.distance import MEASURES, SCORES
from sae_faithful.report.run_data import read_run
from sae_faithful.run_folder import RunFolder
from tests.five_sources import SOURCES, five_sources

GEN = Path(__file__).parents[1] / "docs" / "gen"


@pytest.fixture(scope="module")
def folder(tiny_llama: str, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    root = tmp_path_factory.mktemp("five")
    (root / "model").symlink_to(tiny_llama)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_FAITHFUL_CACHE", str(root / "cache"))
        # As from a project's folder: no path of this machine gets into the config.
        patch.chdir(root)
        folder = five_sources("model", "runs/five")
    return RunFolder(root / folder.root)


def test_the_sources_lie_at_different_distances(folder: RunFolder) -> None:
    rows = [one for one in read_run(folder.root).rows if one["metric"] == "typicality_gap"]
    gaps = {one["dataset"]: one["value"] for one in rows}
    assert abs(gaps["faithful"]) < 0.2
    assert gaps["faithful"] < gaps["warm"] < gaps["hot"]
    assert min(gaps["words"], gaps["few_words"]) > gaps["warm"]


def test_each_of_its_own_texts_is_held_against_each_other_text(folder: RunFolder) -> None:
    verdicts = read_run(folder.root).verdicts
    pairs = {(one.source, one.other) for one in verdicts}
    assert pairs == {(own, other) for own in SOURCES[:3] for other in SOURCES[3:]}
    assert {one.claim for one in verdicts} == {"sfr", "ffr", "ce_difference"}
    assert all(one.ci_low is not None or one.reason for one in verdicts)


def test_every_definition_has_a_verdict_beside_the_paper_s(folder: RunFolder) -> None:
    run = read_run(folder.root)
    of_one_pair = [one for one in run.redefined if (one.source, one.other) == ("faithful", "few_words")]
    claims = [one.definition.claim for one in of_one_pair]
    assert (claims.count("sfr"), claims.count("ffr"), claims.count("ce_difference")) == (23, 18, 6)
    assert sum(one.definition.paper for one in of_one_pair) == 3
    assert all((one.change is None) == one.definition.paper for one in of_one_pair)
    # The recommended numbers come out as in the verdicts.
    primary = {
        (one.metric, one.subset, one.condition, one.source, one.other): one
        for one in run.verdicts
        if one.primary and one.dataset is None
    }
    same = [
        (one, primary[key])
        for one in run.redefined
        if one.definition.less is None
        and one.definition.texts == "all"
        and (
            key := (
                one.definition.metric,
                one.definition.subset,
                one.definition.condition,
                one.source,
                one.other,
            )
        )
        in primary
    ]
    assert len(same) == len(primary) == 18
    for one, verdict in same:
        assert (one.difference, one.ci_low, one.verdict) == (
            verdict.difference,
            verdict.ci_low,
            verdict.verdict,
        )
    # Five sources of which no two are alike: some conclusion hangs on its definition.
    assert any(one.change != "the same" for one in run.redefined if not one.definition.paper)


def test_every_measure_goes_with_every_score(folder: RunFolder) -> None:
    found = read_run(folder.root).trends
    measured = {one.score for one in found}
    assert measured >= {
        "typicality_gap",
        "first_token_excess",
        "nll_auroc",
        "unigram_js_excess",
        "knn_distance",
    }
    assert measured <= {score.metric for score in SCORES}
    assert len(found) == len(MEASURES) * len(measured)
    for one in found:
        assert one.sources == list(SOURCES)
        if one.spearman is None:
            assert one.reason == SAME_VALUES
            continue
        assert one.pearson is not None
        assert one.spearman_p is not None
        assert -1 <= one.spearman <= 1
        assert 2 / 120 <= one.spearman_p <= 1
        assert (one.spearman_low is None) == (one.reason is not None)
    assert any(one.spearman_low is not None for one in found)
    assert all(one.spearman is not None for one in found if one.primary)


def test_the_report_says_all_of_it(folder: RunFolder) -> None:
    text, page = folder.report_file.read_text(), folder.html_file.read_text()
    for heading in ("## By other definitions", "## Stability and distance from the model"):
        assert heading in text
    lines = [json.loads(line) for line in folder.distance_file.read_text().splitlines()]
    primary = [one for one in lines if one["primary"]]
    assert len(primary) == 2
    for one in primary:
        assert one["sentence"] in text
    assert "figure-distance-sfr" in page
    assert "figure-distance-ffr-contrast" in page


# docs/results.md is made by code from such a run


@pytest.fixture(scope="module")
def answer() -> ModuleType:
    """The script that makes docs/results.md."""
    sys.path.insert(0, str(GEN))
    try:
        import answer

        return answer
    finally:
        sys.path.remove(str(GEN))


@pytest.fixture
def kept(answer: ModuleType, folder: RunFolder, tmp_path: Path) -> Path:
    """What is kept of the run and of a control, beside a page to make."""
    runs, docs = tmp_path / "runs", tmp_path / "docs"
    for name, init in (("five", None), ("untrained_five", "random")):
        shutil.copytree(folder.root, runs / name, ignore=shutil.ignore_patterns("saes", "*.arrow"))
        config = json.loads((runs / name / "config.json").read_text())
        (runs / name / "config.json").write_text(json.dumps({**config, "model_init": init}))
    # The control has had half as much of one text.
    card = runs / "untrained_five" / "data" / "hot" / "card.json"
    content = json.loads(card.read_text())
    content["rows"]["train"] //= 2
    card.write_text(json.dumps(content))
    # Text in the first stage; SAEs and results in both.
    steps = [("five", "data/faithful", 90.0, 80.0), ("untrained_five", "data/faithful", 9.0, None),
             ("five", "saes/faithful", 1_800.0, 1_700.0), ("five", "saes/faithful", 900.5, 1_000.0),
             ("five", "report", 2.0, None), ("five", "report", 3.0, 4.0)]  # fmt: skip
    keys = ("run", "step", "seconds", "expected_seconds")
    lines = [json.dumps(dict(zip(keys, one, strict=True))) + "\n" for one in steps]
    (runs / "timings.jsonl").write_text("".join(lines))
    stages = {
        "five/3_seeds": {"at": "2026-11-22T08:00:00Z"},
        "untrained_five/3_seeds": {"at": "2026-11-23T08:00:00Z"},
    }
    (runs / "stages.json").write_text(json.dumps(stages))
    (runs / "calls.jsonl").write_text('{"seconds": 540.0}\n{"seconds": 360.0}\n')
    (runs / "texts").mkdir()
    answer.take(runs, 4.0, "EUR", kept=docs / "results")
    (docs / "results.md").write_text(f"# Before\n\n{answer.BEGIN}stale\n{answer.END}\nAfter.\n")
    return docs


def test_the_page_is_made_from_small_files_alone(answer: ModuleType, kept: Path, folder: RunFolder) -> None:
    files: dict[Path, str] = answer.files(kept)
    page = files[kept / "results.md"]
    assert page.startswith("# Before\n")
    assert page.endswith("\nAfter.\n")
    assert "stale" not in page
    headings = re.findall(r"^## (.+)$", page, re.M)
    assert headings == [
        "In short", "What was run", "The claims", "Stability and distance from the model",
        "What the definition of a number changes", "Controls", "Precision", "Time and cost",
    ]  # fmt: skip
    assert "**The run at scale has not been done: it needs a GPU, and none has been at hand.**" in page
    assert "finished on 2026-11-22 on cpu" in page
    for verdict in read_run(folder.root).verdicts:
        if verdict.primary:
            assert f"| {verdict.source} - {verdict.other}" in page
            assert f"{verdict.difference:+.4f} [{verdict.ci_low:+.4f}, {verdict.ci_high:+.4f}]" in page
    for trend in read_run(folder.root).trends:
        if trend.primary:
            assert f"- {trend.sentence}" in page
    # What a definition changes is marked, and every link leads to a file that is kept or made.
    assert re.search(r"\*\*(turned round|now decided|no longer decided)\*\*", page)
    links = re.findall(r"\]\(([^)#]+)\)", page)
    assert len(links) > 6
    assert [link for link in links if not (kept / link).exists() and kept / link not in files] == []
    # Two calls of 900 s at 4 an hour.
    assert "2 calls, with all that was begun again, loading and packing: 15.0 min." in page
    assert "At 4 EUR an hour of the device: 1.00 EUR." in page


def test_the_control_stands_beside_the_run(answer: ModuleType, kept: Path, folder: RunFolder) -> None:
    page = answer.files(kept)[kept / "results.md"]
    controls = page.partition("## Controls")[2].partition("\n## ")[0]
    row = next(
        one
        for one in read_run(folder.root).rows
        if (one["metric"], one["source"], one["seed"]) == ("ffr_contrast", "faithful", None)
        and (one["subset"], one["condition"]) == ("alive", "rate>0.1")
    )
    # The control is a copy: the same number, twice in its line.
    (line,) = (one for one in controls.splitlines() if "ffr_contrast" in one and "| faithful" in one)
    assert line.count(f"{row['value']:.4f} [{row['ci_low']:.4f}, {row['ci_high']:.4f}]") == 2
    # Every number that a claim is judged by: of five sources SFR and FFR, and the CE difference on each of five texts.
    lines = [
        [cell.strip() for cell in one.split("|")] for one in controls.splitlines() if one.startswith("| `")
    ]
    named = [one[1].split("`")[1] for one in lines]
    assert [(name, named.count(name)) for name in dict.fromkeys(named)] == [
        ("sfr", 5), ("ffr_contrast", 5), ("ce_difference", 25),
    ]  # fmt: skip
    # Of another budget no number stands there without saying so: all of one source, and of no other.
    tokens = json.loads((kept / "results/five/data/hot/card.json").read_text())
    n_rows, context = tokens["rows"]["train"], tokens["context_size"]
    budget = f"(on {n_rows // 2 * context:,} distinct tokens, not {n_rows * context:,})"
    assert all(one[-2].endswith(budget) == (one[2] == "hot") for one in lines)
    assert controls.count("distinct tokens") == 1 + 1 + 5
    said = "The random-model control (`--set model_init=random`) has not been run at this size."
    assert said not in page
    shutil.rmtree(kept / "results" / "untrained_five")
    alone = answer.files(kept)[kept / "results.md"]
    assert said in alone
    assert alone.partition("## Controls")[2].partition("\n## ")[0].count("| not run") == 10
    assert "Numbers that have neither are left out: 25 of `ce_difference`." in alone
    assert "are left out" not in page


def test_what_every_stage_took_is_added_up(answer: ModuleType, kept: Path) -> None:
    costs = answer.files(kept)[kept / "results.md"].partition("## Time and cost")[2]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in costs.splitlines() if "|" in line
    ]
    header, _, *body = rows
    assert header == ["run", "step", "seconds", "expected seconds", "cost (EUR)"]
    # 4 an hour: 90 s are 0.10, 1800 + 900.5 s are 3.00, 9 s are 0.01; 2 + 3 s are 0.0056.
    assert body == [
        ["five", "data/faithful", "90.0", "80.0", "0.10"],
        ["five", "saes/faithful", "2,700.5", "2,700.0", "3.00"],
        ["five", "report", "5.0", "not estimated", "0.01"],
        ["untrained_five", "data/faithful", "9.0", "not estimated", "0.01"],
    ]
    # 90 + 2,700.5 + 5 + 9 = 2,804.5 s.
    assert "Steps, together: 46.7 min of one cpu" in costs
    assert "each as often as it was done." in costs
    # Of a run in one go there is what timings.json says, and without a price no cost.
    for name in ("five", "untrained_five"):
        (kept / "results" / name / "timings.jsonl").unlink()
        made = kept / "results" / name / "made.json"
        made.write_text(json.dumps({**json.loads(made.read_text()), "price_of_an_hour": None}))
    costs = answer.files(kept)[kept / "results.md"].partition("## Time and cost")[2]
    assert "each as its last run took." in costs
    assert "cost (" not in costs
    assert "| saes/few_words" in costs


def test_pictures_are_drawn_and_are_xml(answer: ModuleType, kept: Path) -> None:
    from xml.etree import ElementTree

    pictures = {path.name: text for path, text in answer.files(kept).items() if path.suffix == ".svg"}
    assert set(pictures) == {
        "results_five_sfr.svg", "results_five_ffr.svg", "results_five_ce_difference.svg",
        "results_five_distance_0.svg", "results_five_distance_1.svg",
    }  # fmt: skip
    for text in pictures.values():
        ElementTree.fromstring(text)
    # A point and an interval for each of six pairs, and for each of five sources.
    assert pictures["results_five_sfr.svg"].count("<circle") == 6
    assert pictures["results_five_distance_0.svg"].count("<circle") == 5


def test_what_is_kept_is_a_small_run_folder(kept: Path, folder: RunFolder) -> None:
    whole, small = read_run(folder.root), read_run(kept / "results" / "five")
    assert small.verdicts == whole.verdicts
    assert small.trends == whole.trends
    assert small.redefined == whole.redefined
    size = sum(path.stat().st_size for path in (kept / "results" / "five").rglob("*") if path.is_file())
    assert size < folder.results_file.stat().st_size / 2


def test_paths_of_this_machine_are_not_taken(answer: ModuleType, folder: RunFolder, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "five"
    shutil.copytree(folder.root, run, ignore=shutil.ignore_patterns("saes", "*.arrow"))
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "model_name": "/home/someone/model"}))
    with pytest.raises(SystemExit, match="places of this machine, which no reader has: /home/someone/model"):
        answer.take(run, None, "USD", kept=tmp_path / "kept")
    with pytest.raises(SystemExit, match="holds no finished run"):
        answer.take(tmp_path / "runs" / "five" / "data", None, "USD", kept=tmp_path / "kept")


def test_the_page_in_the_docs_is_what_its_files_say(answer: ModuleType) -> None:
    stale = [
        path.name for path, text in answer.files().items() if not path.exists() or path.read_text() != text
    ]
    assert stale == [], "run `python docs/gen/answer.py`"
