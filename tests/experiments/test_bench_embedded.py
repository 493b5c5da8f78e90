"""What the page on the embedded model concludes, on planted numbers."""

from experiments.better_vsae.bench_embedded import verdicts


def test_what_the_language_model_does_is_no_measure_of_an_sae():
    names = (
        "FVE (ours)",
        "L0",
        "alive (ours)",
        "probing, language model",
        "sae-probes, language model",
        "sae-probes, top 1",
    )
    levels = {"random_F512": 0.1, "top_k": 0.5, "identity": 1.0}
    columns = {label: dict.fromkeys(names, level) for label, level in levels.items()}
    assert list(verdicts(columns)) == ["FVE (ours)", "sae-probes, top 1"]
