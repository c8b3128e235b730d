"""Where each known flaw of the FaithfulSAE reference scripts is shown to be absent here."""

from __future__ import annotations

import ast

import pytest

from .named_tests import TESTS, claims, claims_something, functions

# By the sections of the measurement protocol. A flaw with two faces has a line for each.
FLAWS = {
    # 1. The faithful dataset
    "1: sampled ids become text and are tokenised again": (
        "plugins/self_generated/test_self_generated.py::test_flaw_no_text_stands_between_the_sampler_and_the_rows"
    ),
    "1: a buffer that nobody empties stores rows twice": (
        "plugins/self_generated/test_self_generated.py::test_flaw_no_row_is_stored_twice"
    ),
    "1: the model's own top_k, temperature and repetition penalty bend the distribution": (
        "plugins/self_generated/test_sampling.py"
        "::test_flaw_the_models_own_generation_config_does_not_change_the_distribution"
    ),
    "1: so does any other field of its generation_config": (
        "plugins/self_generated/test_sampling.py::test_flaw_nothing_is_taken_from_the_models_own_generation_config"
    ),
    # 2. Shared Feature Ratio
    "2: dead latents are among those counted": (
        "plugins/test_shared_features.py::test_flaw_dead_latents_are_not_in_the_alive_ratio"
    ),
    "2: two seeds make a single pair, and it has no interval": (
        "plugins/test_shared_features.py"
        "::test_flaw_every_pair_of_seeds_is_measured_and_three_give_a_jackknife_interval"
    ),
    "2: where two seeds allow no interval, nothing says so": (
        "plugins/test_shared_features.py::test_two_seeds_give_a_value_and_the_reason_why_there_is_no_interval"
    ),
    "2: a direction of length zero becomes NaN": (
        "plugins/test_shared_features.py::test_flaw_a_zero_row_gives_no_nan"
    ),
    "2: all cosines are in memory at once": (
        "plugins/test_shared_features.py::test_flaw_the_matrix_of_cosines_is_never_held"
    ),
    "2: a failed match is swallowed and comes out as a missing value": (
        "plugins/test_shared_features.py::test_flaw_a_match_that_fails_is_an_error_and_no_missing_value"
    ),
    # 3. Fake Feature Ratio
    "3: a threshold of 1.0 follows the scale that encoder and decoder share between them": (
        "plugins/fake_features/test_fake_features.py"
        "::test_flaw_scaling_activations_moves_ffr_but_not_ffr_fire_nor_ffr_contrast"
    ),
    "3: a threshold of 1.0 means more for one latent than for another": (
        "plugins/fake_features/test_fake_features.py::test_flaw_scaling_activations_does_not_move_ffr_relative"
    ),
    "3: random tokens are drawn without a seed": (
        "plugins/fake_features/test_token_sets.py::test_flaw_random_tokens_are_seeded"
    ),
    "3: a second run gives other numbers": (
        "plugins/fake_features/test_fake_features.py::test_flaw_random_numbers_are_seeded"
    ),
    "3: special tokens are drawn as if they were words": (
        "plugins/fake_features/test_token_sets.py::test_flaw_special_tokens_are_never_sampled"
    ),
    "3: BOS is dropped from the count and kept in the denominator": (
        "plugins/fake_features/test_fake_features.py::test_flaw_bos_is_not_in_the_denominator"
    ),
    "3: without real text to compare, dense latents pass for fake ones": (
        "plugins/fake_features/test_fake_features.py"
        "::test_flaw_merely_dense_latents_are_not_counted_by_the_contrast"
    ),
    "3: dead latents are in the denominator": (
        "plugins/fake_features/test_fake_features.py::test_flaw_dead_latents_are_not_in_the_alive_ratios"
    ),
    "3: the model is loaded again for every SAE": (
        "plugins/fake_features/test_fake_features.py::test_flaw_the_model_is_loaded_once_for_all_saes"
    ),
    "3: the model runs again for every SAE": (
        "plugins/fake_features/test_fake_features.py::test_flaw_the_model_runs_once_for_all_saes"
    ),
    # 4. Faithfulness across datasets
    "4: BOS with its huge norm raises the explained variance": (
        "plugins/test_reconstruction.py::test_flaw_bos_is_left_out_whatever_its_norm"
    ),
    "4: SAEs are measured on the beginning of what they were trained on": (
        "plugins/test_reconstruction.py::test_flaw_held_out_text_is_never_training_text"
    ),
    "4: a short sequence weighs as much as a long one": (
        "plugins/test_reconstruction.py::test_flaw_sequences_count_by_their_tokens_and_not_equally"
    ),
    # Of the same scripts; the protocol asks for one clean and one ablated forward.
    "4: the clean and the ablated forward are repeated for every SAE": (
        "plugins/test_reconstruction.py::test_flaw_the_clean_and_ablated_forwards_run_once_for_all_saes"
    ),
    # 5. How far is a dataset from the model?
    "5: the divergence of first tokens mostly says how many samples there are": (
        "metrics/test_surprise.py::test_flaw_the_first_token_score_does_not_measure_sample_size"
    ),
    "5: so does a divergence of token frequencies": (
        "metrics/test_divergence.py::test_flaw_the_excess_measures_text_and_not_sample_size"
    ),
    "5: so does token coverage": (
        "plugins/test_ood_score.py::test_flaw_coverage_does_not_grow_with_the_text"
    ),
    "5: what is called Jensen-Shannon is half of Jeffreys": (
        "metrics/test_divergence.py::test_flaw_jensen_shannon_is_no_half_of_jeffreys"
    ),
    "5: cosines are those of a single document over and over": (
        "plugins/test_ood_score.py::test_flaw_vectors_come_from_every_document_and_none_comes_twice"
    ),
    # 6. Probing
    "6: the last positions are pooled although padding is on the right": (
        "plugins/probing/test_representations.py::test_flaw_pools_the_last_positions_under_right_padding"
    ),
    "6: the model attends to padding": (
        "plugins/probing/test_representations.py::test_flaw_no_attention_mask"
    ),
    "6: training and test texts are pooled over different lengths": (
        "plugins/probing/test_representations.py::test_flaw_train_and_test_pool_different_lengths"
    ),
    "6: probes have no penalty": "plugins/probing/test_fitting.py::test_flaw_unregularised",
    "6: columns keep their scales": "plugins/probing/test_fitting.py::test_flaw_unscaled",
    "6: a probe fitted again is another probe": "plugins/probing/test_fitting.py::test_flaw_unseeded",
    "6: a second run gives other scores": (
        "plugins/probing/test_probing.py::test_flaw_unseeded_runs_are_alike"
    ),
    "6: scores have no interval": "plugins/probing/test_probing.py::test_flaw_no_interval",
}  # fmt: skip


@pytest.mark.parametrize("flaw", FLAWS)
def test_every_flaw_has_a_test_that_claims_something(flaw: str) -> None:
    assert claims_something(FLAWS[flaw])


def test_every_test_named_after_a_flaw_is_in_the_table() -> None:
    named = {
        f"{path.relative_to(TESTS).as_posix()}::{name}"
        for path in TESTS.rglob("test_*.py")
        for name in functions(path)
        if name.startswith("test_flaw_")
    }
    assert named <= set(FLAWS.values())
    # One test shows one flaw.
    assert len(set(FLAWS.values())) == len(FLAWS)


def test_a_test_without_a_claim_would_be_noticed() -> None:
    source = "def a():\n    run()\ndef b():\n    assert run()\ndef c():\n    with pytest.raises(E):\n        run()\n"
    found = {node.name: claims(node) for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    assert found == {"a": False, "b": True, "c": True}
