"""Run folders written by hand, a small real one, and a browser to look at their pages with."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_faithful import EvalResult, ExperimentConfig, run
from sae_faithful.run_folder import RunFolder, write_json

HOOK = "model.layers.3"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
Row = dict[str, Any]


@pytest.fixture
def number() -> Callable[..., Row]:
    """One row of `results.jsonl`; of a source at `HOOK` and of the variant `base` unless it says otherwise."""

    def make(evaluator: str, metric: str, value: float | None, source: str | None, **fields: Any) -> Row:
        where = {"hook": HOOK, "variant": "base"} if source is not None else {}
        fields = {"unit": "share", "source": source, **where, **fields}
        return asdict(EvalResult(evaluator=evaluator, metric=metric, value=value, **fields))

    return make


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., RunFolder]:
    """A finished run of these rows; `files`, JSON or text, by their path; `features` becomes `features.parquet`."""

    def make(
        rows: Sequence[Row], *, name: str = "run", files: dict[str, Any] | None = None, features: Any = None,
        **manifest: Any,
    ) -> RunFolder:  # fmt: skip
        folder = RunFolder(tmp_path / name)
        folder.root.mkdir(parents=True)
        folder.results_file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        for path, content in (files or {}).items():
            target = folder.root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                target.write_text(content, encoding="utf-8")
            else:
                write_json(target, content)
        if features is not None:
            features.to_parquet(folder.features_file)
        write_json(
            folder.manifest_file,
            {
                "model": "org/model@abc#12", "versions": {"sae-lens": "6.54.12"}, "device": "cpu", "threads": 2,
                "summary": "topk, 4 latents; seeds 0, 1, 2", "sources": ["faithful", "news"],
                "evaluators": [], **manifest,
            },
        )  # fmt: skip
        return folder

    return make


@dataclass
class Watched:
    """A page, and what it should not do."""

    page: Any
    errors: list[str] = field(default_factory=list[str])
    requests: list[str] = field(default_factory=list[str])

    def see(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.requests.append(request.url)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    named = os.environ.get("CHROMIUM")
    found = named or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        said = "no Chromium: `make chromium`, or `apt-get install chromium`, or name one in $CHROMIUM"
        if os.environ.get("CI"):
            pytest.fail(said)
        pytest.skip(said)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def real_run(tiny_llama: str, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Three SAEs on the tiny model's own text and three on a file's lines."""
    folder = tmp_path_factory.mktemp("browser")
    words = folder / "words.jsonl"
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{word}" for word in rng.integers(4, 64, size=10)) for _ in range(250)]
    words.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = {
        "model_name": tiny_llama, "model_class_name": "AutoModelForCausalLM", "hook_name": "model.layers.0",
        "context_size": 16, "training_tokens": 2_000, "train_batch_size_tokens": 64, "n_batches_in_buffer": 16,
        "store_batch_size_prompts": 8, "lr": 1e-3, "seed": 7, "verbose": False, "typicality_tokens": 400,
        "sae": {"architecture": "topk", "d_in": 64, "d_sae": 96, "k": 8}, "logger": {"log_to_wandb": False},
        "sources": {
            "faithful": {"plugin": "self_generated", "n_tokens": 1_600, "batch_size": 64},
            "words": {"plugin": "text_files", "path": str(words), "column": "text"},
        },
        "sae_seeds": [0, 1, 2],
        "evaluators": [
            "shared_features", {"fake_features": {"n_tokens": 1_000}}, {"reconstruction": {"ce_tokens": 200}},
            "top_contexts",
        ],
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_FAITHFUL_CACHE", str(folder / "cache"))
        return run(ExperimentConfig.from_dict(config), output=folder / "run")


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Watched]]:
    """Open a page from disk and watch it; at the end of the test it has made no error and no request."""
    opened: list[tuple[Any, Watched]] = []

    def open_page(path: Path, address: str = "", *, width: int = 1280, dark: bool = False) -> Watched:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", has_touch=width < 500
        )  # fmt: skip
        watched = Watched(context.new_page())
        opened.append((context, watched))
        watched.page.on(
            "console", lambda said: watched.errors.append(said.text) if said.type == "error" else None
        )
        watched.page.on("pageerror", lambda error: watched.errors.append(str(error)))
        watched.page.on("request", watched.see)
        context.set_offline(True)
        watched.page.goto(path.as_uri() + address)
        return watched

    yield open_page
    for context, watched in opened:
        context.close()
        assert watched.errors == []
        assert watched.requests == []
