"""Transcoders of two MLPs of the packaged model: does the later one answer for what it reads?

    python -m tools.evidence.skipping           measure what is missing, then print the tables
    python -m tools.evidence.skipping --print   only print them

First the hops: which MLP tells a later one, at the noun, what the verb's number depends on. Then
small transcoders of both ends, trained on sentences about the train nouns; the first seed is
shipped in `data/sparse/` (2.7 megabytes). About half an hour on one core; activations and weights
are kept in the results folder. The rule of claim T4 stood in `data/claims.json` before the run.
"""

import itertools
from functools import cache

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from helpers.circuits.transcoders import Transcoders, train_transcoders
from helpers.claims import report
from helpers.claims.report import every_claim, judge
from helpers.models import Model, load_model
from helpers.output import files
from helpers.patching import Site, cache_sites, metrics, recording
from helpers.patching.suffix import only_columns
from helpers.tasks import agreement
from helpers.tasks.pairs import Pairs, words_of_split
from helpers.tasks.tokens import encode
from tools.evidence import dictionary
from tools.evidence.sparse import FRESH
from tools.evidence.store import Evidence, command
from tools.pages import markdown_table

HOP, OTHER = (0, 2), (6, 7)  # the strongest of the search, and one between neighbours
FEATURES, PENALTY, STEPS, RATE, BATCH, SEEDS = 256, 0.05, 800, 2e-3, 384, 3
TRAINED, HELD_OUT, HUGE = 2400, 600, 3  # sentences; times the median norm of an output
CODERS = {
    "PLT": {"across": False},
    "CLT": {"across": True},
    "CLT, exchanged": {"across": True},  # trained on exchanged streams, too
    "CLT, no penalty": {"across": True, "penalty": 0.0},
    "PLT, longer": {"across": False, "steps": 4 * STEPS},  # one seed, added after the rule
    "CLT, longer": {"across": True, "steps": 4 * STEPS},
}
SEARCHED, JUDGED = 24, 96  # pairs
RULES = (
    "Search: the earlier MLP says at the noun what it says in the source (the other number), to "
    "the later MLP alone; all else is the base's. Effect on the logit difference of was and were.",
    f"Trained on {TRAINED} sentences about the train nouns, all tokens but the first and those "
    f"whose output is {HUGE} times as long as the median; {HELD_OUT} others are held out.",
    f"{FEATURES} features a layer, penalty {PENALTY} in units of the outputs' spread, {STEPS} "
    f"steps of {BATCH} tokens (longer: four times as many, one seed, not judged). Exchanged: as "
    "many rows again, whose later stream is another token's, with what the MLP says to that one.",
    f"Judged: {JUDGED} pairs of train nouns in prompts that no training saw; {JUDGED} of test "
    "nouns beside them. Share: least squares through 0 of what the coder changes on what the later "
    "MLP changes, over all pairs and dimensions.",
    "Whole: both streams are the source's. Stream: only the one that the later MLP reads. Hop: "
    "only the earlier MLP's part of it. Mean: that part is its mean. Random: as long as in hop.",
    "Tokens, not judged: whole and stream between unrelated tokens of the held-out sentences.",
)
Streams = dict[str, Tensor]  # by hook


def names(hop: tuple[int, int]) -> list[str]:
    """Hooks of what the two MLPs read and write, and of the stream before the later one."""
    kinds = [Site(layer, kind).hook_name for kind in ("mlp_in", "mlp_out") for layer in hop]
    return [*kinds, Site(hop[1], "resid_mid").hook_name]


@torch.no_grad()
def collected(model: Model, texts: list[str]) -> Streams:
    """Of every token but the first of each text; texts of a length together."""
    hooks = [*names(HOP), *names(OTHER)]
    found = {name: [] for name in hooks}
    rows = sorted((encode(model, text) for text in texts), key=len)
    for _, group in itertools.groupby(rows, key=len):
        for tokens in torch.stack(list(group)).split(64):
            with recording(model, set(hooks)) as seen, only_columns(model, [0]):
                model(tokens, stop_at_layer=OTHER[1] + 1)
            for name in hooks:
                found[name].append(seen[name][:, 1:].flatten(0, 1))
    return {name: torch.cat(parts) for name, parts in found.items()}


@cache
def data(model: Model) -> tuple[Streams, Streams]:
    """The tokens that train, and those held out; kept in the results folder."""
    texts = list(dict.fromkeys(dictionary.sentences(model, TRAINED + HELD_OUT)))
    parts = {"train": texts[:TRAINED], "held": texts[TRAINED:]}
    for part, some in parts.items():
        path = report.results_folder() / f"transcoders-{part}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(collected(model, some), path)
    return tuple(
        load_file(report.results_folder() / f"transcoders-{part}.safetensors") for part in parts
    )


def ends(found: Streams, hop: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What both MLPs read and write, `[2 tokens d]`, without tokens that are far too long."""
    both = (
        torch.stack([found[n] for n in names(hop)[:2]]),
        torch.stack([found[n] for n in names(hop)[2:4]]),
    )
    norms = both[1].norm(dim=2)
    fine = (norms < HUGE * norms.median(1, keepdim=True).values).all(0)
    return both[0][:, fine], both[1][:, fine]


def trained(model: Model, hop: tuple[int, int], name: str, seeds: int) -> Transcoders:
    """Transcoders in the model's own units; kept in the results folder."""
    path = report.results_folder() / f"transcoders-{hop[0]}-{hop[1]}-{name}.safetensors"
    if not path.exists():
        streams, outputs = ends(data(model)[0], hop)
        middle = [x.mean(1, keepdim=True) for x in (streams, outputs)]
        spread = [
            (x - m).square().sum(2).mean(1).sqrt()[:, None, None]
            for x, m in zip((streams, outputs), middle, strict=True)
        ]
        read, write = (streams - middle[0]) / spread[0], (outputs - middle[1]) / spread[1]
        if name == "CLT, exchanged":
            other = torch.randperm(read.shape[1], generator=torch.Generator().manual_seed(0))
            read = torch.cat([read, torch.stack([read[0], read[1, other]])], 1)
            write = torch.cat([write, torch.stack([write[0], write[1, other]])], 1)
        options = {"penalty": PENALTY, "steps": STEPS} | CODERS[name]
        found = train_transcoders(
            read, write, features=FEATURES, seeds=seeds, rate=RATE, batch=BATCH, **options
        )
        enc = found.enc / spread[0]
        bias = found.bias - torch.einsum("ld,sldf->slf", middle[0][:, 0], enc)
        dec, rest = found.dec * spread[1][None, None], found.rest * spread[1][:, 0]
        save_file(
            {"enc": enc, "bias": bias, "dec": dec.contiguous(), "rest": rest + middle[1][:, 0]},
            path,
        )
    return Transcoders(**load_file(path))


def shipped_file(name: str) -> str:
    """Where the first seed of this kind is kept."""
    return str(files.ROOT / "data" / "sparse" / f"smollm2-135m-{name.lower()}.safetensors")


def ship(coders: Transcoders, name: str) -> None:
    """The first seed as float16; the parts of `dec` that are zero are left out."""
    enc, bias, dec, rest = (x[0].half() for x in coders)
    writes = {f"dec_{k}_{t}": dec[k, t].contiguous() for k in range(2) for t in range(k, 2)}
    kept = {key: x for key, x in writes.items() if x.any()}
    save_file({"enc": enc, "bias": bias, "rest": rest} | kept, shipped_file(name))


# ------------------------------------------------------------------------------------- measures


def fresh_pairs(model: Model, split: str, n: int = JUDGED) -> Pairs:
    """Nouns of a split in prompts that neither the sentences nor the search hold."""
    rows = (agreement.FOLDER / "nouns.csv").read_text(encoding="utf-8").split()[1:]
    words = words_of_split(model, [tuple(row.split(",")) for row in rows], "nouns", split)
    contents = list(itertools.product(FRESH, words, (0, 1)))
    order = torch.randperm(len(contents), generator=torch.Generator().manual_seed(2))[:n]
    drawn = [contents[place] for place in order.tolist()]
    sides = [[t.format(w[(turn + side) % 2]) for t, w, turn in drawn] for side in (0, 1)]
    verbs = [[("was", "were")[(turn + side) % 2] for *_, turn in drawn] for side in (0, 1)]
    places = [
        int((encode(model, one) != encode(model, other)).nonzero()[0, 0])
        for one, other in zip(*sides, strict=True)
    ]
    return Pairs.from_prompts(model, *sides, *verbs, places)


class Exchange:
    """A hop on pairs: what each intervention lets the later MLP read, and what it then writes."""

    def __init__(self, model: Model, pairs: Pairs, hop: tuple[int, int], mean: Tensor) -> None:
        first, later = hop
        kinds = [(first, "mlp_in"), (later, "mlp_in"), (first, "mlp_out"), (later, "mlp_out")]
        sites = [Site(*kind) for kind in [*kinds, (later, "resid_mid")]]
        one, two, wrote, self.cached, stream = cache_sites(model, pairs, sites)
        self.block, change = model.blocks[later], wrote.source - wrote.base
        noise = torch.randn(change.shape, generator=torch.Generator().manual_seed(0))
        noise = noise * change.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
        moved = {"hop": change, "mean": mean - wrote.base, "random": noise}
        read = {name: self.normed(stream.base + by) for name, by in moved.items()}
        self.base = torch.stack([one.base, two.base])
        self.read = {
            "whole": torch.stack([one.source, two.source]),
            "stream": torch.stack([one.base, two.source]),
        } | {name: torch.stack([one.base, x]) for name, x in read.items()}
        clean = self.written(two.base)
        self.true = {name: self.written(x[1]) - clean for name, x in self.read.items()}

    @torch.no_grad()
    def normed(self, stream: Float[Tensor, "pairs d"]) -> Float[Tensor, "pairs d"]:
        return self.block.ln2(stream[:, None])[:, 0]

    @torch.no_grad()
    def written(self, read: Float[Tensor, "pairs d"]) -> Float[Tensor, "pairs d"]:
        return self.block.mlp(read[:, None])[:, 0]

    def found(self, coders: Transcoders) -> dict[str, Float[Tensor, "seeds pairs d"]]:
        """What the coders change in place of the later MLP."""
        clean = coders.outputs(self.base)[:, 1]
        return {name: coders.outputs(x)[:, 1] - clean for name, x in self.read.items()}

    def shares(self, coders: Transcoders) -> dict:
        """By intervention: share with its interval over pairs, of each seed, and what is explained;
        then whole less stream, and what each does to the logit difference, in nats."""
        rows, products = {}, {}
        for name, x in self.found(coders).items():
            true = self.true[name]
            products[name] = (x * true).sum(2)
            total = true.square().sum(1)
            both = torch.stack([products[name].mean(0), total], 1)
            each = products[name].sum(1) / total.sum()
            left = (x - true).square().sum((1, 2)).mean() / total.sum()
            effect = [self.effect(true), *(self.effect(of) for of in x[:1])]
            rows[name] = {
                "share": list(metrics.bootstrap(both, lambda m: m[..., 0] / m[..., 1])),
                "seeds": each.tolist(), "explained": 1 - left.item(),
                "nats": [list(of) for of in effect],
            }  # fmt: skip
        total = self.true["whole"].square().sum(1)
        parts = [products[name].mean(0) for name in ("whole", "stream")] + [total]
        rows["skipped"] = list(
            metrics.bootstrap(torch.stack(parts, 1), lambda m: (m[..., 0] - m[..., 1]) / m[..., 2])
        )
        return rows

    @torch.no_grad()
    def effect(self, change: Float[Tensor, "pairs d"]) -> metrics.Estimate:
        """On the logit difference, if the later MLP's output changes by this."""
        new = self.cached.logit_difference(self.cached.base + change)
        return metrics.mean(new - self.cached.clean_logit_difference)


def quality(coders: Transcoders, streams: Tensor, outputs: Tensor) -> dict[str, list]:
    """On held-out sentences, of both layers: unexplained, active features; means over seeds."""
    values = coders.values(streams)
    spread = (outputs - outputs.mean(1, keepdim=True)).square().sum(2).mean(1)
    left = (coders.write(values) - outputs).square().sum(3).mean(2) / spread
    norms = (coders.dec.square().sum(4) / spread[:, None]).sum(2).sqrt()  # in units of the spread
    sizes = values * norms[:, :, None]
    return {
        "unexplained": left.mean(0).tolist(),
        "L0": (sizes > 0.01).float().sum(3).mean((0, 2)).tolist(),
        "L1": sizes.sum((1, 3)).mean(1).tolist(),
        "alive": (sizes.amax(2) > 0.01).float().sum(2).mean(0).tolist(),
    }


def other_tokens(coders: Transcoders, streams: Tensor, outputs: Tensor) -> dict[str, list]:
    """The same exchanges between unrelated tokens of held-out sentences: shares with intervals."""
    other = torch.randperm(streams.shape[1], generator=torch.Generator().manual_seed(1))
    clean, true = coders.outputs(streams)[:, 1], outputs[1, other] - outputs[1]
    read = {"whole": streams[:, other], "stream": torch.stack([streams[0], streams[1, other]])}
    parts = [((coders.outputs(x)[:, 1] - clean) * true).sum(2).mean(0) for x in read.values()]
    both = torch.stack([*parts, true.square().sum(1)], 1)
    ways = {"whole": (1, 0), "stream": (0, 1), "skipped": (1, -1)}
    return {
        name: list(metrics.bootstrap(both, lambda m, w=w: (m[..., :2] @ weights(w)) / m[..., 2]))
        for name, w in ways.items()
    }


def weights(ways: tuple[int, int]) -> Tensor:
    return torch.tensor(ways, dtype=torch.float64)


@torch.no_grad()
def hops(model: Model) -> dict[str, list[float]]:
    """From every MLP to every later one: mean effect and its interval, in nats."""
    pairs = agreement.make_pairs(model, "number", SEARCHED, split="train", seed=1)
    layers = range(model.cfg.n_layers)
    kinds = [Site(n, kind) for n in layers for kind in ("mlp_out", "resid_mid")]
    cached, found = dict(zip(kinds, cache_sites(model, pairs, kinds), strict=True)), {}
    wrote = [cached[Site(n, "mlp_out")] for n in layers]
    for later in layers[1:]:
        block, stream = model.blocks[later], cached[Site(later, "resid_mid")].base
        new = torch.cat([stream + wrote[n].source - wrote[n].base for n in range(later)])
        said = block.mlp(block.ln2(new[:, None]))[:, 0]
        rows = torch.arange(len(pairs)).repeat(later)
        effects = wrote[later].logit_difference(said, rows).view(later, -1)
        for n, effect in enumerate(effects - wrote[later].clean_logit_difference):
            found[f"{n} {later}"] = list(metrics.mean(effect))
    return found


# ------------------------------------------------------------------------------ run and tables


def measured(evidence: dict) -> dict[str, dict[str, float]]:
    """What the rule of T4 asks for."""
    found = evidence["0 2"]
    shares = [found[kind]["train"]["whole"]["share"][0] for kind in ("PLT", "CLT")]
    value, low, high = found["CLT"]["train"]["skipped"]
    apart = abs(shares[0] - shares[1])
    return {"T4": {"value": value, "low": low, "high": high, "apart": apart}}


def run(evidence: Evidence) -> None:
    """Everything that is missing."""
    evidence.put(list(RULES), "rules")
    model = load_model(device="cpu")
    kinds = {HOP: CODERS, OTHER: ["PLT", "CLT"]}
    for hop, name in [(at, name) for at, some in kinds.items() for name in some]:
        key = f"{hop[0]} {hop[1]}"
        seeds = 1 if hop == OTHER or name.endswith("longer") else SEEDS
        if evidence.missing(key, name):
            coders = trained(model, hop, name, seeds)
            if hop == HOP and name in ("PLT", "CLT"):
                ship(coders, name)
            mean = data(model)[0][names(hop)[2]].mean(0)
            rows = {"quality": quality(coders, *ends(data(model)[1], hop))}
            for split in ("train", "test"):
                rows[split] = Exchange(model, fresh_pairs(model, split), hop, mean).shares(coders)
            evidence.put(rows, key, name)
        if evidence.missing(key, name, "tokens"):  # not judged
            coders = trained(model, hop, name, seeds)
            evidence.put(other_tokens(coders, *ends(data(model)[1], hop)), key, name, "tokens")
    if evidence.missing("hops"):
        evidence.put(hops(model), "hops")


def show(evidence: Evidence) -> None:
    """The tables as Markdown, and the verdict."""
    for key in ("0 2", "6 7"):
        for split in ("train", "test"):
            rows = []
            for name, found in evidence.get(key, {}).items():
                shares = {n: x for n, x in found[split].items() if n != "skipped"}
                row = [f"{metrics.Estimate(*x['share']):.2f}" for x in shares.values()]
                rows.append([name, *row, f"{metrics.Estimate(*found[split]['skipped']):.2f}"])
            kinds = ["whole", "stream", "hop", "mean", "random", "skipped"]
            print(f"\n## {key}, {split} nouns\n\n" + markdown_table(["coder", *kinds], rows))
        for name, found in evidence.get(key, {}).items():
            print(name, found["quality"], found.get("tokens"))
            print({n: x["nats"] for n, x in found["train"].items() if n != "skipped"})
    if "hops" in evidence:
        print(sorted(evidence["hops"].items(), key=lambda row: row[1][0])[:12])
    for claim, of in measured(evidence).items():
        print(f"{claim} {judge(every_claim()[claim]['rule'], of)}: {of}")


if __name__ == "__main__":
    command("skipping", __doc__, run, show)
