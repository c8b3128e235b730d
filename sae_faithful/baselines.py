"""Step 3: directions fitted to each source's activations, as handles that every evaluator takes."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful import directions_sae, interruption
from sae_faithful.faults import is_out_of_memory, out_of_memory_named
from sae_faithful.hashing import derive_seed
from sae_faithful.interfaces import RunError
from sae_faithful.progress import Progress
from sae_faithful.run_folder import write_json
from sae_faithful.sae_handle import SAEHandle
from sae_faithful.stored import read_json
from sae_faithful.timings import begins, took
from sae_faithful.tokens import special_token_mask

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch
    from jaxtyping import Float

    from sae_faithful.config import ExperimentConfig
    from sae_faithful.language_model import LanguageModel
    from sae_faithful.plan import PlannedBaseline
    from sae_faithful.run_folder import RunFolder
    from sae_faithful.tokens import TokenSet

log = logging.getLogger(__name__)

CARD_FILE = "baseline.json"
LESS_MEMORY = "lower baseline_tokens, or fit baselines at fewer hooks"


def fit_baselines(
    source: str,
    baselines: Sequence[PlannedBaseline],
    config: ExperimentConfig,
    model: LanguageModel,
    folder: RunFolder,
    inputs: Mapping[str, Any],
    tokens: TokenSet,
    dataset_path: str,
) -> None:
    """Fit those of `baselines` that are not on disk yet, all of a hook to the same activations.

    Args:
        source: the source's name, which becomes the first part of the fits' paths.
        baselines: all baselines of the source.
        config: the experiment's.
        model: whose activations are fitted.
        folder: where the fits go.
        inputs: what determines the data, for the steps' hashes.
        tokens: the source's training part.
        dataset_path: what the SAEs' metadata say they were trained on.

    Raises:
        RunError: activations or directions that are not finite, directions that no SAE can be made of, or a
            baseline that says it cannot be fitted (it is named).
    """
    missing = [one for one in baselines if not folder.finished(one.step(source, inputs))]
    if not missing:
        if baselines:
            log.info("baselines/%s: reused", source)
        return
    begins(f"baselines/{source}", f"fitting {len(missing)} to {config.baseline_tokens:,} activations")
    begun = time.monotonic()
    hooks = list(dict.fromkeys(one.hook for one in missing))
    drawn = draw_activations(source, tokens, hooks, config, model)
    for planned in missing:
        step = planned.step(source, inputs)
        log.info("%s: fitting to %s activations", step.path, f"{len(drawn[planned.hook]):,}")
        interruption.check()
        with folder.writing(step) as partial, out_of_memory_named(f"fitting {step.path}", LESS_MEMORY):
            metadata = _metadata(planned.hook, config, model, dataset_path)
            _fit(planned, step.path, drawn[planned.hook], metadata, config, partial)
    took(f"baselines/{source}", time.monotonic() - begun)


def baseline_handle(
    planned: PlannedBaseline, source: str, folder: RunFolder, device: str = "cpu"
) -> SAEHandle:
    """The handle of a finished fit; its weights are read on first use."""
    path = folder.baseline_dir(source, planned.hook, planned.name, planned.seed)

    def load() -> Any:
        card = read_json(path / CARD_FILE)
        return directions_sae.load(path, card.get("sae"), device)

    return SAEHandle(
        source=source,
        hook=planned.hook,
        variant=planned.name,
        seed=planned.seed,
        load=load,
        kind="baseline",
    )


def draw_activations(
    source: str, tokens: TokenSet, hooks: Sequence[str], config: ExperimentConfig, model: LanguageModel
) -> dict[str, Float[torch.Tensor, "n d_in"]]:
    """Activations at `hooks` of `baseline_tokens` tokens, or of all there are, float32 on the CPU.

    Rows come in a random order, because neighbouring rows are of one document; they come whole, because the model
    has to read a row anyway. BOS and other special tokens, whose huge norm would be most of the variance, are
    left out as in every measurement, and so is what `seqpos_slice` excludes. Which they are does not depend on how
    many rows are read at once: where memory runs out, half as many are.

    Raises:
        RunError: they are not finite, or there is no memory for those of one row.
    """
    import torch

    rng = np.random.default_rng(derive_seed(config.seed, "baselines", source, "rows"))
    kept = np.zeros(tokens.context_size, bool)
    kept[slice(*config.seqpos_slice)] = True
    parts: dict[str, list[torch.Tensor]] = {hook: [] for hook in hooks}
    left = config.baseline_tokens
    order = rng.permutation(len(tokens))
    batch_rows, start = config.store_batch_size_prompts, 0
    with Progress(f"activations of {source} for baselines", left, "tokens") as progress:
        while left > 0 and start < len(order):
            rows = tokens.rows_at(order[start : start + batch_rows])
            try:
                found, n_found = _activations_of(rows, kept, hooks, model)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if len(rows) == 1:
                    raise RunError(
                        f"source '{source}': out of memory with one row at a time; {LESS_MEMORY}"
                    ) from error
                batch_rows = len(rows) // 2
                log.warning(
                    "out of memory: activations of %s for baselines %d rows at a time; their last bits may change",
                    source, batch_rows,
                )  # fmt: skip
                continue
            for hook in hooks:
                parts[hook].append(found[hook][:left])
            progress.update(min(left, n_found))
            left -= n_found
            start += len(rows)
    drawn = {hook: torch.cat(of_hook) for hook, of_hook in parts.items()}
    for hook, activations in drawn.items():
        if not bool(activations.isfinite().all()):
            raise RunError(f"source '{source}': activations at '{hook}' are not all finite")
    return drawn


def _activations_of(
    rows: np.ndarray, kept: np.ndarray, hooks: Sequence[str], model: LanguageModel
) -> tuple[dict[str, torch.Tensor], int]:
    """At each hook, those that are measured, and how many they are."""
    import torch

    mask = torch.from_numpy(special_token_mask(rows, model.special_token_ids) & kept)
    activations = model.activations(torch.from_numpy(rows), hooks)
    found = {hook: activations[hook][mask.to(activations[hook].device)].float().cpu() for hook in hooks}
    return found, int(mask.sum())


def _fit(
    planned: PlannedBaseline,
    path: str,
    activations: torch.Tensor,
    metadata: Mapping[str, Any],
    config: ExperimentConfig,
    folder: Path,
) -> None:
    """Fit one and write it."""
    # Not the source: like SAEs, random directions of one seed are the same for every source.
    seed = derive_seed(planned.seed, "baselines", planned.plugin, planned.hook)
    try:
        directions = planned.baseline.fit(activations, seed)
    except ValueError as error:
        raise RunError(f"{path}: {error}") from error
    directions_sae.check(directions, path, activations.shape[1])
    sae = directions_sae.as_sae(directions, metadata, config.sae.reshape_activations)
    directions_sae.save(sae, folder)
    card = {
        **planned.options,
        "sign": directions.sign,
        "k": directions.k,
        "latents": directions_sae.n_latents(directions),
        "fitted_to": len(activations),
        **directions.card,
    }
    if directions.sign == "signed":
        # SAELens's files have it in cfg.json.
        card["sae"] = sae.cfg.to_dict()
    write_json(folder / CARD_FILE, card)


def _metadata(hook: str, config: ExperimentConfig, model: LanguageModel, dataset_path: str) -> dict[str, Any]:
    """What SAELens's runners say of an SAE that they trained at that hook."""
    names = (
        "model_name", "model_class_name", "hook_head_index", "context_size", "model_from_pretrained_kwargs",
        "prepend_bos", "exclude_special_tokens", "sequence_separator_token", "disable_concat_sequences",
    )  # fmt: skip
    return {
        "dataset_path": dataset_path,
        "hook_name": hook,
        **{name: getattr(config, name) for name in names},
        "seqpos_slice": list(config.seqpos_slice),
        "random_init_seed": model.random_init_seed,
    }
