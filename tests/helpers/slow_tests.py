"""The tests that `make test-fast` leaves out: those that take seconds each.

`pytest --durations=0` shows what belongs here. Every sub-package keeps tests in the fast part.
"""

SLOW = frozenset(
    {
        # Commands in processes of their own, which are killed, signalled and resumed.
        "test_a_dead_wandb_process_is_said_and_does_not_stop_the_run",
        "test_a_killed_sweep_resumes_and_ends_bit_identical",
        "test_an_agents_run_that_is_stopped_is_retried_and_counts_once",
        "test_every_command_of_a_sweep_runs_as_an_agents",
        "test_five_kills_change_nothing",
        "test_offline",
        "test_sigterm_ends_the_command_with_143_and_resume_goes_on",
        "test_the_core_never_imports_sae_bench",
        "test_importing_the_commands_needs_no_fcntl",
        "test_what_is_left_is_counted_with_the_command_that_continues",
        "test_the_results_of_the_others_are_shown_beside_a_failure",
        # What a newcomer types, as it is written.
        "test_quickstart_ends_with_the_table_and_what_to_try_next",
        "test_the_readmes_commands_run",
        "test_the_readmes_python_runs",
        "test_upstreams_end_to_end_test",
        "test_its_folder_is_evaluated_by_our_command",
        "test_the_demos_configuration",
        "test_a_backup_of_upstreams_main_is_loaded",
        # Long trainings, or one for each architecture.
        "test_a_shared_sweep_gives_the_weights_of_single_runs_and_the_same_again",
        "test_a_stopped_run_ends_as_if_it_had_not_been_stopped",
        "test_bf16_ends_within_0_003_fve_and_0_02_near_dead_of_fp32",
        "test_company_and_logging_change_nothing_to_the_bit",
        "test_every_architecture_trains_in_bf16",
        "test_every_posterior_resumes",
        "test_gamma_tends_to_the_mean_squared_error_per_dimension",
        "test_gates_close_on_features_that_say_nothing",
        "test_a_shared_run_resumes_as_a_whole_or_one_of_it_alone",
        "test_a_trainer_that_diverges_stops_alone_and_the_run_says_so",
        "test_where_a_run_ended_between_two_folders_the_last_common_point_counts",
        "test_point_rectified_without_kl_is_upstreams_trainer",
        # Many samples, or many cases.
        "test_every_metric_is_the_plain_one",
        "test_sinks_are_left_out_and_left_alone_and_the_rest_resumes",
        "test_a_mistake_ends_in_one_line_that_says_what_to_type",
        "test_any_config_json_loads_or_is_a_named_error",
        "test_every_configuration_of_every_file_is_the_one_of_an_agents_command",
        "test_100_000_tiny_documents",
        "test_a_line_of_5_mb",
        "test_gradcheck",
        "test_rows_are_all_tokens_in_reading_order",
        "test_outliers_are_counted_once_when_fills_end_inside_contexts",
        "test_padding_is_left_out_on_either_side",
        "test_samples_have_the_gated_posteriors_moments",
        "test_what_is_added_appears_everywhere",
        "test_a_command_parses_and_its_stages_are_those_of_the_module",
        "test_a_random_search_draws_what_it_is_asked_for",
        "test_samples_have_the_posteriors_moments",
        # Reports beyond the first, and the report in a browser.
        "test_the_page_says_that_unequally_sparse_saes_can_not_be_compared",
        "test_mistakes_are_one_line",
        "test_sae_bench_results_are_on_the_page",
        "test_two_reports_of_a_run_differ_only_in_their_time",
        "test_it_opens_offline_without_an_error_and_draws_every_chart",
        "test_search_and_sort",
        "test_a_feature_opens_from_the_table_and_by_keys",
        "test_the_map_shows_a_features_tokens_and_opens_it",
        "test_dark_mode_and_print_change_the_charts",
        "test_it_fits_a_phone",
        "test_hostile_text_does_nothing",
        # Pages of results, made from the raw results.
        "test_a_second_k_leaves_the_first_ks_rows_unless_the_tokens_differ",
        "test_every_metric_of_the_raw_results_shows_in_the_page",
        "test_results_are_made_from_the_raw_results",
    }
)
