"""Activations of one model written into another: does what one model says help the other?

    transplant(model, donor, pairs, head_sites(heads))
    transplant(model, donor, pairs, head_sites(heads), shift_only)

It may help by pushing the state out of the range that the receiving model knows, so what is written
can also be a part of it: `shift_only`, `clipped`, or `specific_only` of `helpers.circuits`.

Cross-model activation patching (CMAP; Prakash et al. 2024, section 5). A model that is better at a
task hands over what some of its heads say, at one token; all else is computed by the receiving
model.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from helpers.circuits.paths import with_entry
from helpers.models import Model
from helpers.patching import Acts, Site
from helpers.patching.metrics import Logits
from helpers.tasks import Pairs

Change: TypeAlias = Callable[[Acts, Acts], Acts]  # own and the donor's activations to the new ones
SIZES = ("n_layers", "n_heads", "n_key_value_heads", "d_model", "d_head", "d_mlp", "d_vocab")


def whole(own: Acts, theirs: Acts) -> Acts:
    """What the donor has, as it is."""
    return theirs


def shift_only(own: Acts, theirs: Acts) -> Acts:
    """Each own activation, moved by the difference of the means: the same for every prompt."""
    return own + (theirs.mean(0) - own.mean(0))


def clipped(own: Acts, theirs: Acts) -> Acts:
    """What the donor has, but each coordinate stays in the range of the own activations."""
    return theirs.clamp(own.amin(0), own.amax(0))


@torch.no_grad()
def transplant(
    model: Model, donor: Model, pairs: Pairs, sites: Sequence[Site], change: Change = whole, *,
    from_source: bool = False,
) -> Logits:  # fmt: skip
    """Next-token logits of the model on the base prompts, with the donor's activations at `sites`.

    The donor reads the same prompts, or with `from_source` the pairs' source prompts: a model that
    is its own donor then has all the sites interchanged. They are at one token; those above feel
    those below only by what the donor has, for they are replaced. `change(own, theirs)` is what is
    written at each; means and ranges are over these pairs.

    Raises ValueError: models of different shapes or vocabularies, heads in bases of their own, or
    sites that `cache_sites` or `patched_logits` do not take.
    """
    if model is not donor:
        check_alike(model, donor, sites)
    (_, *theirs), (entry, *own) = (with_entry(each, pairs, sites) for each in (donor, model))
    given = [at.source if from_source else at.base for at in theirs]
    new = {at.site: change(at.base, other) for at, other in zip(own, given, strict=True)}
    if len(own) == 1:  # may be any kind of site
        return own[0].patched_logits(new[own[0].site])
    return entry.patched_logits(entry.base, clamp=new)


def check_alike(model: Model, donor: Model, sites: Sequence[Site]) -> None:
    """A ValueError unless an activation means the same in both models."""
    for name in SIZES:
        ours, theirs = getattr(model.cfg, name, None), getattr(donor.cfg, name, None)
        if ours != theirs:
            raise ValueError(f"{name} is {ours} here, but {theirs} in the donor: take its base")
    if model.tokenizer.get_vocab() != donor.tokenizer.get_vocab():
        raise ValueError("the donor has another vocabulary: its tokens mean something else")
    for site in sites:
        if site.head is not None and model._weights_processed:
            reason = "processed weights give the heads of each model a basis of their own"
            raise ValueError(f"{site} cannot be transplanted, as {reason}: take attn_out")
