"""Where a patch acts: a layer and one of the activations computed there."""

import operator
from collections.abc import Container, Iterable
from dataclasses import asdict, dataclass

from jaxtyping import Int
from torch import Tensor

from helpers.models import Model, require

# TransformerLens hook where each kind is read. `mlp_hidden` is the input of the down projection:
# for a gated MLP that is act(gate) * up, not the output of the activation function.
HOOKS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_in": "mlp.hook_in",
    "mlp_out": "hook_mlp_out",
    "mlp_hidden": "mlp.hook_post",
    "head_output": "attn.hook_z",
    "head_query": "attn.hook_q",
}
# Not in lists of "all kinds of sites": they say something of circuits only. Keys and values are
# those of a key-value head, which query heads may share. Where positions are rotary, query and key
# are rotated by their places before they meet.
OF_CIRCUITS = {
    "head_key": "attn.hook_k",
    "head_value": "attn.hook_v",
    "head_rotated_query": "attn.hook_rot_q",
    "head_rotated_key": "attn.hook_rot_k",
}
SHARED = ("head_key", "head_value", "head_rotated_key")
# What a hook of that name holds only where there is this weight: elsewhere it is something else.
WEIGHTS = {
    "mlp_hidden": ("mlp.W_out", "its MLP is several experts, each with a hidden activation"),
    "head_output": ("attn.W_O", "what its heads write is no product of one matrix each"),
    "head_query": ("attn.W_Q", "its queries are not made head by head"),
    "head_key": ("attn.W_K", "its keys are not made head by head"),
    "head_value": ("attn.W_V", "its values are not made head by head"),
}
OF_ONE_HEAD = ("head_output", "head_query", *OF_CIRCUITS)


@dataclass(frozen=True)
class Site:
    """One activation of a model, at the position its pairs say (or at `position`).

    Attributes:
        layer: Block index, from 0.
        kind: One of `resid_pre`, `resid_mid`, `resid_post` (residual stream before, inside and
            after the block), `attn_out`, `mlp_out` (what the sublayer adds), `mlp_in` (what the MLP
            reads, behind its norm), `mlp_hidden` (input of the down projection, `[d_mlp]`),
            `head_output` or `head_query` (one head before the output projection, or its query
            before rotary positions, `[d_head]`), `head_key` or `head_value` (of a key-value head),
            `head_rotated_query` or `head_rotated_key` (the same behind rotary positions).
        head: For those of heads only.
        position: Overrides the pairs' own; negative counts from the end of each prompt.

    Raises ValueError: an unknown kind, a head where none belongs or none where one does, or a
    layer, head or position that is no whole number.
    """

    layer: int
    kind: str
    head: int | None = None
    position: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in list(HOOKS | OF_CIRCUITS):
            raise ValueError(f"unknown kind of site {self.kind!r}: choose one of {list(HOOKS)}")
        if (self.kind in OF_ONE_HEAD) != (self.head is not None):
            raise ValueError(f"give `head` for {OF_ONE_HEAD}, and for no other kind of site")
        require.whole("layer", self.layer)
        for name in ("head", "position"):
            if getattr(self, name) is not None:
                require.whole(name, getattr(self, name))

    @property
    def hook_name(self) -> str:
        """Name of the TransformerLens hook, for example `blocks.8.mlp.hook_post`."""
        return f"blocks.{self.layer}.{(HOOKS | OF_CIRCUITS)[self.kind]}"

    def as_dict(self) -> dict:
        """The site as plain values, to be stored and read back with `Site(**values)`."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        head = "" if self.head is None else f".{self.head}"
        return f"{self.kind}.{self.layer}{head}"


def check_sites(model: Model, sites: Iterable[Site]) -> None:
    """Raise ValueError unless all of these are sites of the model, and not their names."""
    hooks, n_layers, n_heads = model.hook_dict, model.cfg.n_layers, model.cfg.n_heads
    for site in sites:
        if not isinstance(site, Site):
            raise ValueError(f"a Site is needed, such as Site(21, 'mlp_hidden'), not {site!r}")
        if not 0 <= site.layer < n_layers:
            raise ValueError(f"layer {site.layer} is out of range: the model has {n_layers}")
        most = key_value_heads(model) if site.kind in SHARED else n_heads
        if site.head is not None and not 0 <= site.head < most:
            raise ValueError(f"head {site.head} is out of range: the model has {most} per layer")
        if reason := _lacking(model, site, hooks):
            raise ValueError(f"layer {site.layer} of this model has no {site.kind}: {reason}")


def key_value_heads(model: Model) -> int:
    """How many heads share out keys and values in a layer: fewer than query heads, or as many."""
    return getattr(model.cfg, "n_key_value_heads", None) or model.cfg.n_heads


def present(model: Model, sites: Iterable[Site]) -> list[Site]:
    """Those of the sites that the model has."""
    hooks = model.hook_dict
    return [site for site in sites if not _lacking(model, site, hooks)]


def _lacking(model: Model, site: Site, hooks: Container[str]) -> str:
    """Why a layer has no such activation; empty if it has."""
    needed = [site.hook_name, f"blocks.{site.layer}.hook_resid_pre"]
    if site.kind == "resid_mid":  # written by way of the attention output
        needed.append(f"blocks.{site.layer}.hook_attn_out")
    if missing := [name for name in needed if name not in hooks]:
        return f"there is no hook {missing[0]}"
    weight, without = WEIGHTS.get(site.kind, (None, ""))
    try:
        weight and operator.attrgetter(weight)(model.blocks[site.layer])
    except Exception:  # each sublayer has its own way to say that it has none
        return without
    return ""


def check_vocabulary(model: Model, tokens: Int[Tensor, "n"]) -> None:
    """Raise ValueError if one of the tokens is none of the model's."""
    require.ids("the tokens", tokens)
    size = model.cfg.d_vocab
    if unknown := tokens[(tokens < 0) | (tokens >= size)].tolist():
        there = f"there is no token {unknown[0]} in the vocabulary of {size}"
        raise ValueError(f"{there}: were they made for another model?")


def before_mlp(model: Model) -> str:
    """The kind of site whose stream the MLPs read. `resid_mid`; where attention and MLP work in
    parallel (GPT-NeoX), both read `resid_pre`.
    """
    return "resid_mid" if "blocks.0.hook_resid_mid" in model.hook_dict else "resid_pre"
