"""What is trained: the settings (language model, hook point, size), the candidates and the arms.

An option set `{"noise": 0.1, "until": 0.5, "penalty": 0.03}` is a vSAE: noise on the selection at this
noise_to_signal, annealed to 0 until this share of the run, and a KL of this weight on the selected
features. `{"relative": 0.3}` is this noise_to_signal for each token instead of on average, `{"own": 1.81}` a multiple
of the standard deviation of the token's means (by a trainer of trainers.py, whose name is `trainer`). Without noise it
is a point posterior, whose KL is an L2 penalty on the selected features.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dictionary_learning_ext import RunConfig
from dictionary_learning_ext.activations.stored import open_stored
from dictionary_learning_ext.config.run import Dtype
from dictionary_learning_ext.config.sae import SAEConfig
from experiments.trained_saes import sae_config

Options = dict[str, Any]
RUNS = Path("runs/reproducibility")


@dataclass(frozen=True)
class Setting:
    """Where SAEs are trained, and their size."""

    cache: str
    """The folder of cached activations, below RUNS; PROTOCOL.md has the commands that write it."""
    hook: str
    activation_dim: int
    dict_size: int
    k: int
    steps: int
    lr: float = 2e-3
    batch: int = 1024
    passes: int = 4
    """How many times the cache may be read."""
    max_norm_multiple: float | None = None
    dtype: Dtype = "bfloat16"
    """Of the products. Parameters and sums are in float32."""
    eval_tokens: int = 50_000
    eval_documents: int = 32

    def run(self, folder: Path, seed: int) -> RunConfig:
        """The run of all SAEs of a seed: its data order is the seed's too."""
        known = open_stored(RUNS / self.cache).settings  # the language model, its text and contexts
        run = RunConfig(
            hook=self.hook,
            data_seed=seed,
            text_passes=self.passes,
            max_norm_multiple=self.max_norm_multiple,
            steps=self.steps,
            batch_size=self.batch,
            dtype=self.dtype,
            eval_tokens=self.eval_tokens,
            eval_documents=self.eval_documents,
            log_steps=max(1, self.steps // 8),
            save_every="none",
            save_dir=str(folder),
            overwrite=True,
        )
        return replace(run, **{n: v for n, v in known.items() if n != "hook"})

    def sae(self, options: Options, seed: int) -> SAEConfig:
        """An SAE of these options at this setting."""
        own = {"lr": self.lr} | options
        own.pop("trainer", None)
        noise, relative = own.pop("noise", 0.0), own.pop("relative", 0.0)
        scale, until = own.pop("own", 0.0), own.pop("until", 0.5)
        penalty, anneal_k = own.pop("penalty", 0.0), own.pop("anneal_k", None)
        if own.get("architecture", "vsae_top_k") == "vsae_top_k":
            own |= {"beta": penalty} | ({"kl_scope": "selected"} if penalty else {})
            if noise or relative or scale:
                own |= {"sigma": scale} if scale else {"noise_to_signal": noise or relative}
                own |= {"posterior": "relative"} if relative else {}
                own |= {"noise_on": "selection", "noise_anneal": until}
            else:
                own["posterior"] = "point"
        if anneal_k is not None:
            own["k_anneal"] = anneal_k
        return sae_config(k=self.k, dict_size=self.dict_size, seed=seed, **own)


_BLOCKS_2 = {"cache": "embedded", "hook": "blocks.2.hook_resid_post", "activation_dim": 128}
_SMOLLM2 = {"activation_dim": 576, "dict_size": 2304, "k": 64, "steps": 2000, "lr": 1e-3} | {
    "passes": 2,
    "max_norm_multiple": 10.0,
    "eval_tokens": 20_000,
    "eval_documents": 16,
}
SEARCH = Setting(**_BLOCKS_2, dict_size=512, k=16, steps=2000, eval_tokens=20_000)
LENGTH = Setting(**_BLOCKS_2, dict_size=512, k=16, steps=16_000, passes=13)
CONFIRM: dict[str, Setting] = {
    "embedded, blocks.2, F = 4D, k/F = 1/32": Setting(**_BLOCKS_2, dict_size=512, k=16, steps=4000),
    "embedded, blocks.0, F = 4D, k/F = 1/32": Setting(
        "embedded", "blocks.0.hook_resid_post", 128, dict_size=512, k=16, steps=4000
    ),
    "embedded, blocks.2, F = 4D, k/F = 1/8": Setting(**_BLOCKS_2, dict_size=512, k=64, steps=4000),
    "embedded, blocks.2, F = 32D, k/F = 1/256": Setting(
        **_BLOCKS_2, dict_size=4096, k=16, steps=4000
    ),
    "SmolLM2-135M, blocks.1, F = 4D, k = 64": Setting(
        "smollm2_blocks1", "blocks.1.hook_resid_post", **_SMOLLM2
    ),
    "SmolLM2-135M, blocks.15, F = 4D, k = 64": Setting(
        "smollm2_blocks15", "blocks.15.hook_resid_post", **_SMOLLM2
    ),
}

TOP_K = "TopK without ReLU"
"""Of the same code as the vSAEs; what they are compared with."""
PENALTY, NOISE, BOTH, RIVAL = "penalty alone", "noise alone", "noise and penalty", "best rival"
ARMS = (TOP_K, PENALTY, NOISE, BOTH, RIVAL)
SAMPLED: dict[str, Options] = {
    f"noise {noise:g}, penalty {penalty:g}": {"noise": noise, "penalty": penalty}
    for noise in (0.03, 0.1, 0.2, 0.3)
    for penalty in (0.0, 0.01, 0.03, 0.05, 0.1)
} | {
    "noise 0.1 until 80%, penalty 0": {"noise": 0.1, "until": 0.8},
    "noise 0.1 until 80%, penalty 0.03": {"noise": 0.1, "until": 0.8, "penalty": 0.03},
    "noise 0.2 until 80%, penalty 0.03": {"noise": 0.2, "until": 0.8, "penalty": 0.03},
}
"""Those among which the one setting is chosen."""
PENALTIES: dict[str, Options] = {
    f"penalty {penalty:g}": {"penalty": penalty} for penalty in (0.01, 0.03, 0.05, 0.1, 0.2)
}
RIVALS: dict[str, Options] = {
    "TopK": {"rectify": True},
    "BatchTopK": {"architecture": "batch_top_k"},
    "Matryoshka": {"architecture": "matryoshka"},
    "TopK, k annealed until 25%": {"rectify": True, "anneal_k": 0.25},
    "TopK, k annealed until 50%": {"rectify": True, "anneal_k": 0.5},
    "AbsTopK": {"select_by": "magnitude"},
    "AbsTopK, penalty 0.03": {"select_by": "magnitude", "penalty": 0.03},
    "Probabilistic TopK": {"architecture": "probabilistic_top_k"},
    "Probabilistic TopK, T from 1": {
        "architecture": "probabilistic_top_k",
        "temperature_start": 1.0,
    },
    "Probabilistic TopK, T to 0.1": {
        "architecture": "probabilistic_top_k",
        "temperature_end": 0.1,
    },
}
"""The others of the frontier; the best of them is an arm at F = 4D. The search also had two SAEs with a
learned prior, and two among the variants. Their rows are in the raw results; the package no longer has
that option."""
VARIANTS: dict[str, Options] = {
    "AbsTopK, noise 0.3, penalty 0.03": {"select_by": "magnitude", "noise": 0.3, "penalty": 0.03},
}
"""The rivals' ideas beside noise on the selection: shown, neither chosen nor a rival."""
CANDIDATES: dict[str, Options] = {TOP_K: {}} | SAMPLED | PENALTIES | RIVALS | VARIANTS


def arms(chosen: str, rival: str | None, setting: Setting) -> dict[str, Options]:
    """What is compared at a setting: TopK, the chosen penalty alone, its noise alone, both; at F = 4D the
    best rival too. The names say what an arm is; an arm whose penalty is 0 is TopK or the noise.
    """
    both = SAMPLED[chosen]
    found: dict[str, Options] = {TOP_K: {}}
    if penalty := both.get("penalty"):
        found[PENALTY] = {"penalty": penalty}
        found[NOISE] = {n: value for n, value in both.items() if n != "penalty"}
    found[BOTH] = both
    if rival is not None and setting.dict_size <= 4 * setting.activation_dim:
        found[RIVAL] = RIVALS[rival]
    return found
