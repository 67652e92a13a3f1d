"""Many prompts with an edit for each, run from the edited layer on; and causal tracing.

    runs = EditedRuns(model, prompts, layers)
    runs.clean, runs.logits(edits)

An edit at a layer changes nothing below it. So the residual stream where each layer begins is
stored once, and prompts of one length share a run.
"""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.editing.edits import RankOneEdit, edits_side_by_side
from helpers.models import Model
from helpers.patching import Site, check_sites, run_from

Prompt: TypeAlias = Int[Tensor, "pos"]
Logits: TypeAlias = Float[Tensor, "edits d_vocab"]
BEGINS = "blocks.{}.hook_resid_pre".format  # the stream where a layer begins


class EditedRuns:
    """Prompts as tokens, ready for edits at some layers; `clean` are their next-token logits.

    Raises ValueError: no prompts, or a layer that the model does not have.
    """

    clean: Float[Tensor, "prompts d_vocab"]

    @torch.no_grad()
    def __init__(self, model: Model, prompts: Sequence[Prompt], layers: Sequence[int]) -> None:
        check_sites(model, [Site(layer, "mlp_hidden") for layer in layers])
        if not len(prompts):
            raise ValueError("there are no prompts to edit")
        self.model, lengths = model, torch.tensor([len(prompt) for prompt in prompts])
        self.clean = torch.empty(len(prompts), model.cfg.d_vocab)
        self._groups: list[tuple[Tensor, dict[int, Tensor]]] = []
        for length in lengths.unique():
            rows = (lengths == length).nonzero()[:, 0]
            tokens = torch.stack([prompts[row] for row in rows]).to(model.cfg.device)
            logits, cache = model.run_with_cache(tokens, names_filter=[*map(BEGINS, layers)])
            self.clean[rows] = logits[:, -1].cpu()
            self._groups.append((rows, {at: cache[BEGINS(at)] for at in layers}))

    @torch.no_grad()
    def logits(self, edits: RankOneEdit) -> Logits:
        """Next-token logits of prompt `i` with edit `i`; edits may be for the first prompts only.

        Raises ValueError: more edits than prompts, or at a layer that was not asked for.
        """
        if len(edits) > len(self.clean):
            raise ValueError(f"{len(edits)} edits for {len(self.clean)} prompts")
        found = torch.empty(len(edits), self.clean.shape[1])
        for rows, streams in self._groups:
            if edits.layer not in streams:
                raise ValueError(f"runs are prepared for the layers {list(streams)}")
            edited = rows < len(edits)
            if edited.any():
                start = streams[edits.layer][edited.to(streams[edits.layer].device)]
                with edits_side_by_side(self.model, edits[rows[edited]]):
                    logits = run_from(self.model, start, edits.layer, logits_to_keep=1)
                found[rows[edited]] = logits[:, -1].cpu()
        return found


@torch.no_grad()
def causal_trace(
    model: Model,
    tokens: Prompt,
    position: int,
    answer: int,
    places: Sequence[Sequence[str]],
    noise: Float[Tensor, "d_model"],
) -> tuple[Float[Tensor, "places"], float]:
    """Probability of an answer that each place brings back, and what noise leaves of it.

    The noise is added to the embedding of the token at `position`; a place is one or more hooks
    whose clean activations are put back there, all at once. All places share a forward pass. Idea:
    Meng et al. 2022. A ValueError if the model has no such hook.
    """
    names = sorted({name for place in places for name in place})
    if unknown := [name for name in names if name not in model.hook_dict]:
        raise ValueError(f"the model has no hooks {unknown}")
    tokens = tokens[None].to(model.cfg.device)
    _, saved = model.run_with_cache(tokens, names_filter=names)

    def corrupt(x: Tensor, hook: object) -> Tensor:
        x = x.clone()
        x[:, position] += noise.to(x)
        return x

    def restore(name: str):
        rows = [row for row, place in enumerate(places) if name in place]

        def write(x: Tensor, hook: object) -> Tensor:
            x = x.clone()
            x[rows, position] = saved[name][0, position]
            return x

        return name, write

    batch = tokens.repeat(len(places) + 1, 1)  # the last row is only corrupted
    hooks = [("hook_embed", corrupt), *map(restore, names)]
    logits = model.run_with_hooks(batch, fwd_hooks=hooks, logits_to_keep=1)
    p = logits[:, -1].cpu().softmax(-1)[:, answer]
    return p[:-1] - p[-1], p[-1].item()
