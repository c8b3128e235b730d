"""One-to-one assignment of the rows of A to the rows of B with the largest total cosine, at any size.

The linear program, for n ≤ m (otherwise A and B change places): maximise Σ c_ij x_ij with every row matched once
and every column at most once. Its dual: minimise Σ u_i + Σ v_j with u_i + v_j ≥ c_ij for *all* pairs, v_j ≥ 0
where n < m (with n = m every column is matched, so v_j has any sign). For whatever v of that kind, the
prices u_i = max_j (c_ij − v_j) are feasible, and so

    optimum ≤ Σ_i max_j (c_ij − v_j) + Σ_j v_j.

With r_ij = c_ij − v_j − (c_iπ(i) − v_π(i)), how much more a pair offers row i than its partner does, the bound
less the total of the assignment π is

    gap = Σ_i max_j r_ij + Σ (v_j of unmatched columns),

which holds for any π and v. If no r_ij exceeds ε and unmatched columns cost nothing, π is within n·ε of the optimum.

The engine never holds the n×m matrix:

1. Candidates: the k best columns of every row and the k best rows of every column. Whether they allow every
   row a partner nobody knows; the slack that makes the problem feasible is one arbitrary full matching, at its
   true cosines, so that what uses the slack is still an assignment and no price has to be invented for it.
2. scipy solves the sparse problem on a grid of step ε/4; v are longest paths over candidates (they exist since
   π is optimal there).
3. Every pair that is no candidate is bounded by the worst candidate of its row and of its column; blocks are
   computed only where that bound does not already prove r_ij ≤ 0.
4. Pairs with r_ij > ε become candidates and the problem is solved again (column generation), until there are none.

Arithmetic: blocks are float32, whose rounding is bounded a priori (`_Problem.rounding`); a pair within the bound of
r_ij = 0 is computed again in float64. So the proof rests on float64 alone, whose 1e-13 is far below ε.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch

from sae_faithful.ops.directions import directions, exact_float32, tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Float, Float64, Int


@dataclass(frozen=True)
class Matching:
    """An assignment and what is proven about it."""

    rows: Int[np.ndarray, " pairs"]
    """Matched rows of A, ascending."""
    cols: Int[np.ndarray, " pairs"]
    """Their partners in B."""
    cosine: Float64[np.ndarray, " pairs"]
    """Cosine of each pair, computed in float64."""
    certified: bool
    """Whether feasible duals prove that no assignment has a total larger by more than pairs · eps."""
    gap: float
    """Proven upper bound on what the best assignment's total exceeds `total` by."""
    rounds: int
    """How often violating pairs were added and the sparse problem was solved again."""

    @property
    def total(self) -> float:
        """Sum of the cosines."""
        return float(self.cosine.sum())


def match_features(
    a: Float[torch.Tensor | np.ndarray, "n d"],
    b: Float[torch.Tensor | np.ndarray, "m d"],
    *,
    candidates: int = 64,
    max_rounds: int = 10,
    eps: float = 1e-6,
    block: int = 2**25,
) -> Matching:
    """Match the rows of `a` to those of `b`, one to one, so that the sum of cosines is largest.

    Only directions count; rows of length zero match nothing; of the rest the smaller side is matched fully.
    Every row's and column's `candidates` best partners are tried first, and violating pairs are added at most
    `max_rounds` times: fewer of either cost certainty, never validity (see `Matching.gap`). Matrix products run
    where `a` is; `block` is the number of cosines held at once (twice). Raises ValueError for wrong
    shapes or options and for entries that are not finite.
    """
    for name, value, least in (
        ("candidates", candidates, 1),
        ("max_rounds", max_rounds, 0),
        ("block", block, 1),
        # Below, rounded prices of long paths would no longer be whole numbers to float64.
        ("eps", eps, 1e-10),
    ):
        if value < least:
            raise ValueError(f"{name} {value}: at least {least}")
    with torch.no_grad(), exact_float32():
        kept_a, unit_a = directions("a", tensor(a))
        kept_b, unit_b = directions("b", tensor(b).to(unit_a.device))
        if unit_a.shape[1] != unit_b.shape[1]:
            raise ValueError(f"a has {unit_a.shape[1]} dimensions and b {unit_b.shape[1]}")
        turned = len(kept_a) > len(kept_b)
        problem = _Problem(unit_b, unit_a, block) if turned else _Problem(unit_a, unit_b, block)
        partner, cosine, certified, gap, rounds = _generate_columns(problem, candidates, max_rounds, eps)
    rows, cols = np.arange(len(partner)), partner
    if turned:
        order = np.argsort(cols)
        rows, cols, cosine = cols[order], rows[order], cosine[order]
    return Matching(kept_a[rows], kept_b[cols], cosine, certified, gap, rounds)


class _Problem:
    """Unit rows of both sides, the smaller first, and the only products of them that are ever formed."""

    def __init__(self, a: Float64[torch.Tensor, "n d"], b: Float64[torch.Tensor, "m d"], block: int) -> None:
        self.a, self.b = a, b
        self.a32, self.b32 = a.float(), b.float()
        self.n, self.m, self.block = len(a), len(b), block

    def rounding(self, largest_price: float) -> float:
        """Bound on the error of r_ij from float32 cosines, where prices u and v are at most so large.

        A dot product of length d, summed in any order, errs by at most d·2⁻²⁴ Σ|a_k b_k| to first order, and the
        sum is at most 1 for unit rows; rounding both rows adds 2·2⁻²⁴; rounding u, v and their two subtractions
        at most 2⁻²⁴ times all magnitudes met. Doubled, for the terms of second order.
        """
        return 2 * 2**-24 * (self.a.shape[1] + 4 + 4 * (1 + largest_price))

    def cosines(
        self, rows: Int[np.ndarray, " pairs"], cols: Int[np.ndarray, " pairs"]
    ) -> Float64[np.ndarray, " pairs"]:
        """Cosines of single pairs, in float64."""
        out = np.empty(len(rows))
        step = max(1, min(4096, self.block // max(1, self.a.shape[1])))
        for start in range(0, len(rows), step):
            i, j = (
                torch.from_numpy(index[start : start + step].astype(np.int64)).to(self.a.device)
                for index in (rows, cols)
            )
            out[start : start + step] = (self.a[i] * self.b[j]).sum(dim=1).cpu().numpy()
        return out


@dataclass(frozen=True)
class _Candidates:
    """Pairs in play, sorted by row and then column, none twice."""

    n: int
    m: int
    rows: Int[np.ndarray, " pairs"]
    cols: Int[np.ndarray, " pairs"]
    cosine: Float64[np.ndarray, " pairs"]

    @classmethod
    def of(cls, n: int, m: int, *parts: tuple[np.ndarray, np.ndarray, np.ndarray]) -> _Candidates:
        """Join lists of rows, columns and cosines; of pairs that come twice the first stays."""
        rows, cols, cosine = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        key = rows.astype(np.int64) * m + cols
        order = np.argsort(key, kind="stable")
        first = np.diff(key[order], prepend=-1) != 0
        kept = order[first]
        return cls(
            n, m, rows[kept].astype(np.int32), cols[kept].astype(np.int32), cosine[kept].astype(np.float64)
        )

    def of_pairs(self, rows: np.ndarray, cols: np.ndarray) -> Float64[np.ndarray, " pairs"]:
        """Cosines of pairs that are candidates."""
        key = self.rows.astype(np.int64) * self.m + self.cols
        return self.cosine[np.searchsorted(key, rows.astype(np.int64) * self.m + cols)]


def _generate_columns(
    problem: _Problem, k: int, max_rounds: int, eps: float
) -> tuple[Int[np.ndarray, " n"], Float64[np.ndarray, " n"], bool, float, int]:
    """Partner of every row, their cosines, whether certified, the gap, and the rounds it took."""
    n, m = problem.n, problem.m
    if not n:
        return np.empty(0, np.int64), np.empty(0), True, 0.0, 0
    found, beyond = _best_candidates(problem, k)
    rows = np.arange(n)
    fallback = (rows, rows, problem.cosines(rows, rows))
    candidates = _Candidates.of(n, m, found, fallback)
    bound = np.inf
    u, v = np.zeros(n), np.zeros(m)
    partner = rows
    for done in range(max_rounds + 1):
        for step in _steps(eps):
            partner, u, v = _solve_in_steps(candidates, u, v, step)
        cosine = problem.cosines(rows, partner)
        excess, new = _examine(problem, candidates, beyond, cosine - v[partner], v, eps, k)
        gap = float(excess.sum() + np.delete(v, partner).sum())
        # A bound of an earlier round is a bound too.
        bound = min(bound, float(cosine.sum()) + gap)
        certified = bool(excess.max() <= eps and gap <= n * eps)
        if certified or done == max_rounds:
            return partner, cosine, certified, max(0.0, bound - float(cosine.sum())), done
        # Exact cosines come first and replace the blocks' rounded ones.
        exact = (rows, partner, cosine)
        candidates = _Candidates.of(n, m, new, exact, (candidates.rows, candidates.cols, candidates.cosine))
    raise AssertionError("the loop returns")


@dataclass(frozen=True)
class _Beyond:
    """What no pair outside the first candidates exceeds, in float32 cosines."""

    row: Float64[np.ndarray, " n"]
    col: Float64[np.ndarray, " m"]


def _best_candidates(problem: _Problem, k: int) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], _Beyond]:
    """The k best columns of every row and the k best rows of every column, by blocks of rows."""
    n, m = problem.n, problem.m
    of_row, of_col = min(k, m), min(k, n)
    height = max(1, min(n, problem.block // m))
    device = problem.a32.device
    block = torch.empty(height, m, device=device)
    # A column's best so far stand before the block's rows, so that one top-k merges and selects.
    upright = torch.full((m, of_col + height), -torch.inf, device=device)
    col_index = torch.zeros(m, of_col, dtype=torch.long, device=device)
    row_best: list[tuple[torch.Tensor, torch.Tensor]] = []
    for start in range(0, n, height):
        rows = problem.a32[start : start + height]
        cosine = torch.mm(rows, problem.b32.T, out=block[: len(rows)])
        row_best.append(cosine.topk(of_row, dim=1, sorted=False))
        upright[:, of_col : of_col + len(rows)].copy_(cosine.T)
        best, place = upright[:, : of_col + len(rows)].topk(of_col, dim=1, sorted=False)
        upright[:, :of_col] = best
        before = col_index.gather(1, place.clamp(max=of_col - 1))
        col_index = torch.where(place < of_col, before, place - of_col + start)
    row_value = torch.cat([value for value, _ in row_best])
    row_index = torch.cat([index for _, index in row_best])
    col_value = upright[:, :of_col]
    beyond = _Beyond(
        np.full(n, -np.inf) if of_row == m else row_value.amin(dim=1).double().cpu().numpy(),
        np.full(m, -np.inf) if of_col == n else col_value.amin(dim=1).double().cpu().numpy(),
    )
    found = (
        np.concatenate([np.repeat(np.arange(n), of_row), col_index.flatten().cpu().numpy()]),
        np.concatenate([row_index.flatten().cpu().numpy(), np.repeat(np.arange(m), of_col)]),
        torch.cat([row_value.flatten(), col_value.flatten()]).cpu().numpy(),
    )
    return found, beyond


def _steps(eps: float) -> list[float]:
    """Grids on which the problem is solved in turn: coarse ones bring prices near, the last is well below eps."""
    steps = [eps / 4]
    while steps[-1] < 2**-12:
        steps.append(4096 * steps[-1])
    return steps[::-1]


def _solve_in_steps(
    candidates: _Candidates, u: Float64[np.ndarray, " n"], v: Float64[np.ndarray, " m"], step: float
) -> tuple[Int[np.ndarray, " n"], Float64[np.ndarray, " n"], Float64[np.ndarray, " m"]]:
    """Partner of every row, and prices, with cosines rounded to multiples of `step`; u and v are prices to start from.

    Whole numbers make the solver's arithmetic and the prices exact. And they keep it from price wars: rows that
    compete for columns almost alike bid the prices up by their difference (LAPJV's augmenting row reduction),
    which takes hours where that is 1e-9. Between grids a factor of 4,096 bounds the bids; unlike an auction's
    ε-scaling, what is found on each grid is optimal there.
    """
    whole = replace(candidates, cosine=np.rint(candidates.cosine / step))
    partner = _solve(whole, np.rint(u / step), np.rint(v / step))
    u, v = _prices(whole, partner)
    return partner, step * u, step * v


def _solve(
    candidates: _Candidates, u: Float64[np.ndarray, " n"], v: Float64[np.ndarray, " m"]
) -> Int[np.ndarray, " n"]:
    """Partner of every row in the best assignment over candidates; the nearer u and v are to its prices, the sooner.

    With n = m, taking v off changes no preference between full assignments. With n < m it would; but two copies of
    the problem, the second with its sides exchanged, and an edge worth 0 between the two copies of each column (who
    has no partner in one has none in the other) are a square problem, with prices v, u of its n + m columns.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    n, m = candidates.n, candidates.m
    rows, cols, size = candidates.rows, candidates.cols, n
    offer = candidates.cosine - v[cols]
    if n < m:
        # In 32 bits as the others are: the solver of scipy 1.13 takes no more.
        apart = np.arange(m, dtype=cols.dtype)
        rows, cols, offer, size = (
            np.concatenate([rows, n + cols, n + apart]),
            np.concatenate([cols, m + rows, apart]),
            np.concatenate([offer, candidates.cosine - u[rows], -v]),
            n + m,
        )
    best = np.full(size, -np.inf)
    np.maximum.at(best, rows, offer)
    # The solver takes zeros for absent pairs: costs are at least 1. A row's own constant changes nothing either.
    costs = coo_array((1 + best[rows] - offer, (rows, cols)), shape=(size, size)).tocsr()
    return np.asarray(min_weight_full_bipartite_matching(costs)[1], dtype=np.int64)[:n]


def _prices(
    candidates: _Candidates, partner: Int[np.ndarray, " n"]
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " m"]]:
    """Prices u of rows and v of columns that prove the assignment best over candidates; v is 0 where unmatched.

    The lowest v are longest paths over columns: from π(i) to j the price rises by c_ij − c_iπ(i). The
    highest are c_iπ(i) − u_i with the lowest u, longest paths over rows. Prices between are feasible too, and the
    mean, far from both ends, lets far fewer pairs that are no candidates offer more than partners do.
    """
    n, m = candidates.n, candidates.m
    rows = np.arange(n)
    cosine = candidates.of_pairs(rows, partner)
    owner = np.full(m, -1)
    owner[partner] = rows

    gain = candidates.cosine - cosine[candidates.rows]
    v = _longest_paths(np.zeros(m), partner[candidates.rows], candidates.cols, gain)
    u_highest = cosine - v[partner]

    held_by = owner[candidates.cols]
    free = held_by < 0
    # No row asks less than what unmatched columns, at price 0, offer it. The start below it is no bound: with
    # n = m any would do, and with n < m lower prices u would only raise v.
    start = np.full(n, u_highest.min())
    np.maximum.at(start, candidates.rows[free], candidates.cosine[free])
    tail, head = held_by[~free], candidates.rows[~free]
    u_lowest = _longest_paths(start, tail, head, candidates.cosine[~free] - cosine[tail])
    u = (u_highest + u_lowest) / 2
    v[partner] = cosine - u
    # Never below 0 if the assignment is best; the bound must hold even if it is not.
    return u, np.maximum(v, 0) if n < m else v


def _longest_paths(
    start: Float64[np.ndarray, " nodes"],
    tail: Int[np.ndarray, " edges"],
    head: Int[np.ndarray, " edges"],
    gain: Float64[np.ndarray, " edges"],
) -> Float64[np.ndarray, " nodes"]:
    """Lowest values ≥ `start` with value[head] ≥ value[tail] + gain on every edge (Bellman–Ford), in whole numbers.

    No path has more edges than there are nodes, unless a cycle gains; then the values are those reached by then.
    A round looks only at edges from nodes that rose in the round before: a tenth of all after the first few.
    """
    from scipy.sparse import coo_array

    # No pair of nodes has two edges, which this would add up.
    edges = coo_array((gain, (tail, head)), shape=(len(start), len(start))).tocsr()
    value = start.copy()
    risen = np.arange(len(value))
    for _ in range(len(value)):
        first = edges.indptr[risen]
        counts = edges.indptr[risen + 1] - first
        before = np.cumsum(counts) - counts
        edge = np.arange(counts.sum()) + np.repeat(first - before, counts)
        offered = np.repeat(value[risen], counts) + edges.data[edge]
        head = edges.indices[edge]
        more = offered > value[head]
        if not more.any():
            break
        np.maximum.at(value, head[more], offered[more])
        rising = np.zeros(len(value), dtype=bool)
        rising[head[more]] = True
        risen = np.flatnonzero(rising)
    return value


_Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Rows, columns and float64 cosines."""


def _examine(
    problem: _Problem,
    candidates: _Candidates,
    beyond: _Beyond,
    u: Float64[np.ndarray, " n"],
    v: Float64[np.ndarray, " m"],
    eps: float,
    k: int,
) -> tuple[Float64[np.ndarray, " n"], _Pairs]:
    """By how much the best offer c_ij − v_j to each row exceeds u_i, over all pairs; and pairs that offer eps more.

    Of the latter come, for each row and column, at most the k best and a few at random: where many are alike,
    all rows' best would be the same few columns.
    """
    error = problem.rounding(float(max(np.abs(u).max(), np.abs(v).max())))
    near = candidates.cosine - u[candidates.rows] - v[candidates.cols] > -error
    near_rows, near_cols = candidates.rows[near], candidates.cols[near]
    excess = np.zeros(problem.n)
    violating: list[_Pairs] = []
    for rows, cols, cosine in chain(
        [(near_rows, near_cols, problem.cosines(near_rows, near_cols))],
        _near_pairs(problem, beyond, u, v, error, eps, k),
    ):
        offer = cosine - u[rows] - v[cols]
        np.maximum.at(excess, rows, offer)
        above = offer > eps
        violating.append((rows[above], cols[above], cosine[above]))
    rows, cols, cosine = (np.concatenate(column) for column in zip(*violating, strict=True))
    chosen = np.zeros(len(rows), dtype=bool)
    random = np.random.default_rng(0).random(len(rows))
    for count, value in ((k, cosine - u[rows] - v[cols]), (_at_random(k), random)):
        chosen |= _among_first(count, rows, value) | _among_first(count, cols, value)
    return excess, (rows[chosen], cols[chosen], cosine[chosen])


def _at_random(k: int) -> int:
    """How many violating pairs of a row or column are taken at random beside its k best."""
    return k // 8 + 2


def _among_first(k: int, group: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Which values are among the k largest of their group."""
    order = np.lexsort((-value, group))
    ordered = group[order]
    within = np.empty(len(group), dtype=bool)
    within[order] = np.arange(len(group)) - np.searchsorted(ordered, ordered) < k
    return within


def _near_pairs(
    problem: _Problem,
    beyond: _Beyond,
    u: Float64[np.ndarray, " n"],
    v: Float64[np.ndarray, " m"],
    error: float,
    eps: float,
    k: int,
) -> Iterator[_Pairs]:
    """Pairs beyond the first candidates that may offer row i more than u_i; where they crowd, the foremost."""
    device = problem.a.device
    # A pair beyond the candidates offers row i more than u_i only if v_j is below this.
    reach = beyond.row + error - u
    order = np.argsort(-reach, kind="stable")
    order = order[reach[order] > v.min()]
    # Sorted so, a block's rows need about the same columns, and the last blocks few.
    height = max(1, problem.block // problem.m)
    for start in range(0, len(order), height):
        rows = order[start : start + height]
        cols = np.flatnonzero((v < reach[rows[0]]) & (beyond.col + error - v > u[rows].min()))
        if not len(cols):
            continue
        i, j = torch.from_numpy(rows).to(device), torch.from_numpy(cols).to(device)
        offer = problem.a32[i] @ problem.b32[j].T
        offer -= torch.from_numpy(v[cols]).to(offer)
        near = offer > torch.from_numpy(u[rows] - error).to(offer)[:, None]
        if int(near.sum()) > near.numel() // 64:
            yield from _foremost_pairs(problem, rows, cols, u, v, eps, k)
            continue
        place = _true_places(near.flatten())
        found_rows, found_cols = rows[place // len(cols)], cols[place % len(cols)]
        yield found_rows, found_cols, problem.cosines(found_rows, found_cols)


def _true_places(flags: torch.Tensor) -> Int[np.ndarray, " found"]:
    """Where flags are set; found on a GPU if they are there, as all of them take longer to fetch than to compute."""
    if flags.device.type == "cpu":
        return np.flatnonzero(flags.numpy())  # several times faster than torch's
    return flags.nonzero().squeeze(1).cpu().numpy()


def _foremost_pairs(
    problem: _Problem,
    rows: Int[np.ndarray, " rows"],
    cols: Int[np.ndarray, " cols"],
    u: Float64[np.ndarray, " n"],
    v: Float64[np.ndarray, " m"],
    eps: float,
    k: int,
) -> Iterator[_Pairs]:
    """Of a block where pairs near 0 crowd (copies, few dimensions): each row's best pair, and violating pairs.

    Those are the best and some at random of each row and column, as `_examine` would choose.
    """
    device = problem.a.device
    # The caller's random state is not ours to move: this may run inside training.
    random = torch.Generator(device).manual_seed(0)
    j = torch.from_numpy(cols).to(device)
    for part in np.array_split(rows, -(-len(rows) // max(1, problem.block // (8 * problem.m)))):
        i = torch.from_numpy(part).to(device)
        cosine = problem.a[i] @ problem.b[j].T
        offer = cosine - torch.from_numpy(v[cols]).to(cosine) - torch.from_numpy(u[part]).to(cosine)[:, None]
        foremost = torch.zeros_like(offer, dtype=torch.bool)
        foremost.scatter_(1, offer.argmax(dim=1, keepdim=True), True)
        above = offer > eps
        drawn = torch.rand(offer.shape, generator=random, device=device, dtype=offer.dtype)
        for count, value in ((k, offer), (_at_random(k), drawn)):
            value.masked_fill_(~above, -torch.inf)
            for dim in (0, 1):
                best = value.topk(min(count, value.shape[dim]), dim=dim, sorted=False)
                foremost |= torch.zeros_like(foremost).scatter_(dim, best.indices, best.values > -torch.inf)
        row, col = (index.cpu().numpy() for index in foremost.nonzero(as_tuple=True))
        yield part[row], cols[col], cosine[foremost].cpu().numpy()
