"""How few dimensions of queries, keys and values tell which item of a list is missing.

    python -m tools.evidence.heads            measure what is missing, then print the tables
    python -m tools.evidence.heads --print    only print them

The rules of claims M1 to M5 stood in `data/claims.json` before the first run.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.models import Model, load_model
from helpers.patching import CachedPairs, Site, cache_sites, metrics
from helpers.patching.writes import Along
from helpers.tasks import Pairs, lists
from tools.evidence.store import Evidence, command
from tools.pages import markdown_table
from tools.query_trial import heads_of, trial
from tools.ranks import (
    BASES,
    attention,
    directions,
    margin,
    random_basis,
    shares_of_heads,
    sweep,
    sweep_at_tokens,
)

SEEDS, LEARN, JUDGE = (0, 1, 2), 90, 96  # prompts to learn directions on, to judge them on
PASSES = 48  # of those, judged by whole passes
FIRST = 18  # the lowest layer whose heads are compressed
RANKS = (0, 1, 2, 3, 8, 16, 64)
FEW = (0, 1, 3, 8, 16, 64)  # of keys and values, which need whole passes
IN_LIST = [f"{place}_position" for place in lists.PLACES]
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


# ------------------------------------------------------------------------------- queries


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

    once("queries", lambda: sweep(cached, means, bases, RANKS))
    once("first coordinate", lambda: coordinates(before, cached[1:], means, bases))
    once("interchange", lambda: interchange(cached, bases))
    once("trial", lambda: trial(cached, heads_of(model, learn, before), bases))
    once("loudest", lambda: loudest(model, learn, judge, cached))
    for wording in MUTATED:
        if evidence.missing(key, wording):
            draw = partial(lists.missing_one, model, JUDGE, split="fresh", wording=wording)
            own = [at.base.mean(0) for at in cached_queries(model, draw(seed=20 + seed))[1:]]
            evidence.put(
                sweep(cached_queries(model, draw(seed=10 + seed)), own, bases), key, wording
            )
    for name, hook in {"keys": "hook_rot_k", "values": "hook_v"}.items():
        once(
            name,
            lambda hook=hook: sweep_at_tokens(
                model, learn, judge[:PASSES], hook, range(FIRST, model.cfg.n_layers), IN_LIST, FEW
            ),
        )


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
        for name, tests in found.get("trial", {}).items():
            print(name, tests)
        print(parts.get("outside"), found.get("first coordinate"), found.get("loudest"))


if __name__ == "__main__":
    command("heads", __doc__, run, show)
