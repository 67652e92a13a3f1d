"""Checks of lesson 15: keys injected with their mask, layers that read, a share of a change."""

import torch

from helpers.lessons.checks.compare import Draw, exercise


@exercise("keys, and which of them are words, come from the source where it is asked for")
def check_inject(draw: Draw) -> tuple:
    """Exercise 1 of lesson 15: `(keys, real, source_keys, source_real, where)`.

    Keys are `[n heads tokens d]`, the others `[n heads tokens]` and `[heads tokens]`, booleans.
    """
    shape = draw.size(2), draw.size(3), draw.size(6)
    d = draw.size(4)
    keys, source = draw.normal(*shape, d), draw.normal(*shape, d)
    real, source_real = (draw.uniform(0, 1, *shape) < of for of in (0.4, 0.6))
    where = (torch.arange(shape[1] * shape[2]) % 2 == 0).reshape(shape[1:])
    wide = where[..., None]
    right = torch.where(wide, source * source_real[..., None], keys * real[..., None])
    mistakes = {
        "that puts the base into the source: the source stands where `where` is true": torch.where(
            wide, keys * real[..., None], source * source_real[..., None]
        ),
        "`real` is still the base's: the source's words stay masked where the base has none": (
            torch.where(wide, source, keys) * real[..., None]
        ),
        "`real` is the source's everywhere: change it only where `where` is true": (
            torch.where(wide, source, keys) * source_real[..., None]
        ),
        "keys without a word must be zero": torch.where(wide, source, keys),
        "all keys are the source's: look at `where`": source * source_real[..., None],
    }
    return (keys, real, source, source_real, where), right, mistakes


@exercise("sufficient alone, and necessary")
def check_readers(draw: Draw) -> tuple:
    """Exercise 2 of lesson 15: `(follow, without) -> booleans`, all `[layers]`."""
    cases = torch.tensor([[0.0, 0.1], [0.9, 0.1], [0.6, 0.8], [0.2, 0.9], [0.5, 0.2]])
    follow, without = draw.shuffled(*[cases] * draw.size(1)).T
    mistakes = {
        "also necessary: without them the letters must not follow": follow >= 0.5,
        "also sufficient: alone they must make half of the letters follow": without <= 0.2,
        "both, not one of the two": (follow >= 0.5) | (without <= 0.2),
        "half and a fifth count, too": (follow > 0.5) & (without < 0.2),
    }
    return (follow, without), (follow >= 0.5) & (without <= 0.2), mistakes


@exercise("along the way, over all pictures together")
def check_share(draw: Draw) -> tuple:
    """Exercise 3 of lesson 15: `(new, old, other) -> number`, all `[n pixels]`."""
    shape = draw.size(4), draw.size(7)
    old, other = draw.normal(*shape), 2 * draw.normal(*shape)
    way = other - old
    new = old + draw.uniform(0, 1, shape[0], 1) * way + 0.8 * draw.normal(*shape)
    each = ((new - old) * way).sum(1) / (way * way).sum(1)
    right = ((new - old) * way).sum() / (way * way).sum()
    mistakes = {
        "only what goes along the way counts, not how far it goes": (new - old).norm() / way.norm(),
        "that is a cosine: divide by the way's squared length": (
            ((new - old) * way).sum() / ((new - old).norm() * way.norm())
        ),
        "one ratio over all pictures, not the mean of ratios": each.mean(),
        "one number for all pictures": each,
        "measured from the source's end: 0 is old, 1 is other": 1 - right,
        "start from old: subtract it first": (new * way).sum() / (way * way).sum(),
    }
    return (new, old, other), right, mistakes
