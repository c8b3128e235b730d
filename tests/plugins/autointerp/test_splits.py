"""Which fragments a feature is explained and judged by, and which features are tried."""

from __future__ import annotations

import numpy as np
import pytest

from sae_faithful_plugins.autointerp.fragments import FeatureRecords, Record
from sae_faithful_plugins.autointerp.splits import Split, choose_features, random_ranks, top_ranks


def records(first: int, n: int) -> list[Record]:
    return [Record(first + i, np.arange(4), np.arange(4.0)) for i in range(n)]


def feature(n_top: int, n_random: int) -> FeatureRecords:
    return FeatureRecords(3, n_top + n_random, records(0, n_top), records(100, n_random), records(200, 10))


def test_exact_rank_indices_of_every_split() -> None:
    assert [top_ranks(split) for split in range(4)] == [
        [0, 4, 8, 12, 16], [1, 5, 9, 13, 17], [2, 6, 10, 14, 18], [3, 7, 11, 15, 19],
    ]  # fmt: skip
    assert [random_ranks(split) for split in range(3)] == [
        [0, 3, 6, 9, 12], [1, 4, 7, 10, 13], [2, 5, 8, 11, 14],
    ]  # fmt: skip


def test_explained_by_ranks_0_4_8_judged_by_2_6_10_and_random_1_4_7() -> None:
    split = Split.of(feature(20, 20))
    assert split is not None
    assert [record.row for record in split.train] == [0, 4, 8, 12, 16]
    assert [record.row for record in split.valid_top] == [2, 6, 10, 14, 18]
    assert [record.row for record in split.valid_random] == [101, 104, 107, 110, 113]
    assert split.valid == [*split.valid_top, *split.valid_random]


def test_train_and_validation_have_no_fragment_in_common() -> None:
    split = Split.of(feature(20, 20))
    assert split is not None
    shown = {record.row for record in split.train}
    assert not shown & {record.row for record in (*split.valid, *split.inactive)}


def test_a_feature_with_19_active_fragments_is_skipped_and_one_with_20_is_kept() -> None:
    assert Split.of(feature(19, 0)) is None
    kept = Split.of(feature(20, 0))
    assert kept is not None
    # Its top fragments are all it has.
    assert (len(kept.valid_top), list(kept.valid_random)) == (5, [])


@pytest.mark.parametrize(("n_random", "expected"), [(13, 0), (14, 5)])
def test_random_fragments_are_used_only_if_they_fill_their_split(n_random: int, expected: int) -> None:
    split = Split.of(feature(20, n_random))
    assert split is not None
    assert len(split.valid_random) == expected


def test_features_are_a_seeded_random_sample_of_those_alive() -> None:
    n_active = np.tile([0, 5], 500)
    chosen = choose_features(n_active, 100, "random", seed=1)
    assert len(set(chosen.tolist())) == 100
    assert all(n_active[chosen])
    assert np.array_equal(chosen, choose_features(n_active, 100, "random", seed=1))
    assert not np.array_equal(chosen, choose_features(n_active, 100, "random", seed=2))
    # From all over the SAE.
    assert 300 < chosen.mean() < 700
    assert choose_features(n_active, 10_000, "random", seed=1).tolist() == list(range(1, 1_000, 2))
    assert choose_features(np.zeros(8), 3, "random", seed=1).tolist() == []


def test_the_first_indices_are_taken_dead_or_not() -> None:
    assert choose_features(np.array([0, 5, 0, 5]), 3, "first", seed=1).tolist() == [0, 1, 2]
