"""Pairs that have been run: patched as often as you like at the cost of what a patch can change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens import TransformerBridge

from helpers.models import require
from helpers.patching.metrics import Effect, logit_difference
from helpers.patching.sites import Site, check_sites
from helpers.patching.suffix import ALL, Suffix, Write
from helpers.tasks.pairs import Pairs

Clamp = Mapping[Site, Float[Tensor, "rows d"]]
ROWS_PER_FORWARD = 256  # bounds the memory of one patched forward pass, not its result


@dataclass(frozen=True, eq=False)
class CachedPairs:
    """Pairs whose prompts have been run: their activations at a site and a way to patch them.

    Attributes:
        base: Activations of the base prompts at the site, `[pairs d]`.
        source: Activations of the source prompts, `[pairs d]`.
    """

    model: TransformerBridge
    pairs: Pairs
    site: Site
    base: Float[Tensor, "pairs d"]
    source: Float[Tensor, "pairs d"]
    groups: tuple[Suffix, ...]
    group_of: Int[Tensor, "pairs"]
    row_of: Int[Tensor, "pairs"]

    def __len__(self) -> int:
        return len(self.pairs)

    def patched_logits(
        self,
        activation: Float[Tensor, "rows d"],
        rows: Int[Tensor, "rows"] | None = None,
        *,
        tokens: Int[Tensor, "rows k"] | None = None,
        clamp: Clamp | None = None,
    ) -> Float[Tensor, "rows k"]:
        """Next-token logits of the base prompts with `activation` written at the site.

        Equal to a full forward pass with a hook, and differentiable in `activation`. Hooks of your
        own see only the tokens that are rerun; set them before `cache_pairs` and keep them.

        Args:
            activation: The new activations, one per row.
            rows: Which pairs (may repeat); all of them in order by default.
            tokens: Compute the logits of these tokens only, `k` per row; the whole vocabulary by
                default.
            clamp: Activations to hold fixed at sites above this one, at the same token: a row
                per row. With `record` this patches one path only, or cuts it.

        Raises:
            ValueError: an activation of the wrong shape or with NaN, a clamped site below, rows
                that are no numbers, or tokens that are not in the vocabulary.
            IndexError: a row that does not exist.
        """
        rows = self._rows(rows)
        clamp = dict(clamp or {})
        self.check(activation, rows, clamp)
        if tokens is not None:
            self._check_tokens(tokens, rows)
        pieces = []
        for group, part in self.parts(rows):
            columns = where = None
            if tokens is not None:
                columns, where = tokens.to(rows.device)[part].unique(return_inverse=True)
            writes = self._writes(activation, clamp, part)
            logits = group.rerun(self.row_of[rows[part]], writes, columns=columns)
            pieces.append(logits if where is None else logits.gather(-1, where))
        return self._in_order(pieces, rows)

    def record(
        self,
        activation: Float[Tensor, "pairs d"],
        names: Sequence[str],
        *,
        clamp: Clamp | None = None,
    ) -> dict[str, Float[Tensor, "pairs ..."]]:
        """What TransformerLens hooks see at the patched token while `activation` is written.

        Differentiable in `activation`. Attention patterns and scores have one column per token of
        the longest prompt, filled with zeros.

        Args:
            names: Hooks above the site, such as `blocks.9.attn.hook_pattern`.
            clamp: Activations to hold fixed at sites above this one, as in `patched_logits`.

        Raises:
            ValueError: an activation of the wrong shape or with NaN, or a hook below the site.
            KeyError: no such hook.
        """
        rows, clamp = self._rows(None), dict(clamp or {})
        if isinstance(names, str):
            raise ValueError(f"give a list of hooks, [{names!r}], not a name alone")
        names = list(dict.fromkeys(names))
        if unknown := [name for name in names if name not in self.groups[0].hook_points]:
            raise KeyError(f"the model has no hook {unknown[0]}: see model.hook_dict")
        if last_only := [name for name in names if "unembed" in name]:
            raise ValueError(f"{last_only} see the last token only: use patched_logits for logits")
        self.check(activation, rows, clamp)
        longest = max(group.tokens.shape[1] for group in self.groups)
        pieces: dict[str, list[Tensor]] = {name: [] for name in names}
        for group, part in self.parts(rows):
            seen, writes = dict.fromkeys(names), self._writes(activation, clamp, part)
            group.rerun(self.row_of[part], writes, columns=rows[:1], record=seen)
            for name in names:
                if seen[name] is None:
                    raise ValueError(f"{name} is not recomputed: choose hooks above {self.site}")
                pieces[name].append(group.at_patched_token(name, seen[name], longest))
        return {name: self._in_order(found, rows) for name, found in pieces.items()}

    def _writes(self, activation: Tensor, clamp: Clamp, part: Tensor) -> list[Write]:
        """What a forward pass of some of the rows has to write."""
        return [(site, x[part], ALL) for site, x in {self.site: activation, **clamp}.items()]

    def parts(self, rows: Tensor) -> list[tuple[Suffix, Tensor]]:
        """The rows that can share a forward pass, as places in `rows`, with their prompts."""
        return [
            (group, part)
            for index, group in enumerate(self.groups)
            for part in (self.group_of[rows] == index).nonzero()[:, 0].split(ROWS_PER_FORWARD)
            if len(part)
        ]

    def _in_order(self, pieces: list[Tensor], rows: Tensor) -> Tensor:
        """The results of the parts, put back in the order of the rows."""
        if len(pieces) == 1:
            return pieces[0]
        order = torch.cat([part for _, part in self.parts(rows)])
        return torch.cat(pieces)[order.argsort()]

    def logit_difference(
        self,
        activation: Float[Tensor, "rows d"],
        rows: Int[Tensor, "rows"] | None = None,
        *,
        clamp: Clamp | None = None,
    ) -> Float[Tensor, "rows"]:
        """Answer minus counterfactual logit under the patch, from those two columns only.

        Arguments and errors are those of `patched_logits`.
        """
        answers = torch.stack([self.pairs.answer, self.pairs.counterfactual], -1)
        tokens = answers.to(self.base.device)[self._rows(rows)]
        logits = self.patched_logits(activation, rows, tokens=tokens, clamp=clamp)
        return logits[:, 0] - logits[:, 1]

    @cached_property
    def clean_logit_difference(self) -> Float[Tensor, "pairs"]:
        """Answer minus counterfactual logit of the unpatched base prompts; computed once."""
        with torch.no_grad():
            return self.logit_difference(self.base)

    @cached_property
    def base_gradient(self) -> Float[Tensor, "pairs d"]:
        """How each logit difference changes with the base's activation, in nats; computed once."""
        return gradients(self, self.base)

    def later_units(self, activation: Float[Tensor, "pairs d"]) -> dict[Site, Tensor]:
        """Hidden activations of all MLPs above the site, at the patched token, under a patch."""
        layers = range(self.site.layer + 1, self.model.cfg.n_layers)
        sites = [Site(layer, "mlp_hidden", position=self.site.position) for layer in layers]
        seen = self.record(activation, [site.hook_name for site in sites])
        return {site: seen[site.hook_name] for site in sites}

    @torch.no_grad()
    def measure(
        self, activation: Float[Tensor, "pairs d"], *, clamp: Clamp | None = None
    ) -> Effect:
        """The effect of writing `activation` at the site of every pair, with intervals."""
        return Effect.of(self.clean_logit_difference, *self.outcome(activation, clamp=clamp))

    @torch.no_grad()
    def outcome(
        self, activation: Float[Tensor, "pairs d"], *, clamp: Clamp | None = None
    ) -> tuple[Float[Tensor, "pairs"], Bool[Tensor, "pairs"]]:
        """The logit difference of each pair under the patch, in nats, and whether it flipped.

        A pair flips if its top token over the whole vocabulary is the counterfactual answer.
        """
        logits = self.patched_logits(activation, clamp=clamp)
        counterfactual = self.pairs.counterfactual.to(logits.device)
        patched = logit_difference(logits, self.pairs.answer, counterfactual)
        return patched, logits.argmax(-1) == counterfactual

    def _rows(self, rows: Tensor | None) -> Int[Tensor, "rows"]:
        if rows is None:
            return torch.arange(len(self), device=self.base.device)
        rows = torch.as_tensor(rows, device=self.base.device)
        require.ids("rows", rows)
        if len(rows) and not (0 <= rows.min() and rows.max() < len(self)):
            raise IndexError(f"rows must lie between 0 and {len(self) - 1}")
        return rows

    def check(self, activation: Tensor, rows: Tensor, clamp: Clamp | None = None) -> None:
        """Refuse what cannot be written; errors as for `patched_logits`."""
        clamp = clamp or {}
        if len(rows) == 0:
            raise ValueError("no rows to patch")
        require.floats("the new activation", activation)
        expected = (len(rows), self.base.shape[1])
        if tuple(activation.shape) != expected:
            raise ValueError(
                f"the new activation has shape {tuple(activation.shape)}, but {self.site} of "
                f"these rows needs {expected}"
            )
        if not torch.isfinite(activation).all():
            raise ValueError("the new activation holds NaN or infinity")
        check_sites(self.model, clamp)
        for site, value in clamp.items():
            if site.layer <= self.site.layer or site.kind == "resid_mid":
                raise ValueError(f"{site} cannot be clamped: choose a site above {self.site}")
            if site.position not in (None, self.site.position):
                raise ValueError(f"{site} cannot be clamped at another token than the patched one")
            require.floats("a clamped activation", value)
            if value.ndim != 2 or len(value) != len(rows) or not torch.isfinite(value).all():
                raise ValueError(
                    f"clamping {site} needs finite activations [rows d] for {len(rows)} rows, got "
                    f"shape {tuple(value.shape)}"
                )

    def _check_tokens(self, tokens: Tensor, rows: Tensor) -> None:
        if not isinstance(tokens, Tensor) or tokens.ndim != 2 or len(tokens) != len(rows):
            raise ValueError(f"tokens must be a tensor [rows k] for {len(rows)} rows")
        require.ids("the tokens", tokens.flatten())
        check_vocabulary(self.model, tokens.flatten())


@torch.enable_grad()
def gradients(
    cached: CachedPairs, activation: Float[Tensor, "pairs d"]
) -> Float[Tensor, "pairs d"]:
    """How each logit difference changes with its activation where that is `activation`, in nats.

    One backward pass for every `ROWS_PER_FORWARD` pairs, so many of them need no more memory.

    Raises:
        ValueError: an activation of the wrong shape or with NaN.
    """
    found = []
    for rows in torch.arange(len(activation), device=activation.device).split(ROWS_PER_FORWARD):
        part = activation[rows].detach().clone().requires_grad_()
        total = cached.logit_difference(part, rows).sum()
        found.append(torch.autograd.grad(total, part)[0])
    return torch.cat(found)


def check_vocabulary(model: TransformerBridge, tokens: Int[Tensor, "n"]) -> None:
    """Raise ValueError if one of the tokens is none of the model's."""
    size = model.cfg.d_vocab
    if unknown := tokens[(tokens < 0) | (tokens >= size)].tolist():
        raise ValueError(
            f"there is no token {unknown[0]} in the vocabulary of {size}: were the pairs made for "
            "another model?"
        )
