"""Edit forty facts at six layers, and ask what the edits cost, and what imitates them.

    python -m tools.evidence.rome          measure what is missing, then print the tables
    python -m tools.evidence.rome --print  only print them

A row of `data/evidence/rome.json` is written as soon as it is measured, so an interrupted run goes
on where it was. Every row has a number for each fact.
"""

import functools

import torch
from torch import Tensor

from helpers.editing import (
    DirectionIntervention,
    EditedRuns,
    RankOneEdit,
    RomeSettings,
    anatomy,
    cached_second_moment,
    causal_trace,
    down_projection,
    edit_to_patch,
    regularised,
    rewrite_score,
    rome_edit,
    rome_pairs,
    shipped_second_moments,
)
from helpers.editing.rome import find_shifts
from helpers.models import load_model
from helpers.patching import Site, cache_sites, metrics
from helpers.tasks import Pairs, encode, facts, passages
from tools.evidence.moments import HELD_OUT, OF_THE_LESSON, layers_to_edit
from tools.evidence.store import Evidence, command
from tools.pages import markdown_table

RELATIONS = ("country_capital", "country_continent", "country_language", "city_state",
             "river_continent", "element_symbol")  # fmt: skip
FACTS, NEIGHBOURS, NOISES, PREFIXES = 40, 5, 3, 1
SEARCHES = {  # of the shift, with the layers where it was tried (all, if there are none)
    "gentle": (RomeSettings(), ()),
    "quick": (RomeSettings(steps=10, learning_rate=1.0), (7, 12, 17)),
    "ROME's own": (RomeSettings(steps=20, learning_rate=0.5, stop_below=0.05), (12,)),
}
BETAS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
RULES = (
    f"The {FACTS} pairs of lessons 06 and 07 (seed 0): base fact, and the answer of another as the "
    f"new one. ROME with {PREFIXES} prefix; searches: {SEARCHES}.",
    "Readers from the shipped second moment (long) or that of 4,032 tokens (short), ridge 0.1.",
    f"Neighbours: the first {NEIGHBOURS} known facts of the relation with another answer. One is "
    "kept if its most probable next token stays. Paraphrases: two other wordings.",
    "One direction: `edit_to_patch` with the best beta, with these fixed ones (their sign that of "
    "the best), and exact at the key of the prompt; variances on text that no C has seen.",
    f"Tracing: {NOISES} draws of noise of three standard deviations of the embeddings on the "
    "subject's last token; restored there, the outputs of five MLPs around the layer, the same "
    "without MLP 0, or the stream after the layer. Subjects have one token.",
)


class Facts:
    """The facts, and every prompt about them."""

    def __init__(self) -> None:
        self.model = load_model()
        table = facts.load_facts(list(RELATIONS))
        self.known = facts.known_facts(self.model, table)
        short = self.known[self.known["subject_tokens"] == 1]
        self.pairs: Pairs = facts.make_pairs(self.model, short, FACTS, seed=0)
        self.layers = layers_to_edit(self.model.cfg.n_layers)
        self.W = {at: down_projection(self.model, at) for at in self.layers}
        text = passages(self.model, OF_THE_LESSON)
        training, held_out = text[:-HELD_OUT], text[-HELD_OUT:]
        long, n_tokens = shipped_second_moments(self.model)
        if not long:
            raise SystemExit("no shipped second moments: python -m tools.evidence.moments")
        short_moments = cached_second_moment(self.model, self.layers, training)
        self.C = {
            "long": {at: regularised(long[at]) for at in self.layers},
            "short": {at: regularised(short_moments[at]) for at in self.layers},
        }
        self.unseen = cached_second_moment(self.model, self.layers, held_out)
        self.own = EditedRuns(self.model, list(self.pairs.base_tokens), self.layers)
        self._around()
        templates = [t.replace("{subject}", "{}") for t in self.pairs.table["template"]]
        self.prompts = rome_pairs(
            self.model, templates, self.pairs.table["subject"].tolist(),
            self.pairs.counterfactual.tolist(), prefixes=PREFIXES,
        )  # fmt: skip

    def _around(self) -> None:
        """Paraphrases and neighbours, and which fact each is about."""
        prompts, about, is_near = [], [], []
        for number, fact in self.pairs.table.iterrows():
            words = facts.prompts(fact["relation"])[1:3]
            near = facts.neighbours(self.known, fact, same_answer=False).head(NEIGHBOURS)["prompt"]
            prompts += [*(facts.fill(w, fact["subject"]) for w in words), *near]
            about += [number] * (len(words) + len(near))
            is_near += [False] * len(words) + [True] * len(near)
        self.about, self.is_near = torch.tensor(about), torch.tensor(is_near)
        tokens = [encode(self.model, prompt) for prompt in prompts]
        self.around = EditedRuns(self.model, tokens, self.layers)

    def score(self, edits: RankOneEdit) -> Tensor:
        new = self.pairs.counterfactual[:, None]
        before, after = self.own.clean, self.own.logits(edits)
        p = [logits.softmax(-1).gather(-1, new)[:, 0] for logits in (before, after)]
        return rewrite_score(*p)

    def by_fact(self, values: Tensor, rows: Tensor) -> Tensor:
        """The mean over the prompts about each fact."""
        total = torch.zeros(FACTS).index_add(0, self.about[rows], values[rows].float())
        return total / torch.bincount(self.about[rows], minlength=FACTS)

    def price(self, edits: RankOneEdit) -> dict[str, list[float]]:
        """What the edits reach, and what else they change, for each fact."""
        said = self.around.logits(edits[self.about]).argmax(-1)
        kept = said == self.around.clean.argmax(-1)
        flipped = said == self.pairs.counterfactual[self.about]
        return {
            "score": self.score(edits).tolist(),
            "neighbours kept": self.by_fact(kept, self.is_near).tolist(),
            "paraphrases flipped": self.by_fact(flipped, ~self.is_near).tolist(),
            "sensed": (edits.read @ self.unseen[edits.layer] * edits.read).sum(-1).sqrt().tolist(),
        }


def directions(here: Facts, edit: RankOneEdit, key: Tensor) -> dict[str, dict]:
    """The interventions that imitate the edits, by how beta was chosen; a number for each fact."""
    layer, found = edit.layer, {}
    W, C = here.W[layer], here.C["long"][layer]
    best = edit_to_patch(edit, W, C)
    found["best"] = best
    for beta in BETAS:
        found[f"{beta:g}"] = edit_to_patch(edit, W, C, beta=beta * best.sign)
    found["exact at the key"] = edit_to_patch(edit, W, C, key=key)
    return {name: described(here, edit, each, key) for name, each in found.items()}


def described(here: Facts, edit: RankOneEdit, each: DirectionIntervention, key: Tensor) -> dict:
    """What one direction per fact does to the activation at its own key, and to the answer."""
    W = here.W[edit.layer]
    of = anatomy(each, edit, key, W, here.unseen[edit.layer])
    values = {
        "score": here.score(each.as_edit(W)),
        "cosine": of["cos"],
        "log10 ratio": of["variance"].log10(),
        "log10 moved": of["moved"].log10(),
        "log10 beta": of["beta"].log10(),
        "sign": each.sign,
        "length": of["length"],
        "kernel share": of["kernel"],
        "share of a": of["at key"],
    }
    return {name: value.tolist() for name, value in values.items()}


def traced(here: Facts, pair: int) -> dict[str, list[float]]:
    """Probability that comes back at each layer, from windows of MLPs and from the stream."""
    model, layers, answer = here.model, here.layers, int(here.pairs.answer[pair])
    tokens, position = here.pairs.base_tokens[pair], int(here.pairs.position[pair])
    mlps = [f"blocks.{at}.hook_mlp_out" for at in range(model.cfg.n_layers)]
    windows = [mlps[max(0, at - 2) : at + 3] for at in layers]
    later = [[name for name in window if name != mlps[0]] for window in windows]
    places = [*windows, *later, *([f"blocks.{at}.hook_resid_post"] for at in layers)]
    spread, back, left = 3 * model.W_E.std().item(), torch.zeros(len(places)), 0.0
    for draw in range(NOISES):
        generator = torch.Generator().manual_seed(1000 * draw + pair)
        noise = spread * torch.randn(model.cfg.d_model, generator=generator)
        restored, corrupted = causal_trace(model, tokens, position, answer, places, noise)
        back, left = back + restored / NOISES, left + corrupted / NOISES
    kinds = zip(("MLPs", "MLPs without 0", "stream"), back.reshape(3, -1).tolist(), strict=True)
    clean = here.own.clean[pair].softmax(-1)[answer].item()
    return dict(kinds) | {"clean": clean, "corrupted": left}


def run(evidence: Evidence) -> None:
    """Everything that is missing."""
    here = Facts()
    evidence.put(list(RULES), "rules")
    evidence.put(here.layers, "layers")
    for pair in range(FACTS):
        if evidence.missing("tracing", str(pair)):
            evidence.put(traced(here, pair), "tracing", str(pair))
    order = [(at, name) for name, (_, some) in SEARCHES.items() for at in some or here.layers]
    for layer, search in order:
        if not evidence.missing("edits", f"{layer} {search}"):
            continue
        (cached,) = cache_sites(here.model, here.prompts, [Site(layer, "mlp_hidden")])
        key = cached.base[torch.tensor((cached.pairs.table["role"] == "plain").to_numpy())]
        found = find_shifts(cached, SEARCHES[search][0])
        usual = (key @ here.W[layer]).norm(dim=-1)
        row = {
            "probability": found.probability.tolist(),
            "steps": found.steps.tolist(),
            "shift": (found.shift.norm(dim=-1) / usual).tolist(),
        }
        for name, C in here.C.items():
            edit = rome_edit(cached, C[layer], shift=found.shift)
            row[name] = here.price(edit)
            if (search, name) == ("gentle", "long"):
                row["directions"] = directions(here, edit, key)
        evidence.put(row, "edits", f"{layer} {search}")
    for layer in here.layers:
        row = evidence["edits"][f"{layer} gentle"]
        kept = functools.partial(summary, torch.tensor(row["long"]["score"]).mean())
        found = {name: kept(values) for name, values in row["directions"].items()}
        evidence.put(found, "directions", str(layer))


def summary(score: Tensor, values: dict[str, list[float]]) -> dict[str, float]:
    """One intervention in the words of lesson 07: a mean score, and medians over facts."""
    of = {name: torch.tensor(value) for name, value in values.items()}
    found = {
        "score kept, %": 100 * of["score"].mean() / score,
        "s = -1": (of["sign"] < 0).sum(),
        "|β|": 10 ** of["log10 beta"].quantile(0.5),
        "moves h, times": 10 ** of["log10 moved"].quantile(0.5),
        "|v|": of["length"].quantile(0.5),
        "kernel share": of["kernel share"].quantile(0.5),
        "of a at key": of["share of a"].quantile(0.5),
        "|cos| with b": of["cosine"].mean(),
        "variance, times": 10 ** of["log10 ratio"].quantile(0.5),
    }
    return {name: float(f"{value.item():.4g}") for name, value in found.items()}


def of(values: list[float]) -> str:
    """A mean over facts with its interval."""
    return f"{metrics.mean(torch.tensor(values)):.0%}"


def show(evidence: dict) -> None:
    """The tables, as Markdown."""
    rows = []
    for name, row in evidence["edits"].items():
        for C in ("long", "short"):
            shift = torch.tensor(row["shift"]).mean()
            kinds = ("score", "neighbours kept", "paraphrases flipped")
            rows.append([name, C, f"{shift:.2f}", *(of(row[C][kind]) for kind in kinds)])
    print(markdown_table(["layer, search", "C", "|a|/|hW|", "score", "neighbours kept",
                          "paraphrases flipped"], rows))  # fmt: skip
    rows = [
        [layer, beta, *(f"{value:g}" for value in found.values())]
        for layer, table in evidence["directions"].items()
        for beta, found in table.items()
    ]
    columns = list(evidence["directions"][str(evidence["layers"][0])]["best"])
    print(markdown_table(["layer", "beta", *columns], rows))


if __name__ == "__main__":
    command("rome", __doc__, run, show)
