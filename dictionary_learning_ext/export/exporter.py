"""Export an SAE to a format of another library, and measure how exact the export is.

Other libraries' TopK has a ReLU. Ours may have none (rectify=False), and then the two differ where a selected mean is
negative. So the SAE that the format's reader loads is compared with ours on held-out activations of the language model. An
export that is not exact is refused unless allow_inexact is set.
"""

import importlib.metadata
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from filecmp import cmp
from pathlib import Path
from typing import Any, NamedTuple

import torch as t

from ..activations.inputs import open_inputs, open_model
from ..config.architectures import COMPARED_TOKENS, ExportFormat
from ..config.checks import require, require_choice
from ..config.run import UNKNOWN, RunConfig
from ..devices import chosen_device
from ..errors import CheckpointError, ConfigError, LanguageModelError
from ..evaluation.measure import batches_of
from ..evaluation.tables import metrics_as_now
from ..run_folder.files import (
    EVALUATION,
    EXPORTS,
    read_json,
    temporary_in,
    write_json,
    writing,
)
from ..run_folder.identity import LEAVING_OUT
from ..run_folder.sae_folder import SAEFolder, find_run
from ..run_folder.schema import Object
from ..run_folder.trained_on import trained_on
from ..run_folder.weights import load_sae
from ..trainers.dictionaries import sides
from .formats import FORMATS, ExportedSAE, require_supported
from .local_paths import without_local_paths

_TOLERANCE = 1e-5


class Difference(NamedTuple):
    """The difference between two SAEs on the same activations."""

    reconstruction: float
    """The largest ||x_hat - x_hat'|| / ||x_hat|| of a token."""
    codes: float
    """The share of tokens with an activation that differs by more than _TOLERANCE of the token's largest."""
    tokens: int
    """The number of tokens that were compared."""

    @property
    def is_exact(self) -> bool:
        return self.reconstruction <= _TOLERANCE

    def __str__(self) -> str:
        if self.reconstruction == self.codes == 0:
            return f"identical on {self.tokens:,} held-out tokens"
        return (
            f"reconstructions differ by up to {self.reconstruction:.2g} of their norm, and "
            f"{self.codes:.2%} of {self.tokens:,} held-out tokens have another code"
        )


@dataclass(frozen=True)
class Exported:
    """The result of `export`.

    Attributes:
        folder: the folder that was written.
        difference: between the SAE and the one that the format's reader loads.
    """

    folder: Path
    difference: Difference


def export(
    folder: str | Path | SAEFolder,
    form: ExportFormat,
    out: str | Path | None = None,
    *,
    allow_inexact: bool = False,
    tokens: int = COMPARED_TOKENS,
    device: str = RunConfig.device,
    **where: Any,
) -> Exported:
    """Write the SAE of a run folder as a folder that another library reads.

    Arguments:
        form: see `formats`.
        out: a new or empty folder, or one that holds this very export. Default: exports/FORMAT in the SAE's folder of results, see `SAEFolder.results`.
        allow_inexact: export also if reconstructions differ by more than 1e-5 of their norm.
        tokens: held-out tokens to compare on, in float64.
        where: model, hook, data, activations, max_norm_multiple and remove_bos, see `evaluate_folders`.

    Raises: a UserError, before anything is written, if the folder is damaged, the format can't hold the SAE, the language model
    or text can't be loaded, the export is not exact, or `out` holds something else or can't be written.
    """
    require_choice("format", form, ExportFormat)
    require(tokens > 0, "tokens", tokens, "above 0")
    sae = find_run(folder, "export")
    folder, device = sae.path, chosen_device(device)
    dictionary: Any = load_sae(sae, device)
    target = sae.results / EXPORTS / form if out is None else Path(out)
    left_out = {name: where.pop(name, None) for name in LEAVING_OUT}
    own_run = trained_on(sae, device=device, **where)
    run = replace(own_run, **{n: value for n, value in left_out.items() if value is not None})
    text = {"model": run.model, "data": run.data}
    config, metrics, text = without_local_paths((sae.config, metrics_as_now(sae), text))
    try:
        if run.model == UNKNOWN:  # the user's own activations
            inputs = open_inputs(run, [run.site])
            language_model, hook_point = None, inputs.hooks[run.site]
        else:
            inputs, (language_model, hook_point) = None, open_model(run)
    except LanguageModelError as error:
        why = f"{folder}: an export is compared with the SAE on its language model"
        raise error.within(why, "give its path as model") from error
    hook_point.require_width(folder, dictionary.activation_dim, run.model)
    source = ExportedSAE(
        name=folder.resolve().name,
        dictionary=dictionary,
        config=config,
        metrics=metrics,
        run=replace(own_run, **text),
        language_model=language_model,
        hook=hook_point,
    )
    dictionary.float()  # in place
    require_supported(form, source)
    row = FORMATS[form]
    with _new_folder(target) as temporary:
        with writing(target, "out"):
            row.write(temporary, source)
        if inputs is None:
            reading_model = replace(run, activations=None)
            inputs = open_inputs(reading_model, [run.site], language_model=language_model)
        held_out = inputs.held_out(run.site, tokens)
        place = temporary / row.inside.format(name=source.name, module=source.module)
        read_back = row.read(place, device)
        batches = (sides(dictionary, x_BD)[0].double() for x_BD in batches_of(held_out))
        difference = compare(dictionary.double(), read_back, batches)
        if not (difference.is_exact or allow_inexact):
            raise CheckpointError(
                f"{folder} as {form} is not exact: {difference}{_reason(source)}",
                instead="give allow_inexact=True to export it anyway",
            )
        with writing(target, "out"):
            if not difference.is_exact:  # the metrics are another SAE's
                for path in temporary.rglob(EVALUATION):
                    path.unlink()
            exported = {
                "format": form,
                "dict_class": type(dictionary).__name__,
                "max_relative_difference": difference.reconstruction,
                "share_of_tokens_with_another_code": difference.codes,
                "tokens": difference.tokens,
                "dictionary_learning_ext": importlib.metadata.version("dictionary-learning-ext"),
            }
            for path in temporary.rglob(row.about):
                write_json(path, read_json(path, Object()) | {"export": exported})
    return Exported(target, difference)


def _reason(source: ExportedSAE) -> str:
    """The end of a message: why an export is not exact."""
    if source.row.function == "free_top_k":
        return "; norms of the decoder, folded into the encoder, change which features are selected"
    return "" if source.rectifies else "; its reader has a ReLU, this SAE none (rectify=False)"


@t.no_grad()
def compare(original: Any, exported: Any, batches: Iterable[t.Tensor]) -> Difference:
    """Compare the codes and reconstructions of two SAEs on batches of activations, (B, D).

    Raises: CheckpointError if a reconstruction is not finite in float32.
    """
    largest, differing, tokens = 0.0, 0, 0
    for x_BD in batches:
        f_BF, other_BF = original.encode(x_BD), exported.encode(x_BD)
        x_hat_BD, other_BD = original.decode(f_BF), exported.decode(other_BF)
        norm_B = x_hat_BD.norm(dim=1).clamp_min(t.finfo(x_hat_BD.dtype).tiny)
        relative_B = (x_hat_BD - other_BD).norm(dim=1) / norm_B
        if not (relative_B.isfinite().all() and x_hat_BD.float().isfinite().all()):
            raise CheckpointError("the SAE's reconstructions are not finite; train it again")
        largest = max(largest, float(relative_B.max()))
        limit_B = _TOLERANCE * f_BF.abs().amax(dim=1)
        differing += int(((f_BF - other_BF).abs().amax(dim=1) > limit_B).sum())
        tokens += len(x_BD)
    return Difference(largest, differing / max(tokens, 1), tokens)


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `target` at the end, and removed if an error is raised.

    Raises: ConfigError at the end if `target` is not empty, unless it holds the same files.
    """
    above = next(path for path in target.absolute().parents if path.exists())
    with ExitStack() as stack:
        with writing(target, "out"):
            unfinished = stack.enter_context(temporary_in(above, "export"))
        yield unfinished
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            if not _holds(target, unfinished):
                raise ConfigError(
                    "already there, and not this export",
                    name="out",
                    value=str(target),
                    instead="give another, or delete it first",
                )
            return
        with writing(target, "out"):
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished.replace(target)


def _holds(folder: Path, other: Path) -> bool:
    """Whether a folder holds the export of another, whatever it was compared on and its metrics are."""
    names = [path.relative_to(other) for path in other.rglob("*") if path.is_file()]
    return all(
        (folder / name).is_file() and _are_alike(folder / name, other / name)
        for name in names
        if name.name != EVALUATION
    )


def _are_alike(one: Path, other: Path) -> bool:
    if one.suffix != ".json":
        return cmp(one, other, shallow=False)
    contents = [read_json(path, Object()) | {"export": None} for path in (one, other)]
    return contents[0] == contents[1]
