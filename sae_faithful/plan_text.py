"""The plan of a run as people read it: a line a step, then what all of it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_faithful.memory import machine
from sae_faithful.progress import about, size
from sae_faithful.trust import remote_code_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sae_faithful.config import ExperimentConfig
    from sae_faithful.estimates import Estimate, StepEstimate
    from sae_faithful.run_folder import RunFolder

HEAD = ("step", "what", "time", "memory")
NOT_ESTIMATED = "not estimated"


def plan_text(estimate: Estimate, config: ExperimentConfig, folder: RunFolder) -> str:
    """The table and what is below it, without a newline at the end."""
    head = f"plan of {folder.root} ({config.model_name} on {config.llm_device or config.device})"
    rows = [HEAD, *(_row(step, estimate) for step in estimate.steps)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    table = [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    trusted = [f"  {line}" for line in remote_code_of(config)]
    return "\n".join([head, *trusted, *table, *(f"  {line}" for line in _below(estimate, config, folder))])


def _row(step: StepEstimate, estimate: Estimate) -> tuple[str, ...]:
    if step.reused:
        return (step.name, step.what, "reused", "")
    seconds = estimate.seconds(step)
    if seconds is None:
        return (step.name, step.what, NOT_ESTIMATED, _memory(step))
    time = f"at least {about(seconds)}" if step.at_least else _almost(seconds)
    return (step.name, step.what, time, _memory(step))


def _memory(step: StepEstimate) -> str:
    if not step.memory:
        return ""
    return f"at least {size(step.memory)}" if step.more_memory else size(step.memory)


def _almost(seconds: float) -> str:
    return about(seconds) if seconds < 1 else f"about {about(seconds)}"


def _below(estimate: Estimate, config: ExperimentConfig, folder: RunFolder) -> Iterator[str]:
    todo = [step for step in estimate.steps if not step.reused]
    if not any(step.cost for step in todo):
        yield "every step is done already"
        return
    there = machine(str(config.device), folder.root)
    peak = max(todo, key=lambda step: step.memory)
    how = "at least" if any(step.more_memory for step in todo) else "up to"
    memory = f"{how} {size(peak.memory)} of memory ({peak.name})"
    has = [
        f"{size(there[key])} {what}"
        for key, what in (("memory", "here"), ("gpu", "on the GPU"))
        if key in there
    ]
    memory += f", of {' and '.join(has)}" if has else ""
    known = [seconds for step in todo if (seconds := estimate.seconds(step)) is not None]
    some = any(step.at_least for step in todo)
    time = f"together {'at least' if some else 'about'} {about(sum(known))}; " if known else ""
    yield f"{time}{memory}; {size(estimate.needs.disk)} on disk, of {size(there['disk'])} free"
    rates = estimate.rates
    if rates.forward is not None and rates.logits is not None:
        yield (
            f"from {rates.seconds:.0f} s of measuring: {1 / rates.forward:,.0f} tokens/s up to "
            f"{', '.join(config.hook_names)}, {1 / rates.logits:,.0f} of the whole model"
            + (
                f", {1 / sum(rates.train.values()) * len(rates.train):,.0f} in training an SAE"
                if rates.train
                else ""
            )
        )
    yield from estimate.notes
    yield from (f"not estimated: {reason}" for reason in estimate.unknown)
