from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from sae_faithful.interfaces import EvalResult, Evaluator, Source


class Text:
    def load(self, request: Any) -> None: ...


class Measure:
    def observers(self, context: Any) -> None: ...

    def evaluate(self, context: Any, observers: Any) -> None: ...


class HalfAMeasure:
    def evaluate(self, context: Any, observers: Any) -> None: ...


def test_a_class_is_what_its_methods_make_it() -> None:
    assert isinstance(Text(), Source)
    assert isinstance(Measure(), Evaluator)
    assert not isinstance(Text(), Evaluator)
    assert not isinstance(Measure(), Source)
    assert not isinstance(HalfAMeasure(), Evaluator)


def test_a_result_is_one_flat_row_that_cannot_be_changed() -> None:
    row = EvalResult(metric="sfr", value=0.5, unit="share of latents")
    # Nothing nested: every field holds text, a number, a truth value or nothing.
    assert all(isinstance(value, str | int | float | None) for value in dataclasses.asdict(row).values())
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.value = 0.6  # pyright: ignore[reportAttributeAccessIssue]
