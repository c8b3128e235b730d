"""Where each statement that the measurement protocol of Cunningham et al. (2023) wants tested is shown."""

from __future__ import annotations

import pytest

from .named_tests import claims_something

STEP = "plugins/unit_norm_l1/test_step.py"
PLANTED = "plugins/unit_norm_l1/test_planted.py"
GRID = "plugins/unit_norm_l1/test_grid.py"
DIRECTIONS = "plugins/baselines/test_directions.py"
RECONSTRUCTION = "plugins/test_reconstruction.py"
SUMS = "metrics/test_reconstruction.py"
MATCHING = "metrics/test_matching.py"
AUTOINTERP = "plugins/autointerp/test_autointerp.py"
JUDGING = "plugins/autointerp/test_judging.py"
SCORING = "plugins/autointerp/test_scoring.py"
SPLITS = "plugins/autointerp/test_splits.py"
IOI = "plugins/ioi_patching/test_ioi_patching.py"
PATCHING = "plugins/ioi_patching/test_patching.py"
SELECTION = "plugins/ioi_patching/test_selection.py"
PROMPTS = "plugins/ioi_patching/test_prompts.py"
ABLATION = "plugins/case_studies/test_ablation.py"
CASES = "plugins/case_studies/test_case_studies.py"
TREE = "plugins/case_studies/test_tree.py"

# The statements of section 6.9, in its order.
STATEMENTS: dict[str, tuple[str, ...]] = {
    # SAE and loss. What the protocol calls tied is `unit_norm_l1`.
    "loss: by hand on two activations and three features": (
        f"{STEP}::test_the_loss_of_two_activations_and_three_features_by_hand",
    ),
    "loss: the authors' α becomes ours, with the same gradients up to the factor d": (
        f"{STEP}::test_the_authors_alpha_times_d_in_gives_their_gradients_times_d_in",
        f"{STEP}::test_the_published_alpha_at_its_own_size",
    ),
    "SAE: rows have length 1 after steps": (
        f"{STEP}::test_rows_have_length_one_after_training_and_there_is_no_decoder_bias",
    ),
    "SAE: α = 0 gives a higher L0 and a lower FVU": (
        f"{PLANTED}::test_without_l1_it_is_dense_faithful_and_does_not_find_the_dictionary",
        f"{GRID}::test_a_grid_over_alpha_and_size_trains_in_one_pass_and_gives_curves",
    ),
    # Of the two ways for features to differ in frequency it is the decay of 0.99 a feature.
    "SAE: a planted dictionary of twice the dimensions, five features at a time, is found with MMCS > 0.9": (
        f"{PLANTED}::test_a_planted_dictionary_is_found",
        f"{PLANTED}::test_a_planted_dictionary_is_found_where_some_features_are_rarer",
    ),
    # No stack of weights here: SAELens trains the members of a grid on the same batches.
    "SAE: several trained together are those trained alone": (
        f"{GRID}::test_several_trained_together_are_those_trained_alone",
    ),
    # Metrics
    "metrics: FVU of the identity is 0, of the batch's mean 1": (
        f"{SUMS}::test_fvu_of_the_identity_is_zero_and_of_the_mean_one",
    ),
    "metrics: L0 of known codes": (
        f"{SUMS}::test_l0_counts_active_latents_of_the_tokens_that_count",
        f"{SUMS}::test_l0_of_a_top_k_sae_is_k_without_spread",
    ),
    "metrics: MMCS with itself is 1, in any order": (
        f"{MATCHING}::test_mmcs_with_itself_is_one_in_any_order_and_at_any_length",
    ),
    "metrics: MMCS sees the sign": (f"{MATCHING}::test_mmcs_sees_the_sign",),
    "metrics: MMCS of nested dictionaries depends on the way round": (
        f"{MATCHING}::test_mmcs_of_nested_dictionaries_is_one_one_way_only",
    ),
    "metrics: dead is what fires ten times or less": (
        f"{SUMS}::test_latents_are_alive_above_ten_firings_where_tokens_count",
        f"{RECONSTRUCTION}::test_features_are_alive_above_ten_firings_on_each_text",
    ),
    "metrics: the identity leaves the CE loss as it is": (
        f"{RECONSTRUCTION}::test_the_identity_leaves_the_loss_and_a_zero_sae_has_that_of_zero_ablation",
    ),
    # Of the positions that the SAE replaces. CE_zero of `ce_loss_score` is SAELens's and zeroes every position: the
    # two are one loss, and the score is 0, where BOS is replaced as well.
    "metrics: a zero SAE has the CE loss of zero ablation": (
        f"{RECONSTRUCTION}::test_the_identity_leaves_the_loss_and_a_zero_sae_has_that_of_zero_ablation",
        f"{RECONSTRUCTION}::test_a_perfect_sae_scores_one_and_one_that_gives_zero_scores_zero",
    ),
    # Baselines
    "baselines: PCA is orthonormal and is the SVD up to sign": (
        f"{DIRECTIONS}::test_pca_is_orthonormal_and_numpy_s_svd_up_to_sign",
    ),
    "baselines: the ± split doubles the rows, and with all of them reconstructs exactly": (
        f"{DIRECTIONS}::test_split_doubles_the_rows_and_reconstructs_exactly",
        f"{DIRECTIONS}::test_top_k_pca_of_all_components_reconstructs_exactly",
    ),
    "baselines: Top-K has at most K codes that are not 0, and none below": (
        f"{DIRECTIONS}::test_top_k_has_at_most_k_active_none_below_zero_and_they_are_the_largest",
    ),
    "baselines: ICA recovers planted Laplace sources up to sign and order": (
        f"{DIRECTIONS}::test_ica_recovers_planted_sources_up_to_sign_and_order",
    ),
    "baselines: ICA is unstable on Gaussian data": (
        f"{DIRECTIONS}::test_ica_is_stable_on_planted_sources_and_not_on_gaussian_ones",
    ),
    "baselines: random directions have length 1 and are seeded": (
        f"{DIRECTIONS}::test_random_directions_are_unit_and_seeded",
    ),
    # Autointerpretation
    "autointerp: an oracle simulator scores 1": (
        f"{SCORING}::test_oracle_simulator_scores_exactly_1",
        f"{JUDGING}::test_an_explainer_and_simulator_that_know_score_1_and_stand_in_every_row",
    ),
    "autointerp: so does a scaled oracle with an offset": (
        f"{SCORING}::test_scaled_and_offset_oracle_still_scores_1",
    ),
    "autointerp: a constant prediction has no score and is counted": (
        f"{SCORING}::test_constant_prediction_is_no_score_and_says_why",
        f"{JUDGING}::test_constant_predictions_of_a_simulator_are_counted",
    ),
    "autointerp: random predictions score 0 within two standard deviations of 640 tokens": (
        f"{SCORING}::test_random_predictions_score_near_0",
    ),
    "autointerp: explanations of other features collapse to about 0": (
        f"{AUTOINTERP}::test_shuffled_explanations_collapse_to_about_0",
        f"{JUDGING}::test_an_explainer_and_simulator_that_know_score_1_and_stand_in_every_row",
        f"{SCORING}::test_exchanged_explanations_are_all_used_once_and_none_stays_where_it_was",
    ),
    "autointerp: the ranks of every split": (
        f"{SPLITS}::test_exact_rank_indices_of_every_split",
        f"{SPLITS}::test_explained_by_ranks_0_4_8_judged_by_2_6_10_and_random_1_4_7",
    ),
    "autointerp: no fragment is both explained and judged by": (
        f"{SPLITS}::test_train_and_validation_have_no_fragment_in_common",
        "plugins/autointerp/test_fragments.py"
        "::test_active_fragments_are_counted_and_random_ones_are_none_of_the_top",
    ),
    "autointerp: a feature with 19 active fragments is skipped, one with 20 is kept": (
        f"{SPLITS}::test_a_feature_with_19_active_fragments_is_skipped_and_one_with_20_is_kept",
        f"{AUTOINTERP}::test_features_with_too_few_fragments_are_counted_and_not_scored",
    ),
    "autointerp: planted detectors, explained and simulated by keywords, score 1, random directions low": (
        f"{AUTOINTERP}::test_planted_token_detectors_score_1_while_random_directions_score_low",
    ),
    "autointerp: the correlation is of the concatenation, not the mean over fragments": (
        f"{SCORING}::test_the_correlation_is_of_concatenated_tokens_not_the_mean_of_fragments",
        f"{SCORING}::test_scores_are_of_the_concatenation_too",
    ),
    # IOI patching
    "IOI: no features give the model's own KL from base to target, and edit 0": (
        f"{PATCHING}::test_no_features_give_the_kl_of_the_model_itself_and_edit_0",
    ),
    "IOI: all of an orthonormal PCA leave no KL": (
        f"{PATCHING}::test_orthonormal_components_all_patched_give_the_target",
    ),
    "IOI: the identity dictionary is the full activation patch": (
        f"{PATCHING}::test_the_identity_dictionary_is_the_full_activation_patch",
    ),
    "IOI: the direction of KL, on two tokens": (f"{PATCHING}::test_the_direction_of_kl_on_two_tokens",),
    "IOI: padding and positions that did not change get no edit": (
        f"{PATCHING}::test_padding_tokens_and_unchanged_positions_get_zero_edit",
        f"{PATCHING}::test_padding_changes_nothing",
    ),
    "IOI: of a planted circuit ACDC finds exactly the features that are read, at several thresholds": (
        f"{IOI}::test_the_planted_circuit_is_found_exactly_at_every_small_threshold",
        f"{SELECTION}::test_planted_costs_are_removed_at_their_threshold_and_the_dearest_stay",
    ),
    "IOI: sets are nested": (
        f"{SELECTION}::test_sets_are_nested_and_each_threshold_begins_with_what_the_last_left",
    ),
    "IOI: the size of an edit is ‖Σ Δc f‖": (
        f"{PATCHING}::test_the_size_of_an_edit_is_its_closed_form",
        f"{PATCHING}::test_the_size_of_an_edit_along_oblique_directions",
        f"{IOI}::test_the_curve_does_not_increase_and_ends_at_the_closed_form_of_the_edit",
    ),
    "IOI: the curve does not increase": (
        f"{IOI}::test_the_curve_does_not_increase_and_ends_at_the_closed_form_of_the_edit",
    ),
    "IOI: PCA of the same data needs at least as many components": (
        f"{IOI}::test_principal_components_of_the_same_data_need_at_least_as_many",
    ),
    # Of the sentences written here. Pairs from a user's file have equal length and may differ in several places.
    "IOI: every pair of prompts has equal length and differs in one position": (
        f"{PROMPTS}::test_every_prompt_pair_differs_in_exactly_one_position_and_has_equal_length",
        f"{PROMPTS}::test_tokens_that_do_not_correspond_are_refused_with_the_line",
    ),
    # Case studies
    "case studies: a feature that fires on one token alone has its whole histogram there": (
        "plugins/case_studies/test_histogram.py"
        "::test_a_feature_that_fires_on_one_token_has_all_its_mass_there",
        f"{CASES}::test_a_planted_token_feature_has_its_whole_case_right",
    ),
    "case studies: in a linear readout ablation changes logits by −c f·W_U": (
        f"{ABLATION}::test_in_a_linear_readout_the_effect_is_minus_c_f_w_u",
    ),
    "case studies: ablation of a tied feature leaves its pre-activation at 0": (
        f"{ABLATION}::test_ablation_of_a_tied_unit_norm_feature_leaves_its_pre_activation_at_0",
    ),
    "case studies: a planted chain among distractors is the tree, with its drops": (
        f"{TREE}::test_a_planted_chain_is_the_tree_and_its_drops_are_known",
    ),
    "case studies: inactive parents have drop 0": (
        f"{TREE}::test_where_a_parent_is_inactive_its_drop_is_0",
        f"{TREE}::test_inactive_parents_are_never_run",
    ),
    "case studies: contexts lie between half the maximum and the maximum": (
        f"{TREE}::test_contexts_lie_in_the_upper_half_one_a_row_and_never_at_bos",
    ),
    # Negative controls. A random model is `model_init: random`.
    "controls: a randomly initialised model with SAEs of its own": (
        "test_experiment.py::test_a_random_model_is_a_control_from_data_to_saes",
        "test_language_model.py::test_a_random_init_keeps_the_shapes_and_nothing_else",
    ),
    # Nothing that a config names. Shuffled as a whole, a dictionary is itself with other numbers: what sees it is an
    # explanation held against another feature. Shuffled against its encoder it loses reconstruction and patching.
    "controls: shuffled rows of an SAE": (
        f"{AUTOINTERP}::test_shuffled_explanations_collapse_to_about_0",
        f"{RECONSTRUCTION}::test_an_sae_of_shuffled_rows_is_worse_than_none",
        f"{IOI}::test_an_sae_of_shuffled_rows_does_not_give_the_target",
    ),
    # One more variant, with `l1_coefficient: 0`.
    "controls: a dictionary with α = 0": (
        f"{PLANTED}::test_without_l1_it_is_dense_faithful_and_does_not_find_the_dictionary",
        f"{GRID}::test_a_grid_over_alpha_and_size_trains_in_one_pass_and_gives_curves",
    ),
}  # fmt: skip


@pytest.mark.parametrize("statement", STATEMENTS)
def test_every_statement_has_tests_that_claim_something(statement: str) -> None:
    tests = STATEMENTS[statement]
    assert tests
    assert len(set(tests)) == len(tests)
    for test in tests:
        assert claims_something(test), test


def test_a_test_that_is_not_there_would_be_noticed() -> None:
    with pytest.raises(KeyError):
        claims_something(f"{STEP}::test_of_nothing")
    with pytest.raises(FileNotFoundError):
        claims_something("plugins/test_of_nothing.py::test_of_nothing")
    # Exists, and is no test.
    assert not claims_something(f"{STEP}::authors_loss")
