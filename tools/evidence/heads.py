"""How few dimensions of queries, keys and values tell which item of a list is missing.

    python -m tools.evidence.heads            measure what is missing, then print the tables
    python -m tools.evidence.heads --print    only print them

The rules of claims M1 to M5 stood in `data/claims.json` before the first run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.attribution import coefficients
from helpers.models import Model, load_model
from helpers.patching import CachedPairs, Site, cache_sites, metrics
from helpers.patching.sites import key_value_heads
from helpers.patching.writes import Along
from helpers.tasks import Pairs, lists
from tools.evidence.store import Evidence, command
from tools.pages import markdown_table

SEEDS, LEARN, JUDGE = (0, 1, 2), 90, 96  # prompts to learn directions on, to judge them on
PASSES = 48  # of those, judged by whole passes
FIRST = 18  # the lowest layer whose heads are compressed
RANKS = (0, 1, 2, 3, 8, 16, 64)
FEW = (0, 1, 3, 64)  # of keys and values, which need whole passes
BASES = 5  # random bases beside each
MUTATED = ("late", "slashes", "commas")
RULES = (
    f"Directions of {LEARN} prompts (train names), judged on {JUDGE} (fresh names), wording store; "
    "seeds draw both. Margin: the right name's logit less the mean of the two others', in nats.",
    f"Queries: behind rotary positions, at the last token, all heads from layer {FIRST} on; "
    "centred on the mean of the train prompts, directions by singular values of each head. Rank "
    "r: what comes by keeps its components along the first r directions, the rest is the mean.",
    "Mutated: the same directions, the mean of prompts of that form with fresh names, which are "
    "others than those that are judged.",
    f"Keys and values: of all key-value heads from layer {FIRST} on, at the three names in the "
    "list; one mean and one set of directions for the three places; the first "
    f"{PASSES} prompts are judged.",
    f"Random: {BASES} random bases of that rank, for every head its own; the mean of the margins.",
    "Variance explained is adjusted: 1 - (1 - R2) (n - 1) / (n - groups).",
)


def query_sites(model: Model) -> list[Site]:
    """The queries that are compressed."""
    heads = range(model.cfg.n_heads)
    return [
        Site(layer, "head_rotated_query", head=head)
        for layer in range(FIRST, model.cfg.n_layers)
        for head in heads
    ]


def cached_queries(model: Model, pairs: Pairs) -> list[CachedPairs]:
    """The pairs at the entry of the lowest block, and all queries."""
    return cache_sites(model, pairs, [Site(FIRST, "resid_pre"), *query_sites(model)])


def directions(x: Float[Tensor, "rows d"]) -> Float[Tensor, "d d"]:
    """A complete orthonormal basis, by falling variance around the mean."""
    return torch.linalg.svd(x - x.mean(0), full_matrices=True)[2].T


def random_basis(d: int, seed: int) -> Float[Tensor, "d d"]:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, d, generator=generator)).Q


def margin(pairs: Pairs, logits: Tensor) -> list[float]:
    return list(metrics.mean(lists.margin(pairs, logits)))


def accuracy(pairs: Pairs, logits: Tensor) -> float:
    """How often the right name is above the two others."""
    three = logits.gather(1, torch.stack(list(pairs.choices.values()), 1))
    return (three.argmax(1) == torch.tensor(pairs.table["place"].to_list())).float().mean().item()


# ------------------------------------------------------------------------------- queries


def by_rank(
    cached: Sequence[CachedPairs], means: Sequence[Tensor], bases: Sequence[Tensor], rank: int
) -> Tensor:
    """Logits when every query keeps `rank` directions, and has its mean in all others."""
    entry, *queries = cached
    clamp = {
        at.site: Along(mean.expand_as(at.base), basis[:, rank:])
        for at, mean, basis in zip(queries, means, bases, strict=True)
    }
    return entry.patched_logits(entry.base, clamp=clamp)


def sweep(
    cached: Sequence[CachedPairs], means: Sequence[Tensor], bases: Sequence[Tensor]
) -> dict[str, dict]:
    """Margin and accuracy by rank, for the learnt directions and for random ones."""
    entry, found = cached[0], {}
    clean = entry.patched_logits(entry.base)
    found["clean"] = {"margin": margin(entry.pairs, clean), "right": accuracy(entry.pairs, clean)}
    d = means[0].shape[-1]
    for rank in RANKS:
        logits = by_rank(cached, means, bases, rank)
        row = {"margin": margin(entry.pairs, logits), "right": accuracy(entry.pairs, logits)}
        if 0 < rank < d:
            row["random"] = []
            for seed in range(BASES):
                others = [random_basis(d, 1000 * seed + n) for n in range(len(bases))]
                row["random"].append(margin(entry.pairs, by_rank(cached, means, others, rank))[0])
        found[str(rank)] = row
    return found


def explained(x: Float[Tensor, "rows"], groups: Sequence[object]) -> float:
    """The share of variance that the groups explain, adjusted for their number."""
    labels = {group: n for n, group in enumerate(dict.fromkeys(groups))}
    at = torch.tensor([labels[group] for group in groups])
    means = torch.stack([x[at == n].mean() for n in range(len(labels))])[at]
    share = 1 - ((x - means) ** 2).sum() / ((x - x.mean()) ** 2).sum()
    n, g = len(x), len(labels)
    return (1 - (1 - share) * (n - 1) / (n - g)).item()


def coordinates(
    learn: Sequence[CachedPairs], judge: Sequence[CachedPairs], means: list, bases: list
) -> dict:
    """What the first coordinate tells, for the head where the place explains most of it."""
    first = [(at.base - m) @ b[:, 0] for at, m, b in zip(learn, means, bases, strict=True)]
    shares = [explained(x, learn[0].pairs.table["place"].tolist()) for x in first]
    best = max(range(len(shares)), key=shares.__getitem__)
    pairs = judge[0].pairs
    x = (judge[best].base - means[best]) @ bases[best][:, 0]
    table = pairs.table
    names = [row[lists.PLACES[row["place"]]] for row in table.to_dict("records")]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).tolist()
    places = table["place"].tolist()
    return {
        "head": [judge[best].site.layer, judge[best].site.head],
        "place": explained(x, places),
        "name": explained(x, names),
        "shuffled": explained(x, [places[n] for n in order]),
        "by place": [x[torch.tensor(places) == place].mean().item() for place in range(3)],
        "learn": shares[best],
    }


def interchange(cached: Sequence[CachedPairs], bases: Sequence[Tensor]) -> dict[str, dict]:
    """What the queries of the source do: whole, one direction, three, the rest, random ones."""
    entry, *queries = cached
    d = queries[0].base.shape[1]
    other = [random_basis(d, 7000 + n) for n in range(len(queries))]
    parts: dict[str, Callable[[int], Tensor]] = {
        "nothing": lambda n: bases[n][:, :0],
        "whole": lambda n: bases[n],
        "rank 1": lambda n: bases[n][:, :1],
        "rank 3": lambda n: bases[n][:, :3],
        "all but rank 1": lambda n: bases[n][:, 1:],
        "random rank 1": lambda n: other[n][:, :1],
        "random rank 3": lambda n: other[n][:, :3],
    }
    found = {}
    for name, part in parts.items():
        clamp = {at.site: Along(at.source, part(n)) for n, at in enumerate(queries)}
        tokens = torch.stack([entry.pairs.answer, entry.pairs.counterfactual], 1)
        logits = entry.patched_logits(entry.base, tokens=tokens, clamp=clamp)
        found[name] = {"margin": list(metrics.mean(logits[:, 0] - logits[:, 1]))}
    first = [(at.base @ b[:, 0], at.source @ b[:, 0]) for at, b in zip(queries, bases, strict=True)]
    outside = [((new < own.min()) | (new > own.max())).float().mean() for own, new in first]
    found["outside"] = 100 * torch.stack(outside).mean().item()
    return found


def removed(found: Mapping[str, Mapping], name: str) -> float:
    """The percentage of the margin between the two missing names that a patch removes."""
    clean = found["nothing"]["margin"][0]
    return 100 * (clean - found[name]["margin"][0]) / clean


# -------------------------------------------------------------- heads that write, one by one


def shares_of_heads(model: Model, pairs: Pairs) -> dict[tuple[int, int], float]:
    """Direct attribution of every head at the last token to the margin, in nats."""
    at_end = [
        coefficients(model, replace(pairs, counterfactual=other), [end(model)], method="norm")[0]
        for other in others(pairs)
    ]
    reads = sum(at_end) / 2  # with the last norm's scale as it is the margin is linear
    sites = [
        Site(layer, "head_output", head=head)
        for layer in range(model.cfg.n_layers)
        for head in range(model.cfg.n_heads)
    ]
    return {
        (at.site.layer, at.site.head): written(model, at).mul(reads).sum(1).mean().item()
        for at in cache_sites(model, pairs, sites)
    }


def end(model: Model) -> Site:
    return Site(model.cfg.n_layers - 1, "resid_post")


def written(model: Model, at: CachedPairs) -> Tensor:
    return at.base @ model.blocks[at.site.layer].attn.W_O[at.site.head]


def others(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """The two names of each list that are not missing."""
    three = torch.stack(list(pairs.choices.values()), 1)
    rest = three[three != pairs.answer[:, None]].view(-1, 2)
    return rest[:, 0], rest[:, 1]


def loudest(model: Model, learn: Pairs, judge: Pairs, cached: Sequence[CachedPairs]) -> dict:
    """The head that writes most, and what is left when its query is the mean."""
    heads = shares_of_heads(model, learn)
    top = max(heads, key=heads.__getitem__)
    entry, *queries = cached
    found = {"head": list(top), "attribution": shares_of_heads(model, judge)[top]}
    clean = entry.patched_logits(entry.base)
    found["clean"] = margin(judge, clean)
    for at in queries:
        if (at.site.layer, at.site.head) == top:
            mean = at.base.mean(0).expand_as(at.base)
            logits = entry.patched_logits(entry.base, clamp={at.site: mean})
            change = lists.margin(judge, logits) - lists.margin(judge, clean)
            found["mean query"] = list(metrics.mean(change))
            found["looks at"] = attention(model, judge, *top)
    ordered = sorted(heads, key=heads.__getitem__, reverse=True)
    found["next"] = [[*head, heads[head]] for head in ordered[:5]]
    return found


@torch.no_grad()
def attention(model: Model, pairs: Pairs, layer: int, head: int) -> dict[str, float]:
    """How much of its attention goes to the missing name, and to the two that come again."""
    name = f"blocks.{layer}.attn.hook_pattern"
    tokens = torch.stack(pairs.base_tokens)
    pattern = model.run_with_cache(tokens, names_filter=[name])[1][name][:, head, -1]
    right = (pattern * (tokens == pairs.answer[:, None])).sum(1).mean().item()
    again = sum(
        (pattern * (tokens == other[:, None])).sum(1).mean().item() for other in others(pairs)
    )
    return {"missing": right, "repeated": again}


# ----------------------------------------------------------------------- keys and values


@torch.no_grad()
def whole_passes(model: Model, pairs: Pairs, hooks: Sequence[tuple[str, Callable]]) -> Tensor:
    """The last token's logits of whole passes with these hooks."""
    tokens = torch.stack(pairs.base_tokens)
    with model.hooks(fwd_hooks=list(hooks)):
        parts = [model(part, logits_to_keep=1)[:, -1] for part in tokens.split(32)]
    return torch.cat(parts)


@torch.no_grad()
def in_list(model: Model, pairs: Pairs, name: str) -> dict[int, Float[Tensor, "names heads d"]]:
    """What a hook sees at the three names, by layer."""
    names = [f"blocks.{layer}.attn.{name}" for layer in range(FIRST, model.cfg.n_layers)]
    seen = model.run_with_cache(torch.stack(pairs.base_tokens), names_filter=names)[1]
    places = places_of(pairs)
    return {n + FIRST: seen[hook][:, places].flatten(0, 1) for n, hook in enumerate(names)}


def places_of(pairs: Pairs) -> list[int]:
    """The three positions, which are the same in all prompts of a wording."""
    return [int(pairs.table[f"{place}_position"].iloc[0]) for place in lists.PLACES]


def sweep_in_list(model: Model, learn: Pairs, judge: Pairs, name: str) -> dict[str, dict]:
    """As `sweep`, for keys or values of the three names."""
    seen = in_list(model, learn, name)
    heads = range(key_value_heads(model))
    bases = {at: torch.stack([directions(x[:, h]) for h in heads]) for at, x in seen.items()}
    means, places = {at: x.mean(0) for at, x in seen.items()}, places_of(judge)

    def logits(basis: Mapping[int, Tensor], rank: int) -> Tensor:
        def compress(value: Tensor, hook: object, at: int) -> Tensor:
            new, own = value.clone(), value[:, places] - means[at]
            part = torch.einsum("bphd,hdk->bphk", own, basis[at][..., :rank])
            new[:, places] = means[at] + torch.einsum("bphk,hdk->bphd", part, basis[at][..., :rank])
            return new

        return whole_passes(
            model, judge, [(f"blocks.{at}.attn.{name}", partial(compress, at=at)) for at in seen]
        )

    d, found = next(iter(means.values())).shape[-1], {}
    for rank in FEW:
        kept_at = logits(bases, rank)
        found[str(rank)] = {"margin": margin(judge, kept_at), "right": accuracy(judge, kept_at)}
        if 0 < rank < d:
            found[str(rank)]["random"] = []
            for seed in range(BASES):
                mixed = {
                    at: torch.stack([random_basis(d, 9000 * seed + 10 * at + h) for h in heads])
                    for at in seen
                }
                found[str(rank)]["random"].append(margin(judge, logits(mixed, rank))[0])
    return found


# ------------------------------------------------------------------------------- the run


def one_seed(evidence: Evidence, model: Model, seed: int) -> None:
    """Everything of one seed that is missing."""
    key = f"seed {seed}"
    learn = lists.missing_one(model, LEARN, split="train", seed=seed)
    judge = lists.missing_one(model, JUDGE, split="fresh", seed=10 + seed)
    before, cached = cached_queries(model, learn)[1:], cached_queries(model, judge)
    means = [at.base.mean(0) for at in before]
    bases = [directions(at.base) for at in before]

    def once(name: str, measure: Callable[[], dict]) -> None:
        if evidence.missing(key, name):
            evidence.put(measure(), key, name)

    once("queries", lambda: sweep(cached, means, bases))
    once("first coordinate", lambda: coordinates(before, cached[1:], means, bases))
    once("interchange", lambda: interchange(cached, bases))
    once("loudest", lambda: loudest(model, learn, judge, cached))
    for wording in MUTATED:
        if evidence.missing(key, wording):
            draw = partial(lists.missing_one, model, JUDGE, split="fresh", wording=wording)
            own = [at.base.mean(0) for at in cached_queries(model, draw(seed=20 + seed))[1:]]
            evidence.put(
                sweep(cached_queries(model, draw(seed=10 + seed)), own, bases), key, wording
            )
    for name, hook in {"keys": "hook_rot_k", "values": "hook_v"}.items():
        once(name, lambda hook=hook: sweep_in_list(model, learn, judge[:PASSES], hook))


def run(evidence: Evidence) -> None:
    """Everything that is missing."""
    evidence.put(list(RULES), "rules")
    model = load_model(device="cpu")
    for seed in SEEDS:
        one_seed(evidence, model, seed)


def show(evidence: Evidence) -> None:
    """The tables, as Markdown."""
    for seed in SEEDS:
        found = evidence.get(f"seed {seed}", {})
        for name in ("queries", *MUTATED, "keys", "values"):
            rows = [
                [rank, f"{of['right']:.2f}", f"{of['margin'][0]:.2f}",
                 " ".join(f"{x:.2f}" for x in of.get("random", ()))]
                for rank, of in found.get(name, {}).items()
            ]  # fmt: skip
            header = ["rank", "right", "margin", "random"]
            print(f"\n## seed {seed}, {name}\n\n" + markdown_table(header, rows))
        parts = found.get("interchange", {})
        print({name: f"{removed(parts, name):.0f} %" for name in parts if name != "outside"})
        print(parts.get("outside"), found.get("first coordinate"), found.get("loudest"))


if __name__ == "__main__":
    command("heads", __doc__, run, show)
