"""What the figures of sparse training on a GPU should reach, and whether they do."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from gpu_bench import COPY, SHAPES, Bench
from gpu_profile import told
from measuring import Row
from saelens_trainers import SPARSE_TOPK, SPARSE_TOPK_FUSED, TOPK, Training

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Goal:
    """What a figure should reach, and how to get it from the results; None where it was not measured."""

    text: str
    limit: float
    value: Callable[[Bench], float | None]
    at_most: bool = False
    why: Callable[[Bench], str] = lambda _: ""
    """What explains a miss, from the same run."""

    def verdict(self, bench: Bench) -> Row:
        """Met, missed and what explains it, or not measured and why not."""
        value = self.value(bench)
        row: Row = {"goal": self.text, "limit": self.limit, "at_most": self.at_most, "value": value}
        if value is None:
            no_steps = bench.no_saelens if self.text.startswith("step") else ""
            return row | {"verdict": "not measured", "reason": no_steps or "see what is missing or skipped"}
        if value <= self.limit if self.at_most else value >= self.limit:
            return row | {"verdict": "met"}
        return row | {"verdict": "missed", "reason": self.why(bench)}


def time_goes_to(profile: str) -> Callable[[Bench], str]:
    """What ours spends the device's time on."""
    return lambda bench: told(bench.profiles.get(profile, {"missing": "not in this run"}))


def megabytes(**wanted: Any) -> Callable[[Bench], str]:
    """What ours holds, and what SAELens does."""

    def why(bench: Bench) -> str:
        ours, theirs = (
            figure(bench, "memory_mb", provider=one.name, **wanted) for one in (SPARSE_TOPK, TOPK)
        )
        return f"{ours:.0f} MB against {theirs:.0f} MB"

    return why


def figure(bench: Bench, key: str, **wanted: Any) -> float | None:
    """One figure of the first row that is as wanted."""
    rows = (row for row in bench.rows if all(row.get(name) == value for name, value in wanted.items()))
    return next((row[key] for row in rows if key in row), None)


def times_faster(bench: Bench, slow: str, fast: str, key: str = "ms", **wanted: Any) -> float | None:
    """The figure of `slow` over that of `fast`."""
    above = figure(bench, key, provider=slow, **wanted)
    below = figure(bench, key, provider=fast, **wanted)
    return None if above is None or below is None or below == 0 else above / below


def decode_goal(name: str, slow: str, limit: float) -> Goal:
    """Ours, forward and backward, against another decoder, in fp32."""
    wanted = {"level": "decode", "shape": name, "law": "uniform", "dtype": "torch.float32"}
    return Goal(
        f"decode {name}: times faster than {slow}",
        limit,
        partial(times_faster, slow=slow, fast="ours", **wanted),
        why=time_goes_to(f"decode {name}, uniform, float32"),
    )


def step_goal(name: str, precision: str, fast: Training, limit: float) -> Goal:
    """A full step without dead latents against SAELens's."""
    wanted = {"level": "step", "shape": name, "precision": precision, "dead": False}
    return Goal(
        f"step {name}, {precision}: times faster, {fast.name}",
        limit,
        partial(times_faster, slow=TOPK.name, fast=fast.name, **wanted),
        why=time_goes_to(f"step {name}, {precision}, {fast.name}"),
    )


def copy_share(bench: Bench) -> float | None:
    """The forward's rate at C over that of a copy, if it had no caches."""
    wanted = {"level": "decode", "shape": "C", "law": "uniform", "dtype": "torch.float32", "provider": "ours"}
    rate = figure(bench, "forward_gb_s", **wanted)
    copy = bench.ceilings.get(COPY)
    return None if rate is None or copy is None else rate / copy


def hot_over_uniform(bench: Bench, name: str) -> float | None:
    """How much longer ours takes where 8 latents are hot."""
    wanted = {"level": "laws", "shape": name}
    hot, uniform = (figure(bench, "ms", law=law, **wanted) for law in ("8 hot", "uniform"))
    return None if hot is None or uniform is None else hot / uniform


def goals() -> list[Goal]:
    """All of them."""
    found: list[Goal] = []
    for name, autocast_limit, fp32_limit in (("A", 4, 25), ("B", 5, 40), ("C", 5, 40)):
        found += [decode_goal(name, "dense autocast", autocast_limit), decode_goal(name, "dense", fp32_limit)]
    for name, sparsify_limit in (("B", 1.2), ("C", 1.5)):
        found += [
            decode_goal(name, "torch.sparse COO", 10),
            decode_goal(name, "F.embedding_bag", 1.3),
            decode_goal(name, "sparsify", sparsify_limit),
        ]
    found.append(
        Goal(
            "decode C: forward's rate over a copy's",
            0.6,
            copy_share,
            why=time_goes_to("decode C, uniform, float32"),
        )
    )
    for name in SHAPES:
        found.append(
            Goal(
                f"decode {name}: 8 hot latents over uniform",
                1.5,
                partial(hot_over_uniform, name=name),
                True,
                why=time_goes_to(f"decode {name}, 8 hot, float32"),
            )
        )
        found += [
            step_goal(name, "autocast", SPARSE_TOPK, 2.0),
            step_goal(name, "fp32", SPARSE_TOPK, 3.5),
            step_goal(name, "autocast", SPARSE_TOPK_FUSED, 3.0),
        ]
        for precision in ("autocast", "fp32"):
            wanted = {"level": "step", "shape": name, "precision": precision, "dead": False}
            share = partial(times_faster, slow=SPARSE_TOPK.name, fast=TOPK.name, key="memory_mb", **wanted)
            found.append(
                Goal(
                    f"step {name}, {precision}: memory over SAELens's",
                    0.4,
                    share,
                    at_most=True,
                    why=megabytes(**wanted),
                )
            )
    return found
