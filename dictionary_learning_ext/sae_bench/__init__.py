"""SAE Bench's evaluations of our SAEs and upstream's. Needs the extra `sae-bench`.

`runner` evaluates run folders: `evaluations` calls SAE Bench's functions with the `settings` and `data`
of one call, and `results` shows what they return. `adapter` gives an SAE SAE Bench's interface,
`lens_model` its language model. Nothing in the package but `vsae bench` imports these, or `sae_bench`.
"""
