"""A model and multiple choice: what it picks, the heads that write it, how few directions do it."""

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

from helpers.models import Model
from helpers.patching import CachedPairs, Estimate, Site, cache_sites, logit_differences, metrics
from helpers.tasks import Pairs
from tools.choices.task import multiple_choice
from tools.ranks import (
    directions,
    picked,
    shares_of_heads,
    sweep,
    sweep_at_tokens,
    whole_passes,
)

FORMS = (("ABCD", 0), ("ABCD", 4), ("AB", 4))  # labels and examples that are always tried
OTHERS = {"letters": "QXZRKW", "numbers": "729461"}  # that stand for labels in mutated prompts
TOP = 8  # heads that are looked at
RANKS = (0, 1, 2, 3, 8)


class Head(NamedTuple):
    """What one head does: patched alone, by direct attribution, and where it looks."""

    layer: int
    head: int
    effect: float  # percent of the margin between base's and source's label
    attribution: float  # nats
    right: float  # attention to the right label
    wrong: float  # attention to the others, together


def label_accuracy(model: Model, n: int, labels: str, shots: int) -> Estimate:
    """How often the right label is above the others, of the labels that are offered."""
    pairs = multiple_choice(model, n, labels=labels, shots=shots, split="test")
    return metrics.share(picked(pairs, whole_passes(model, pairs, ())))


def writers(model: Model, pairs: Pairs) -> list[Head]:
    """All heads, by what each alone does when it says what it says in the source."""
    heads = [(at, head) for at in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
    cached = cache_sites(model, pairs, [Site(at, "head_output", head=h) for at, h in heads])
    clean = cached[0].clean_logit_difference.mean()
    effects = 100 * (1 - logit_differences(cached).mean(1) / clean)
    written = shares_of_heads(model, pairs)
    found = []
    for place in effects.argsort(descending=True)[:TOP].tolist():
        looks = attention_to_labels(model, pairs, *heads[place])
        found.append(Head(*heads[place], effects[place].item(), written[heads[place]], *looks))
    return found


@torch.no_grad()
def attention_to_labels(model: Model, pairs: Pairs, layer: int, head: int) -> tuple[float, float]:
    """From the last token, to the right label and to all others of the last question."""
    name = f"blocks.{layer}.attn.hook_pattern"
    tokens = torch.stack(pairs.base_tokens)
    pattern = model.run_with_cache(tokens, names_filter=[name])[1][name][:, head, -1]
    at = torch.tensor(pairs.table[label_columns(pairs)].to_numpy())
    looks, rows = pattern.gather(1, at), torch.arange(len(pairs))
    right = looks[rows, torch.tensor(pairs.table["place"].to_list())]
    return right.mean().item(), (looks.sum(1) - right).mean().item()


def mutated(labels: str) -> dict[str, str]:
    """Other labels, as many; the same ones shuffled; what is not longer than these."""
    found = {name: others[: len(labels)] for name, others in OTHERS.items()}
    return {**found, "shuffled": labels[1:] + labels[:1]}


def label_columns(pairs: Pairs) -> list[str]:
    """The columns of the table that hold the labels' positions."""
    return [f"label_{place}" for place in pairs.choices]


def queries(model: Model, pairs: Pairs, heads: Sequence[Head]) -> list[CachedPairs]:
    """The pairs below the lowest of these heads, and their queries."""
    kind = "head_rotated_query"
    if "blocks.0.attn.hook_rot_q" not in model.hook_dict:
        kind = "head_query"  # positions are not rotary
    sites = [Site(each.layer, kind, head=each.head) for each in heads]
    lowest = Site(min(each.layer for each in heads), "resid_pre")
    return cache_sites(model, pairs, [lowest, *sites])


def by_rank(model: Model, n: int, labels: str, shots: int, heads: Sequence[Head]) -> dict:
    """Margins by rank of queries, keys and values, and of queries with other labels."""
    learn, judge = (
        multiple_choice(model, n, labels=labels, shots=shots, split=split, seed=1)
        for split in ("train", "test")
    )
    before = queries(model, learn, heads)[1:]
    bases = [directions(at.base) for at in before]
    means = [at.base.mean(0) for at in before]
    found = {"queries": sweep(queries(model, judge, heads), means, bases, RANKS)}
    layers = sorted({each.layer for each in heads})
    key = "hook_rot_k" if "blocks.0.attn.hook_rot_k" in model.hook_dict else "hook_k"
    for name, hook in {"keys": key, "values": "hook_v"}.items():
        columns = label_columns(judge)
        found[name] = sweep_at_tokens(model, learn, judge, hook, layers, columns, RANKS)
    for name, other in mutated(labels).items():
        with suppress(ValueError):  # no single tokens for this model: the first table says so
            draw = [
                multiple_choice(model, n, labels=other, shots=shots, split="test", seed=seed)
                for seed in (1, 2)
            ]
            own: list[Tensor] = [at.base.mean(0) for at in queries(model, draw[1], heads)[1:]]
            found[f"queries, {name}"] = sweep(queries(model, draw[0], heads), own, bases, RANKS)
    return found


def measure(model: Model, n: int, labels: str, shots: int) -> dict:
    """Accuracy with several labels; and, where these labels are picked, heads and ranks.

    `accuracy` has a row for each form: labels, examples, chance, and right (with its interval) or
    what was wrong; the first is the one that was asked for. `heads` and `ranks` are only there if
    that is above chance, by its interval. Raises ValueError if these labels cannot be asked for.
    """
    forms = ((labels, shots), *FORMS, *((other, shots) for other in mutated(labels).values()))
    asked, *rows = [accuracy_row(model, n, *form) for form in dict.fromkeys(forms)]
    if "error" in asked:
        raise ValueError(asked["error"])
    found = {"n": n, "labels": labels, "examples": shots, "accuracy": [asked, *rows]}
    if asked["right"][1] > asked["chance"]:
        pairs = multiple_choice(model, n, labels=labels, shots=shots, split="test", seed=1)
        heads = writers(model, pairs)
        found["heads"] = [each._asdict() for each in heads]
        found["ranks"] = by_rank(model, n, labels, shots, heads)
    return found


def accuracy_row(model: Model, n: int, labels: str, shots: int) -> dict:
    """Chance, and how often it is right, or why these labels cannot be asked for."""
    form = {"labels": labels, "examples": shots, "chance": 1 / len(labels)}
    try:
        return {**form, "right": list(label_accuracy(model, n, labels, shots))}
    except ValueError as error:  # such as labels that this tokenizer splits
        return {**form, "error": str(error)}
