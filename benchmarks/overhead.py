"""How much longer our engine takes than the matrix products that it needs, at their own shapes.

    python -m benchmarks.overhead         a minute on two otherwise idle cores

Engine and products take turns, so both are timed in the same moments; nothing else runs between.
Writes `results/overhead.md`.
"""

import functools
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.floor import alone
from benchmarks.peers.steps import interchange, step
from helpers.claims.report import load_site
from helpers.directions.geometry import random_direction
from helpers.directions.search import answer_logit_difference, cross_entropy
from helpers.models.load import load_model
from helpers.output import files
from helpers.patching import CachedPairs, Site, cache_pairs
from helpers.tasks.ioi import make_pairs
from tools.pages import markdown_table

TABLE = Path(__file__).resolve().parent / "results" / "overhead.md"
PAIRS, ROUNDS = 50, 15
KINDS = {"mlp": "mlp_hidden", "resid": "resid_post"}
TITLES = {"mlp": "MLP hidden activation", "resid": "residual stream"}


def evaluate(cached: CachedPairs, vector: Tensor) -> Tensor:
    with torch.no_grad():
        return cached.patched_logits(interchange(cached.source, vector)(cached.base))


def loss(kind: Callable, cached: CachedPairs, vector: Tensor) -> Tensor:
    patched = interchange(cached.source, vector)(cached.base)
    return kind(cached, patched, torch.arange(len(cached)))


def ratio(engine: Callable[[], Tensor], products: Callable[[], Tensor]) -> tuple[float, float]:
    """The engine's median time in seconds, and the median of its ratio to the products."""
    taken = []
    for number in range(1 + ROUNDS):
        both = []
        for work in (engine, products):
            start = time.perf_counter()
            work()
            both.append(time.perf_counter() - start)
        taken += [both] if number else []  # the first prepares
    return statistics.median(a for a, _ in taken), statistics.median(a / b for a, b in taken)


def measure() -> list[list[str]]:
    """A row for each work and number of threads."""
    model, layer, rows = load_model(device="cpu"), load_site("ioi")["layer"], []
    pairs = make_pairs(model, PAIRS, split="train", seed=0, templates=["fun"])
    for name, kind in KINDS.items():
        cached = cache_pairs(model, pairs, Site(layer, kind))
        vector = random_direction(cached.base.shape[1], seed=0)
        works = {
            "evaluation": (f"evaluate {name}", functools.partial(evaluate, cached, vector)),
            "training step": (
                f"step {name}", step(functools.partial(loss, cross_entropy, cached), vector)
            ),
            "training step, loss on the two answers": (
                f"step {name}",
                step(functools.partial(loss, answer_logit_difference, cached), vector),
            ),
        }  # fmt: skip
        for title, (work, engine) in works.items():
            row = [f"{title}, {TITLES[name]}"]
            for threads in sorted({1, os.cpu_count()}):
                torch.set_num_threads(threads)
                seconds, times = ratio(engine, alone(work, PAIRS, layer))
                row += [f"{1000 * seconds:.0f}", f"{times:.2f}"]
            rows.append(row)
    return rows


def main() -> None:
    """Measure every case and write the table."""
    head = ["work"]
    for threads in sorted({1, os.cpu_count()}):
        head += [f"{threads} thread{'s' if threads > 1 else ''}, ms", "times the products"]
    text = (
        f"# Beside the products that are needed\n\n{PAIRS} IOI pairs; medians of {ROUNDS} rounds "
        "in turn. The products include the logits of the whole vocabulary, also where the loss "
        "needs two. Made by `python -m benchmarks.overhead`.\n\n"
    )
    text += markdown_table(head, measure())
    files.write(TABLE, text + "\n")
    print(text)


if __name__ == "__main__":
    main()
