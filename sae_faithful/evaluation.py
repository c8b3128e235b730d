"""Step 4: every evaluator's observers in one pass of the model, then what the evaluators make of it."""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful.faults import is_out_of_memory, out_of_memory_named
from sae_faithful.interfaces import Artifact, EvalResult, FeatureTable, RunError, UsageError
from sae_faithful.names import check_name
from sae_faithful.plan import in_reading_order
from sae_faithful.progress import Progress
from sae_faithful.run_folder import write_json, write_text
from sae_faithful.steps import evaluator_steps
from sae_faithful.stored import KEY, blamed_on, read_features, read_results
from sae_faithful.timings import PASSES, begins, took
from sae_faithful.tokens import special_token_mask

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    import torch

    from sae_faithful.interfaces import EvalContext, Observer
    from sae_faithful.plan import PlannedEvaluator
    from sae_faithful.run_folder import RunFolder
    from sae_faithful.sae_handle import SAEHandle
    from sae_faithful.tokens import TokenSet

log = logging.getLogger(__name__)

ROWS_FILE = "rows.jsonl"
FEATURES_FILE = "features.parquet"
ENDINGS = {"json": "json", "text": "txt", "html": "html"}
"""Of files, by the kind of artifact."""
LATENTS_PER_BATCH = 2**26
"""At most so many latents (256 MiB in float32) of one SAE are held at a time."""
LESS_MEMORY = "measure fewer or smaller SAEs at once, or give the evaluator a smaller budget"


@dataclass
class Batch:
    """An `ActivationBatch`; latents are computed on first use and kept for the other observers."""

    tokens: torch.Tensor
    mask: torch.Tensor
    activations: torch.Tensor
    first_row: int
    _latents: dict[int, torch.Tensor] = field(default_factory=dict["int", "torch.Tensor"])

    def latents(self, handle: SAEHandle) -> torch.Tensor:
        """The SAE's latents [rows, context, d_sae]."""
        if id(handle) not in self._latents:
            self._latents[id(handle)] = handle.encode(self.activations)
        return self._latents[id(handle)]


def evaluate(
    evaluators: Sequence[PlannedEvaluator],
    context: EvalContext,
    folder: RunFolder,
    inputs: Mapping[str, Any],
    batch_rows: int,
    seqpos_slice: tuple[int | None, ...] = (None,),
    only: Collection[str] | None = None,
) -> None:
    """Run the evaluators that are not done yet and write what they yield; with `only`, those of these names.

    Raises:
        RunError: an evaluator yields something that is no result (the evaluator is named).
    """
    steps = evaluator_steps(evaluators, inputs)
    missing: list[PlannedEvaluator] = []
    names = [planned.name for planned in evaluators]
    for planned in in_reading_order(evaluators):
        if only is not None and planned.name not in only:
            continue
        if folder.finished(steps[planned.name]):
            log.info("results/%s: reused", planned.name)
        else:
            missing.append(planned)
    if missing:
        begins(PASSES)
    begun = time.monotonic()
    observers, spent = _observed(missing, context, batch_rows, seqpos_slice)
    of_evaluator = {name: sum(spent.get(id(one), 0.0) for one in group) for name, group in observers.items()}
    if spent:
        took(PASSES, time.monotonic() - begun - sum(of_evaluator.values()))
    for planned in missing:
        step = steps[planned.name]
        begins(step.path)
        begun = time.monotonic()
        features = merge_features({name: folder.result_dir(name) for name in planned.read_among(names)})
        with folder.writing(step) as partial, out_of_memory_named(f"measuring {planned.name}", LESS_MEMORY):
            results = planned.evaluator.evaluate(replace(context, features=features), observers[planned.name])
            _write_results(planned.name, step.hash, results, partial)
        took(step.path, time.monotonic() - begun + of_evaluator[planned.name])


def observe(
    observers: Sequence[Observer],
    context: EvalContext,
    batch_rows: int,
    seqpos_slice: tuple[int | None, ...] = (None,),
) -> dict[int, float]:
    """Show every observer its token set at its hook: one pass of the model a token set, for all hooks in it.

    Returns:
        Seconds that each observer's `update` took, by the observer's `id`. The first that asks for an SAE's latents
        pays for them.
    """
    spent: dict[int, float] = {}
    groups: dict[int, list[Observer]] = {}
    for observer in observers:
        groups.setdefault(id(observer.tokens), []).append(observer)
    for group in groups.values():
        spent |= _observe_tokens(group[0].tokens, group, context, batch_rows, seqpos_slice)
    return spent


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows that one evaluator wrote."""
    return read_results(folder / ROWS_FILE)


def merge_features(folders: Mapping[str, Path]) -> pd.DataFrame | None:
    """All evaluators' per-latent columns, joined on source, hook, variant, seed and latent."""
    merged: pd.DataFrame | None = None
    for folder in folders.values():
        path = folder / FEATURES_FILE
        if path.exists():
            table = read_features(path)
            with blamed_on(path):
                merged = table if merged is None else merged.merge(table, on=KEY, how="outer")
    return merged


def _observed(
    evaluators: Sequence[PlannedEvaluator],
    context: EvalContext,
    batch_rows: int,
    seqpos_slice: tuple[int | None, ...],
) -> tuple[dict[str, list[Observer]], dict[int, float]]:
    """Every evaluator's observers after the passes, and the seconds that each took.

    Where memory runs out all passes begin again in batches of half as many rows: an observer that has seen half
    of a batch cannot forget it.
    """
    while True:
        begun = time.monotonic()
        observers = {planned.name: list(planned.evaluator.observers(context)) for planned in evaluators}
        shown = [one for group in observers.values() for one in group]
        try:
            return observers, observe(shown, context, batch_rows, seqpos_slice)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            rows = max(_rows_at_once(one.tokens, context, batch_rows) for one in shown)
            if rows == 1:
                raise RunError(f"out of memory while measuring one row at a time; {LESS_MEMORY}") from error
            batch_rows = rows // 2
        # Out of the block above: the error's traceback holds the batch.
        free_memory(context.language_model.device)
        log.warning(
            "out of memory with %d rows at a time; measuring again with %d, which may change the last bits of "
            "results (lost: %d s)", rows, batch_rows, time.monotonic() - begun,
        )  # fmt: skip


def _rows_at_once(tokens: TokenSet, context: EvalContext, batch_rows: int) -> int:
    widest = max((handle.d_sae for handle in context.handles), default=1)
    return max(1, min(batch_rows, LATENTS_PER_BATCH // (widest * max(1, tokens.context_size))))


def free_memory(device: str) -> None:
    """Let others have what PyTorch keeps for the next tensors of a GPU."""
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def _observe_tokens(
    tokens: TokenSet,
    observers: Sequence[Observer],
    context: EvalContext,
    batch_rows: int,
    seqpos_slice: tuple[int | None, ...],
) -> dict[int, float]:
    import torch

    hooks = list(dict.fromkeys(observer.hook for observer in observers))
    rows = _rows_at_once(tokens, context, batch_rows)
    names = {id(held_out): name for name, held_out in context.held_out.items()}
    kept = np.zeros(tokens.context_size, bool)
    kept[slice(*seqpos_slice)] = True
    spent = {id(observer): 0.0 for observer in observers}
    text = names.get(id(tokens), "generated tokens")
    with Progress(f"measuring on {text}", len(tokens)) as progress:
        for start in range(0, len(tokens), rows):
            ids = tokens.rows(start, start + rows)
            mask = special_token_mask(ids, context.language_model.special_token_ids) & kept
            batch_tokens = torch.from_numpy(ids)
            activations = context.language_model.activations(batch_tokens, hooks)
            for hook in hooks:
                if not bool(torch.isfinite(activations[hook].sum())):
                    raise RunError(
                        f"the model's activations at {hook} are not finite on {text}, rows {start:,} to "
                        f"{start + len(ids) - 1:,}; load the model in another dtype (model_from_pretrained_kwargs)"
                    )
                device = activations[hook].device
                batch = Batch(
                    batch_tokens.to(device), torch.from_numpy(mask).to(device), activations[hook], start
                )
                for observer in observers:
                    if observer.hook == hook:
                        begun = time.monotonic()
                        observer.update(batch)
                        spent[id(observer)] += time.monotonic() - begun
            progress.update(len(ids))
    return spent


def _write_results(
    evaluator: str, config_hash: str, results: Iterable[EvalResult | FeatureTable | Artifact], folder: Path
) -> None:
    rows: list[EvalResult] = []
    tables: list[pd.DataFrame] = []
    for result in results:
        if isinstance(result, EvalResult):
            rows.append(checked(replace(result, evaluator=evaluator, config_hash=config_hash)))
        elif isinstance(result, FeatureTable):
            tables.append(_feature_frame(evaluator, result))
        elif isinstance(result, Artifact):  # pyright: ignore[reportUnnecessaryIsInstance] (a stranger's yield)
            _write_artifact(evaluator, result, folder / "artifacts")
        else:
            raise RunError(
                f"evaluator '{evaluator}' yielded {type(result).__name__}, not EvalResult, FeatureTable or Artifact"
            )
    write_text(folder / ROWS_FILE, "".join(row_to_json(row) + "\n" for row in rows))
    if tables:
        import pandas as pd

        frames = pd.concat(tables, ignore_index=True)
        # One SAE may come in several tables: one row a latent.
        frames.groupby(KEY, as_index=False, sort=False).first().to_parquet(
            folder / FEATURES_FILE, index=False
        )


def row_to_json(row: EvalResult) -> str:
    """One line of `results.jsonl`."""
    return json.dumps(asdict(row), allow_nan=False, ensure_ascii=False)


def checked(row: EvalResult) -> EvalResult:
    """The row, as `results.jsonl` may hold it.

    Raises:
        RunError: a number that is not finite, or no interval and no reason why.
    """
    for name in ("value", "ci_low", "ci_high"):
        number = getattr(row, name)
        if number is not None and not math.isfinite(number):
            raise RunError(f"evaluator '{row.evaluator}', metric '{row.metric}': {name} is {number}")
    if (row.value is None or row.ci_low is None or row.ci_high is None) and not row.reason:
        raise RunError(f"evaluator '{row.evaluator}', metric '{row.metric}': no interval and no reason why")
    return row


def _feature_frame(evaluator: str, table: FeatureTable) -> pd.DataFrame:
    import pandas as pd

    handle = table.handle
    key = dict(zip(KEY[:-1], handle.key, strict=True))
    columns = {f"{evaluator}.{name}": np.asarray(column) for name, column in table.columns.items()}
    return pd.DataFrame({**key, "latent": np.arange(handle.d_sae), **columns})


def _write_artifact(evaluator: str, artifact: Artifact, folder: Path) -> None:
    # A stranger's evaluator may name it anything.
    try:
        check_name(artifact.name, "artifact")
    except UsageError as error:
        raise RunError(f"evaluator '{evaluator}': {error}") from None
    if artifact.kind not in ENDINGS:
        raise RunError(
            f"evaluator '{evaluator}', artifact '{artifact.name}': unknown kind '{artifact.kind}'; "
            f"choices: {', '.join(ENDINGS)}"
        )
    folder.mkdir(exist_ok=True)
    path = folder / f"{artifact.name}.{ENDINGS[artifact.kind]}"
    content = artifact.content() if callable(artifact.content) else artifact.content
    if artifact.kind == "json":
        write_json(path, content)
    else:
        write_text(path, str(content))
