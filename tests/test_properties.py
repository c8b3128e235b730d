"""Properties: configs survive a round trip or are refused in one line; texts on disk are whole or are named."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sae_faithful import ExperimentConfig, RunError, UsageError
from sae_faithful.evaluation import read_rows
from sae_faithful.interfaces import EvalResult
from sae_faithful.names import check_name
from sae_faithful.redaction import one_line
from sae_faithful.report import rows_as, write_report
from sae_faithful.run_folder import RunFolder
from sae_faithful.stored import read_json, read_json_lines
from sae_faithful.timings import read_timings
from sae_faithful.tokens import TokenSet
from sae_faithful_plugins.self_generated.shards import ShardCache

# The same examples in every run: a test that fails now and then tells nobody anything.
settings.register_profile(
    "ours",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=60,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,
        HealthCheck.filter_too_much,
    ],
)
settings.load_profile("ours")

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["../x", "/x", "a\0", "1e-3"]),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
DOCUMENTS = st.lists(st.lists(st.integers(3, 63), min_size=1, max_size=30), min_size=1, max_size=12)
MANIFEST = {
    "model": "org/model@abc#12",
    "versions": {"sae-lens": "6.54.12"},
    "device": "cpu",
    "threads": 2,
    "summary": "topk",
    "sources": ["faithful", "news"],
    "own_text": ["faithful"],
    "evaluators": ["some"],
    "baselines": {"pca": {"plugin": "pca"}},
}
ROWS = [
    vars(
        EvalResult(
            evaluator="some",
            metric=metric,
            value=0.5 + seed,
            ci_low=0.1,
            ci_high=2.0,
            unit="share",
            n=10,
            source=source,
            hook="model.layers.3",
            variant="base",
            seed=seed,
            headline=True,
        )
    )
    for metric in ("l0", "ffr_contrast")
    for source in ("faithful", "news")
    for seed in (0, 1)
]


def one_of(tree: Any, data: st.DataObject, value: Any) -> Any:
    """`tree` with one of its nodes, any but the root, replaced or dropped."""
    tree = copy.deepcopy(tree)
    places: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        holder = waiting.pop()
        keys = (
            list(holder)
            if isinstance(holder, dict)
            else range(len(holder))
            if isinstance(holder, list)
            else []
        )
        places += [(holder, key) for key in keys]
        waiting += [holder[key] for key in keys]
    holder, key = data.draw(st.sampled_from(places))
    if data.draw(st.booleans()):
        holder[key] = value
    else:
        del holder[key]
    return tree


def accepted_or_refused(content: Any) -> ExperimentConfig | None:
    """The config, the same after a round trip through a file; None where it is refused in one line."""
    try:
        config = ExperimentConfig.from_dict(content)
    except UsageError as error:
        assert str(error) == one_line(str(error)) != ""
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        file.write_text(json.dumps(config.to_dict()))
        again = ExperimentConfig.from_file(file)
    assert again.to_dict() == config.to_dict()
    return config


@given(content=st.dictionaries(st.text(max_size=8), TREES, max_size=4))
def test_random_fields_are_no_config(content: dict[str, Any]) -> None:
    assert accepted_or_refused(content) is None


@given(data=st.data(), value=TREES)
def test_a_config_changed_anywhere_is_a_config_or_one_line(
    data: st.DataObject, value: Any, tiny_config: dict[str, Any]
) -> None:
    rich = {
        **tiny_config,
        "variants": {"a": {}, "b": {"k": 4}},
        "evaluators": ["ood_score", {"probing": {"tasks": ["sst2"]}}],
        "datasets": {"d": {"plugin": "text_files", "path": "x"}},
        "baselines": ["pca"],
        "seqpos_slice": [0, None],
    }
    accepted_or_refused(one_of(rich, data, value))


@given(seeds=st.lists(st.integers(0, 2**31), min_size=1, max_size=4, unique=True), k=st.integers(1, 96))
def test_a_valid_config_is_accepted(seeds: list[int], k: int, tiny_config: dict[str, Any]) -> None:
    config = accepted_or_refused({**tiny_config, "sae_seeds": seeds, "sae": {**tiny_config["sae"], "k": k}})
    assert config is not None
    assert (config.sae_seeds, config.sae.k) == (seeds, k)


@given(text=st.text(max_size=60))
def test_any_text_as_a_config_file_is_refused_in_one_line(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(text, encoding="utf-8", errors="backslashreplace")
        with pytest.raises(UsageError):
            ExperimentConfig.from_file(file)


@given(name=st.text(max_size=200))
def test_a_name_that_is_taken_stays_in_its_folder(name: str) -> None:
    try:
        check_name(name)
    except UsageError:
        return
    root = Path("/some/folder")
    path = root / name
    assert (path.parent, path.name) == (root, name)
    assert len(f".partial-{name}-old".encode()) < 255


@given(documents=DOCUMENTS, context=st.integers(2, 16))
def test_texts_on_disk_are_what_was_written(documents: list[list[int]], context: int) -> None:
    tokens = TokenSet.from_documents(documents, n_tokens=10_000, context_size=context, bos_token_id=0)
    assume(len(tokens))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.arrow"
        tokens.save(path)
        opened = TokenSet.open(path)
        for one, other in zip(opened.arrays(), tokens.arrays(), strict=True):
            assert np.array_equal(one, other)
        whole = opened.documents(0)
        # Distinct ones in order, but for what did not fill a last row.
        distinct = [list(one) for one in dict.fromkeys(map(tuple, documents))]
        for found, given_one in zip(whole[:-1], distinct, strict=False):
            assert found[1:].tolist() == given_one


@given(documents=DOCUMENTS, data=st.data())
def test_a_damaged_text_is_named_or_has_only_other_ids(
    documents: list[list[int]], data: st.DataObject
) -> None:
    tokens = TokenSet.from_documents(documents, n_tokens=10_000, context_size=4, bos_token_id=0)
    assume(len(tokens))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.arrow"
        tokens.save(path)
        content = bytearray(path.read_bytes())
        if data.draw(st.booleans()):
            content = content[: data.draw(st.integers(0, len(content) - 1))]
        else:
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        try:
            opened = TokenSet.open(path)
            opened.check("source", context_size=4, vocab_size=64)
        except RunError as error:
            assert "a.arrow" in str(error) or "source" in str(error)
        else:
            assert opened.arrays()[0].shape == (len(opened), 4)


@given(documents=DOCUMENTS, data=st.data())
def test_shards_are_what_was_drawn_whatever_became_of_their_files(
    documents: list[list[int]], data: st.DataObject
) -> None:
    drawn: list[int] = []

    def sample(n: int, seed: int) -> list[np.ndarray]:
        drawn.append(seed)
        return [np.asarray(one, np.int32) for one in documents]

    sampler: Any = SimpleNamespace(settings={}, observed={}, sample=sample)
    with tempfile.TemporaryDirectory() as folder:
        cache = ShardCache(sampler, len(documents), 0, Path(folder))
        cache.shard(0)
        assert [one.tolist() for one in cache.shard(0)] == documents
        assert len(drawn) == 1
        path = next(Path(folder).rglob("*.arrow"))
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
        assert [one.tolist() for one in cache.shard(0)] == documents
        assert len(drawn) == 2


@given(value=TREES, data=st.data())
def test_rows_are_rows_or_the_line_is_named(value: Any, data: st.DataObject) -> None:
    rows = one_of(ROWS, data, value)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        try:
            found = read_rows(folder)
        except RunError as error:
            assert "rows.jsonl, " in str(error)
        else:
            assert all(set(row) == set(ROWS[0]) for row in found)


@settings(max_examples=25)
@given(data=st.data(), value=TREES, which=st.sampled_from(["results", "manifest"]))
def test_a_run_changed_anywhere_has_a_report_or_one_line(data: st.DataObject, value: Any, which: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = RunFolder(Path(name) / "run")
        folder.root.mkdir()
        rows = one_of(ROWS, data, value) if which == "results" else ROWS
        manifest = one_of(MANIFEST, data, value) if which == "manifest" else MANIFEST
        folder.results_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        folder.manifest_file.write_text(json.dumps(manifest))
        try:
            page = write_report(folder)
            rows_as(folder, "csv")
        except (UsageError, RunError) as error:
            assert folder.root.name in str(error)
        else:
            assert page.stat().st_size > 100_000
        assert {path.name for path in Path(name).iterdir()} == {"run"}


@given(content=st.one_of(TREES, st.binary(max_size=40)))
def test_json_is_read_or_the_file_is_named(content: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "a.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        for read in (read_json, read_json_lines, read_timings):
            try:
                read(path)
            except RunError as error:
                assert str(path) in str(error)
