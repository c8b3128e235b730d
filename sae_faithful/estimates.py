"""What a run will do, step by step, and about how long and with how much memory: made before anything is done."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sae_faithful.costs import encoding, of_model, of_work, together, training
from sae_faithful.data import RANDOM_ROW_TOKENS, RANDOM_ROWS, random_tokens_step
from sae_faithful.faults import is_out_of_memory
from sae_faithful.groups import groups_of
from sae_faithful.interfaces import ModelUnreadable, RunError, UsageError, Work
from sae_faithful.measured_rates import Rates, measure
from sae_faithful.memory import Needs, needs_of
from sae_faithful.progress import silenced
from sae_faithful.run_folder import cache_dir, data_path
from sae_faithful.stand_ins import planned_context, request_for
from sae_faithful.steps import baseline_inputs as inputs_of_baselines
from sae_faithful.steps import evaluation_inputs, evaluator_steps, training_inputs
from sae_faithful.timings import PASSES, REPORT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sae_faithful.config import ExperimentConfig
    from sae_faithful.interfaces import EvalContext, Trial
    from sae_faithful.language_model import LanguageModel
    from sae_faithful.plan import Plan, PlannedEvaluator, PlannedText
    from sae_faithful.run_folder import RunFolder

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StepEstimate:
    """One line of the plan."""

    name: str
    """As in `timings.json`."""
    what: str
    reused: bool = False
    cost: Callable[[Rates], float | None] | None = None
    """Seconds, once the rates are known; None where nobody can say."""
    at_least: bool = False
    memory: int = 0
    """Bytes, the process's own included."""
    more_memory: bool = False
    """Whether it takes more than that, and nobody can say how much."""
    notes: Sequence[str] = ()
    """What else is to be known of it, a line each."""


@dataclass(frozen=True)
class Estimate:
    """The plan of a run, as it is shown."""

    steps: Sequence[StepEstimate]
    rates: Rates
    needs: Needs
    unknown: Sequence[str] = ()
    """Why some of it could not be estimated, a line each."""

    def seconds(self, step: StepEstimate) -> float | None:
        """Of one step; None where it is reused or unknown."""
        return None if step.reused or step.cost is None else step.cost(self.rates)

    @property
    def notes(self) -> list[str]:
        """Of all steps that are not done yet."""
        return [line for step in self.steps if not step.reused for line in step.notes]

    @property
    def memory(self) -> dict[str, int]:
        """Bytes by step that is not done yet."""
        return {step.name: step.memory for step in self.steps if step.memory and not step.reused}

    @property
    def more_memory(self) -> set[str]:
        """Steps that take more memory than is known."""
        return {step.name for step in self.steps if step.more_memory}

    @property
    def expected(self) -> dict[str, float]:
        """Seconds by step, where they are known."""
        return {one.name: seconds for one in self.steps if (seconds := self.seconds(one)) is not None}

    @property
    def facts(self) -> dict[str, Any]:
        """What `timings.json` keeps of it."""
        return self.rates.facts() if self.rates.forward is not None else {}


@dataclass
class Asked:
    """What plugins said of their work."""

    texts: dict[str, Work] = field(default_factory=dict[str, Work])
    evaluators: dict[str, Work] = field(default_factory=dict[str, Work])

    @property
    def trials(self) -> list[Trial]:
        """All there is to try, in the plan's order."""
        return [trial for work in [*self.texts.values(), *self.evaluators.values()] for trial in work.trials]


def estimate(
    plan: Plan, config: ExperimentConfig, model: LanguageModel, folder: RunFolder, until: str = "results",
    *, unmeasured: str | None = None,
) -> Estimate:  # fmt: skip
    """Look at what is done, ask the plugins about the rest, and measure how fast this machine is at it.

    Nothing is measured where every step is done, where the model cannot be loaded, or where `unmeasured` says why
    not; the reason is then in `unknown`. No random state is changed.

    Raises:
        UsageError, RunError: a plugin says that it could not do its work.
    """
    asked = Asked()
    needs = needs_of(plan, config, model)
    with silenced():
        steps = list(_steps(plan, config, model, folder, until, asked, needs))
        rates, unknown = Rates(), [*needs.unknown, *([unmeasured] if unmeasured else [])]
        if any(step.cost is not None and not step.reused for step in steps) and not unknown:
            try:
                _ = model.model
            except (OSError, ValueError, ImportError) as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                unknown.append(f"times: the weights of {model.name} cannot be loaded: {reason}")
            else:
                trains = any(one.name.startswith("saes/") and not one.reused for one in steps)
                saes = plan.saes if until != "data" else ()
                try:
                    rates = measure(model, config, saes, asked.trials, training=trains, logits=True)
                except Exception as error:
                    # The run itself may still do: its batches can be made smaller.
                    if not is_out_of_memory(error):
                        raise
                    unknown.append("times: out of memory while measuring them")
    return Estimate(steps, rates, needs, unknown)


def _steps(
    plan: Plan, config: ExperimentConfig, model: LanguageModel, folder: RunFolder, until: str, asked: Asked,
    needs: Needs,
) -> Iterator[StepEstimate]:  # fmt: skip
    for text in plan.texts:
        yield _text_step(text, config, model, folder, asked, needs)
    if plan.texts:
        yield StepEstimate(
            name=random_tokens_step(config, model).path,
            what="their typicality gap, to compare with",
            reused=folder.finished(random_tokens_step(config, model)),
            cost=lambda rates: of_model(rates, 0, RANDOM_ROWS * RANDOM_ROW_TOKENS),
            memory=needs.whole_forwards(),
        )
    if until == "data":
        return
    for source, _, inputs in training_inputs(plan, model):
        missing = [sae for sae in plan.saes if not folder.finished(sae.step(source, inputs))]
        groups = groups_of(missing, config, model)
        yield StepEstimate(
            name=f"saes/{source}",
            what=f"{_number(missing or plan.saes, 'SAE')}, {config.training_tokens:,} tokens each",
            reused=not missing,
            cost=training(groups.groups, config, monitors=bool(plan.monitors)),
            memory=max((needs.training(group, config) for group in groups.groups), default=0),
            notes=[f"saes/{source}: {line}" for line in groups.lines],
        )
    if until == "saes":
        return
    for text in plan.sources if plan.baselines else ():
        inputs = inputs_of_baselines(text, model)
        fits = [one for one in plan.baselines if not folder.finished(one.step(text.name, inputs))]
        tokens = min(config.baseline_tokens, text.n_tokens)
        yield StepEstimate(
            name=f"baselines/{text.name}",
            what=f"{_number(fits or plan.baselines, 'fit')} to {tokens:,} activations",
            reused=not fits,
            cost=lambda rates, tokens=tokens: of_model(rates, tokens, 0),
            at_least=True,
            memory=needs.fitting(tokens, [one.hook for one in fits]),
        )
    yield from _evaluator_steps(plan, config, model, folder, asked, needs)
    yield StepEstimate(
        name=REPORT, what="results in one file, report, what plugins publish", memory=needs.report()
    )


def _text_step(
    text: PlannedText, config: ExperimentConfig, model: LanguageModel, folder: RunFolder, asked: Asked,
    needs: Needs,
) -> StepEstimate:  # fmt: skip
    reused = folder.finished(text.step(model.identity))
    work = None
    if not reused:
        ask = getattr(text.source, "work", None)
        try:
            work = (
                ask(request_for(text, config, model, cache_dir())) if ask is not None else Work(at_least=True)
            )
        except ModelUnreadable:
            work = Work(at_least=True)
        asked.texts[text.name] = work
    scored = min(config.typicality_tokens, text.n_tokens)
    return StepEstimate(
        name=data_path(text.name),
        what=f"{text.n_tokens:,} tokens from {text.plugin}",
        reused=reused,
        cost=None
        if work is None
        else lambda rates: together(of_work(rates, work), of_model(rates, 0, scored)),
        at_least=work is not None and work.at_least,
        memory=needs.whole_forwards(),
        # What sampling holds (keys and values, logits of every sample) is the source's.
        more_memory=True,
    )


def _evaluator_steps(
    plan: Plan, config: ExperimentConfig, model: LanguageModel, folder: RunFolder, asked: Asked, needs: Needs
) -> Iterator[StepEstimate]:
    steps = evaluator_steps(plan.evaluators, evaluation_inputs(plan, model))
    named = {planned.name: planned for planned in plan.evaluators}
    context = planned_context(plan, config, model)
    missing = [name for name, step in steps.items() if not folder.finished(step)]
    for name in missing:
        asked.evaluators[name] = work_of(named[name], context)
    if missing:
        tokens = _passed_over(asked.evaluators.values(), context)
        yield StepEstimate(
            name=PASSES,
            what=f"{tokens:,} tokens that evaluators look at, once for all of them",
            cost=lambda rates: of_model(rates, tokens, 0),
            memory=needs.passes(config),
        )
    # As in the passes themselves: the first that asks for an SAE's latents of a text pays for them.
    paid: set[tuple[str, Any]] = set()
    for name, step in steps.items():
        if name not in missing:
            yield StepEstimate(name=step.path, what="", reused=True)
            continue
        work = asked.evaluators[name]
        encoded = _encoded(work, context, paid)
        yield StepEstimate(
            name=step.path,
            what=_what(work, context),
            cost=lambda rates, work=work, encoded=encoded: together(
                of_work(rates, work), encoding(rates, encoded)
            ),
            at_least=work.at_least,
            memory=needs.whole_forwards() if work.logit_tokens else needs.passes(config),
        )


def work_of(planned: PlannedEvaluator, context: EvalContext) -> Work:
    """What the evaluator says; else what its observers want to see, and it is at least that."""
    ask = getattr(planned.evaluator, "work", None)
    if ask is not None:
        try:
            return ask(context)
        except ModelUnreadable:
            return Work(at_least=True)
    texts = {id(tokens): name for name, tokens in context.held_out.items()}
    try:
        observers = planned.evaluator.observers(context)
        passes = {
            texts[id(one.tokens)]: [handle for handle in context.handles if handle.hook == one.hook]
            for one in observers
            if id(one.tokens) in texts
        }
        others = {
            f"{planned.name} {i}": tokens.n_tokens
            for i, tokens in enumerate({id(one.tokens): one.tokens for one in observers}.values())
            if id(tokens) not in texts
        }
        return Work(passes=passes, texts=others, at_least=True)
    except ModelUnreadable:
        return Work(at_least=True)
    except (UsageError, RunError):
        raise
    except Exception as error:  # a stranger's, who may want to read the texts
        log.debug("%s: its observers cannot be had before there are texts: %r", planned.name, error)
        return Work(passes=dict.fromkeys(context.held_out, context.handles), at_least=True)


def _passed_over(works: Any, context: EvalContext) -> int:
    """Tokens of every text that somebody looks at, each text once."""
    works = list(works)
    lengths = {name: tokens.n_tokens for name, tokens in context.held_out.items()}
    for work in works:
        lengths |= work.texts
    seen = {name for work in works for name in {*work.passes, *work.texts}}
    return sum(lengths[name] for name in seen)


def _encoded(work: Work, context: EvalContext, paid: set[tuple[str, Any]]) -> dict[tuple[str, str], float]:
    """Tokens that this evaluator's SAEs encode, by hook and variant, where nobody asked before."""
    encoded: dict[tuple[str, str], float] = {}
    for text, handles in work.passes.items():
        tokens = work.texts[text] if text in work.texts else context.held_out[text].n_tokens
        for handle in handles:
            if (text, handle.key) not in paid:
                paid.add((text, handle.key))
                place = (handle.hook, handle.variant)
                encoded[place] = encoded.get(place, 0) + tokens
    if work.encoded_tokens:
        for handle in context.handles:
            place = (handle.hook, handle.variant)
            encoded[place] = encoded.get(place, 0) + work.encoded_tokens / len(context.handles)
    return encoded


def _what(work: Work, context: EvalContext) -> str:
    parts = [
        f"{work.logit_tokens:,.0f} tokens of whole forwards" if work.logit_tokens else "",
        f"{work.forward_tokens:,.0f} tokens up to the last hook" if work.forward_tokens else "",
        f"{_number(context.handles, 'SAE')} on {_number(work.passes, 'text')}" if work.passes else "",
    ]
    return ", ".join(part for part in parts if part)


def _number(things: Any, name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"
