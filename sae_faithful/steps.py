"""The steps of a plan, each with what the user chose for it and what comes before it: known before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sae_faithful.plan import in_reading_order

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sae_faithful.language_model import LanguageModel
    from sae_faithful.plan import Plan, PlannedEvaluator, PlannedSAE, PlannedText
    from sae_faithful.run_folder import Step

ESTIMATED_NORMS = ("expected_average_only_in", "covariance_whitening")


def training_inputs(plan: Plan, model: LanguageModel) -> list[tuple[str, str, dict[str, Any]]]:
    """For each source: its name, the dataset path its SAEs name, and what determines its data."""
    # SAEs that estimate a norm draw batches from the stream they share with the others.
    shared = {"estimates_norm": any(estimates_norm(sae) for sae in plan.saes)}
    if plan.stock_dataset is not None:
        name = plan.stock_dataset.strip("/").replace("/", "--")
        return [
            (
                name,
                plan.stock_dataset,
                {"dataset_path": plan.stock_dataset, "model": model.identity, **shared},
            )
        ]
    return [(text.name, text.plugin, {**baseline_inputs(text, model), **shared}) for text in plan.sources]


def estimates_norm(sae: PlannedSAE) -> bool:
    """Whether SAELens draws batches to estimate a norm for it before the first step."""
    return sae.config.normalize_activations in ESTIMATED_NORMS


def baseline_inputs(text: PlannedText, model: LanguageModel) -> dict[str, Any]:
    """What determines the activations that baselines are fitted to."""
    return {"data": text.step(model.identity).hash, "model": model.identity}


def measured_steps(plan: Plan, model: LanguageModel) -> list[Step]:
    """Those whose outcome evaluators measure: every SAE, then every baseline."""
    return [
        *(
            sae.step(source, inputs)
            for source, _, inputs in training_inputs(plan, model)
            for sae in plan.saes
        ),
        *(
            baseline.step(text.name, baseline_inputs(text, model))
            for text in plan.sources
            for baseline in plan.baselines
        ),
    ]


def evaluation_inputs(plan: Plan, model: LanguageModel) -> dict[str, Any]:
    """What determines an evaluator's results, its options apart."""
    return {
        "model": model.identity,
        "saes": {step.path: step.hash for step in measured_steps(plan, model)},
        "data": {text.name: text.step(model.identity).hash for text in plan.texts},
    }


def evaluator_steps(evaluators: Sequence[PlannedEvaluator], inputs: Mapping[str, Any]) -> dict[str, Step]:
    """Step 4 of each, by name, in the order in which they are done."""
    steps: dict[str, Step] = {}
    names = [planned.name for planned in evaluators]
    for planned in in_reading_order(evaluators):
        hashes = {name: steps[name].hash for name in planned.read_among(names)}
        steps[planned.name] = planned.step({**inputs, **({"reads": hashes} if hashes else {})})
    return steps


def steps_by_settings(plan: Plan, model: LanguageModel) -> list[Step]:
    """Every step of the plan, as far as the user's settings go."""
    return [
        *(text.step(model.identity) for text in plan.texts),
        *measured_steps(plan, model),
        *(evaluator.step({}) for evaluator in plan.evaluators),
    ]
