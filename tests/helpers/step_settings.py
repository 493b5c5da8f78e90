"""Every kind of vSAE step: posterior, where noise acts, the KL's scope, ReLU and dtype."""

import itertools

import pytest

SETTINGS = [
    {"posterior": p, "noise_on": n, "kl_scope": scope, "rectify": r, "dtype": dtype}
    for p, n, scope, r, dtype in itertools.product(
        ("fixed", "learned", "point"),
        ("both", "values", "selection"),
        ("all", "selected"),
        (False, True),
        ("float32", "bfloat16"),
    )
    if p != "point" or n == "both"
]
every_setting = pytest.mark.parametrize(
    "settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values()))
)
