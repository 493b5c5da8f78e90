"""Where the SAEs of a study are trained: language model, hook point, size.

An option set `{"noise": 0.1, "until": 0.5, "penalty": 0.03}` is a vSAE: noise on the selection at this
noise_to_signal, annealed to 0 until this share of the run, and a KL of this weight on the selected
features. Without noise it is a point posterior, whose KL is an L2 penalty on the selected features.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dictionary_learning_ext import RunConfig
from dictionary_learning_ext.activations.stored import open_stored
from dictionary_learning_ext.config.run import Dtype
from dictionary_learning_ext.config.sae import SAEConfig, share_of_run
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
    """The type in which matrices are multiplied. Parameters and sums are in float32."""
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
        noise, until, penalty = (
            own.pop(name, default)
            for name, default in (("noise", 0.0), ("until", 0.5), ("penalty", 0.0))
        )
        if own.get("architecture", "vsae_top_k") == "vsae_top_k":
            own |= {"beta": penalty} | ({"kl_scope": "selected"} if penalty else {})
            if noise:
                anneal_steps = share_of_run(until, least=1)
                own |= {"noise_to_signal": noise, "noise_on": "selection"}
                own |= {"noise_anneal_steps": anneal_steps}
            else:
                own["posterior"] = "point"
        return sae_config(k=self.k, dict_size=self.dict_size, seed=seed, **own)
