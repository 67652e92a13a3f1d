"""Shortcuts on sparse features: which of them carry a noun's number, by gradients and by patches.

    python -m tools.evidence.sparse          measure what is missing, then print the tables
    python -m tools.evidence.sparse --print  only print them

The features are those of `tools.evidence.dictionary`. The rule of claim R7 stood in
`data/claims.json` before the first run on fresh templates and test nouns.
"""

import time

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.attribution import agreement as agree
from helpers.attribution import coefficients
from helpers.models import Model, load_model
from helpers.patching import cache_pairs, metrics
from helpers.patching.cached import CachedPairs, gradients
from helpers.tasks import agreement, passages
from helpers.tasks.pairs import Pairs, words_of_split
from helpers.tasks.tokens import encode
from tools.evidence import dictionary
from tools.evidence.dictionary import SITE, Weights, rebuilt, streams, values
from tools.evidence.store import Evidence, command
from tools.pages import markdown_table

FRESH = (
    "As far as I know, the {} behind the wall",
    "My friends told me that the {} she drew",
    "In this photograph the {} at the back",
    "Nobody said why the {} from abroad",
)
CHOSEN_ON, EACH, STEPS = 16, 6, 10  # train pairs; fresh pairs of a template; of "ig"
SIZES = (1, 2, 4, 8, 16, 32, 64)
METHODS = ("atp", "relp", "ig", "ig of embeddings")
DRAWS = 3
RULES = (
    f"Site: {SITE} of the noun. The stream there is features, the decoder's bias and an error; "
    "a patch exchanges some of these between base (one number) and source (the other).",
    "Score of a feature: coefficient times decoder row times its change; of the error the same. "
    f"ig: the mean of {STEPS} gradients at the site, from the base's vector to the source's.",
    f"Chosen by the mean score over {CHOSEN_ON} train pairs, by size; judged on {EACH} pairs of "
    f"test nouns for each of {len(FRESH)} fresh templates.",
    "Faithfulness of k features: they keep the base's value and everything else has the source's; "
    "the share of the logit difference, 0 for the source's vector, 1 for the base's. Without them: "
    "they have the source's value and everything else the base's.",
    f"Controls: as many features that are not always silent in train pairs, {DRAWS} draws.",
)
Split = tuple[Float[Tensor, "pairs features"], Float[Tensor, "pairs d"]]  # change, and the error's


def fresh_pairs(model: Model, each: int = EACH, seed: int = 1) -> Pairs:
    """Test nouns in fresh templates, singular and plural bases in turn."""
    rows = (agreement.FOLDER / "nouns.csv").read_text(encoding="utf-8").split()[1:]
    words = words_of_split(model, [tuple(row.split(",")) for row in rows], "nouns", "test")
    generator, sides = torch.Generator().manual_seed(seed), ([], [])
    for template in FRESH:
        for turn, place in enumerate(torch.randperm(len(words), generator=generator)[:each]):
            for side, prompts in enumerate(sides):
                prompts.append(template.format(words[int(place)][(turn + side) % 2]))
    answers = [["was", "were"][turn % 2] for turn in range(each)] * len(FRESH)
    others = [["were", "was"][turn % 2] for turn in range(each)] * len(FRESH)
    places = [
        int((encode(model, one) != encode(model, other)).nonzero()[0, 0])
        for one, other in zip(*sides, strict=True)
    ]
    return Pairs.from_prompts(model, *sides, answers, others, places)


def change(weights: Weights, cached: CachedPairs) -> Split:
    """What the source changes: every feature's value, and what no feature says."""
    features = values(weights, cached.source) - values(weights, cached.base)
    return features, cached.source - cached.base - features @ weights["W_dec"]


def slopes(model: Model, cached: CachedPairs, method: str) -> Float[Tensor, "pairs d"]:
    """The coefficients of the stream at the noun, in nats per unit."""
    if method != "ig":
        name = {"ig of embeddings": "ig"}.get(method, method)
        return coefficients(model, cached.pairs, [SITE], method=name)[0]
    ways = [(step + 0.5) / STEPS for step in range(STEPS)]
    each = [gradients(cached, cached.base.lerp(cached.source, way)) for way in ways]
    return torch.stack(each).mean(0)


def scores(weights: Weights, split: Split, slope: Tensor) -> Float[Tensor, "pairs nodes"]:
    """Of every feature and, last, of the error, in nats."""
    features, error = split
    return torch.cat([features * (slope @ weights["W_dec"].T), (slope * error).sum(1, True)], 1)


@torch.no_grad()
def exact(weights: Weights, cached: CachedPairs, split: Split) -> Float[Tensor, "pairs nodes"]:
    """The effect of each feature's own patch, and of the error's; 0 where nothing changes."""
    features, error = split
    found = torch.zeros(len(features), features.shape[1] + 1)
    rows, nodes = features.nonzero(as_tuple=True)
    new = cached.base[rows] + features[rows, nodes, None] * weights["W_dec"][nodes]
    found[rows, nodes] = cached.logit_difference(new, rows) - cached.clean_logit_difference[rows]
    found[:, -1] = cached.logit_difference(cached.base + error) - cached.clean_logit_difference
    return found


@torch.no_grad()
def curves(weights: Weights, cached: CachedPairs, split: Split, order: Tensor) -> Tensor:
    """Logit differences with only the first k features, and without them: `[2 sizes pairs]`."""
    found = []
    for sign, start in ((-1, cached.source), (1, cached.base)):
        for k in SIZES:
            part = split[0][:, order[:k]] @ weights["W_dec"][order[:k]]
            found.append(cached.logit_difference(start + sign * part))
    return torch.stack(found).unflatten(0, (2, len(SIZES)))


def shares(cached: CachedPairs, curve: Tensor, other: Tensor | None = None) -> list:
    """What a curve's points, and then their mean, keep of the logit difference, with intervals:
    0 for the source's vector, 1 for the base's. Or by how much that exceeds another curve's.
    """
    with torch.no_grad():
        ends = [cached.logit_difference(cached.source), cached.clean_logit_difference]
    other = ends[0].expand_as(curve) if other is None else other
    points = [*zip(curve, other, strict=True), (curve.mean(0), other.mean(0))]
    return [
        metrics.bootstrap(
            torch.stack([mine, theirs, *ends], -1),
            lambda m: (m[..., 0] - m[..., 1]) / (m[..., 3] - m[..., 2]),
        )
        for mine, theirs in points
    ]


def quality(model: Model, weights: Weights) -> dict:
    """Of passages no training has seen: what is explained, how sparsely, what is lost."""
    tokens = passages(model, dictionary.PASSAGES)[: dictionary.HELD_OUT]
    stream = streams(model, tokens)
    active = values(weights, stream)
    left = (stream - rebuilt(weights, active)).square().sum(1)
    whole = (stream - stream.mean(0)).square().sum(1)
    alive = (values(weights, dictionary.training_streams(model)) > 0).any(0)
    losses = {}
    for name in ("clean", "rebuilt", "mean"):

        def write(x: Tensor, hook: object, name: str = name) -> Tensor:
            rest = x[:, 1:]
            new = {
                "clean": rest, "rebuilt": rebuilt(weights, values(weights, rest)),
                "mean": stream.mean(0).expand_as(rest),
            }[name]  # fmt: skip
            return torch.cat([x[:, :1], new], 1)

        with torch.no_grad(), model.hooks(fwd_hooks=[(SITE.hook_name, write)]):
            logits = model(tokens[:12])[:, 1:-1]
        losses[name] = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), tokens[:12, 2:].flatten()
        ).item()
    return {
        "tokens": len(stream), "active features": (active > 0).sum(1).float().mean().item(),
        "explained": 1 - (left.sum() / whole.sum()).item(),  # a few huge tokens make most of it
        "explained, median token": 1 - (left / whole).median().item(),
        "never active in training": int((~alive).sum()), "features": len(alive),
        "loss": losses, "loss recovered":
            (losses["mean"] - losses["rebuilt"]) / (losses["mean"] - losses["clean"]),
    }  # fmt: skip


def judged(model: Model, weights: Weights) -> dict:
    """Scores on the pairs that choose, and everything about the pairs that judge."""
    chosen = cache_pairs(
        model, agreement.make_pairs(model, "number", CHOSEN_ON, split="train", seed=1), SITE
    )
    split = change(weights, chosen)
    orders = {"exact": exact(weights, chosen, split)}
    for method in METHODS:
        orders[method] = scores(weights, split, slopes(model, chosen, method))
    orders = {m: x[:, :-1].mean(0).abs().argsort(descending=True) for m, x in orders.items()}
    speaking = (split[0] != 0).any(0).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(0)
    for draw in range(DRAWS):
        mixed = torch.randperm(len(speaking), generator=generator)
        orders[f"random {draw}"] = speaking[mixed]
    cached = cache_pairs(model, fresh_pairs(model), SITE)
    split, seconds, each = change(weights, cached), {}, {}
    for method in ("exact", *METHODS):
        start = time.process_time()
        if method == "exact":
            each[method] = exact(weights, cached, split)
        else:
            each[method] = scores(weights, split, slopes(model, cached, method))
        seconds[method] = (time.process_time() - start) / len(cached)
    bent = {name: curves(weights, cached, split, order) for name, order in orders.items()}
    with torch.no_grad():
        everything = cached.logit_difference(cached.source - split[0] @ weights["W_dec"])
        again = cached.logit_difference(rebuilt(weights, values(weights, cached.base)))
    seen = (split[0] != 0).any(0).tolist() + [True]  # and the error
    maps = {m: x.mean(0)[seen] for m, x in each.items()}
    return {
        "pairs": len(cached), "sizes": list(SIZES), "candidates": int(speaking.numel()),
        "clean": metrics.mean(cached.clean_logit_difference),
        "changed features per pair": (split[0] != 0).sum(1).float().mean().item(),
        "seconds per pair": seconds, "first": {m: x[:8].tolist() for m, x in orders.items()},
        "nodes": [k for k, here in enumerate(seen) if here], "effects":
            {m: x.tolist() for m, x in maps.items()},
        "agreement": {m: agree(maps[m], maps["exact"]) for m in METHODS},
        "without the error": {m: agree(maps[m][:-1], maps["exact"][:-1]) for m in METHODS},
        "faithful": {m: shares(cached, x[0]) for m, x in bent.items()},
        "without": {m: shares(cached, x[1]) for m, x in bent.items()},
        "differences": {
            f"relp - {m}": shares(cached, bent["relp"][0], bent[m][0])
            for m in ("atp", "ig", "exact", "random 0", "random 1", "random 2")
        },
        "all features": shares(cached, everything[None])[0],
        "rebuilt base": shares(cached, again[None])[0],
    }  # fmt: skip


def run(evidence: Evidence) -> None:
    """What is missing."""
    evidence.put(list(RULES), "rules")
    evidence.put(list(FRESH), "templates")
    model, weights = load_model(device="cpu"), dictionary.load()
    for name, measure in (("fresh", judged), ("dictionary", quality)):
        if evidence.missing(name):
            evidence.put(measure(model, weights), name)


def show(evidence: Evidence) -> None:
    """The tables, as Markdown."""
    found = evidence["fresh"]
    print(evidence["dictionary"], "\n")
    for name in ("clean", "changed features per pair", "seconds per pair", "all features",
                 "rebuilt base", "first"):  # fmt: skip
        print(f"{name}: {found[name]}")
    for kind in ("faithful", "without", "differences"):
        rows = [[m, *(f"{metrics.Estimate(*x):.2f}" for x in at)] for m, at in found[kind].items()]
        print(f"\n## {kind}\n\n" + markdown_table([kind, *map(str, SIZES), "mean"], rows))
    for kind in ("agreement", "without the error"):
        rows = [[m, *(f"{x:.2f}" for x in at)] for m, at in found[kind].items()]
        print(f"\n## {kind}\n\n" + markdown_table(["method", "r", "without top", "slope"], rows))


if __name__ == "__main__":
    command("sparse", __doc__, run, show)
