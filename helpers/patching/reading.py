"""Ask a layer what it knows: its state stands in for a word of another prompt, which goes on.

reader = Reader.of(model, "{} is in", [("Oslo", "Norway"), ("Lima", "Peru")])
reader.text  # Oslo is in Norway. Lima is in Peru. x is in
found = reader.read(states(model, *subject_ends(model, facts)), candidates)

The state of a subject at layer `l` is written over the placeholder `x` at layer `l`, or at another
one (Patchscopes, arXiv 2401.06102). Only the tokens from `x` on are run again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.models import Model, require
from helpers.patching.cached import CachedPairs
from helpers.patching.caching import activations, cache_sites
from helpers.patching.sites import Site, check_vocabulary
from helpers.tasks.facts import SLOT, fill, subject_ends
from helpers.tasks.pairs import Pairs, Tokens


@dataclass(frozen=True, eq=False)
class Reader:
    """A prompt with examples and a placeholder, run once: what it says of what is written there."""

    text: str
    cached: tuple[CachedPairs, ...]  # that prompt alone, at what enters each block

    @classmethod
    def of(
        cls, model: Model, sentence: str, examples: Sequence[tuple[str, str]], *,
        placeholder: str = "x",
    ) -> "Reader":  # fmt: skip
        """A reader from a sentence with the slot `{}`, and examples (subject, object) before it.

        A ValueError if there is no slot, or an example is no pair of texts. Of a placeholder of
        several tokens the last is replaced.
        """
        if not isinstance(sentence, str) or sentence.count("{}") != 1:
            raise ValueError(f"a sentence needs one {{}} for its subject, not {sentence!r}")
        for example in examples:
            if isinstance(example, str) or [type(part) for part in example] != [str, str]:
                raise ValueError(f"an example is a subject and an object, not {example!r}")
        told = [f"{fill(sentence, subject)} {said}." for subject, said in examples]
        template = " ".join([*told, sentence.replace("{}", SLOT)])
        row = {"relation": "reader", "subject": placeholder, "answer": "-", "template": template}
        tokens, position = subject_ends(model, pd.DataFrame([row]))
        layers = range(model.cfg.n_layers)
        sites = [Site(layer, "resid_pre") for layer in layers]
        cached = cache_sites(model, _alone(tokens, position), sites)
        return cls(fill(template, placeholder), tuple(cached))

    @property
    def own(self) -> Float[Tensor, "layers 1 d"]:
        """The placeholder's own states: written back they change nothing, which is a control."""
        return torch.stack([at.base for at in self.cached])

    @torch.no_grad()
    def logits(
        self, state: Float[Tensor, "n d"], layer: int, *, hold_mlps: bool = False
    ) -> Float[Tensor, "n d_vocab"]:
        """What could come next, with each state in turn in place of what enters block `layer`.

        With `hold_mlps` the placeholder's MLPs, from that layer on, write the mean of what they
        write for these states. So they add nothing about one of them: what is said is in the state.

        A ValueError for a layer that is not there, states that do not fit, or a mean of one state.
        """
        if not 0 <= require.whole("layer", layer) < len(self.cached):
            raise ValueError(f"layer {layer} is out of range: the model has {len(self.cached)}")
        at = self.cached[layer]
        require.floats("the states", state, ndim=2)
        rows = torch.zeros(len(state), dtype=torch.long, device=at.base.device)
        if not hold_mlps:
            return at.patched_logits(state, rows)
        if len(state) < 2:
            raise ValueError("the mean over one state is its own: give several to hold the MLPs")
        sites = [Site(above, "mlp_out") for above in range(layer, len(self.cached))]
        seen = at.record(state, [site.hook_name for site in sites], rows=rows)
        means = {site: seen[site.hook_name].mean(0).expand(len(state), -1) for site in sites}
        return at.patched_logits(state, rows, clamp=means)

    def read(
        self, states: Float[Tensor, "layers n d"], candidates: Int[Tensor, "candidates"], *,
        layers: Sequence[int] | None = None, into: int | None = None, hold_mlps: bool = False,
    ) -> Float[Tensor, "layers n candidates"]:  # fmt: skip
        """Log-probabilities, over the whole vocabulary, of candidates to come next, in nats.

        Args:
            states: Of each layer its states, one for each subject.
            candidates: Tokens.
            layers: Which layers the states are of; all of them by default.
            into: The layer to write all of them at; by default each at its own.
            hold_mlps: As for `logits`, whose errors are raised, too.
        """
        require.floats("the states", states, ndim=3)
        check_vocabulary(self.cached[0].model, candidates)
        layers = range(len(self.cached)) if layers is None else layers
        if len(layers) != len(states):
            raise ValueError(f"states of {len(states)} layers, but {len(layers)} layers to read")
        found = []
        for layer, state in zip(layers, states, strict=True):
            into_layer = layer if into is None else into
            logits = self.logits(state, into_layer, hold_mlps=hold_mlps)
            found.append(logits.log_softmax(-1)[:, candidates])
        return torch.stack(found)

    @torch.no_grad()
    def tell(self, state: Float[Tensor, "n d"], layer: int, *, n_tokens: int = 4) -> list[str]:
        """The text that the reader goes on with for each state, by the most probable tokens."""
        require.whole("n_tokens", n_tokens, least=1)
        said = self.logits(state, layer).argmax(-1, keepdim=True)
        model, pairs = self.cached[layer].model, self.cached[layer].pairs
        prompt, where = pairs.base_tokens[0], pairs.position
        for _ in range(n_tokens - 1):  # what several states have in common is run once
            tokens = tuple(torch.cat([prompt, row]) for row in said.cpu())
            continued = _alone(tokens, where.expand(len(tokens)))
            (at,) = cache_sites(model, continued, [Site(layer, "resid_pre")])
            said = torch.cat([said, at.patched_logits(state).argmax(-1, keepdim=True)], 1)
        return [model.tokenizer.decode(row) for row in said]


@torch.no_grad()
def states(
    model: Model, tokens: Tokens, positions: Int[Tensor, "n"], *, batch_size: int = 64
) -> Float[Tensor, "layers n d"]:
    """What enters every block at one token of each prompt, from one pass up to that token.

    A ValueError unless each prompt has a position of its own, within it.
    """
    require.ids("the positions", positions)
    if len(tokens) != len(positions):
        raise ValueError(f"{len(positions)} positions for {len(tokens)} prompts")
    sites = [Site(layer, "resid_pre") for layer in range(model.cfg.n_layers)]
    for row, at in zip(tokens, positions.tolist(), strict=True):
        if not 0 <= at < len(row):
            raise ValueError(f"position {at} is out of range in a prompt of {len(row)} tokens")
    prompts = [(tuple(r.tolist()), at) for r, at in zip(tokens, positions.tolist(), strict=True)]
    found = activations(model, prompts, sites, batch_size)
    return torch.stack([torch.stack([found[prompt][site] for prompt in prompts]) for site in sites])


def _alone(tokens: Tokens, position: Int[Tensor, "n"]) -> Pairs:
    """Prompts that are their own source, since what is written comes from elsewhere."""
    answer = torch.zeros(len(tokens), dtype=torch.long)
    return Pairs(
        tokens, tokens, answer, answer + 1, position, position, pd.DataFrame(index=answer.tolist())
    )
