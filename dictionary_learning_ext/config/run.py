"""The settings that all SAEs of a run share, and those of a run and an SAE together. Imports no torch.

The settings are frozen dataclasses, checked when they are made. The docstring under a field is its help text on the
command line.
"""

import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from ..errors import ConfigError, shown
from .checks import (
    Checked,
    Count,
    Natural,
    NormMultiple,
    Seed,
    changed,
    did_you_mean,
    require,
)
from .hooks import pair_name, sides_of
from .sae import (
    CHOICES,
    CONFIGS,
    NOISES,
    OPTION_NAMES,
    SCHEDULES,
    Normalize,
    SAEConfig,
    VSAETopKConfig,
    require_option,
)

Dtype = Literal["float32", "bfloat16"]
Packing = Literal["pack", "truncate"]
Split = Literal["train", "heldout"]
DeviceMap = str | dict[str, int | str]
WandbMode = Literal["online", "offline", "disabled"]

NONE = "none"
"""The word that a user types for no value."""
AUTO = "auto"
"""The default device, which `devices.chosen_device` replaces by cuda or cpu."""
UNKNOWN = "unknown"
"""The language model or hook point of stored activations that don't name one."""
SINK_MULTIPLE = 10.0
"""The default multiple of the median norm above which a token counts as an attention sink."""
MIDDLE = "middle"
"""The default hook point, in a middle layer. `plan.with_hook_names` replaces it by a name."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(Checked):
    """What the SAEs of one run share: language model, text, buffer, loop and logs."""

    model: str = "embedded"
    """The language model: embedded (shipped with the package), a folder written by
    save_pretrained, or a name on the hub. Paper: EleutherAI/pythia-70m."""
    hook: str = MIDDLE
    """Where activations are read, in TransformerLens's naming; see vsae hooks. middle: the
    residual stream after block N // 2 of N, e.g. blocks.2.hook_resid_post of 4. Names separated by
    commas train one SAE for each, on the same text, into --save-dir. Paper:
    blocks.0.hook_resid_post."""
    target: str | None = None
    """Train a transcoder: it reads activations at --hook and reconstructs those at --target, e.g. --hook
    blocks.1.mlp.hook_in --target blocks.1.hook_mlp_out. As many names, separated by commas, as --hook has. For
    vsae_top_k and vsae_batch_top_k. Default: an SAE, which reconstructs what it reads."""
    data: str = "embedded"
    """The text: embedded (nine novels, shipped with the package), a .txt, .jsonl, .jsonl.zst or
    .parquet file, a folder of such files, or a dataset on the hub. A document is a row. In a
    .txt it is the text between two <|endoftext|>, or if there are none, whole paragraphs of up to 2,000
    characters. Every 20th document is held out, unless a file or split is named validation or test. Paper:
    roneneldan/TinyStories."""
    activations: str | None = None
    """Train on activations from disk: a cache of `vsae cache` or of SAELens, or a folder of .npy or
    .safetensors files with a row per token. Settings that a cache knows may be left out: model,
    hook, data, text_packing and ctx_len. none: run the language model, although --config
    names a folder."""
    text_column: str = "text"
    """The column of a .jsonl or .parquet file, or of a dataset on the hub, that holds the documents."""
    text_packing: Packing = "pack"
    """pack: documents follow each other, separated by an end-of-text token. truncate: one
    document per context."""
    text_passes: Count | None = None
    """The most passes over the text. The run ends with an error if its steps need more. Default: no limit."""
    data_seed: Seed = 0
    """Seeds the order of the training data: of the embedded text's passages, and of the tokens
    within the buffer. Other texts are read in their own order. --data-seed seed takes the value
    of --seed."""
    normalize: Normalize = "sqrt_d"
    """Training units. Activations are scaled so that E||x||^2 is their width (sqrt_d) or 1
    (unit, as upstream does), or not scaled (none). sigma and beta are in these units. The saved
    SAE takes raw activations."""
    max_norm_multiple: NormMultiple | None = 10.0
    """Leave out tokens whose norm is over this many times the median. 10 removes the attention
    sinks of Llama and Qwen. none: train on all tokens, and measure as with 10."""
    remove_bos: bool = False
    """Leave out beginning-of-text tokens."""
    steps: Count = 8000
    """Training steps. Paper: 20,000."""
    batch_size: Count = 256
    """Tokens per step."""
    n_ctxs: Count = 512
    """Contexts in the buffer, which are shuffled together. Paper: 2,500."""
    ctx_len: Count = 128
    """Tokens per context. Paper: 128."""
    dtype: Dtype = "float32"
    """float32 or bfloat16. bfloat16 applies to the language model, the buffer and the vSAE's
    matmuls; parameters and sums stay in float32. Paper: bfloat16."""
    lm_batch_size: Count = 32
    """Contexts that the language model reads in one pass. A GPU is faster with more; on a CPU, 32 was
    fastest. Results stay the same, up to rounding on a GPU."""
    tf32: bool = False
    """Multiply float32 matrices in TF32 while training on a GPU, in the language model and in the SAEs:
    faster, as their entries are rounded to 10 bits instead of 23. The final evaluation is in float32.
    Needs --device cuda."""
    device: str = AUTO
    """Where to compute: auto (CUDA if torch can use it, otherwise the CPU), cpu, cuda or cuda:N."""
    device_map: DeviceMap | None = None
    """Spread the language model over several devices, as transformers' device_map does: auto, or in Python
    a dict. The SAEs and the buffer are on --device. Default: all of it on --device."""
    split: Count | None = None
    """With torchrun: the number of processes over which to divide the features of an SAE that is too large for
    one. A power of two up to 64, which changes results by rounding only. For vsae_top_k and probabilistic_top_k.
    Default: each SAE is whole on one process."""
    eval_tokens: Natural = 100_000
    """Held-out tokens in the final evaluation. 0: no evaluation."""
    eval_documents: Count = 64
    """Held-out documents, cut to ctx_len, on which the language model's loss is measured."""
    eval_every: Count | None = None
    """Steps between measurements during training. FVE, the loss added and near-dead features go to metrics.jsonl,
    measured on the same 8,192 held-out tokens each time (eval_tokens if fewer), also after the last step. This
    doesn't affect training, but runs the whole language model on these tokens once per SAE. none: only the final
    evaluation."""
    log_steps: Count | None = None
    """Steps between two lines of metrics. Default: 100 or a twentieth of the run, whichever is
    less."""
    save_steps: str = "none"
    """Checkpoints during training: none, linear:N or log:N (N checkpoints), or a list of steps,
    e.g. 100,1000."""
    save_every: str = "10m"
    """How often to write a resume point, in steps (500) or time (90s, 10m, 2h). One more is
    written at the end. SIGTERM and SIGINT always write one. none: only on
    these signals."""
    save_dir: str | None = None
    """The folder to write. Default: runs/NAME, where NAME has the architecture, k, F, the seed and a hash of the
    settings, e.g. vsae_k16_F512_seed0_344f4b."""
    overwrite: bool = False
    """Overwrite the run that save_dir already holds."""
    wandb: WandbMode = "disabled"
    """Log to wandb: online, offline or disabled. The environment's WANDB_MODE overrides online."""
    wandb_project: str = "vsae"
    """The wandb project."""
    wandb_artifacts: bool = False
    """Save ae.pt, config.json and metrics.json as a wandb artifact."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("model", "data", "activations", "save_dir"):
            path, instead = getattr(self, name), "give one, or leave it out"
            require(path != "", name, path, "a name or a path", instead=instead)
            # A shell that completes a folder's name ends it with a slash.
            object.__setattr__(self, name, path and without_slash(path))
        can_measure = self.eval_every is None or self.eval_tokens > 0
        expected = "eval_tokens above 0, as it measures on held-out tokens"
        require(can_measure, "eval_every", self.eval_every, expected)
        are_different = "" not in self.hooks and len(set(self.hooks)) == len(self.hooks)
        require("," not in self.hook or are_different, "hook", self.hook, _HOOKS)
        if self.target is not None:
            number = f"as many names as hook={self.hook} has"
            require(len(self._targets) == len(self.hooks), "target", self.target, number)
            reads = "beside it the name of a hook point in hook, e.g. blocks.1.mlp.hook_in"
            require(MIDDLE not in self.hooks, "target", self.target, reads)
        self.checkpoint_steps()
        self.save_interval()

    @property
    def hooks(self) -> list[str]:
        """The names in `hook`."""
        return [name.strip() for name in self.hook.split(",")]

    @property
    def _targets(self) -> list[str]:
        return [] if self.target is None else [name.strip() for name in self.target.split(",")]

    @property
    def sites(self) -> list[str]:
        """What the SAEs are trained on: hook points, or of transcoders the `pair_name` of each."""
        if self.target is None:
            return self.hooks
        return [pair_name(*pair) for pair in zip(self.hooks, self._targets, strict=True)]

    @property
    def site(self) -> str:
        """The only one of `sites`."""
        return ",".join(self.sites)

    def at(self, site: str) -> "RunConfig":
        """The same with one of `sites` alone."""
        hook, *target = sides_of(site)
        return changed(self, hook=hook, target=target[0] if target else None)

    @property
    def sink_multiple(self) -> float:
        """The multiple of the median norm above which a token is left out of everything that is measured.

        It is `max_norm_multiple`, or SINK_MULTIPLE if training keeps all tokens.
        """
        return SINK_MULTIPLE if self.max_norm_multiple is None else self.max_norm_multiple

    @property
    def log_every(self) -> int:
        """Steps between two lines of metrics: `log_steps` or its default."""
        return self.log_steps or max(1, min(100, self.steps // 20))

    def is_measured(self, step: int) -> bool:
        """Whether SAEs are measured on held-out tokens after this many steps."""
        if self.eval_every is None:
            return False
        return step % self.eval_every == 0 or step == self.steps

    def checkpoint_steps(self) -> list[int]:
        """The steps before which a checkpoint is written."""
        kind, _, number = self.save_steps.partition(":")
        try:
            if kind == "none" and not number:
                return []
            n = min(int(number), self.steps) if kind in ("linear", "log") else 0
            if kind == "linear" and n >= 1:
                return sorted({self.steps * i // (n + 1) for i in range(1, n + 1)})
            if kind == "log" and n >= 1:
                return sorted({round(self.steps ** (i / (n + 1))) for i in range(1, n + 1)})
            points = sorted({int(step) for step in self.save_steps.split(",")})
        except ValueError:
            points = [-1]
        is_legal = all(0 <= point < self.steps for point in points)
        expected = (
            f"none, linear:N or log:N (N at least 1), or steps below {self.steps}, e.g. 100,1000"
        )
        require(is_legal, "save_steps", self.save_steps, expected)
        return points

    def save_interval(self) -> tuple[int | None, int | None]:
        """The steps, or the seconds, between two resume points; the other is None. Both are None for `none`."""
        if self.save_every == "none":
            return None, None
        match = re.fullmatch(r"0*([1-9][0-9]{0,8})([smh]?)", self.save_every, re.ASCII)
        expected = "steps (e.g. 500), a time (e.g. 90s, 10m, 2h) or none"
        require(match is not None, "save_every", self.save_every, expected)
        assert match is not None
        number, unit = int(match[1]), match[2]
        return (None, number * _SECONDS[unit]) if unit else (number, None)


_HOOKS = "different hook points separated by commas"
_SECONDS = {"s": 1, "m": 60, "h": 3600}
NOT_THE_RESULT = (
    "lm_batch_size",
    "device",
    "device_map",
    "save_dir",
    "overwrite",
    "save_every",
    "wandb",
    "wandb_project",
    "wandb_artifacts",
    "log_steps",
    "eval_every",
)
"""Settings that don't change the result: where it is computed and written, and how often it is saved and logged."""


_LEFT_OUT_OF_NAMES: dict[str, Any] = {
    **{"architecture": SAEConfig.architecture, "dict_size": 1024, "k": 32},
    **{"noise_on": "both", "beta": 1.0, "kl_scope": "all", "steps": 1200, "batch_size": 1024},
    **dict.fromkeys(("max_norm_multiple", *NOISES)),
}
"""The values that are left out of the hash in folders' names, where they aren't the defaults. Another value here would give
the runs of today other names."""


def _deciding_the_result(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that change the result and are not at their defaults, or at `_LEFT_OUT_OF_NAMES`.

    Defaults are left out, so that adding an option changes no folder's name. A slash at the end of `init_from` is ignored;
    a RunConfig has none in its paths.
    """
    cls = CONFIGS.get(settings.get("architecture", ""), SAEConfig)
    defaults = {each.name: each.default for each in (*fields(cls), *fields(RunConfig))}
    defaults |= _LEFT_OUT_OF_NAMES
    chosen = {
        name: value
        for name, value in settings.items()
        if name not in NOT_THE_RESULT and value not in (None, defaults.get(name))
    }
    if isinstance(path := chosen.get("init_from"), str):
        chosen["init_from"] = without_slash(path)
    if "split" in chosen:  # split runs draw different noise, whatever the part count
        chosen["split"] = True
    return chosen


def most_parts(dict_size: int) -> int:
    """The most parts into which a dictionary's features can be split: a power of two up to 64."""
    return min(64, dict_size & -dict_size)


SAMPLE_TOKENS = 8192
"""The number of held-out tokens that `eval_every` measures on, unless eval_tokens is less."""


def evaluation_batch(tokens: int) -> int:
    """The size of the first batch of an evaluation on `tokens` tokens: fewer can't be evaluated on."""
    return min(2048, tokens)


def without_slash(path: str) -> str:
    """A path without slashes at its end."""
    return path.rstrip("/") or path


@dataclass(frozen=True)
class TrainConfig:
    """The settings of an SAE and of its run."""

    sae: SAEConfig = field(default_factory=VSAETopKConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def to_dict(self) -> dict[str, Any]:
        """All settings that have an effect in one dict, resolved, by the names of their flags, as in config.json."""
        return self.resolved.sae.to_dict() | asdict(self.run)

    @property
    def resolved(self) -> "TrainConfig":
        """The same with the defaults that follow from the run filled in, see `SAEConfig.resolve`."""
        return replace(self, sae=self.sae.resolve(self.run.steps))

    @property
    def digest(self) -> str:
        """A hash of the settings that change the result."""
        settings = _deciding_the_result(as_json(self.to_dict()))
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def with_settings(self, values: dict[str, Any], source: str) -> "TrainConfig":
        """The same with some settings changed. Raises ConfigError for an unknown name or a wrong value.

        Arguments:
            source: where the values come from, for messages.
        """
        run_fields = {each.name for each in fields(RunConfig)}
        for name in values:
            if name not in run_fields and name not in OPTION_NAMES:
                hint = did_you_mean(name, [*OPTION_NAMES, *run_fields])
                hint = hint or "; see `vsae train --help-all`"
                raise ConfigError(f"{source}: unknown setting {name!r}{hint}")
        own = {name: value for name, value in values.items() if name not in run_fields}
        try:
            start = self.sae.start_for(**{name: own[name] for name in CHOICES if name in own})
            for name in own:
                require_option(name, type(start))
            run = {name: value for name, value in values.items() if name in run_fields}
            return TrainConfig(
                replace(start, **own) if own else start,
                replace(self.run, **run) if run else self.run,
            )
        except ConfigError as error:
            raise error.within(source, error.instead or "correct it there") from error


def as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as JSON has them: lists for tuples."""
    return json.loads(json.dumps(settings))


CONTINUE_OR_START = "leave out {names} to continue it, or start a new run with config=FOLDER"


MAY_MOVE = ("model", "data", "activations")
"""The settings that may differ when a run resumes, as files may have moved: their content is compared by hash."""
_DEAD = ("dead_feature_threshold",)
_FOLLOW = {"steps": SCHEDULES, "k": _DEAD, "dict_size": _DEAD}
"""The settings that follow from others by default."""


def require_same(
    was: dict[str, Any],
    now: dict[str, Any],
    source: str,
    *,
    typed: Collection[str] = (),
    but: Collection[str] = (),
    advice: str = CONTINUE_OR_START,
) -> None:
    """Raise a ConfigError, with the settings that differ, unless two runs have the same result. What only follows from others
    that differ is left out.

    Arguments:
        source: the folder of the former settings, for the message.
        typed: the settings that the user typed. If one of them differs, the message names no others.
        but: settings that are not compared, unless one of the two is None.
        advice: what to do. {names} stands for the settings that differ, {former} for these with their former values.
    """
    was, now = as_json(was), as_json(now)
    old, new = _deciding_the_result(was), _deciding_the_result(now)
    names = [name for name in sorted(old | new) if old.get(name) != new.get(name)]
    ignored = {"text_passes", *(n for n in but if None not in (was.get(n), now.get(n)))}
    names = [name for name in names if name not in ignored]
    following = {each for name in names for each in _FOLLOW.get(name, ())}
    names = [name for name in names if name in typed] or [n for n in names if n not in following]
    if not names:
        return
    former = {name: f"{name}={shown(was.get(name))}" for name in names}
    changes = [f"{former[name]}, not {now.get(name)!r}" for name in names]
    advice = advice.replace("{names}", " and ".join(names))
    advice = advice.replace("{former}", " and ".join(former.values()))
    raise ConfigError(f"{source}: the run has {', '.join(changes)}", instead=advice)


@dataclass(frozen=True, kw_only=True)
class ReportOptions(Checked):
    """Options of a report: the tokens that it reads, and how much it shows."""

    tokens: Count | None = None
    """Tokens to collect the features' contexts from. Default: as in the runs' own evaluations."""
    split: Split = "heldout"
    """Which part of the text to read: heldout or train."""
    pages: Count = 2048
    """Maximum number of feature pages for each SAE. The other features are only in the CSV
    file."""
    logits: bool = True
    """Show which tokens each feature promotes and suppresses."""
    seed: int = 0
    """Seeds all random numbers."""
