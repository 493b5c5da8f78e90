"""The models at full size are what their names say, and rows of one k leave those of the other."""

import json

import pytest

from experiments.better_vsae import full_size


def test_the_full_size_models_are_what_their_names_say():
    for name in full_size.MODELS:
        sae = full_size.config_of(name, 64, seed=1, steps=1000).resolve(1000, 1024)
        kind, _, rest = name.replace(",", " ,", 1).partition(" ")
        if kind == "selection":
            ratio = 64 * sae.sigma**2 / full_size.D
            assert ratio == pytest.approx(float(rest.split(",")[0]))
            assert (sae.noise_on, sae.noise_anneal_steps) == ("selection", 500)
        if ", sigma" in name:
            assert (kind, sae.sigma) == (sae.noise_on, 1.0)
        if "KL 0.01" in name:
            assert (sae.beta, sae.kl_scope) == (0.01, "selected")
        elif "beta 0.01" in name:
            assert (sae.beta, sae.kl_scope) == (0.01, "all")
        else:
            assert sae.beta == 0
        assert (sae.posterior == "point") == (kind in ("TopK", "point"))


def test_a_second_k_leaves_the_first_ks_rows_unless_the_tokens_differ(tmp_path):
    raw = tmp_path / "raw.json"

    def write(k, tokens, fve):
        rows = [{"model": "TopK", "k": k, "seed": 0, "fve": fve}]
        full_size.write_rows(raw, rows, k, tokens, text_tokens=5, began=0.0)
        return {row["k"]: row["fve"] for row in json.loads(raw.read_text())["rows"]}

    assert write(256, 1024, 0.1) == {256: 0.1}
    assert write(64, 1024, 0.2) == {64: 0.2, 256: 0.1}
    assert write(64, 1024, 0.3) == {64: 0.3, 256: 0.1}
    assert write(64, 2048, 0.4) == {64: 0.4}
