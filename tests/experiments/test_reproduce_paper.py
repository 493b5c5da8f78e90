"""The paper's models are what their names say."""

from experiments.paper import reproduce_paper
from experiments.trained_saes import sae_config


def test_the_papers_two_models_are_what_their_names_say():
    def resolved(name):
        sae = sae_config(1000, k=8, dict_size=64, **reproduce_paper.MODELS[name])
        return sae.resolve(1000, 1024)

    for name in reproduce_paper.MODELS:
        if name == "TopK":
            continue
        sae = resolved(name)
        assert sae.beta == float(name.rpartition("beta ")[2])
        assert sae.kl_scope == ("selected" if "KL on selected" in name else "all")
        if name.startswith("equations"):
            assert (sae.posterior, sae.sigma, sae.noise_on) == ("fixed", 1.0, "both")
            assert (sae.rectify, sae.noise_anneal_steps) == (False, None)
        else:
            assert (sae.posterior, sae.rectify) == ("point", True)
    assert resolved("TopK").architecture == "top_k"


def test_another_language_models_results_have_files_of_their_own():
    def raw(*words):
        return reproduce_paper.STAGES.raw(reproduce_paper.STAGES.parse(["tables", *words])).name

    assert raw() == "reproduce_paper.json"
    assert raw("--lm", "EleutherAI/pythia-70m") == "reproduce_paper_pythia-70m.json"
