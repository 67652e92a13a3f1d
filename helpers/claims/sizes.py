"""How much data and training the lessons use: quick, small for tests, or as in the paper."""

import os
from dataclasses import dataclass

from helpers.models import require

SIZES_VARIABLE = "SUBSPACE_ILLUSION_SIZES"


@dataclass(frozen=True)
class Sizes:
    """How much data and training a lesson uses.

    Attributes:
        train, test: Pairs of IOI.
        epochs, batch_size: Of `find_direction` on them.
        pair_steps: Of `find_pair_directions` on facts.
        layers: Sweeps over facts look at about so many layers, or at all if there are fewer.
        seeds: How often a search is started anew.
        draws: Planted models of each family.
        share: Of any other number of pairs or steps, see `some`.
    """

    train: int
    test: int
    epochs: int
    batch_size: int
    pair_steps: int
    layers: int
    seeds: int = 3
    draws: int = 10
    share: float = 1.0

    def some(self, number: int, least: int = 1) -> int:
        """So many pairs or steps, or the smaller sizes' share of them, but not below `least`.

        Raises ValueError: one of them is not a whole number from 1 on.
        """
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
    """This name, or that in the environment variable SUBSPACE_ILLUSION_SIZES, or "quick".

    Raises ValueError: there are no sizes of this name.
    """
    name = (name or os.environ.get(SIZES_VARIABLE, "")).strip().lower() or "quick"
    if name not in SIZES:
        raise ValueError(f"{SIZES_VARIABLE} must be one of {list(SIZES)}, not {name!r}")
    return name


def sizes(name: str | None = None) -> Sizes:
    """The sizes of this name, or of the environment variable, or "quick"; see `sizes_name`."""
    return SIZES[sizes_name(name)]
