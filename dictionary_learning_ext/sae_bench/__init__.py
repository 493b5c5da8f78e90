"""SAE Bench: our SAEs and upstream's in its evaluations. Needs the extra `saebench`.

`adapter` makes a checkpoint one of SAE Bench's SAEs, `lens_model` its language model, `data` its
texts; `evaluations` calls SAE Bench's functions, `runner` runs them over folders; `comparison` and
`figures` show what came out. Nothing else in the package imports these, nor `sae_bench`.
"""
