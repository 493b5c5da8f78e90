"""`vsae push`: SAEs on the Hugging Face hub."""

from dataclasses import dataclass, field

from .flags import FOLDER, Command, positional


@dataclass(frozen=True)
class PushFlags:
    """Upload SAEs to the Hugging Face hub, with a model card."""

    folder: str = field(metadata=positional(FOLDER))
    """A run folder, an export for dictionary-learning or SAE Bench, or a folder of such folders."""
    repo: str = field(metadata=positional("OWNER/NAME"))
    """A repo on the hub. It is created if it does not exist."""
    public: bool = False
    """Create the repo as public. Default: private."""
    dry_run: bool = False
    """Only list the files that would be uploaded."""
    show_card: bool = False
    """Only print the model card that would be uploaded."""


def run(flags: PushFlags) -> None:
    from ..export.hub import push

    is_dry = flags.dry_run or flags.show_card
    pushed = push(flags.folder, flags.repo, public=flags.public, dry_run=is_dry)
    if flags.show_card:
        print(pushed.card)
        return
    for name, size in pushed.files.items():
        print(f"{size:>12,} {name}")
    if pushed.cut_paths:
        print(f"Local paths were shortened to their last names: {', '.join(pushed.cut_paths)}")
    if pushed.url is None:
        visibility = "public" if flags.public else "private"
        print(
            "Nothing was uploaded. Without --dry-run, the files go to a "
            f"{visibility} repository: {pushed.repo}. To read the model card, use --show-card"
        )
    else:
        print(f"uploaded to {pushed.url} ({'private' if pushed.is_private else 'public'})")


COMMAND = Command("push", PushFlags, run)
