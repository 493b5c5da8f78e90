"""Candidates are what their names say; the preset is the one that was confirmed."""

import pytest

from experiments.better_vsae import search_and_confirm
from experiments.better_vsae.candidates import (
    CANDIDATES,
    SIZES,
    D,
    partner_of,
    sae_of,
    without_noise,
)


@pytest.mark.parametrize("size", SIZES)
def test_candidates_are_what_their_names_say(size):
    _, k, steps = SIZES[size]
    assert partner_of(size, partner_of(size, 100)) == 100
    for name, settings in CANDIDATES.items():
        sae = sae_of(settings, size, seed=3).resolve(steps, 1024)
        kind, _, rest = name.partition(" ")
        ratio = rest.split(",")[0]
        if kind in ("selection", "values", "both"):
            assert sae.noise_on == kind
            assert k * sae.sigma**2 / D == pytest.approx(float(ratio))
            until = None if kind == "values" else steps * 4 // 5 if "80%" in name else steps // 2
            assert sae.noise_anneal_steps == until, name
        if ", KL " in name:
            assert sae.beta == float(name.split("KL ")[1]), name
            assert sae.kl_scope == "selected", name
        if name.startswith("TopK"):
            assert (sae.posterior, sae.beta) == ("point", 0.0)
        assert bool(sae.rectify) == (name.startswith("TopK") and name != "TopK without ReLU")
        assert (sae.auxk_alpha == 0) == ("without AuxK" in name), name
    for name in ("selection 0.1, KL 0.01", "values 0.03, KL 0.03"):
        quiet = sae_of(without_noise(CANDIDATES[name]), size, seed=3).resolve(steps, 1024)
        assert quiet.posterior == "point"
        assert quiet.beta == CANDIDATES[name]["beta"]
        assert quiet.kl_scope == "selected"


def test_the_search_measured_the_noise_that_its_names_say():
    for row in search_and_confirm.read()["rows"]:
        kind, _, rest = row["model"].partition(" ")
        if row["stage"] == "search" and kind in ("selection", "values", "both"):
            ratio = float(rest.split(",")[0])
            # E||x||^2 is D only about: sqrt_d is estimated from the first batches.
            assert row["noise_to_signal"] == pytest.approx(ratio, rel=0.05), row["model"]
