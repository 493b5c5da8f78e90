"""What is wrong with a trained SAE, in sentences."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..config.architectures import TRAINED
from ..config.sae import MUCH_NOISE, SAEConfig
from ..run_folder.reading import read_history
from ..run_folder.sae_folder import SAEFolder

_REMEDIES = "See `When it goes wrong` in docs/settings.md."
_FEWEST_SELECTIONS = 10
"""How often the average feature must have been selected for `alive` to mean anything."""
_LITTLE_LOSS_ADDED, _MUCH_LOSS_ADDED = 0.01, 0.5
"""In nats per token: about what a language model of a tenth of the size loses, by the scaling law of Kaplan et al. (2020),
by which 3 nats become 3.6. Below the first, a reconstruction costs nothing, whatever zeros in its place do."""
_LOSS_REMOVED = -0.05
"""A loss added below this, in nats, is an anomaly, not chance."""


def symptoms_of(sae: SAEFolder) -> list[str]:
    """`symptoms` of a run's SAE."""
    return symptoms(sae.metrics or {}, sae.train_config.sae, read_history(sae.path))


def symptoms(
    metrics: Mapping[str, Any], sae: SAEConfig, history: Sequence[Mapping[str, Any]] = ()
) -> list[str]:
    """Sentences that say what is wrong with a trained SAE; empty for a good one. Of one whose error has risen in training,
    this alone is said, because everything else follows from it.

    Arguments:
        metrics: its metrics.json. Metrics that were not measured are ignored.
        history: the lines of its metrics.jsonl. Then `sae` must be resolved.
    """
    errors = [line["l2_loss"] for line in history if line.get("l2_loss") is not None]
    if errors and errors[-1] > errors[0]:
        usual = TRAINED[sae.architecture].lr(sae.dict_size)
        default = f", whose default is {usual:g} here" if sae.lr > usual else ""
        return [
            f"The squared error has risen in training, from {errors[0]:.3g} to {errors[-1]:.3g}: lower the learning rate "
            f"lr={sae.lr:g}{default}. {_REMEDIES}"
        ]
    known = {name: value for name, value in metrics.items() if value is not None}
    return [f"{sentence} {_REMEDIES}" for sentence in _symptoms(known, sae)]


def _symptoms(metrics: Mapping[str, Any], sae: SAEConfig) -> Iterator[str]:
    """The sentences. A metric that is not known takes a value that is fine."""
    stays = vars(sae).get("noise_anneal_steps") is None
    if stays and metrics.get("noise_to_signal", 0) > MUCH_NOISE:
        yield f"The noise stays to the end and drowns the activations: noise_to_signal is above {MUCH_NOISE}."
    if is_poor := metrics.get("fve", 1) < 0.5:
        yield "The reconstruction explains less than half of the variance: FVE is below 0.5."
    if is_poor and metrics.get("kl_per_token", 1) < 0.01:
        yield "The KL has collapsed: the features carry almost no information about a token."
    # Zeros in place of the activations may be far worse than guessing: at blocks.2 of the embedded model they add 33 nats.
    # Where they add little, e.g. in place of an MLP's output, half of it is too much.
    added = metrics.get("loss_added", 0)
    if added > _MUCH_LOSS_ADDED:
        yield f"The language model loses too much: the loss added is above {_MUCH_LOSS_ADDED} nats."
    elif added > _LITTLE_LOSS_ADDED and metrics.get("frac_recovered", 1) < 0.5:
        yield (
            f"The language model loses too much: the loss added, {added:.3f} nats, is above half of what zeros in place of the "
            "activations add."
        )
    if added < _LOSS_REMOVED:
        yield (
            "The loss added is below 0: the language model predicts better with the reconstruction than with its own "
            "activations. Either it suits this text badly, or there are too few tokens; it doesn't mean that the SAE is good."
        )
    selections = metrics.get("tokens", 0) * metrics.get("l0", 0)
    if selections >= _FEWEST_SELECTIONS * sae.dict_size and metrics.get("alive", 1) < 0.75:
        yield "More than a quarter of the features were never selected in the held-out tokens."
