"""Commands, flags, settings and their values that were removed, and what to type instead."""

from typing import Any

from ..errors import as_flag

# To add a row: what was typed, `command`, `--flag` or `--flag value`, and one line that says what to type instead.
# A removed setting is the row of its flag, so config files and Python find it too.
FORMER = {
    "explain": "run `vsae export FOLDER --format sparsify`, then delphi; see docs/exports.md",
    "--format safetensors": "use --format sae-lens: its sae_weights.safetensors holds W_enc, b_enc, W_dec and b_dec",
    "--format neuronpedia": "use --format sae-lens, which SAEDashboard reads; see docs/exports.md",
    **{
        f"--model synthetic:{name}": "hand its samples to `train_saes`, see experiments/ground_truth"
        for name in ("small", "large", "bench-16k")
    },
    "--cache-dir-size": "copy the cache to a folder, and give --activations FOLDER",
    "--verify": "copy a cache by `rsync --checksum`, which compares the files",
    "metrics": "docs/metrics.md has the table",
    "--compile": "leave it out; on CPUs the step is compiled anyway",
    "--k-anneal-steps": "leave it out; k stays",
    "--of-wandb": "wandb's own pages show its sweeps; `vsae sweep --results FOLDER` shows run folders",
    "--threshold-twice": "leave it out; dictionary_learning's own JumpReluTrainer applies the threshold twice",
    "--survival": "give --noise-to-signal, e.g. 0.3",
    "--preset none": "leave it out, as the defaults are those of recommended; to continue such a run, give --resume FOLDER",
    "--preset strong-noise": "leave out --preset: recommended has its settings, and twice the steps",
    "--bench-seeds": "evaluate several seeds instead: they vary as much as repeats of the bench",
    "--floor": "hand a random SAE or SAE Bench's IdentitySAE to `bench` in Python as `extra`; see docs/sae_bench.md",
    "--preset quickstart": "run `vsae quickstart`",
}


def command_removal_hint(name: str) -> str:
    """The end of a message about an unknown command: "; it was removed: …". Empty if there never was one."""
    return _ending(name)


def removal_hint(name: str, value: Any = None) -> str:
    """The same for an unknown setting, typed as a flag or not, or for an unknown value of a setting."""
    flag = as_flag(name)
    return _ending(flag if value is None else f"{flag} {value}")


def _ending(typed: str) -> str:
    return f"; it was removed: {FORMER[typed]}" if typed in FORMER else ""
