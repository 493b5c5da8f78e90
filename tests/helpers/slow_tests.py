"""The tests that `make test-fast` leaves out, by function or by file: those that take seconds each.

`pytest --durations=0` shows what belongs here. Every sub-package keeps tests in the fast part.
"""

import pytest

SLOW = frozenset(
    {
        # Every command on one small run, or a browser.
        "test_quickstart.py",
        "test_page_in_browser.py",
        "test_upstream_examples.py",
        "test_bfloat16.py",
        "test_adding.py",
        # Processes of their own: commands that are killed, signalled and resumed, and imports.
        "test_a_dead_wandb_process_is_said_and_does_not_stop_the_run",
        "test_a_killed_sweep_resumes_and_ends_bit_identical",
        "test_each_device_trains_one_chunk_at_a_time_with_its_share_of_the_threads",
        "test_what_fails_is_said_and_the_rest_are_trained",
        "test_a_sweep_over_two_devices_is_stopped_and_ends_bit_identical",
        "test_a_sweep_trains_on_two_gpus",
        "test_an_agents_run_that_is_stopped_is_retried_and_counts_once",
        "test_kills_change_nothing",
        "test_a_kill_in_between_loses_nothing_that_was_answered",
        "test_a_token_that_is_missing_or_malformed_or_of_no_use_offline",
        "test_sigterm_ends_the_command_with_143_and_resume_goes_on",
        "test_the_core_imports_no_sae_bench_no_fcntl_and_features_in_python_no_drawing",
        "test_what_is_left_or_failed_is_counted_with_the_command_that_continues",
        "test_offline",
        "test_the_hub_is_not_probed",
        "test_torch_has_more_threads_than_it_uses_so_that_they_sleep",
        "test_where_numba_is_missing_torch_takes_over",
        # Several processes, started by torchrun.
        "test_a_killed_rank_ends_the_others",
        "test_a_signal_to_one_rank_or_to_torchrun_ends_all_and_resumes_are_exact",
        "test_a_rank_that_fails_says_why_and_ends_the_run",
        "test_a_full_disk_is_rank_0s_to_say",
        "test_every_architecture_is_equal_on_all_ranks_after_every_step",
        "test_mistakes_of_several_processes_are_one_line",
        "test_ranks_equal_one_process_on_the_union_of_their_batches",
        "test_a_stopped_or_killed_command_is_continued_by_the_same_command",
        "test_a_rank_that_hangs_ends_the_run_after_the_timeout",
        "test_an_error_that_is_raised_later_than_its_call_is_one_line",
        # The guide, and the released package, built.
        "test_the_wheel_holds_the_package_and_nothing_else",
        "test_the_sdist_holds_the_package_and_leaves_the_tests_out",
        "test_an_installed_wheel_runs_outside_the_repository",
        "test_the_site_is_built_and_loads_nothing_from_the_network",
        "test_the_python_interface_is_documented",
        # What a newcomer types, as it is written.
        "test_a_page_runs",
        "test_a_notebook_runs",
        "test_every_class_is_written_in_the_schema",
        # Long trainings, or one for each architecture.
        "test_a_shared_sweep_gives_the_weights_of_single_runs_and_the_same_again",
        "test_stopped_saes_end_as_if_they_had_not_been_stopped",
        "test_a_stopped_run_of_every_architecture_ends_as_if_it_had_not_been_stopped",
        "test_what_is_measured_on_a_trained_sae_mixes_no_devices",
        "test_bf16_ends_within_0_003_fve_and_0_02_near_dead_of_fp32",
        "test_company_and_logging_change_nothing_to_the_bit",
        "test_the_training_does_not_notice_and_a_resume_neither_repeats_nor_loses_one",
        "test_the_first_step_sees_the_trained_sae_and_takes_nothing_from_it",
        "test_gamma_tends_to_the_mean_squared_error_per_dimension",
        "test_gates_close_on_features_that_say_nothing",
        "test_a_shared_run_resumes_as_a_whole_or_one_of_it_alone",
        "test_a_trainer_that_diverges_stops_alone_and_the_run_says_so",
        "test_where_a_run_ended_between_two_folders_the_last_common_point_counts",
        "test_point_rectified_without_kl_is_upstreams_trainer",
        "test_a_run_that_is_stopped_ends_as_one_that_is_not",
        "test_its_evaluation_is_that_of_the_language_model",
        "test_saes_of_several_hook_points_are_each_as_on_its_own",
        "test_a_report_takes_its_contexts_from_the_cache",
        "test_runs_of_two_hook_points_read_one_cache_and_need_no_language_model",
        "test_own_activations_are_measured_but_the_language_models_loss_is_not",
        "test_settings_that_the_cache_knows_may_be_left_out",
        # Many samples, or many cases.
        "test_every_metric_is_the_plain_one",
        "test_a_mistake_is_one_line_that_says_what_to_type",
        "test_any_config_json_loads_or_is_a_named_error",
        "test_other_commands_take_the_folders",
        "test_every_configuration_of_every_file_is_the_one_of_an_agents_command",
        "test_gradcheck",
        "test_memory_over_the_weights_is_at_most_that_of_the_gradients_and_five_tensors",
        "test_no_row_comes_twice_when_fills_end_inside_contexts",
        "test_that_it_compiles_is_said_before_the_first_step_and_a_folder_for_its_cache_is_made",
        "test_padding_is_left_out_on_either_side",
        "test_samples_have_the_gated_posteriors_moments",
        "test_a_random_search_draws_what_it_is_asked_for",
        "test_samples_have_the_posteriors_moments",
        # Reports beyond the first, and the report in a browser.
        "test_mistakes_are_one_line",
        "test_a_page_is_written_after_its_data",
        "test_two_reports_of_a_run_differ_only_in_their_time",
        "test_the_command_on_the_page_writes_it_again",
        "test_the_report_names_them_once",
        "test_the_features_of_the_folder_have_scores",
        "test_what_seeds_share_is_said_on_the_page",
        "test_the_section_has_every_sae_and_every_pair",
        # Experiments.
        "test_a_module_is_imported_and_its_stages_are_those_of_the_index",
        "test_a_part_has_rows_that_are_kept_and_an_arm_trained_later_saw_the_same_batches",
    }
)


def is_slow(item: pytest.Item) -> bool:
    """Whether a test or its file is among them."""
    return not SLOW.isdisjoint({getattr(item, "originalname", item.name), item.path.name})
