"""SAE Bench's evaluations of our SAEs and upstream's. Needs the extra `saebench`.

`adapter` gives a checkpoint SAE Bench's interface, `lens_model` its language model, `bench_data` its
texts. `evaluations` calls SAE Bench's functions and `bench_runner` runs them on run folders.
`comparison_table` shows the results. Nothing in the package but `vsae bench` imports these, or
`sae_bench`.
"""
