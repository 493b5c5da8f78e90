"""`vsae push`: SAEs to the Hugging Face hub."""

from dataclasses import dataclass

import tyro

from .flags import Command


@dataclass(frozen=True)
class PushFlags:
    """Upload SAEs to the Hugging Face hub, with a model card; private unless told."""

    folder: tyro.conf.Positional[str]
    """A run folder, an export for dictionary-learning or SAE Bench, or a folder of such folders."""
    repo: tyro.conf.Positional[str]
    """OWNER/NAME on the hub; made if it is not there."""
    public: bool = False
    """Let everyone see it."""
    dry_run: bool = False
    """Only list what would go."""


def run(flags: PushFlags) -> None:
    from ..export.hub import push

    pushed = push(flags.folder, flags.repo, public=flags.public, dry_run=flags.dry_run)
    for name, size in pushed.files.items():
        print(f"{size:>12,} {name}")
    if pushed.cut_paths:
        print(f"Local paths were cut to their last names: {', '.join(pushed.cut_paths)}")
    if pushed.url is None:
        visibility = "public" if flags.public else "private"
        print(f"Nothing was uploaded; without --dry-run it goes to {pushed.repo}, {visibility}.")
    else:
        print(f"pushed: {pushed.url} ({'private' if pushed.is_private else 'public'})")


COMMAND = Command("push", PushFlags, run)
