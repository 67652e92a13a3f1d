"""The logit difference as a sum of what embeddings, heads and MLPs write: nothing is estimated.

The stream at the last token is a sum, and behind it come only the final norm, whose scale is taken
as this prompt has it, and the unembedding. So the logit difference is exactly a sum of one number
for every writer: what it does directly, without the layers between.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.attribution.scores import ENTRY, coefficients
from helpers.models import Model
from helpers.patching import Site, recording
from helpers.patching.suffix import only_columns
from helpers.tasks import Pairs


class Split(NamedTuple):
    """Parts of the base prompts' logit differences, in nats; `total()` is the difference."""

    embedding: Float[Tensor, "pairs"]
    heads: Float[Tensor, "pairs layers heads"]
    mlps: Float[Tensor, "pairs layers"]  # each with its own bias
    biases: Float[Tensor, "pairs"]  # of attention outputs, final norm and unembedding

    def total(self) -> Float[Tensor, "pairs"]:
        return self.embedding + self.heads.sum((1, 2)) + self.mlps.sum(1) + self.biases


@torch.no_grad()
def direct_attribution(model: Model, pairs: Pairs) -> Split:
    """What every head and MLP of the base prompts says directly to the logit difference.

    A ValueError where heads cannot be told apart, as behind the norms that Gemma 3 has after each
    sublayer; others are those of `attribution`.
    """
    last = Site(model.cfg.n_layers - 1, "resid_post", position=-1)
    (reads,) = coefficients(model, pairs, [last], method="norm")
    parts = [_parts(model, *of) for of in zip(pairs.base_tokens, reads, strict=True)]
    embedding, heads, mlps, biases = map(torch.stack, zip(*parts, strict=True))
    nothing = model.unembed(model.ln_final(torch.zeros_like(reads[:1, None])))[0, 0]
    behind = nothing[pairs.answer] - nothing[pairs.counterfactual]
    return Split(embedding, heads, mlps, biases + behind)


def _parts(model: Model, tokens: Int[Tensor, "pos"], reads: Float[Tensor, "d_model"]) -> tuple:
    """The parts of one prompt, by what final norm and unembedding read of the stream."""
    ends = "attn.hook_z", "hook_attn_out", "hook_mlp_out"
    names = [[f"blocks.{at}.{end}" for at in range(model.cfg.n_layers)] for end in ends]
    with recording(model, {ENTRY, *sum(names, [])}) as seen, only_columns(model, [0]):
        model(tokens[None].to(reads.device))
    z, attention, mlps = (torch.stack([seen[x][0, -1] for x in of]) for of in names)
    W_O = torch.stack([block.attn.W_O for block in model.blocks])  # [layers heads d_head d_model]
    written = torch.einsum("lhd,lhdm->lhm", z, W_O)
    bias = attention - written.sum(1)
    silent = torch.zeros_like(z[:1, None]).flatten(2)  # what is written when no head says anything
    known = torch.cat([block.attn.o(silent)[0] for block in model.blocks])
    if not torch.allclose(bias, known, rtol=0, atol=1e-4 * attention.abs().max().item()):
        raise ValueError("a norm stands behind the heads of this architecture: no sum over heads")
    return seen[ENTRY][0, -1] @ reads, written @ reads, mlps @ reads, (bias @ reads).sum()
