"""A run's batches, out of a synthetic model."""

from collections.abc import Callable, Iterable
from typing import Any

from ..config.run import RunConfig, evaluation_batch
from ..config.synthetic_models import require_synthetic_run, synthetic_settings
from .held_out import HeldOut
from .hook_points import HookPoint
from .sources import RunSources
from .stored import UNKNOWN
from .synthetic_source import SyntheticSource, draw_model, model_hash
from .tokens import WHOLE, Share


class SyntheticSources(RunSources):
    """The batches of a run on a synthetic model. No language model is loaded.

    Arguments are `open_sources`'s. The only hook point is NO_HOOK.

    Raises: ConfigError if the run has settings that a synthetic model has no use for.
    """

    def __init__(
        self,
        run: RunConfig,
        hooks: Iterable[str],
        before_batch: Callable[[], None] | None = None,
        share: Share = WHOLE,
    ):
        require_synthetic_run(run)
        super().__init__(run, share)
        self._before_batch = before_batch
        self._drawn = draw_model(run.model)
        self.hooks = {name: synthetic_hook_point(run) for name in hooks}
        self.sources = {
            name: SyntheticSource(
                run.model,
                self._drawn,
                out_batch_size=run.batch_size // share.count,
                seed=run.data_seed,
                device=run.device,
                share=share,
            )
            for name in self.hooks
        }
        self.inputs = {"language_model": model_hash(run.model), "tokenizer": UNKNOWN}

    def require_enough(self) -> None:
        """There always is."""

    def held_out(self, hook: str) -> HeldOut:
        """What the SAEs are measured on."""
        return held_out_synthetic(self._run, self._drawn, self._run.eval_tokens)

    def _refill(self) -> None:
        """Nothing is kept: only whether the run is to stop is asked."""
        if self._before_batch is not None:
            self._before_batch()


def held_out_synthetic(run: RunConfig, drawn: Any, tokens: int) -> HeldOut:
    """Samples for an evaluation on `tokens` rows: the same ones whatever the run's seeds are.

    Arguments:
        drawn: what `draw_model` returns.
    """
    rows = SyntheticSource(
        run.model,
        drawn,
        stream="heldout",
        out_batch_size=evaluation_batch(tokens),
        device=run.device,
    )
    return HeldOut(rows, None, None, f"{run.model} is not a language model", truth=rows)


def synthetic_hook_point(run: RunConfig) -> HookPoint:
    """Stands for the hook point of a synthetic model."""
    return HookPoint(run.hook, 0, "out", None, synthetic_settings(run.model).width)
