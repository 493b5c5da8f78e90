"""What `vsae report` measures. Imports no torch."""

from dataclasses import dataclass

from .checks import require, require_at_least_one, require_choice
from .options import MapSpace, Split
from .run_config import RunConfig


@dataclass(frozen=True)
class ReportOptions:
    """What a report measures and shows."""

    tokens: int = RunConfig.eval_tokens
    """Tokens to collect the features' contexts from."""
    split: Split = "heldout"
    """Which part of the text to read: heldout or train."""
    synthesise: int = 12
    """Number of features of each SAE for which tokens are synthesised by gradient ascent, the
    most readable first. 0 is off. This takes most of the time on a large model."""
    map_tokens: int = 20_000
    """Tokens whose activations make the map. Paper: 20,000."""
    map_features: int = 2048
    """Maximum number of features on the map. t-SNE's time grows with it."""
    map_space: MapSpace = "profiles"
    """What places a feature on the map. profiles: its activations over the tokens (paper).
    directions: its decoder direction."""
    pages: int = 2048
    """Maximum number of feature pages for each SAE. The other features are only in the CSV
    file."""
    logits: bool = True
    """Show which tokens each feature promotes and suppresses."""
    seed: int = 0
    """Seeds all random numbers."""

    def __post_init__(self):
        require_at_least_one(self, "tokens", "map_tokens", "map_features", "pages")
        require(self.synthesise >= 0, "synthesise", self.synthesise, "0 or more")
        require_choice("split", self.split, Split)
        require_choice("map_space", self.map_space, MapSpace)
