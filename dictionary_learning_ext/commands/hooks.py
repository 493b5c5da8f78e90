"""`vsae hooks`: the hook points of a language model."""

from dataclasses import dataclass

from .flags import Command


@dataclass(frozen=True)
class HooksFlags:
    """List the hook points of a language model and their widths."""

    model: str = "embedded"
    """The language model: embedded, a folder written by save_pretrained, or a name on the hub. Its
    weights aren't loaded."""


def run(flags: HooksFlags) -> None:
    from ..activations.hook_points import hook_names
    from ..activations.language_models import width_of

    names, width = hook_names(flags.model), width_of(flags.model)
    longest = max(map(len, names))
    print(f"{'hook point':<{longest}}  width")
    for name in names:
        print(f"{name:<{longest}}  {width:>5}")


COMMAND = Command("hooks", HooksFlags, run)
