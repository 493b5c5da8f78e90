"""The table of all experiments: what each asks, how to run it, what it needs and where its results are.

It imports nothing heavy, so `python -m experiments` answers at once. To add an experiment, write its
file and add a row here.
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
    the page again from the raw results; then parts of `train` that can be run alone."""
    arguments: str = ""
    """What the command takes; of one with stages, what a stage can't do without."""
    needs: str = ""
    page: str = ""
    """In experiments/results; the raw results have the same name with .json."""

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
        """The commands that make the raw results, in Markdown: a page's first line."""
        first, *others = [stage for stage in self.stages if stage in ("train", "bench")]
        return ", ".join([f"`python -m {self.module} {first}`", *(f"`{s}`" for s in others)])

    @property
    def raw(self) -> str:
        return self.page.replace(".md", ".json") if "tables" in self.stages else ""


EXPERIMENTS = (
    Experiment(
        "reproducibility.study",
        "Do the features of a variational SAE come back when it is trained again?",
        minutes="1800",
        stages=("train", "tables", "search", "confirm", "probes", "length", "stronger"),
        needs="caches of activations, see experiments/reproducibility/PROTOCOL.md; [saebench] for probes",
        page="reproducibility.md",
    ),
    Experiment(
        "paper.reproduce_paper",
        "At equal k, does the paper's vSAE do what the paper says, claim by claim?",
        minutes="179",
        stages=("train", "bench", "tables"),
        needs="[saebench] for bench",
        page="reproduce_paper.md",
    ),
    Experiment(
        "paper.selection_churn",
        "Does reconstruction fall because noise changes which features win?",
        minutes="5",
        stages=("train", "tables"),
        page="selection_churn.md",
    ),
    Experiment(
        "better_vsae.search_and_confirm",
        "Is there a variational SAE that is worth using?",
        minutes="166",
        stages=("train", "bench", "tables", "search", "confirm"),
        needs="[saebench] for bench",
        page="better_vsae.md",
    ),
    Experiment(
        "better_vsae.full_size",
        "Does what holds on the embedded model hold on a real one, at the paper's size?",
        minutes="231",
        stages=("train", "tables"),
        needs="runs/smollm2-135m, from experiments.language_models.smollm2",
        page="full_size.md",
    ),
    Experiment(
        "better_vsae.baselines",
        "Where do TopK and the vSAEs stand among other SAEs of the same budget?",
        minutes="18",
        stages=("train", "tables"),
        page="baselines.md",
    ),
    Experiment(
        "better_vsae.bench_embedded",
        "What can SAE Bench tell apart on the embedded model?",
        minutes="25",
        stages=("train", "bench", "tables"),
        needs="[saebench]",
        page="bench_embedded.md",
    ),
    Experiment(
        "better_vsae.bench_noise",
        "Which differences between SAEs can SAE Bench's measures tell from noise?",
        minutes="75",
        stages=("train", "bench", "tables"),
        needs="[saebench], runs/smollm2-135m",
        page="bench_noise.md",
    ),
    Experiment(
        "better_vsae.quickstart_seeds",
        "How much does the quickstart's comparison vary over seeds?",
        minutes="6",
        stages=("train", "tables"),
        page="quickstart_seeds.md",
    ),
    Experiment(
        "ground_truth.match_to_truth",
        "Does a feature that returns from other seeds match a true feature better?",
        minutes="30",
        stages=("train", "tables"),
        needs="[synthetic]",
        page="match_to_truth.md",
    ),
    Experiment(
        "speed.step_time",
        "How long does a training step take: ours, upstream's, SAELens's, sparsify's?",
        minutes="10",
        stages=("bench", "tables"),
        needs="sae-lens and eai-sparsify, where they are to be measured",
        page="benchmark_step.md",
    ),
    Experiment(
        "speed.busy_machine",
        "How much longer does a step take when another process is busy?",
        minutes="3",
        stages=("bench", "tables"),
        page="benchmark_busy.md",
    ),
    Experiment(
        "speed.step_on_gpu",
        "How fast is a step on a GPU, in how much memory, and does it agree with the CPU?",
        minutes="3",
        stages=("bench", "tables"),
        needs="a GPU",
        page="benchmark_gpu.md",
    ),
    Experiment(
        "speed.step_memory",
        "How much memory does a training step take in a wide dictionary?",
        minutes="2",
        stages=("bench", "tables"),
        page="benchmark_memory.md",
    ),
    Experiment(
        "speed.step_scaling",
        "How does a step's time grow with the dictionary and with k?",
        minutes="5",
        stages=("bench", "tables"),
        page="benchmark_scaling.md",
    ),
    Experiment(
        "speed.step_parts",
        "Which form of each part of a step is fastest, and where do they cross?",
        minutes="3",
        stages=("bench", "tables"),
        page="benchmark_parts.md",
    ),
    Experiment(
        "speed.step_quality",
        "Does the fast step learn what upstream's and fp32's learn?",
        minutes="3",
        stages=("train", "tables"),
        page="benchmark_quality.md",
    ),
    Experiment(
        "speed.whole_runs",
        "How long do whole runs take, language model and all, against upstream's trainSAE?",
        minutes="10",
        stages=("bench", "tables"),
        page="benchmark_pipeline.md",
    ),
    Experiment(
        "speed.train_profile",
        "Where does the time of a whole vsae train go?",
        minutes="3",
        stages=("bench", "tables"),
        page="benchmark_train.md",
    ),
    Experiment(
        "speed.processes",
        "How much faster are two processes than one, and what do they send?",
        minutes="3",
        stages=("bench", "tables"),
        page="benchmark_processes.md",
    ),
    Experiment(
        "speed.cache",
        "How fast are activations read from disk, and what does a cache save?",
        minutes="8",
        stages=("bench", "tables"),
        page="benchmark_cache.md",
    ),
    Experiment(
        "robustness.same_numbers",
        "Do two commits give the same numbers, bit for bit?",
        minutes="8",
        arguments="BEFORE [AFTER]",
        page="same_numbers.md",
    ),
    Experiment(
        "robustness.fault_injection",
        "Does a run that is killed at any moment end as if it had not been?",
        minutes="10",
        stages=("train", "tables"),
        page="fault_injection.md",
    ),
    Experiment(
        "robustness.memory_of_long_runs",
        "Does a run that is ten times longer need more memory?",
        minutes="5",
        stages=("train", "tables"),
        page="memory_of_long_runs.md",
    ),
    Experiment(
        "robustness.report_memory",
        "How much memory does it take to collect the features of a report?",
        minutes="22",
        stages=("bench", "tables"),
        page="report_memory.md",
    ),
    Experiment(
        "robustness.synthesis_reach",
        "How often do synthesised tokens excite a feature as much as the best of a text?",
        minutes="4",
        stages=("bench", "tables"),
        needs="the four run folders that its file names",
        page="synthesis_reach.md",
    ),
    Experiment(
        "robustness.sweep_embedded",
        "Do one shared-buffer sweep and wandb's agent give the same SAEs, and how fast is each?",
        minutes="15",
        stages=("train", "tables"),
        page="sweep_embedded.md",
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
    Experiment(
        "language_models.attention_sinks",
        "What do attention sinks do to an SAE and to its metrics, at a middle layer of a real model?",
        minutes="12",
        stages=("train", "tables"),
        needs="runs/smollm2-135m, from experiments.language_models.smollm2",
        page="attention_sinks.md",
    ),
    Experiment(
        "settings_plots",
        "What do sigma, beta, noise_on and kl_scope do? The guide's plots, from the raw results of others.",
        minutes="1",
        page="../../docs/settings.md",
    ),
    Experiment(
        "write_results",
        "Writes experiments/RESULTS.md from its template and the raw results of all.",
        minutes="1",
        page="../RESULTS.md",
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
