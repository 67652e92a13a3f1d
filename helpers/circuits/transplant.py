"""What is written where one model takes over what another says, and places for it.

A transplant (`tools.transplant`) may help by pushing the state out of the range that the receiving
model knows, so what is written can also be a part of it (`shift_only`, `specific_only`, `clipped`).
"""

from collections.abc import Sequence
from dataclasses import replace

from helpers.models import Model
from helpers.patching import Acts, CachedPairs, Site, cache_sites
from helpers.tasks import Pairs


def whole(own: Acts, theirs: Acts) -> Acts:
    """What the donor has, as it is."""
    return theirs


def shift_only(own: Acts, theirs: Acts) -> Acts:
    """Each own activation, moved by the difference of the means: the same for every prompt."""
    return own + (theirs.mean(0) - own.mean(0))


def specific_only(own: Acts, theirs: Acts) -> Acts:
    """The own mean, plus what is special about each prompt in the donor."""
    return own.mean(0) + (theirs - theirs.mean(0))


def clipped(own: Acts, theirs: Acts) -> Acts:
    """What the donor has, but each coordinate stays in the range of the own activations."""
    return theirs.clamp(own.amin(0), own.amax(0))


def with_entry(model: Model, pairs: Pairs, sites: Sequence[Site]) -> list[CachedPairs]:
    """The pairs cached at a place below all sites and, after that, at each of the sites."""
    entry = Site(min((site.layer for site in sites), default=0), "resid_pre")
    position = sites[0].position if sites else None
    return cache_sites(model, pairs, [replace(entry, position=position), *sites])
