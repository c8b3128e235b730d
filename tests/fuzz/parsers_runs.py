"""Readers of run folders: the report, `push`, and a run that goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from parser import Parser, with_file


def of_runs(run: Path) -> list[Parser]:
    """The report, one file of a finished run changed at a time."""
    from sae_faithful.hub import push_saes
    from sae_faithful.report import rows_as, terminal_table, write_report
    from sae_faithful.run_folder import RunFolder

    folder = RunFolder(run)

    def report() -> None:
        write_report(folder)
        terminal_table(folder)
        rows_as(folder, "csv")

    def push() -> None:
        with mock.patch("sae_faithful.hub._make_repository"), mock.patch("sae_faithful.hub._upload"):
            push_saes(folder, "me/saes")

    slow = 0.012
    made: list[Parser] = []
    for pattern in (
        "results.jsonl",
        "manifest.json",
        "config.json",
        "features.parquet",
        "results/*/artifacts/*.json",
        "results/*/artifacts/*.txt",
        "data/faithful/card.json",
        "data/faithful/typicality.json",
        "references/*/typicality.json",
        "monitors/faithful.json",
        "monitors/faithful.jsonl",
    ):
        for path in sorted(run.glob(pattern)):
            name = path.relative_to(run).as_posix()
            kind = {".json": "json", ".jsonl": "lines", ".txt": "text"}.get(path.suffix, "binary")
            several = 1 if "/" in name else 3
            module = "sae_faithful.stored sae_faithful.report.rows sae_faithful.report.run_data"
            made.append(
                Parser(
                    f"report: {name}",
                    kind,
                    [path.read_bytes()],
                    with_file(path, report),
                    slow * several,
                    module,
                )
            )
    for name in (
        "saes/faithful/model.layers.0/base/seed0/cfg.json",
        "results/shared_features/step.json",
        "manifest.json",
    ):
        path = run / name
        made.append(
            Parser(
                f"push: {name}",
                "json",
                [path.read_bytes()],
                with_file(path, push),
                0.04,
                "sae_faithful.report.sae_card",
            )
        )
    return made


def of_steps(run: Path) -> list[Parser]:
    """What a run that goes on reads of itself."""
    from sae_faithful.checkpoints import SEAL, Checkpoints
    from sae_faithful.data import open_text
    from sae_faithful.evaluation import merge_features, read_rows
    from sae_faithful.hashing import hash_file
    from sae_faithful.run_folder import RunFolder, Step
    from sae_faithful.timings import read_timings
    from sae_faithful.tokens import TokenSet
    from sae_faithful.wandb_run import group_of

    folder = RunFolder(run)
    rows, step, timings = run / "results/ood_score", run / "results/ood_score/step.json", run / "timings.json"
    features = run / "results/shared_features/features.parquet"
    text = run / "data/faithful"
    group = run / "wandb.json"
    group.write_text('{"group": "run-abc123"}\n')
    made = json.loads(step.read_bytes())
    one = Step("results/ood_score", made["settings"], made["inputs"])
    kept = run / "checkpoints" / "64"
    (kept / "sae").mkdir(parents=True)
    (kept / "sae" / "weights").write_bytes(b"weights")
    seal = {
        "of": {"sae": "abc"},
        "n_training_samples": 64,
        "n_batches_before": 0,
        "last_batch": "0",
        "resumed_at": [],
        "beside": None,
        "files": {"sae/weights": hash_file(kept / "sae" / "weights")},
    }

    def of_step() -> None:
        folder.finished(one)
        folder.check_settings([one])

    def of_tokens() -> None:
        opened = open_text(text)
        assert opened.train is not None
        opened.train.check("source", context_size=16, vocab_size=64)

    def of_file(path: Path) -> Callable[[], None]:
        def read() -> None:
            tokens = TokenSet.open(path)
            tokens.check("source", context_size=16, vocab_size=64)
            tokens.documents(0)

        return read

    def of_checkpoint(data: bytes) -> None:
        (kept / "sae").mkdir(parents=True, exist_ok=True)
        (kept / "sae" / "weights").write_bytes(b"weights")
        (kept / SEAL).write_bytes(data)
        Checkpoints(kept.parent, {"sae": "abc"}).newest()

    return [
        Parser(
            "rows.jsonl",
            "lines",
            [(rows / "rows.jsonl").read_bytes()],
            with_file(rows / "rows.jsonl", lambda: read_rows(rows)),
            1.5,
            "sae_faithful.evaluation sae_faithful.stored",
        ),
        Parser(
            "features.parquet",
            "binary",
            [features.read_bytes()],
            with_file(features, lambda: merge_features({"a": features.parent, "b": features.parent})),
            0.8,
            "sae_faithful.evaluation",
        ),
        Parser(
            "step.json", "json", [step.read_bytes()], with_file(step, of_step), 1.5, "sae_faithful.run_folder"
        ),
        Parser(
            "timings.json",
            "json",
            [timings.read_bytes()],
            with_file(timings, lambda: read_timings(timings)),
            1,
            "sae_faithful.timings",
        ),
        Parser(
            "wandb.json",
            "json",
            [group.read_bytes()],
            with_file(group, lambda: group_of(run)),
            0.5,
            "sae_faithful.wandb_run",
        ),
        Parser(
            "card.json",
            "json",
            [(text / "card.json").read_bytes()],
            with_file(text / "card.json", of_tokens),
            0.5,
            "sae_faithful.data",
        ),
        Parser(
            "train.arrow",
            "binary",
            [(text / "train.arrow").read_bytes()],
            with_file(text / "train.arrow", of_file(text / "train.arrow")),
            0.7,
            "sae_faithful.tokens",
        ),
        Parser(
            "checkpoint.json",
            "json",
            [json.dumps(seal).encode()],
            of_checkpoint,
            1.5,
            "sae_faithful.checkpoints",
        ),
    ]
