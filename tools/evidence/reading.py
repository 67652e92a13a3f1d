"""What a state tells when it is written into another prompt, by layer, and what each control says.

    python -m tools.evidence.reading            measure what is missing, then print the tables
    python -m tools.evidence.reading --print    only print them

The rules of claims K1 to K6 stood in `data/claims.json` before the first run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from helpers.models import Model, load_model
from helpers.patching import CachedPairs, Reader, Site, cache_sites, metrics, states
from helpers.tasks import Pairs, facts
from tools.evidence.reading_tables import show
from tools.evidence.store import Evidence, command

FRESH = ("person_country", "company_country", "food_country", "country_language")
RELATIONS = (*FRESH, "city_country")  # the last one was read in the prototype
MENTIONS = (
    "The word {subject} was printed in large letters on the",
    "Somebody had typed {subject} into the first line of the",
)
LAYERS = tuple(range(0, 30, 2))
FEW = (0, *range(4, 21, 2), 24)
COARSE = tuple(range(0, 30, 4))
TOLD = (0, 4, 8, 12, 16, 20)  # layers whose texts are kept, of the first test subjects
SUBJECTS = 3
RULES = (
    "Facts that the model completes with the main prompt of their relation. Of each answer half "
    "of the subjects choose layers (the first `train`), the rest judge. Nobody is left out.",
    "A state: what enters a block at the subject's last token, in the main prompt. Readers: three "
    "sets of three examples, whose objects are no answers of the relation; placeholder x.",
    "Candidates: first tokens of the relation's answers and of the nine examples' objects. A "
    "reading says the candidate that is most probable.",
    "A digit for each subject: how many readers are right (of three; mentions: of six).",
    "Other: the state of a subject with another answer, scored for this one. Random: a Gaussian "
    "vector of the state's norm. Mean: that of all states. Held: the reader's MLPs at the "
    "placeholder write their mean over the states. Into 0: every state instead of the embedding.",
    "Swap: in the source's own prompt, the state of a subject with another answer.",
    "False claims name the answer of another subject. Sum: states of subject and object added up, "
    "one reader.",
    "City_country was read in the prototype, the four others never before.",
)


@dataclass(frozen=True, eq=False)
class Asked:
    """A relation: pairs of subjects (those that choose layers, those that judge), and readers."""

    model: Model
    name: str
    known: tuple[pd.DataFrame, pd.DataFrame]
    candidates: Int[Tensor, "candidates"]
    readers: tuple[Reader, ...]
    objects: tuple[list[int], ...]  # of each reader, as places among the candidates

    def pairs(self, template: str | None = None) -> Pairs:
        """Each subject as base once, with a donor from its half that has another answer.

        The same subjects and donors, in the same order, with any template.
        """
        change = {} if template is None else {"template": template}
        tables = [known.assign(**change) for known in self.known]
        return joined(*(facts.make_pairs(self.model, table, len(table)) for table in tables))

    @cached_property
    def table(self) -> pd.DataFrame:
        return self.pairs().table

    def places(self, tokens: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
        """Where tokens stand among the candidates."""
        return (tokens[:, None] == self.candidates).int().argmax(1)


def joined(first: Pairs, second: Pairs) -> Pairs:
    tokens = (getattr(first, s) + getattr(second, s) for s in ("base_tokens", "source_tokens"))
    columns = ("answer", "counterfactual", "position", "source_position")
    both = (torch.cat([getattr(first, name), getattr(second, name)]) for name in columns)
    return Pairs(*tokens, *both, pd.concat([first.table, second.table], ignore_index=True))


def ask(model: Model, name: str) -> Asked:
    table, texts = facts.load_facts(name), facts.reading(name)
    known = facts.split_subjects(facts.known_facts(model, table), seed=0)
    said = [[answer for _, answer in examples] for examples in texts["examples"]]
    words = list(dict.fromkeys([*table["answer"], *sum(said, [])]))
    candidates = torch.tensor([facts.answer_token(model, word) for word in words])
    readers = tuple(Reader.of(model, texts["sentence"], each) for each in texts["examples"])
    objects = tuple([words.index(word) for word in each] for each in said)
    return Asked(model, name, known, candidates, readers, objects)


def digits(layers: Sequence[int], hits: Sequence[Bool[Tensor, "layers n"]]) -> dict[str, str]:
    """Of each layer a digit for each subject: in how many of these it is true."""
    counts = torch.stack(list(hits)).int().sum(0).tolist()
    return {str(at): "".join(map(str, row)) for at, row in zip(layers, counts, strict=True)}


def pick(
    of: Float[Tensor, "all n d"], layers: Sequence[int], among: Sequence[int]
) -> Float[Tensor, "layers n d"]:
    return of[[list(among).index(layer) for layer in layers]]


# ------------------------------------------------------------------- in the source's own prompt


def cached_at(
    asked: Asked, layers: Sequence[int], template: str | None = None
) -> list[CachedPairs]:
    """The pairs, with the stream that enters each layer."""
    sites = [Site(layer, "resid_pre") for layer in layers]
    return cache_sites(asked.model, asked.pairs(template), sites)


def entering(cached: Sequence[CachedPairs]) -> Float[Tensor, "layers n d"]:
    """The subjects' own states."""
    return torch.stack([at.base for at in cached])


def swapped(asked: Asked, cached: Sequence[CachedPairs]) -> dict:
    """By layer: whether the answer becomes the donor's, the top token stays, and divergence."""
    clean = cached[0].patched_logits(cached[0].base).log_softmax(-1)
    donor = asked.places(cached[0].pairs.counterfactual)
    flips, stays, moved = [], [], {}
    for at in cached:
        new = at.patched_logits(at.source).log_softmax(-1)
        flips.append(new[:, asked.candidates].argmax(1) == donor)
        stays.append(new.argmax(1) == clean.argmax(1))
        apart = (clean.exp() * (clean - new)).sum(1)
        moved[str(at.site.layer)] = list(metrics.mean(apart[len(asked.known[0]) :]))
    layers = [at.site.layer for at in cached]
    return {"flip": digits(layers, [torch.stack(flips)]), "kl": moved} | {
        "same top": digits(layers, [torch.stack(stays)])
    }


def mass(asked: Asked, cached: Sequence[CachedPairs]) -> float:
    """How much probability the prompt itself gives to the candidates."""
    logits = cached[0].patched_logits(cached[0].base)
    return logits.softmax(-1)[:, asked.candidates].sum(1).mean().item()


# ------------------------------------------------------------------------------------- readings


def readings(
    asked: Asked, of: Tensor, layers: Sequence[int], **options: object
) -> list[Float[Tensor, "layers n candidates"]]:
    """What each reader says."""
    return [reader.read(of, asked.candidates, layers=layers, **options) for reader in asked.readers]


def said(asked: Asked, found: Sequence[Tensor], right: Tensor, least: float = 0.0) -> dict:
    """By layer, of all readings of test subjects: right, an example's object, another's, wrong.

    Those below the probability `least` are silent. Places: which example of its reader, if one.
    """
    rows = {}
    start = len(asked.known[0])
    for at, layer in enumerate(LAYERS):
        counts = dict.fromkeys(("right", "leaked", "foreign", "wrong", "silent"), 0)
        places = [0, 0, 0]
        for reader, each in enumerate(found):
            best = each[at, start:].max(1)
            for place, probability, answer in zip(
                best.indices.tolist(), best.values.exp().tolist(), right[start:].tolist(),
                strict=True,
            ):  # fmt: skip
                if probability < least:
                    counts["silent"] += 1
                elif place == answer:
                    counts["right"] += 1
                elif place in asked.objects[reader]:
                    counts["leaked"] += 1
                    places[asked.objects[reader].index(place)] += 1
                else:
                    counts["foreign" if place in sum(asked.objects, []) else "wrong"] += 1
        rows[str(layer)] = counts | {"places": places}
    return rows


def plain(asked: Asked, of: Tensor) -> dict[str, dict]:
    """Every state at its own layer: right, for another subject, what is said, and the mass."""
    table = asked.table
    right = asked.places(answers(asked, table["answer"]))
    donor = torch.tensor([table["subject"].tolist().index(s) for s in table["source_subject"]])
    found = readings(asked, of, LAYERS)
    tops = [each.argmax(-1) for each in found]
    share = torch.stack([each.exp().sum(-1).mean(1) for each in found]).mean(0)
    return {
        "read": digits(LAYERS, [top == right for top in tops]),
        "other": digits(LAYERS, [top[:, donor] == right for top in tops]),
        "said": said(asked, found, right),
        "edges": said(asked, found, right, least=0.5),
        "mass": dict(zip(map(str, LAYERS), share.tolist(), strict=True)),
    }


def answers(asked: Asked, words: Sequence[str]) -> Int[Tensor, "n"]:
    return torch.tensor([facts.answer_token(asked.model, word) for word in words])


def hits(
    asked: Asked, of: Tensor, layers: Sequence[int], **options: object
) -> list[Bool[Tensor, "layers n"]]:
    """Whether each reader says the right answer."""
    right = asked.places(answers(asked, asked.table["answer"]))
    return [each.argmax(-1) == right for each in readings(asked, of, layers, **options)]


def random_like(of: Tensor, seed: int = 0) -> Tensor:
    """Gaussian vectors of the same norms."""
    drawn = torch.randn(of.shape, generator=torch.Generator().manual_seed(seed))
    return drawn * of.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True)


def unpatched(asked: Asked) -> dict[str, str]:
    """What the readers say of their own placeholder, scored for each subject; as layer 0."""
    right = asked.places(answers(asked, asked.table["answer"]))
    tops = [r.read(r.own[:1], asked.candidates, layers=[0]).argmax(-1) for r in asked.readers]
    return digits([0], [top == right for top in tops])


def unmoved(asked: Asked, of: Tensor, layers: Sequence[int]) -> dict[str, str]:
    """Readings that say what the reader says of its own placeholder, right or wrong."""
    own = [r.read(r.own[:1], asked.candidates, layers=[0]).argmax(-1) for r in asked.readers]
    found = readings(asked, of, layers)
    return digits(layers, [each.argmax(-1) == at for each, at in zip(found, own, strict=True)])


def other_order(asked: Asked, of: Tensor) -> dict[str, list[int]]:
    """Which example is named by wrong readings of late layers: as they stand, and reversed."""
    texts = facts.reading(asked.name)
    right = asked.places(answers(asked, asked.table["answer"]))
    late, found = [at for at in COARSE if at >= 20], {}
    for order in ("as they stand", "reversed"):
        examples, objects = texts["examples"][0], asked.objects[0]
        if order == "reversed":
            examples, objects = examples[::-1], objects[::-1]
        reader = Reader.of(asked.model, texts["sentence"], examples)
        top = reader.read(pick(of, late, LAYERS), asked.candidates, layers=late).argmax(-1)
        wrong = top[top != right]
        found[order] = [int((wrong == place).sum()) for place in objects] + [len(wrong)]
    return found


def texts(asked: Asked, of: Tensor) -> dict[str, list[str]]:
    """What the first reader goes on with, for the first test subjects."""
    rows = range(len(asked.known[0]), len(asked.known[0]) + SUBJECTS)
    told = {
        str(layer): asked.readers[0].tell(of[LAYERS.index(layer), list(rows)], layer, n_tokens=3)
        for layer in TOLD
    }
    return {"subjects": asked.table["subject"].iloc[list(rows)].tolist()} | told


# --------------------------------------------------------------------------------------- claims


def claimed_in(asked: Asked, form: str, column: str) -> pd.DataFrame:
    """The subjects, in prompts that claim an object: their answer, or that of another one."""
    table = asked.table
    template = facts.reading(asked.name)[form]
    objects = [template.replace("{object}", said) for said in table[column]]
    return table[["relation", "subject", "answer"]].assign(template=objects, said=table[column])


def auc(true: Float[Tensor, "n"], false: Float[Tensor, "n"]) -> float:
    """How often a true claim scores above a false one."""
    apart = true[:, None] - false
    return ((apart > 0).float() + (apart == 0).float() / 2).mean().item()


def verified(
    asked: Asked,
    read: Callable[[pd.DataFrame], list[Float[Tensor, "layers n candidates"]]],
    form: str,
    layers: Sequence[int],
) -> dict[str, dict]:
    """Whether readings follow the claim or the knowledge, for true and false claims."""
    columns, found = {"true": "answer", "false": "counterfactual"}, {}
    right = asked.places(answers(asked, asked.table["answer"]))
    scores = {}
    for truth, column in columns.items():
        table = claimed_in(asked, form, column)
        claim = asked.places(answers(asked, table["said"]))
        said_by = read(table)
        tops = [each.argmax(-1) for each in said_by]
        found[f"{truth}: known"] = digits(layers, [top == right for top in tops])
        found[f"{truth}: claimed"] = digits(layers, [top == claim for top in tops])
        which = claim.expand(len(layers), -1)[..., None]
        scores[truth] = [each.gather(-1, which)[..., 0] for each in said_by]
    start = len(asked.known[0])
    both = list(zip(scores["true"], scores["false"], strict=True))
    found["auc"] = {
        str(layer): sum(auc(t[at, start:], f[at, start:]) for t, f in both) / len(both)
        for at, layer in enumerate(layers)
    }
    return found


def after_the_object(asked: Asked, table: pd.DataFrame) -> list[Tensor]:
    """The subject's state in a claim that names the object before it."""
    of = states(asked.model, *facts.subject_ends(asked.model, table))
    return readings(asked, of[list(FEW)], FEW)


def summed(asked: Asked, table: pd.DataFrame, into: int | None) -> list[Tensor]:
    """The states of subject and object added up, as the first reader reads them."""
    tokens, positions = facts.subject_ends(asked.model, table)
    ends = torch.tensor([len(row) - 1 for row in tokens])
    of = states(asked.model, tokens, positions) + states(asked.model, tokens, ends)
    read = partial(asked.readers[0].read, layers=COARSE, into=into)
    return [read(of[list(COARSE)], asked.candidates)]


# -------------------------------------------------------------------------------------- the run


def one_relation(evidence: Evidence, model: Model, name: str) -> None:
    """Everything of one relation that is missing."""
    asked = ask(model, name)
    cached = cached_at(asked, LAYERS)
    of = entering(cached)

    def once(measure: Callable[[], object], *keys: str) -> None:
        if evidence.missing(name, *keys):
            evidence.put(measure(), name, *keys)

    size = {"train": len(asked.known[0]), "test": len(asked.known[1])}
    once(lambda: size | {"candidates": len(asked.candidates), "mass": mass(asked, cached)}, "n")
    for key in ("flip", "same top", "kl"):
        if evidence.missing(name, key):
            for each, rows in swapped(asked, cached).items():
                evidence.put(rows, name, each)
    if evidence.missing(name, "mass"):
        for key, rows in plain(asked, of).items():
            evidence.put(rows, name, key)
    of_few, of_coarse = pick(of, FEW, LAYERS), pick(of, COARSE, LAYERS)
    mean = of_coarse.mean(1, keepdim=True)
    once(lambda: digits(LAYERS, hits(asked, of, LAYERS, hold_mlps=True)), "held")
    once(lambda: digits(COARSE, hits(asked, of_coarse, COARSE, into=0)), "into 0")
    once(lambda: digits(COARSE, hits(asked, random_like(of_coarse), COARSE)), "random")
    once(lambda: digits(COARSE, hits(asked, mean, COARSE)), "mean")
    once(lambda: unpatched(asked), "unpatched")
    once(lambda: unmoved(asked, of_coarse, COARSE), "unmoved")
    once(lambda: other_order(asked, of), "order")
    once(lambda: texts(asked, of), "texts")
    mentions(evidence, asked, of_few)
    once(lambda: verified(asked, partial(after_the_object, asked), "object_first", FEW), "claims")
    for key, into in {"sum": None, "sum into 0": 0}.items():
        read = partial(summed, asked, into=into)
        once(lambda read=read: verified(asked, read, "subject_first", COARSE), key)


def mentions(evidence: Evidence, asked: Asked, of: Tensor) -> None:
    """States of prompts that only mention the subject, and what a swap does there."""
    if not evidence.missing(asked.name, "mention"):
        return
    found: dict[str, Mapping] = {"n": {}}
    read = []
    for number, template in enumerate(MENTIONS):
        cached = cached_at(asked, FEW, template)
        found[f"prompt {number}"] = swapped(asked, cached)
        found["n"][str(number)] = mass(asked, cached)
        read += hits(asked, entering(cached), FEW)
    evidence.put(found | {"read": digits(FEW, read)}, asked.name, "mention")


def run(evidence: Evidence) -> None:
    """Everything that is missing."""
    evidence.put(list(RULES), "rules")
    model = load_model(device="cpu")
    for name in RELATIONS:
        one_relation(evidence, model, name)


if __name__ == "__main__":
    command("reading", __doc__, run, show)
