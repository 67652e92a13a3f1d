"""How much data and training a lesson uses: small numbers for two cores, the paper's for a GPU."""

import os
from dataclasses import dataclass

SIZES_VARIABLE = "SUBSPACE_ILLUSION_SIZES"


@dataclass(frozen=True)
class Sizes:
    """How much data and training a lesson uses.

    Attributes:
        train, test: Pairs of IOI.
        epochs, batch_size: Of `find_direction` on them.
        pair_steps: Of `find_pair_directions` on facts.
        layers: Sweeps over facts look at about so many layers, or at all if there are fewer.
    """

    train: int
    test: int
    epochs: int
    batch_size: int
    pair_steps: int
    layers: int


# "paper": the sizes of section 4. Of its 200 training pairs only 100 change anything; ours all do.
SIZES = {
    "quick": Sizes(200, 400, 15, 50, pair_steps=5, layers=5),
    "paper": Sizes(200, 2000, 30, 20, pair_steps=40, layers=1000),
}


def sizes(name: str | None = None) -> Sizes:
    """The sizes of this name, or of the environment variable SUBSPACE_ILLUSION_SIZES, or "quick".

    Raises:
        ValueError: There are no sizes of this name.
    """
    name = (name or os.environ.get(SIZES_VARIABLE, "")).strip().lower() or "quick"
    if name not in SIZES:
        raise ValueError(f"{SIZES_VARIABLE} must be one of {list(SIZES)}, not {name!r}")
    return SIZES[name]
