"""Documents that were packed come out of the rows again, one at a time or all."""

from __future__ import annotations

import numpy as np
import pytest

from sae_faithful.packing import NO_DOCUMENT
from sae_faithful.tokens import TokenSet

BOS = 0


def random_documents(rng: np.random.Generator, n: int, eos: int | None) -> list[list[int]]:
    """Distinct documents of 1 to 40 ordinary tokens; about half end with EOS."""
    drawn = [
        [*rng.integers(2, 64, size=rng.integers(1, 41)).tolist()] + [eos] * int(rng.integers(2))
        for _ in range(n)
    ]
    distinct = list({tuple(document): document for document in drawn}.values())
    return [[token for token in document if token is not None] for document in distinct]


def test_documents_as_given_are_the_sample_that_the_source_drew() -> None:
    documents = [[5], [6], [5], [7], [6], [8], [5], [9]]
    tokens = TokenSet.from_documents(documents, n_tokens=6, context_size=2, bos_token_id=BOS)
    # Three rows hold 5, 6 and 7. Up to the source's giving 7 it had given 5 twice; to the end of 7's turn (before
    # 8 came) 6 twice. What came again after 8 is of a longer sample.
    assert [one.tolist() for one in tokens.documents_as_given(BOS)] == [[0, 5], [0, 6], [0, 7], [0, 5]]
    longer = TokenSet.from_documents(documents, n_tokens=8, context_size=2, bos_token_id=BOS)
    given = sorted(one.tolist()[1] for one in longer.documents_as_given(BOS))
    assert given == [5, 5, 6, 6, 7, 8]


def test_a_lone_eos_that_is_bos_is_put_together_again_as_bos_and_eos() -> None:
    # Packed: BOS 5 BOS | BOS 6 ...: the second document is the one token EOS, the third shares it as its BOS.
    packed = TokenSet.from_documents(
        [[5, BOS], [BOS], [6, 7]], n_tokens=6, context_size=3, bos_token_id=BOS, begin_rows_with_bos=False
    )
    assert packed.rows().tolist() == [[BOS, 5, BOS], [BOS, 6, 7]]
    assert [document.tolist() for document in packed.documents(BOS)] == [
        [BOS, 5, BOS],
        [BOS, BOS],
        [BOS, 6, 7],
    ]


@pytest.mark.parametrize("begin_rows_with_bos", [True, False])
@pytest.mark.parametrize("eos", [None, 1, BOS], ids=["no EOS", "EOS of its own", "EOS is BOS"])
def test_documents_are_exactly_what_was_packed(eos: int | None, begin_rows_with_bos: bool) -> None:
    rng = np.random.default_rng(0)
    whole_documents = 0
    for _ in range(40):
        documents = random_documents(rng, int(rng.integers(1, 30)), eos)
        context_size = int(rng.integers(2, 20))
        tokens = TokenSet.from_documents(
            documents, n_tokens=10_000, context_size=context_size, bos_token_id=BOS,
            begin_rows_with_bos=begin_rows_with_bos,
        )  # fmt: skip
        whole = [[BOS, *document] for document in documents]
        again = [part.tolist() for part in tokens.documents(BOS)]
        assert again[:-1] == whole[: max(len(again) - 1, 0)]
        # The last may be cut short, by the end of the rows.
        assert all(part == whole[len(again) - 1][: len(part)] for part in again[-1:])
        # All that is missing is the last partial row, and where EOS is BOS the BOS that each document
        # in that row shares with the one before.
        assert sum(map(len, whole)) - sum(map(len, again)) < 2 * context_size
        whole_documents += max(len(again) - 1, 0)
    assert whole_documents > 400


def test_documents_of_a_training_part_are_whole_but_for_the_last() -> None:
    documents = [[n, n + 1, n + 2] for n in range(2, 42)]
    tokens = TokenSet.from_documents(documents, n_tokens=1_000, context_size=6, bos_token_id=BOS)
    train, _ = tokens.split(0.25)
    again = [part.tolist() for part in train.documents(BOS)]
    assert len(again) > 20
    assert again[:-1] == [[BOS, *document] for document in documents[: len(again) - 1]]
    last = [BOS, *documents[len(again) - 1]]
    assert again[-1] == last[: len(again[-1])]


def test_one_document_a_slice_and_all_of_them_are_the_same() -> None:
    # Documents over several rows, rows of several documents, and more documents than are read at once (256).
    rng = np.random.default_rng(2)
    drawn = random_documents(rng, 700, 1)
    drawn.insert(300, rng.integers(2, 64, size=7_000).tolist())
    given = [one for document in drawn for one in [document] * int(1 + (rng.random() < 0.2))]
    tokens = TokenSet.from_documents(given, n_tokens=10**6, context_size=5, bos_token_id=BOS)
    documents = tokens.documents_as_given(BOS)
    assert len(documents) > len(drawn) + 50
    every = [one.tolist() for one in documents]
    assert len(every) == len(documents)
    assert every[:600] == [[BOS, *one] for one in drawn[:600]]
    assert every[len(drawn) :] == [every[number] for number, _ in tokens.card["repeats"]]
    order = rng.permutation(len(documents))
    assert [documents[i].tolist() for i in order] == [every[i] for i in order]
    assert [one.tolist() for one in documents[5:900:90]] == every[5:900:90]
    assert documents[-1].tolist() == every[-1]
    with pytest.raises(IndexError):
        documents[len(documents)]


def test_rows_that_are_nobodys_belong_to_no_document() -> None:
    # A document over three rows, the middle of which holds none of it.
    owners = np.array([[0, 0], [NO_DOCUMENT, NO_DOCUMENT], [0, 4], [4, 9]])
    tokens = TokenSet.from_rows(np.array([[BOS, 5], [7, 7], [6, 8], [9, 3]]), owners)
    assert [one.tolist() for one in tokens.documents(BOS)] == [[BOS, 5, 6], [BOS, 8, 9], [BOS, 3]]
    assert tokens.documents(BOS)[1].tolist() == [BOS, 8, 9]
