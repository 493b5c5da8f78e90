"""SAE Bench's evaluations of our SAEs and upstream's. Needs the extra `sae-bench`.

`runner` evaluates run folders. `evaluations` calls SAE Bench's functions with the `settings` and `data` of one call, and
`results` shows the results. `adapter` gives SAEs the interface of SAE Bench, and `lens_model` gives it to the language model.
Only `vsae bench` imports these modules, and the package `sae_bench`.
"""
