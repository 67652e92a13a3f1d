"""What fine-tuning changed: what tuned models carry, where, and what it does in the untouched one.

    python -m tools.evidence.tracking            measure what is missing, then print the tables
    python -m tools.evidence.tracking --print    only print them

The rules of claims F2 to F7 stood in `data/claims.json` before the first run; F1 is about the
accuracies in `data/evidence/finetuning.json`. The adapters are those in `data/adapters/`.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from helpers.attribution import attribution
from helpers.circuits import (
    every_head,
    find_heads,
    head_means,
    head_sites,
    path_effects,
    random_heads,
    random_subset,
    specific_only,
    strongest,
)
from helpers.circuits.ablation import Head
from helpers.circuits.paths import with_entry
from helpers.models import Model, load_model
from helpers.output.files import ROOT
from helpers.patching import CachedPairs, Site, cache_sites, metrics
from helpers.tasks import Pairs, tracking
from tools.circuits import ablated_accuracy, at_token, head_inputs
from tools.evidence.store import Evidence, command
from tools.pages import markdown_table
from tools.transplant import clipped, shift_only, whole

SEEDS = (0, 1, 2)
TRAIN, TEST, PATHS = 48, 96, 24  # four-way pairs: to choose on, to judge on; to patch paths
PENALTIES = (0.01, 0.3)  # the paper's, and one that leaves few heads
WANTED = ("position", "object", "label")
RANDOM = 10
GROUP = 10  # heads of each of the four groups that path patching finds
STRONGEST = (20, 40, 80)  # heads of a circuit at all tokens, by RelP: not judged
FIRST = 12  # the lowest layer whose stream is transplanted
RULES = (
    f"Pairs: four-way, three boxes; {TRAIN} of the train nouns (seed 1) to choose on, {TEST} of "
    "the test nouns (seed 2) to judge on. Shares and accuracies: argmax over the vocabulary.",
    "Masks: 40 steps, 16 pairs each, all heads at the last token; a head below one half is chosen.",
    f"Beside each set: {RANDOM} random sets of as many heads of the whole model.",
    "Transplants: outputs of the tuned model (step 60) at the last token of the base prompt, "
    "written into the untouched model; means and ranges are over the test prompts. The shuffled "
    "twin's outputs at the same heads were added after the first run and are not judged.",
    "Layer of F2 and F7: where the tuned model's stream of the source, written into itself at the "
    "last token, makes most train pairs follow the position.",
    f"Circuit: by path patching in the model of step 20 ({PATHS} train pairs), {GROUP} heads with "
    "the largest effect on the answer's probability in each group: to the logits from the last "
    "token (value fetchers), to their queries (position transmitters), to the values of those at "
    "the query label (position detectors), to the values of those at the label's first mention "
    "(structure readers). All other heads, at all tokens, give the mean over both prompts of the "
    "test pairs.",
)


def adapter(name: str) -> str:
    """The folder of a shipped adapter."""
    return str(ROOT / "data" / "adapters" / name)


def at_label(pairs: Pairs, token: Literal["query", "mention"]) -> Pairs:
    """The pairs of `four_way`, patched at the label: in the query, or where it is first mentioned.
    In base and source each at its own place. A ValueError if the token is another.
    """
    if token not in ("query", "mention"):
        raise ValueError(f"the token must be 'query' or 'mention', not {token!r}")
    columns = (pairs.table[side + token].to_list() for side in ("", "source_"))
    position, source_position = map(torch.tensor, columns)
    return replace(pairs, position=position, source_position=source_position)


class Runs:
    """A model's runs of some pairs: every head at the last token, and a way to write there."""

    def __init__(self, model: Model, pairs: Pairs) -> None:
        self.model, self.pairs = model, pairs
        self.entry, *heads = with_entry(model, pairs, head_sites(every_head(model)))
        self.heads = dict(zip(every_head(model), heads, strict=True))

    def hits(self, values: Mapping[Head, Tensor]) -> dict[str, Tensor]:
        """Which pairs say what when these heads have these outputs."""
        clamp = {self.heads[head].site: value for head, value in values.items()}
        return self.pairs.hits(self.entry.patched_logits(self.entry.base, clamp=clamp))

    def sources(self, heads: Collection[Head]) -> dict[Head, Tensor]:
        return {head: self.heads[head].source for head in heads}


def share(hits: Tensor) -> list[float]:
    """The share of pairs, with its interval."""
    return list(metrics.mean(hits.float()))


def shares(hits: Mapping[str, Tensor]) -> dict:
    """The share of each way, and `said`: for each pair the number of its way, or a dash."""
    said = ["-"] * len(hits["own"])
    for number, way in enumerate(tracking.WAYS):
        for row in hits[way].nonzero()[:, 0].tolist():
            said[row] = str(number)
    means = {name: each.float().mean().item() for name, each in hits.items()}
    return {**means, "said": "".join(said)}


# ------------------------------------------------------------------------------- masks (F3)


def masks(model: Model, train: Pairs, runs: Runs) -> dict:
    """For each desideratum and penalty: the heads, what they carry, and what random ones do."""
    found = {}
    for penalty in PENALTIES:
        for want in WANTED:
            heads = find_heads(model, train.aiming_at(want), penalty=penalty, progress=False).chosen
            rest = (
                [random_heads(model, len(heads), seed=seed) for seed in range(RANDOM)]
                if heads
                else []
            )
            found[f"{want} {penalty}"] = {
                "heads": [list(head) for head in heads],
                "shares": shares(runs.hits(runs.sources(heads))),
                "random": [shares(runs.hits(runs.sources(other)))[want] for other in rest],
            }
    return found


# --------------------------------------------------------------------- transplants (F5, F6)


def transplants(
    base: Runs, tuned: Runs, heads: Collection[Head], others: Mapping[str, Runs]
) -> dict:
    """Accuracies of the untouched model with the tuned model's outputs, and every control."""

    def own(values: Mapping[Head, Tensor], into: Runs = base, choice: str = "own") -> dict:
        hits = into.hits(values)[choice]
        return {"share": share(hits), "right": "".join("01"[hit] for hit in hits.int().tolist())}

    def given(heads: Collection[Head], change: Callable = whole, donor: Runs = tuned) -> dict:
        return {h: change(base.heads[h].base, donor.heads[h].base) for h in heads}

    everything, layers = every_head(base.model), {layer for layer, _ in heads}
    near = [head for head in everything if head[0] in layers and head not in heads]
    k = len(heads)
    return {
        "whole": own(given(heads)),
        "random": [
            own(given(random_heads(base.model, k, seed=seed)))["share"] for seed in range(RANDOM)
        ],
        "same layers": own(given(random_subset(near, min(k, len(near)), seed=0))),
        "all others": own(given([head for head in everything if head not in heads])),
        "same place, other prompt": own(given(heads, donor=others["same place"])),
        "other place": own({h: tuned.heads[h].source for h in heads}, choice="position"),
        "shift only": own(given(heads, shift_only)),
        "specific only": own(given(heads, specific_only)),
        "clipped": own(given(heads, clipped)),
        "reverse": own({h: base.heads[h].base for h in heads}, into=tuned),
    }


def from_twin(base: Runs, twin: Runs, masks: Mapping[str, Mapping]) -> dict:
    """Accuracies of the untouched model with what the same heads of the shuffled twin say."""
    found = {}
    for name, mask in masks.items():
        heads = [(layer, head) for layer, head in mask["heads"]]
        if heads and not name.startswith("label"):
            found[name] = share(base.hits({h: twin.heads[h].base for h in heads})["own"])
    return found


def same_place(pairs: Pairs) -> Pairs:
    """The pairs with the base prompt of another pair that asks for the same place."""
    order = torch.arange(len(pairs))
    for place in pairs.table["i"].unique():
        rows = torch.tensor((pairs.table["i"] == place).to_list()).nonzero()[:, 0]
        order[rows] = rows.roll(1)
    return replace(pairs, base_tokens=tuple(pairs.base_tokens[row] for row in order))


# ------------------------------------------------------------------------ streams (F2, F7)


def streams(model: Model, donor: Model, pairs: Pairs, change: Callable | None = None) -> dict:
    """By layer, what the model says when the donor's stream of the source stands at the last token.

    With `change` only what changes between the donor's two prompts is added to the own stream.
    """
    sites = [Site(at, "resid_post") for at in range(FIRST, model.cfg.n_layers)]
    own, theirs = cache_sites(model, pairs, sites), cache_sites(donor, pairs, sites)
    found = {}
    for at, other in zip(own, theirs, strict=True):
        new = other.source if change is None else change(at, other)
        found[str(at.site.layer)] = shares(pairs.hits(at.patched_logits(new)))
        found[str(at.site.layer)]["distance"] = distance(at, new)
    return found


def added(own: CachedPairs, theirs: CachedPairs) -> Tensor:
    return own.base + (theirs.source - theirs.base)


def distance(own: CachedPairs, new: Tensor) -> float:
    """How far states are from the model's mean, over how far its own are, typically."""
    mean = own.base.mean(0)
    return ((new - mean).norm(dim=1).median() / (own.base - mean).norm(dim=1).median()).item()


# ----------------------------------------------------------------------------- circuit (F4)


def groups(model: Model, train: Pairs) -> dict[str, list[Head]]:
    """The heads that path patching finds, group by group, from the last to the first."""

    def top(pairs: Pairs, receivers: list[Site] | None) -> list[Head]:
        effects = path_effects(model, pairs, receivers, progress=False).relative
        return [every_head(model)[n] for n in effects.argsort()[:GROUP].tolist()]

    query, mention = (at_label(train, token) for token in ("query", "mention"))
    found = {"value fetchers": top(train, None)}
    found["position transmitters"] = top(
        train, head_inputs(model, found["value fetchers"], "query")
    )
    found["position detectors"] = top(
        query, head_inputs(model, found["position transmitters"], "value")
    )
    found["structure readers"] = top(
        mention, head_inputs(model, found["position detectors"], "value")
    )
    return found


def entries(found: Mapping[str, Collection[Head]], pairs: Pairs) -> list[tuple[int, int, int]]:
    """The heads of each group at the tokens where that group works."""
    tokens = {"structure readers": "mention", "position detectors": "query"}
    places = {name: sorted(set(pairs.table[of])) for name, of in tokens.items()}
    return [
        entry
        for name, heads in found.items()
        for token in places.get(name, [-1])
        for entry in at_token(heads, int(token))
    ]


def circuit(early: Model, late: Model, train: Pairs, test: Pairs) -> dict:
    """Accuracies of the circuit of `early`, in both models, beside random ones of that size."""
    found = groups(early, train[:PATHS])
    spots = entries(found, test)
    draws = [
        entries(
            {name: random_heads(late, GROUP, seed=10 * seed + n) for n, name in enumerate(found)},
            test,
        )
        for seed in range(RANDOM)
    ]
    rows = {"groups": {name: [list(head) for head in heads] for name, heads in found.items()}}
    for name, model in (("step 20", early), ("step 60", late)):
        means = head_means(model, test)

        def accuracy(heads: Collection, model: Model = model, means: Tensor = means) -> list[float]:
            return share(ablated_accuracy(model, test, heads, means))

        scores = attribution(early, train.aiming_at("object"), ["head_output"], method="relp")
        rows[name] = {
            "whole": accuracy(every_head(model)),
            "circuit": accuracy(spots),
            "random": [accuracy(draw) for draw in draws if model is late],
            "strongest": {str(k): accuracy(strongest(scores["head_output"], k)) for k in STRONGEST},
        }
    return rows


# ---------------------------------------------------------------------------------- the run


def layer_of(found: Mapping[str, Mapping[str, float]]) -> str:
    """The layer at which most pairs follow the position."""
    return max(found, key=lambda layer: found[layer]["position"])


def one_seed(evidence: Evidence, seed: int, base: Model, twin: Model) -> None:
    key = f"seed {seed}"
    tuned = load_model(device="cpu", adapter=adapter(f"tracking-seed{seed}-step60"))
    train = tracking.four_way(base, TRAIN, split="train", seed=1)
    test = tracking.four_way(base, TEST, split="test", seed=2)

    def once(name: str, measure: Callable[[], dict]) -> None:
        if evidence.missing(key, name):
            evidence.put(measure(), key, name)

    once("chosen on", lambda: streams(tuned, tuned, train))
    once("into itself", lambda: streams(tuned, tuned, test))
    once("into the untouched", lambda: streams(base, tuned, test))
    once("only the change", lambda: streams(base, tuned, test, added))
    once("untouched into itself", lambda: streams(base, base, test))
    once("twin into the untouched", lambda: streams(base, twin, test))
    runs = Runs(tuned, test)
    once("masks", lambda: masks(tuned, train, runs))
    own = Runs(base, test)
    others = {"same place": Runs(tuned, same_place(test))}
    for name, found in evidence[key]["masks"].items():
        heads = [(layer, head) for layer, head in found["heads"]]
        if heads and not name.startswith("label"):
            once(f"transplant {name}", lambda h=heads: transplants(own, runs, h, others))
    once("twin's heads", lambda: from_twin(own, Runs(twin, test), evidence[key]["masks"]))
    once("accuracy", lambda: {"untouched": shares(own.hits({})), "tuned": shares(runs.hits({}))})
    early = load_model(device="cpu", adapter=adapter(f"tracking-seed{seed}-step20"))
    once("circuit", lambda: circuit(early, tuned, train, test))


def run(evidence: Evidence) -> None:
    """Everything that is missing, seed by seed."""
    evidence.put(list(RULES), "rules")
    base = load_model(device="cpu")
    twin = load_model(device="cpu", adapter=adapter("tracking-shuffled-step60"))
    for seed in SEEDS:
        one_seed(evidence, seed, base, twin)


def show(evidence: Evidence) -> None:
    """The tables, as Markdown."""
    for seed in SEEDS:
        found = evidence.get(f"seed {seed}", {})
        if "masks" in found:
            rows = [
                [name, str(len(m["heads"])), *(f"{m['shares'][way]:.2f}" for way in tracking.WAYS),
                 " ".join(f"{x:.2f}" for x in sorted(m["random"]))]
                for name, m in found["masks"].items()
            ]  # fmt: skip
            header = ["mask", "heads", *tracking.WAYS, "target by random heads"]
            print(f"\n## seed {seed}\n\n" + markdown_table(header, rows))
        for name, each in found.items():
            if name.startswith("transplant"):
                print(f"\n{name}: {found.get('accuracy')}")
                for row, value in each.items():
                    listed = sorted(x[0] for x in value) if row == "random" else value["share"]
                    print(f"  {row}: {listed}")
            if name == "twin's heads":
                print(f"the shuffled twin's outputs at the same heads: {each}")
            if "into" in name or name in ("chosen on", "only the change"):
                top = layer_of(each)
                print(f"{name}: layer {top}: {each[top]}")
        if "circuit" in found:
            print({k: v for k, v in found["circuit"].items() if k != "groups"})


if __name__ == "__main__":
    command("tracking", __doc__, run, show)
