"""The table of all experiments: what each asks, how to run it, what it needs and where its results are.

It imports nothing heavy, so `python -m experiments` answers at once. To add an experiment, write its
file and add a row here. Finished studies are not here: their pages in experiments/results name the commit
that has their code.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Experiment:
    """A row of the table."""

    name: str
    """Its module, below `experiments`."""
    question: str
    minutes: str
    """On 2 cores, all stages together."""
    stages: tuple[str, ...] = ()
    """`train` trains SAEs and measures them, `bench` runs SAE Bench on them, or a benchmark, `tables` writes
    the pages' tables again from the raw results; then parts that can be run alone."""
    arguments: str = ""
    """What the command takes; of one with stages, what a stage can't do without."""
    needs: str = ""
    pages: tuple[str, ...] = ()
    """In experiments/results; the raw results have the same names with .json."""

    @property
    def module(self) -> str:
        return f"experiments.{self.name}"

    @property
    def command(self) -> str:
        """What to type; the stages separated by `|`."""
        words = ["python -m", self.module, " | ".join(self.stages), self.arguments]
        return " ".join(word for word in words if word)

    @property
    def measured_by(self) -> str:
        """The commands that make the raw results, in Markdown: a new page's first line, with a link to the script."""
        first, *others = [stage for stage in self.stages if stage in ("train", "bench")]
        script = f"../{self.name.replace('.', '/')}.py"
        command = f"[`python -m {self.module} {first}`]({script})"
        return ", ".join([command, *(f"`{s}`" for s in others)])

    @property
    def raw(self) -> tuple[str, ...]:
        if "tables" not in self.stages:
            return ()
        return tuple(page.replace(".md", ".json") for page in self.pages)


EXPERIMENTS = (
    Experiment(
        "paper.reproduce_paper",
        "At equal k, does the paper's vSAE do what the paper says, claim by claim?",
        minutes="179",
        stages=("train", "bench", "tables"),
        needs="[sae-bench] for bench",
        pages=("reproduce_paper.md",),
    ),
    Experiment(
        "paper.beta",
        "With the equations, or the public code's penalty, does a larger beta give the paper's dead features?",
        minutes="40",
        stages=("train", "tables", "as_run"),
        pages=("beta.md",),
    ),
    Experiment(
        "paper.as_published",
        "What in the vSAE of the paper's public code kills features?",
        minutes="700",
        stages=("train", "tables"),
        pages=("as_published.md",),
    ),
    Experiment(
        "paper.authors_counts",
        "How many features of the paper's own pair are alive, and how many fire often?",
        minutes="1",
        arguments="REPOSITORY",
        needs="a clone of the authors' repository",
        pages=("as_published.md",),
    ),
    Experiment(
        "paper.pair_figures",
        "What do the paper's figures 4, 5, 10 and 11 show of the pair that its public code trains?",
        minutes="60",
        stages=("train", "bench", "tables"),
        needs="[sae-bench] for bench",
        pages=("pair_figures.md",),
    ),
    Experiment(
        "paper.selection_churn",
        "Does reconstruction fall because noise changes which features win?",
        minutes="5",
        stages=("train", "tables"),
        pages=("selection_churn.md",),
    ),
    Experiment(
        "fading.smollm2",
        "Do more features of SmolLM2-135M come back with the preset than with TopK?",
        minutes="240",
        stages=("train", "tables"),
        needs="language_models.smollm2, and a cache of it",
        pages=("fading_smollm2.md",),
    ),
    Experiment(
        "as_typed",
        "What does the one command say, as a user types it, at four hook points?",
        minutes="40",
        stages=("train", "tables"),
        pages=("as_typed.md",),
    ),
    Experiment(
        "returning.study",
        "Whose features come back, at which architecture, start and dose?",
        minutes="700",
        stages=("train", "measure", "tables"),
        needs="the cache that its protocol names",
        pages=("whose_features.md", "whose_features_truth.md"),
    ),
    Experiment(
        "returning.batch",
        "Is the vSAE over BatchTopK ahead of the preset, and should it take its place?",
        minutes="150",
        stages=("train", "measure", "tables"),
        needs="the cache that its protocol names",
        pages=("batch_top_k.md", "batch_top_k_truth.md"),
    ),
    Experiment(
        "transcoders.study",
        "Which features of transcoders come back, and what do they explain of the MLP's output?",
        minutes="150",
        stages=("train", "tables"),
        needs="the cache that its protocol names",
        pages=("transcoders.md",),
    ),
    Experiment(
        "random_tokens",
        "What comes back of dictionaries of random tokens, never trained, at the settings of the tables?",
        minutes="5",
        stages=("train", "tables"),
        needs="language_models.smollm2, and [sae-lens] for truth",
        pages=("random_tokens.md",),
    ),
    Experiment(
        "ground_truth.synth_16k",
        "How much of SynthSAEBench-16k's truth do TopK, BatchTopK and vSAEs find?",
        minutes="540",
        stages=("train", "tables"),
        needs="[sae-lens]",
        pages=("synth_16k.md",),
    ),
    Experiment(
        "ground_truth.samples",
        "How fast are synthetic samples drawn beside SAELens's, and are they distributed alike?",
        minutes="15",
        stages=("bench", "tables"),
        needs="[sae-lens]",
        pages=("benchmark_synthetic.md",),
    ),
    Experiment(
        "speed.beside",
        "How long does `vsae train` take alone and beside another, by how long torch's waiting threads spin?",
        minutes="10",
        stages=("bench", "tables"),
        needs="a quiet machine",
        pages=("benchmark_beside.md",),
    ),
    Experiment(
        "speed.step_time",
        "How long does a step take beside other libraries'?",
        minutes="10",
        stages=("bench", "tables"),
        needs="sae-lens and eai-sparsify, where they are to be measured",
        pages=("benchmark_step.md",),
    ),
    Experiment(
        "speed.step_on_gpu",
        "How fast is a step on a GPU, in how much memory, and does it agree with the CPU?",
        minutes="3",
        stages=("bench", "tables"),
        needs="a GPU",
        pages=("benchmark_gpu.md",),
    ),
    Experiment(
        "speed.gpu_on_paper",
        "What would a step compute, move and hold on an H100?",
        minutes="1",
        stages=("bench", "tables"),
        pages=("gpu_on_paper.md",),
    ),
    Experiment(
        "speed.whole_runs",
        "How long do whole runs take against upstream's trainSAE, and where does the time go?",
        minutes="13",
        stages=("bench", "tables", "profile"),
        pages=("benchmark_pipeline.md", "benchmark_train.md"),
    ),
    Experiment(
        "speed.scale",
        "What does a cache of activations save?",
        minutes="8",
        stages=("bench", "tables"),
        pages=("benchmark_cache.md",),
    ),
    Experiment(
        "language_models.embedded_text",
        "Makes the text that ships with the package.",
        minutes="1",
        needs="apt-get and rdata",
    ),
    Experiment(
        "language_models.embedded_lm",
        "Trains the language model that ships with the package.",
        minutes="40",
        arguments="[--steps N]",
    ),
    Experiment(
        "language_models.smollm2",
        "Makes a local folder of SmolLM2-135M-Instruct.",
        minutes="2",
        arguments="OUT",
        needs="gguf and accelerate; downloads 93 MB",
    ),
)


def find(name: str) -> Experiment:
    """By its name, or the last part of it.

    Raises:
        KeyError: there is none of that name.
    """
    for experiment in EXPERIMENTS:
        if name in (experiment.name, experiment.name.rpartition(".")[2]):
            return experiment
    raise KeyError(name)
