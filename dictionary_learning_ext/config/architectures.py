"""The architectures, a row each: their classes, and how they are exported and shown.

Classes are named by their paths and imported when asked for, so that this module imports no torch.

To add an architecture: its trainer in trainers/, its settings in sae.py (a dataclass, also in CONFIGS), and a row here.
"""

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

PushFormat = Literal["sae-lens", "sparsify"]
ExportFormat = Literal["sae-bench", "dictionary-learning", "sae-lens", "sparsify", "circuit-tracer"]
COMPARED_TOKENS = 10_000
"""How many held-out tokens an export is compared on with its SAE, by default."""
Function = Literal["top_k", "free_top_k", "jump_relu", "relu", "gated"]
BenchEvaluation = Literal["core", "scr", "tpp", "sparse_probing", "sae_probes", "absorption"]
BENCHED: tuple[BenchEvaluation, ...] = ("core", "sae_probes")
"""The evaluations that `vsae bench` runs by default."""

_OURS = "dictionary_learning_ext.trainers"
_UPSTREAMS = "dictionary_learning.trainers"


_LR_MULTIPLE, _SMALLEST_TUNED = 3.5, 512


def upstream_lr(dict_size: int) -> float:
    """The learning rate that upstream's TopK trainers take by default."""
    return 2e-4 / (dict_size / 2**14) ** 0.5


def tuned_lr(dict_size: int) -> float:
    """Our learning rate for TopK's family: a multiple of upstream's for this size. Dictionaries below 512 features, the
    smallest size that was tuned, get that of 512."""
    return float(f"{_LR_MULTIPLE * upstream_lr(max(dict_size, _SMALLEST_TUNED)):.2g}")


@dataclass(frozen=True)
class Architecture:
    """An architecture: its classes, and how it is exported and shown."""

    name: str
    """The value of --architecture."""
    title: str
    """The name in tables and prose."""
    description: str
    """A phrase for --help."""
    trainer: str | None
    """The trainer's class, as MODULE:CLASS; None for an architecture that is loaded but not trained here."""
    dictionary: str
    """The dictionary's class, as MODULE:CLASS."""
    transcoder: str | None = None
    """The class of its transcoders, as MODULE:CLASS; None: none are trained."""
    is_adapted: bool = False
    """Whether the trainer is upstream's, or made as upstream's are, and `trainers.upstream` adapts it to the training loop."""
    name_in_folders: str = ""
    """The name in automatic names of run folders. Default: name."""
    default_lr: float | None = 1e-3
    """The default learning rate; None: `tuned_lr`, which follows from dict_size."""
    function: Function | None = None
    """The function of its encoder, which decides the export formats; None: no format has it."""
    subtracts_b_dec: bool = True
    """Whether the encoder takes x - b_dec instead of x."""
    exported_as: str | None = None
    """The upstream class in which its weights are exported, as MODULE:CLASS; None: its own."""
    bench_name: str = ""
    """The name of the class in SAE Bench's plots, before the variant. Default: name."""
    splits: bool = False
    """Whether its features can be divided over processes."""
    variants: dict[str, str] = field(default_factory=dict)
    """The titles of variants, by the variant that a dictionary says it is."""
    bench_normalizes: bool = False
    """Whether SAE Bench's loader makes the decoder unit-norm itself."""
    unit_norm_by: str | None = None
    """The dictionary's method that makes its decoder unit-norm without changing reconstructions,
    as SAE Bench expects; None if it is unit-norm already."""

    def lr(self, dict_size: int) -> float:
        """The default learning rate of a dictionary of this size."""
        return tuned_lr(dict_size) if self.default_lr is None else self.default_lr

    @property
    def lr_in_words(self) -> str:
        """The default learning rate, as --help shows it."""
        return f"{self.default_lr:g}" if self.default_lr else "7e-4 / sqrt(dict_size / 16384)"

    @property
    def is_ours(self) -> bool:
        """Whether the dictionary's class is ours, so that other libraries' loaders don't know it."""
        return self.dictionary.startswith(f"{_OURS}.")

    @property
    def dict_class(self) -> str:
        """The name of the dictionary's class, as in config.json."""
        return self.dictionary.partition(":")[2]

    def class_path(self, dict_class: str) -> str:
        """Where the class of this name is: that of its SAEs, or of its transcoders."""
        paths = [path for path in (self.dictionary, self.transcoder) if path is not None]
        return next(path for path in paths if path.endswith(f":{dict_class}"))

    @property
    def trainer_class(self) -> str | None:
        """The name of the trainer's class."""
        return self.trainer and self.trainer.partition(":")[2]

    def bench_name_of(self, variant: str) -> str:
        """The name of a variant in SAE Bench's plots, e.g. topk or vsae_fixed_values."""
        return "_".join(part for part in (self.bench_name or self.name, variant) if part)


def import_class(path: str) -> Any:
    """The class at MODULE:CLASS."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


WITH_PENALTY = " with an L2 penalty"
"""What the title of a point posterior ends with, unless its beta is 0."""

_VARIATIONAL: dict[str, Any] = {
    "trainer": f"{_OURS}.variational_top_k:VariationalTopKTrainer",
    "dictionary": f"{_OURS}.variational_top_k:VariationalTopKAutoEncoder",
    "default_lr": None,
    "function": "top_k",
    "exported_as": f"{_UPSTREAMS}.top_k:AutoEncoderTopK",
    "bench_name": "vsae",
    "variants": {
        "fixed_both": "vSAE",
        "fixed_values": "vSAE, noise on values",
        "fixed_selection": "vSAE, noise on selection",
        "learned_both": "vSAE, learned sigma",
        "learned_values": "vSAE, learned sigma, noise on values",
        "learned_selection": "vSAE, learned sigma, noise on selection",
        "point": f"TopK{WITH_PENALTY}",
    },
}
_VARIATIONAL["variants"] |= {
    f"{variant}_magnitude": f"{name}, by magnitude"
    for variant, name in _VARIATIONAL["variants"].items()
}

_ROWS = (
    Architecture(
        name="vsae_top_k",
        title="vSAE",
        name_in_folders="vsae",  # a purely variational one has no k in its name
        description="variational TopK",
        transcoder=f"{_OURS}.variational_top_k:VariationalTopKTranscoder",
        splits=True,
        **_VARIATIONAL,
    ),
    Architecture(
        name="vsae_batch_top_k",
        title="vSAE over BatchTopK",
        name_in_folders="vsae_batch",
        description="variational BatchTopK",
        trainer=f"{_OURS}.variational_batch_top_k:VariationalBatchTopKTrainer",
        dictionary=f"{_OURS}.variational_batch_top_k:VariationalBatchTopKAutoEncoder",
        transcoder=f"{_OURS}.variational_batch_top_k:VariationalBatchTopKTranscoder",
        default_lr=None,
        function="jump_relu",
        exported_as=f"{_UPSTREAMS}.batch_top_k:BatchTopKSAE",
        bench_name="vsae_batch_topk",
        variants={
            variant: name.replace("vSAE", "vSAE over BatchTopK").replace(
                "TopK with", "BatchTopK with"
            )
            for variant, name in _VARIATIONAL["variants"].items()
            if "magnitude" not in variant
        },
    ),
    Architecture(
        name="vsae",
        title="purely variational SAE",
        description="purely variational (k = dict_size)",
        **_VARIATIONAL,
    ),
    Architecture(
        name="vaease",
        title="VAEase",
        description="a VAE whose sigma gates its features (Lu et al. 2025), without a sparsity "
        "weight",
        trainer=f"{_OURS}.vaease:VAEaseTrainer",
        dictionary=f"{_OURS}.vaease:VAEase",
        unit_norm_by="normalize_decoder",
    ),
    Architecture(
        name="vsae_as_published",
        title="vSAE as published",
        name_in_folders="published",
        description="the vSAE of the paper's public code, which never samples and has a free decoder",
        trainer=f"{_OURS}.vsae_as_published:VSAEAsPublishedTrainer",
        dictionary=f"{_OURS}.vsae_as_published:VSAETopK",
        default_lr=8e-4,
        function="free_top_k",
        subtracts_b_dec=False,
        exported_as=f"{_UPSTREAMS}.top_k:AutoEncoderTopK",
        unit_norm_by="normalize_decoder",
    ),
    Architecture(
        name="top_k",
        title="TopK",
        description="upstream's TopK",
        trainer=f"{_UPSTREAMS}.top_k:TopKTrainer",
        dictionary=f"{_UPSTREAMS}.top_k:AutoEncoderTopK",
        is_adapted=True,
        default_lr=None,
        function="top_k",
        bench_name="topk",
    ),
    Architecture(
        name="probabilistic_top_k",
        title="Probabilistic TopK",
        name_in_folders="prob_top_k",
        description="upstream's TopK, trained with random gates that harden (Li et al. 2026)",
        trainer=f"{_OURS}.probabilistic_top_k:ProbabilisticTopKTrainer",
        dictionary=f"{_UPSTREAMS}.top_k:AutoEncoderTopK",
        default_lr=None,
        function="top_k",
        splits=True,
        bench_name="topk",
    ),
    Architecture(
        name="batch_top_k",
        title="BatchTopK",
        description="upstream's BatchTopK",
        trainer=f"{_UPSTREAMS}.batch_top_k:BatchTopKTrainer",
        dictionary=f"{_UPSTREAMS}.batch_top_k:BatchTopKSAE",
        is_adapted=True,
        default_lr=None,
        function="jump_relu",
        bench_name="batch_topk",
    ),
    Architecture(
        name="relu",
        title="ReLU",
        description="upstream's ReLU with an L1 penalty",
        trainer=f"{_UPSTREAMS}.standard:StandardTrainer",
        dictionary="dictionary_learning.dictionary:AutoEncoder",
        is_adapted=True,
        function="relu",
        bench_name="standard",
        bench_normalizes=True,
    ),
    Architecture(
        name="jump_relu",
        title="JumpReLU",
        description="upstream's JumpReLU, with the paper's sparsity loss",
        trainer=f"{_OURS}.upstream:CorrectedJumpReluTrainer",
        dictionary="dictionary_learning.dictionary:JumpReluAutoEncoder",
        is_adapted=True,
        default_lr=7e-5,
        function="jump_relu",
        subtracts_b_dec=False,
        bench_name="jumprelu",
    ),
    Architecture(
        name="matryoshka",
        title="Matryoshka",
        description="upstream's Matryoshka BatchTopK",
        trainer=f"{_UPSTREAMS}.matryoshka_batch_top_k:MatryoshkaBatchTopKTrainer",
        dictionary=f"{_UPSTREAMS}.matryoshka_batch_top_k:MatryoshkaBatchTopKSAE",
        is_adapted=True,
        default_lr=None,
        function="jump_relu",
        bench_name="matryoshka_batch_topk",
    ),
    Architecture(
        name="gated",
        title="Gated SAE",
        description="upstream's gated SAE",
        trainer=None,
        dictionary="dictionary_learning.dictionary:GatedAutoEncoder",
        function="gated",
        bench_name="gated",
    ),
    Architecture(
        name="relu_new",
        title="ReLU without a norm constraint",
        description="upstream's ReLU without a norm constraint",
        trainer=None,
        dictionary="dictionary_learning.dictionary:AutoEncoderNew",
        function="relu",
        subtracts_b_dec=False,
        bench_name="standard_april_update",
    ),
)

ARCHITECTURES: dict[str, Architecture] = {row.name: row for row in _ROWS}
"""All architectures, by name."""
TRAINED: dict[str, Architecture] = {row.name: row for row in _ROWS if row.trainer is not None}
"""The architectures that `vsae train` can train, by name."""
BY_DICT_CLASS: dict[str, Architecture] = {row.dict_class: row for row in reversed(_ROWS)}
BY_DICT_CLASS |= {row.transcoder.partition(":")[2]: row for row in _ROWS if row.transcoder}
"""The architectures by the name of their dictionary's class, or of their transcoder's. Of several with one class, the first."""
