"""Rerun a prompt from one token and one block on: everything before them comes from a cache.

A patch at token `t` of layer `l` cannot change earlier tokens (attention is causal) nor lower
layers. So the keys and values of the tokens before `t` are computed once, the residual stream that
enters block `l` is stored once, and a patched run is: tokens `t, t+1, ...` through blocks
`l, l+1, ...`. The forward pass is the model's own, by `start_at_layer` and `past_key_values`.

Two shortcuts are taken where they change no logit of the model at hand: a patch of what an MLP adds
to the stream starts behind its block, and blocks without hooks run without TransformerLens.
"""

import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from helpers.models.load import Model, contiguous
from helpers.patching.sites import Site, check_sites
from helpers.patching.writes import Running

Stream: TypeAlias = Float[Tensor, "batch pos d_model"]
Rows: TypeAlias = Int[Tensor, "rows"]  # numbers of prompts or pairs, which may repeat
Columns: TypeAlias = Int[Tensor, "columns"]  # tokens whose logits are wanted
Hook: TypeAlias = tuple[str, Callable]
ALL = slice(None)
ADDED = ("mlp_out", "mlp_hidden")  # kinds that may do nothing but add to the stream
Write: TypeAlias = tuple[Site, Float[Tensor, "some d"] | Running, slice]  # in which of the rows


class Suffix:
    """Prompts of one length, ready to be rerun with new activations at one position of `sites`.

    With `from_start` whole prompts are rerun through all blocks: slower, and right for every
    architecture.
    """

    def __init__(
        self, model: Model, tokens: Int[Tensor, "prompts pos"], position: int,
        sites: Sequence[Site], *, batch_size: int, from_start: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.tokens, self.from_start = model, tokens, from_start
        self.hook_points = dict(model.hook_dict)  # TransformerLens builds it anew at each access
        self.start = 0 if from_start else position
        self.index = position - self.start  # of the patched token among those that are rerun
        self.first = torch.zeros(1, dtype=torch.long, device=tokens.device)  # of the rows
        self.tokens_rerun = tokens.shape[1] - self.start
        self.block_output = _block_output(model)
        self.shortcuts: set[str] = set()  # kinds of `ADDED`, and "plain" for blocks without hooks
        own = (GeneralizedComponent, HookPoint)  # what TransformerLens puts around a block's parts
        self.bridges = [[x for x in b.modules() if isinstance(x, own)] for b in model.blocks]
        self.activations: dict[Site, Tensor] = {}
        self.residuals: dict[int, Tensor] = {}
        self.prefix = self._prepare(sites, batch_size)
        if not from_start:
            self._take_shortcuts()

    @torch.no_grad()
    def _prepare(self, sites: Sequence[Site], batch_size: int) -> Cache | None:
        """Fills `activations` and `residuals` and returns the cache of the tokens before."""
        sites = sorted(sites, key=lambda site: site.layer)
        top = self.model.cfg.n_layers - 1
        entries = sorted({min(site.layer + above, top) for site in sites for above in (0, 1)})
        names = {site: site.hook_name for site in sites}
        names |= {entry: f"blocks.{entry}.hook_resid_pre" for entry in entries}
        caches, records = [], []
        for chunk in self.tokens.split(batch_size):
            cache, (before, rest) = None, chunk.tensor_split([self.start], dim=1)
            with only_columns(self.model, [0]):
                if self.start:
                    found = self.model(before, return_type="logits_and_cache", use_cache=True)
                    cache = _keys_and_values(found[1])
                with recording(self.model, set(names.values())) as record:
                    self.model(rest, past_key_values=_select(cache))
            caches.append(cache)
            records.append(record)
            for layer in cache.layers[: entries[0]] if cache is not None else ():
                if layer.is_initialized:  # never rerun: only the length of one prompt is read
                    layer.keys, layer.values = layer.keys[:1].clone(), layer.values[:1].clone()
        for key, name in names.items():
            if isinstance(key, Site):
                found = [at_site(record[name], key, self.index) for record in records]
                self.activations[key] = torch.cat(found)
            else:
                self.residuals[key] = torch.cat([record[name] for record in records])
        return _concatenate(caches, entries[0])

    def rerun(
        self, rows: Rows, writes: Sequence[Write], *, columns: Columns | None = None,
        record: dict[str, Tensor] | None = None, add: bool = False,
    ) -> Float[Tensor, "rows columns"]:  # fmt: skip
        """Logits at the last token of the prompts `rows` with new activations written at sites.

        Each write fills its slice of the rows, so a prompt that is given twice can be patched at
        two sites by one forward pass. What the hooks named in `record` then see is stored there.
        With `add` the writes are added, so that one site still feels another below it.
        """
        record = {} if record is None else record
        entry = 0 if self.from_start else min(self._entry(site, record) for site, *_ in writes)
        hooks = [self._write(write, rows, add) for write in writes if write[0].layer >= entry]
        hooks += _reads(record)  # hooks run in this order
        hooks.append(("unembed.hook_in", contiguous))
        with self._hooked(hooks), only_columns(self.model, columns):
            if self.from_start:
                return self.model(self.tokens[rows])[:, -1]
            stream = self._entering(entry, rows, writes, add)
            options = {"past_key_values": _select(self.prefix, rows, entry), "logits_to_keep": 1}
            with _computing(self._forwards(entry, stream)):
                logits = self.model(stream, start_at_layer=entry, **options)
            return logits.squeeze(1) if logits.shape[1] == 1 else logits[:, -1]  # not copied

    def _entry(self, site: Site, record: Iterable[str]) -> int:
        """The first block to be rerun: what leaves block `l` is what enters `l + 1`."""
        behind = site.kind == "resid_post"
        if site.kind in self.shortcuts:  # unless somebody looks into its block
            named = any(name.startswith(f"blocks.{site.layer}.") for name in record)
            behind = not (named or self._has_hooks(site.layer))
        return min(site.layer + behind, self.model.cfg.n_layers - 1)

    def _entering(self, entry: int, rows: Rows, writes: Sequence[Write], add: bool) -> Stream:
        """The stream that enters the first block, with what is written below it."""
        stream = self.residuals[entry][rows]
        for site, value, part in writes:
            if site.layer < entry:
                if changes := site.kind in ADDED and not add:
                    value = value - self.activations[site][rows[part]]
                if site.kind == "mlp_hidden":
                    value = value @ self.model.blocks[site.layer].mlp.W_out
                old = stream[part, self.index]
                stream[part, self.index] = old + value if add or changes else value
        return stream

    def _forwards(self, entry: int, stream: Stream) -> dict[torch.nn.Module, Callable]:
        """What blocks do instead: below the first nothing, and above it the same by themselves."""
        blocks = self.model.blocks
        found = dict.fromkeys(blocks[:entry], functools.partial(self.block_output, stream))
        if "plain" in self.shortcuts:
            alone = [at for at in range(entry, len(blocks)) if not self._has_hooks(at)]
            found |= {blocks[at]: self.plain[at] for at in alone}
        return found

    @functools.cached_property
    def plain(self) -> list[torch.nn.Module]:
        return [_unwrapped(block) for block in self.model.blocks]

    def _has_hooks(self, layer: int) -> bool:
        return any(part._forward_hooks or part._backward_hooks for part in self.bridges[layer])

    @torch.no_grad()
    def _take_shortcuts(self) -> None:
        """Those with which a prompt, patched with something else, keeps its logits."""
        lowest = {site.kind: site for site in reversed(self.activations) if site.kind in ADDED}
        for shortcut, site in {"plain": next(iter(self.activations)), **lowest}.items():
            writes = [(site, self.activations[site][:1].flip(-1), ALL)]
            expected, taken = self.rerun(self.first, writes), False
            self.shortcuts.add(shortcut)
            with suppress(Exception):  # whatever it stumbles over
                taken = _same(self.rerun(self.first, writes), expected)
            self.shortcuts -= set() if taken else {shortcut}

    @contextmanager
    def _hooked(self, hooks: Sequence[Hook]) -> Iterator[None]:
        """As `model.hooks`, which spends milliseconds on sorting out names at each call."""
        handles = []
        try:
            for name, hook in hooks:
                point = self.hook_points[name]
                handles.append((point, point.add_hook(hook)))
            yield
        finally:
            for point, handle in handles:
                handle.hook.remove()
                point.fwd_hooks.remove(handle)

    def _write(self, write: Write, rows: Rows, add: bool) -> Hook:
        """The hook that puts the activation in place of the site's vector, or adds it to that."""
        site, activation, part = write
        name = site.hook_name
        if site.kind == "resid_mid":
            # TransformerLens reads this point at the norm before the MLP, where writing would
            # change what the MLP reads but not the residual stream that passes it by.
            name = f"blocks.{site.layer}.hook_attn_out"
            if not add:
                activation = activation - self.residuals[site.layer][rows[part], self.index]

        def change(old: Tensor, hook: object) -> Tensor:
            new, head = old.clone(), () if site.head is None else (site.head,)
            where = (part, self.index, *head)
            given = activation.other if isinstance(activation, Running) else activation
            if given.shape[-1] != old.shape[-1]:
                raise ValueError(f"{site} has {old.shape[-1]} dimensions, not {given.shape[-1]}")
            value = activation.of(old[where]) if isinstance(activation, Running) else activation
            new[where] = old[where] + value if add else value
            return new

        return name, change

    def at_patched_token(
        self, name: str, activation: Float[Tensor, "rows ..."], longest: int
    ) -> Float[Tensor, "rows ..."]:
        """A recorded activation at the patched token; patterns padded to `longest` tokens."""
        if not name.endswith(("hook_pattern", "hook_attn_scores")):
            return activation.select(self.hook_points[name].pos_dim or 1, self.index)
        row = activation[..., self.index, :]
        before = self.tokens.shape[1] - row.shape[-1]  # keys that slid out of the window
        return torch.nn.functional.pad(row, (before, longest - before - row.shape[-1]))

    @torch.no_grad()
    def is_exact(self) -> bool:
        """Whether a prompt, rerun with its own activations at some sites, gives the same logits."""
        expected, ordered = self.model(self.tokens[:1])[:, -1], list(self.activations)
        tried = {ordered[0], ordered[-1], *{site.kind: site for site in ordered}.values()}
        own = {site: self.activations[site][:1] for site in ordered}
        writes = [(site, own[site], slice(row, row + 1)) for row, site in enumerate(tried)]
        columns, highest = expected[0].topk(5).indices, ordered[-1]
        found = self.rerun(self.first.repeat(len(tried)), writes)
        part = self.rerun(self.first, [(highest, own[highest], ALL)], columns=columns)
        return _same(found, expected) and _same(part, expected[:, columns])


def run_from(
    model: Model, residual: Stream, layer: int, **arguments: object
) -> Float[Tensor, "batch pos d_vocab"]:
    """The model's logits, given the residual stream that enters block `layer`.

    The bridge's `start_at_layer` by itself runs the blocks below as well; here they are skipped.
    Further arguments go to the model: `logits_to_keep=1` gives those of the last token only.
    """
    check_sites(model, [Site(layer, "resid_pre")])
    skipped = functools.partial(_block_output(model), residual)
    with _computing(dict.fromkeys(model.blocks[:layer], skipped)):
        return model(residual, start_at_layer=layer, **arguments)


def at_site(activation: Float[Tensor, "batch pos *d"], site: Site, index: int) -> Tensor:
    """The site's vector at one position of a hooked activation."""
    vector = activation[:, index]
    return vector if site.head is None else vector[:, site.head]


@contextmanager
def recording(model: Model, names: set[str]) -> Iterator[dict[str, Tensor]]:
    """Collects the named activations of the forward passes run inside, each, or a ValueError."""
    record = dict.fromkeys(names)
    with model.hooks(fwd_hooks=_reads(record)):
        yield record
    if silent := [name for name, seen in record.items() if seen is None]:
        raise ValueError(f"this architecture has a hook {silent[0]}, but never calls it")


def _reads(record: dict[str, Tensor]) -> list[Hook]:
    """Hooks that store what they see under their names."""

    def keep(activation: Tensor, hook: object, name: str) -> None:
        record[name] = activation

    return [(name, functools.partial(keep, name=name)) for name in record]


def only_columns(model: Model, columns: Columns | list[int] | None) -> AbstractContextManager:
    """Inside, the model computes the logits of the tokens `columns` only (None: of all)."""
    if columns is None:
        return nullcontext()
    unembed = model.unembed
    weight, bias = unembed.W_U[:, columns], unembed.b_U[columns]
    return _computing({unembed: lambda hidden, **_: unembed.hook_in(hidden) @ weight + bias})


@contextmanager
def _computing(forwards: Mapping[torch.nn.Module, Callable]) -> Iterator[None]:
    """Inside, modules do something else: set on instances, so the bridge sees no changed module."""
    for module, forward in forwards.items():
        module.__dict__["forward"] = forward
    try:
        yield
    finally:
        for module in forwards:
            del module.__dict__["forward"]


def _unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    """A module without the bridge around it and its parts. It shares its weights and hooks."""
    while isinstance(module, GeneralizedComponent):
        module = module.original_component
    bare = copy.copy(module)
    bare._modules = {name: part and _unwrapped(part) for name, part in module._modules.items()}
    return bare


def _same(found: Tensor, expected: Tensor) -> bool:
    tolerance = 1e-4 * expected.abs().max().clamp(min=1.0)
    return torch.allclose(found, expected.expand_as(found), rtol=0, atol=tolerance)


def _block_output(model: Model) -> Callable:
    """A stand-in for a block: the stream given, in the form that this architecture expects."""
    forms, token = [], torch.zeros(1, 1, dtype=torch.long, device=model.cfg.device)
    handle = model.blocks[0].register_forward_hook(lambda *args: forms.append(args[-1]))
    try:
        with torch.no_grad():
            model(token, stop_at_layer=1 if model.cfg.n_layers > 1 else None)
    finally:
        handle.remove()
    if isinstance(forms[0], tuple):  # some models unpack it, attention patterns and all
        rest = (None,) * (len(forms[0]) - 1)
        return lambda stream, *_, **__: (stream, *rest)
    return lambda stream, *_, **__: stream


def _keys_and_values(cache: object) -> Cache:
    """The cache, if it is keys and values of each prompt and nothing else; else a TypeError."""
    known = (DynamicLayer, DynamicSlidingWindowLayer)
    if not isinstance(cache, Cache) or any(type(layer) not in known for layer in cache.layers):
        raise TypeError("the model keeps something else of a prompt than keys and values")
    return cache


def _concatenate(caches: list[Cache | None], entry: int) -> Cache | None:
    """One cache of all prompts from the caches of the chunks."""
    if caches[0] is None or len(caches) == 1:
        return caches[0]
    joined = _select(caches[0])
    for index, layer in enumerate(joined.layers):
        if index >= entry and layer.is_initialized:
            layer.keys = torch.cat([cache.layers[index].keys for cache in caches])
            layer.values = torch.cat([cache.layers[index].values for cache in caches])
    return joined


def _select(cache: Cache | None, rows: Rows | None = None, entry: int = 0) -> Cache | None:
    """A copy of the cache that a forward pass may extend, with the given prompts only."""
    if cache is None:
        return None
    fresh = copy.copy(cache)
    fresh.layers = [copy.copy(layer) for layer in cache.layers]
    for index, layer in enumerate(fresh.layers if rows is not None else ()):
        if layer.is_initialized:  # below `entry` one prompt is left, which stands for all
            layer.keys, layer.values = (
                x[:1].expand(len(rows), -1, -1, -1) if index < entry else x[rows]
                for x in (layer.keys, layer.values)
            )
    return fresh
