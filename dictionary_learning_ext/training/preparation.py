"""What can be checked of a run before a language model is loaded, or torch. Imports no torch."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..activations.text import names_a_file, open_text
from ..config.run import RunConfig, TrainConfig
from ..config.sae import SAEConfig
from ..config.synthetic_models import is_synthetic, require_synthetic_run
from ..errors import ConfigError, Setting
from ..run_folder.names import RUNS, folder_of, require_free
from .processes import launched


def prepared(
    run: RunConfig, saes: dict[str, SAEConfig], resume: bool, hooks: Iterable[str] = ()
) -> tuple[dict[str, SAEConfig], dict[str, Path]]:
    """Every SAE's settings, resolved, and its folder; see `loop.train`.

    Arguments:
        hooks: the hook points of all SAEs (default: `run.hook`).

    Raises: ConfigError for settings that don't go together, a batch that the processes don't divide,
    several SAEs in one run of a wandb sweep, or a folder that is taken or missing; TextError or
    ActivationsError if there is no such file.
    """
    launched().require_shares(run.batch_size, resume)
    if len(saes) > 1 and run.wandb != "disabled" and "WANDB_SWEEP_ID" in os.environ:
        raise ConfigError(
            name="wandb",
            value=run.wandb,
            expected="one SAE, as a sweep's agent gives one run of wandb, and got "
            f"{len(saes)} ({', '.join(saes)})",
            instead=("give a single ", Setting("hook"), ", e.g. as a parameter of the sweep"),
        )
    saes = {name: sae.resolve(run.steps, run.batch_size) for name, sae in saes.items()}
    for sae in saes.values():
        sae.require_units(run.normalize)
        if not resume and sae.init_from is not None and not Path(sae.init_from).is_dir():
            raise ConfigError(
                "no such folder",
                name="init_from",
                value=sae.init_from,
                expected="one that holds a trained SAE, e.g. runs/NAME",
            )
    folders = _folders(run, saes)
    if is_synthetic(run.model):
        require_synthetic_run(run)
    elif run.activations is not None:
        from ..activations.stored import open_stored

        open_stored(run.activations).require_fit(run, dict.fromkeys(hooks) or [run.hook])
    if not resume:
        for folder in folders.values():
            require_free(folder, run.overwrite)
        reads_text = run.activations is None and not is_synthetic(run.model)
        if reads_text and names_a_file(run.data):
            open_text(run.data, passes=run.text_passes)
    return saes, folders


def hook_points_of(
    run: RunConfig, saes: Mapping[str, SAEConfig], hooks: Mapping[str, str] | None
) -> dict[str, str]:
    """The hook point of each SAE: what `hooks` gives it, or the run's.

    Raises: ConfigError if `hooks` names an SAE that there is not.
    """
    hooks = hooks or {}
    if strangers := [name for name in hooks if name not in saes]:
        raise ConfigError(
            f"hooks has {strangers[0]!r}, which is no SAE: expected any of {', '.join(saes)}"
        )
    return {name: hooks.get(name, run.hook) for name in saes}


def _folders(run: RunConfig, saes: dict[str, SAEConfig]) -> dict[str, Path]:
    """Where each SAE is written. Raises ConfigError for a name that is not a folder name."""
    if len(saes) == 1:
        ((name, sae),) = saes.items()
        folders = {name: folder_of(TrainConfig(sae, run))}
    else:
        base = Path(run.save_dir or RUNS)
        for name in saes:
            if not name or Path(name).name != name or name in (".", ".."):
                raise ConfigError(f"SAE name {name!r}: expected a plain folder name, e.g. 'top_k'")
        folders = {name: base / name for name in saes}
    return folders
