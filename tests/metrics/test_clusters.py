from __future__ import annotations

import numpy as np
import pytest
import torch

from sae_faithful.metrics.clusters import ClusterSums


def test_few_rows_are_clusters_of_their_own() -> None:
    sums = ClusterSums(3, 2)
    sums.add(0, np.array([[1.0, 2.0], [3.0, 4.0]]))
    sums.add(2, np.array([[5.0, 6.0]]))
    assert sums.sums.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert sums.total.tolist() == [9, 12]


def test_neighbours_share_a_cluster_where_there_are_more_than_200_rows() -> None:
    # 400 rows over 200 clusters: rows 2i and 2i + 1 are cluster i, with the sum 4i + 1.
    sums = ClusterSums(400, 1)
    sums.add(0, np.arange(400.0)[:, None])
    assert len(sums) == 200
    assert sums.sums[:, 0].tolist() == [4 * i + 1 for i in range(200)]


@pytest.mark.parametrize("n_rows", [1, 199, 200, 201, 250, 399, 1_003])
def test_clusters_are_runs_of_neighbours_of_nearly_equal_size(n_rows: int) -> None:
    # Each row is told by a column of its own: which cluster it fell into can be read off.
    sums = ClusterSums(n_rows, n_rows)
    sums.add(0, np.eye(n_rows))
    cluster_of_row = sums.sums.argmax(axis=0)
    assert (sums.sums.sum(axis=0) == 1).all()
    assert (np.diff(cluster_of_row) >= 0).all()
    sizes = np.bincount(cluster_of_row, minlength=len(sums))
    assert len(sizes) == min(n_rows, 200)
    assert sizes.max() - sizes.min() <= 1


def test_the_sums_do_not_depend_on_how_rows_are_batched() -> None:
    values = np.random.default_rng(0).integers(0, 9, (530, 3)).astype(float)
    whole, pieces = ClusterSums(530, 3), ClusterSums(530, 3)
    whole.add(0, values)
    for start, stop in ((401, 530), (0, 1), (1, 400), (400, 401)):
        pieces.add(start, values[start:stop])
    np.testing.assert_array_equal(whole.sums, pieces.sums)


def test_rows_added_twice_count_twice() -> None:
    sums = ClusterSums(2, 1)
    sums.add(0, np.array([[1.0], [2.0]]))
    sums.add(1, np.array([[10.0]]))
    assert sums.sums.tolist() == [[1], [12]]


def test_tensors_of_any_type_are_summed_in_double_precision() -> None:
    # 2²⁴ + 1 is no float32, and 256 + 1 no bfloat16: kept in those types they would be one less.
    sums = ClusterSums(1, 2)
    sums.add(0, torch.tensor([[2**24 + 1, 0]]))
    sums.add(0, torch.tensor([[0.0, 256.0]], dtype=torch.bfloat16))
    sums.add(0, torch.tensor([[1.0, 1.0]], dtype=torch.bfloat16))
    sums.add(0, torch.tensor([[True, False]]))
    assert sums.total.tolist() == [2**24 + 3, 257]


def test_nothing_added_sums_to_zero() -> None:
    assert ClusterSums(5, 2).total.tolist() == [0, 0]
    assert ClusterSums(0, 2).total.tolist() == [0, 0]


def test_events_are_counted_by_cluster_and_column() -> None:
    # 400 rows over 200 clusters; the batch begins at row 5, in the middle of cluster 2 (rows 4 and 5).
    sums = ClusterSums(400, 3, np.float32)
    sums.count(5, 4, torch.tensor([0, 0, 1, 2, 3, 3]), torch.tensor([2, 2, 0, 0, 1, 0]))
    # Row 5 is cluster 2; rows 6 and 7 cluster 3; row 8 cluster 4.
    assert sums.sums[2:5].tolist() == [[0, 0, 2], [2, 0, 0], [1, 1, 0]]
    assert sums.total.tolist() == [3, 1, 2]
    sums.count(5, 4, torch.tensor([0]), torch.tensor([2]))
    assert sums.total.tolist() == [3, 1, 3]
    sums.count(400, 0, torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    assert sums.total.tolist() == [3, 1, 3]


def test_totals_of_float32_sums_are_in_double_precision() -> None:
    # 2²⁴ in each of two clusters, and one more in a third: as float32 the total would lose the one.
    sums = ClusterSums(3, 1, np.float32)
    sums.add(0, np.array([[2.0**24], [2.0**24], [1.0]]))
    assert sums.total.tolist() == [2**25 + 1]
