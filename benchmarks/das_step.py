"""Time one direction-search step and one patch evaluation against TransformerLens's own tools.

Same model, pairs, site, precision and threads; results are checked equal before anything is timed;
the contestants take turns round by round. Run on an otherwise idle machine:

    python benchmarks/das_step.py > benchmarks/results/das_step.md
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version

import torch
import torch.nn.functional as F
from transformer_lens.tools.analysis import SubspaceInterchange, fit_das, intervened_logits
from transformer_lens.tools.analysis.interchange import collect_activations, run_with_intervention

from helpers.das import answer_logit_difference, cross_entropy
from helpers.geometry import patch_subspace, random_direction
from helpers.ioi import make_pairs
from helpers.models import load_model, model_name
from helpers.patching import CachedPairs, cache_pairs
from helpers.report import load_site
from helpers.sites import Site


def step(loss: Callable[[torch.Tensor], torch.Tensor], d: int) -> Callable[[], None]:
    """One optimisation step on a free vector, normalised inside the patch."""
    vector = random_direction(d, seed=0).requires_grad_()
    optimizer = torch.optim.Adam([vector], lr=0.01)

    def run() -> None:
        optimizer.zero_grad()
        loss(vector).backward()
        optimizer.step()

    return run


def contestants(cached: CachedPairs) -> dict[str, dict[str, Callable[[], object]]]:
    """By work, what is timed; the first of each is TransformerLens's hooks on the same pairs."""
    model, pairs, d = cached.model, cached.pairs, cached.base.shape[1]
    tokens, sources = torch.stack(pairs.base_tokens), torch.stack(pairs.source_tokens)
    rows, labels = torch.arange(len(pairs)), pairs.counterfactual
    v = random_direction(d, seed=0)
    acts = collect_activations(
        model, cached.site.hook_name, sources, last_logits(model), positions=pairs.source_position
    )
    hooked = model, cached.site.hook_name

    def theirs(vector: torch.Tensor) -> torch.Tensor:
        basis = (vector / vector.norm())[:, None]
        return run_with_intervention(
            *hooked, SubspaceInterchange(basis), tokens, acts, last_logits(model),
            positions=pairs.position,
        )  # fmt: skip

    def ours(vector: torch.Tensor) -> torch.Tensor:
        return patch_subspace(cached.base, cached.source, vector)

    def evaluate() -> torch.Tensor:
        return intervened_logits(
            *hooked, SubspaceInterchange(v[:, None]), tokens, acts, last_logits(model),
            positions=pairs.position,
        )  # fmt: skip

    difference = (evaluate() - cached.patched_logits(ours(v))).abs().max().item()
    assert difference < 1e-3, f"the contestants disagree by {difference}"
    print(f"Largest difference between the patched logits: {difference:.1e}\n")
    return {
        "one step": {
            "TransformerLens hooks, source cached": step(
                lambda x: F.cross_entropy(theirs(x), labels), d
            ),
            "TransformerLens fit_das, one step": lambda: fit_das(
                *hooked, tokens, sources, labels, last_logits(model), rank=1, epochs=1,
                base_positions=pairs.position, source_positions=pairs.source_position,
            ),
            "ours, cross-entropy over the vocabulary": step(
                lambda x: cross_entropy(cached, ours(x), rows), d
            ),
            "ours, loss on the two answers": step(
                lambda x: answer_logit_difference(cached, ours(x), rows), d
            ),
        },
        "one evaluation": {
            "TransformerLens intervened_logits, source cached": evaluate,
            "ours, whole vocabulary": torch.no_grad()(lambda: cached.patched_logits(ours(v))),
            "ours, two answers": torch.no_grad()(lambda: cached.logit_difference(ours(v))),
        },
    }  # fmt: skip


def last_logits(model) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tokens: model(tokens)[:, -1]


def interleaved(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            if number:
                times[name].append(time.perf_counter() - start)
    return times


def table(title: str, times: dict[str, list[float]]) -> str:
    """Median milliseconds, and the speed relative to the first contestant, round by round."""
    first = next(iter(times.values()))
    lines = [f"| {title} | ms, median | times as fast (range over rounds) |", "|---|---:|---:|"]
    for name, seconds in times.items():
        ratios = [reference / own for reference, own in zip(first, seconds, strict=True)]
        lines.append(
            f"| {name} | {1000 * statistics.median(seconds):.0f} | "
            f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}) |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    model = load_model(device="cpu")
    site = Site(load_site("ioi")["layer"], "mlp_hidden")
    pairs = make_pairs(model, arguments.pairs, split="train", seed=0, templates=["fun"])
    print(
        f"# Direction search on {model_name()}, {arguments.pairs} pairs of "
        f"{len(pairs.base_tokens[0])} tokens, {site}\n\n"
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, transformer_lens "
        f"{version('transformer_lens')}, {platform.machine()}, {arguments.rounds} rounds in turn\n"
    )
    start = time.perf_counter()
    cached = cache_pairs(model, pairs, site)
    print(f"Running the pairs once, paid before ours: {time.perf_counter() - start:.1f} s\n")
    for title, work in contestants(cached).items():
        print(table(title, interleaved(work, arguments.rounds)) + "\n")


if __name__ == "__main__":
    main()
