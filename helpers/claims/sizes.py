"""How much data and training the lessons use: quick, small for tests, or as in the paper."""

import os
from dataclasses import dataclass

from helpers.models import require

SIZES_VARIABLE = "SUBSPACE_ILLUSION_SIZES"


@dataclass(frozen=True)
class Sizes:
    """How much data and training a lesson uses."""

    train: int  # pairs of IOI
    test: int
    epochs: int  # of `find_direction` on them
    batch_size: int
    pair_steps: int  # of `find_pair_directions` on facts
    layers: int  # sweeps over facts look at about so many, or at all if there are fewer
    seeds: int = 3  # how often a search is started anew
    draws: int = 8  # planted models of each family
    share: float = 1.0  # of any other number of pairs or steps, see `some`

    def some(self, number: int, least: int = 1) -> int:
        """So many pairs or steps, or the smaller sizes' share of them, but not below `least`."""
        require.whole("number", number, 1)
        require.whole("least", least, 1)
        return max(min(number, least), round(self.share * number))


# "paper": the sizes of section 4. Of its 200 training pairs only 100 change anything; ours all do.
# "small": the same code in less time, for tests; its numbers have reference values of their own.
SIZES = {
    "quick": Sizes(200, 400, 15, 50, pair_steps=5, layers=5),
    "paper": Sizes(200, 2000, 30, 20, pair_steps=40, layers=1000, draws=30),
    "small": Sizes(100, 160, 10, 50, pair_steps=3, layers=5, seeds=2, draws=4, share=0.4),
}


def sizes_name(name: str | None = None) -> str:
    """This name, or that in the environment variable, or "quick"; a ValueError if unknown."""
    name = (name or os.environ.get(SIZES_VARIABLE, "")).strip().lower() or "quick"
    if name not in SIZES:
        raise ValueError(f"{SIZES_VARIABLE} must be one of {list(SIZES)}, not {name!r}")
    return name


def sizes(name: str | None = None) -> Sizes:
    """The sizes of this name, or of the environment variable, or "quick"; see `sizes_name`."""
    return SIZES[sizes_name(name)]
