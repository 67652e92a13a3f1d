"""How the cost of our engine grows: with pairs, prompt length, site layer and model depth.

    make scaling               about five minutes on two otherwise idle cores

Writes `results/scaling.json`, and `scaling.png` from it. Dashed lines are what growth in proportion
(to what must be recomputed) would give, through the largest measured point.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from transformer_lens import TransformerBridge
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.worker import peak_memory
from helpers.directions.geometry import patch_subspace, random_direction
from helpers.directions.search import cross_entropy
from helpers.models.load import load_model
from helpers.models.smollm import packaged_folder
from helpers.output import plots
from helpers.patching import cache_pairs
from helpers.patching.cached import CachedPairs
from helpers.patching.sites import Site
from helpers.tasks import passages
from helpers.tasks.ioi import make_pairs
from helpers.tasks.pairs import Pairs
from tools.batches import measure_in_batches

HERE = Path(__file__).resolve().parent
LAYER = 21
PAIRS = (10, 25, 50, 100, 200)
TOKENS = (0, 20, 60, 140)  # of running text before the prompt
LAYERS = (0, 5, 10, 15, 20, 25, 29)
DEPTHS = (8, 15, 30, 60)
MEMORY_PAIRS = (50, 150, 450)
WORK = ("run the prompts", "evaluate", "one training step")
STYLE = {
    "run the prompts": (plots.BASE, "s"),
    "evaluate": (plots.NATURAL, "o"),
    "one training step": (plots.MLP, "^"),
}


def ioi_pairs(model: TransformerBridge, n: int) -> Pairs:
    """IOI pairs of one template, so that all prompts have one length."""
    return make_pairs(model, n, split="train", seed=0, templates=["fun"])


def longer(model: TransformerBridge, pairs: Pairs, tokens: int) -> Pairs:
    """The same pairs after a piece of running text of so many tokens, behind the BOS."""
    if tokens == 0:
        return pairs
    text = passages(model, 1, length=tokens + 1, seed=0)[0]

    def behind(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return tuple(torch.cat([text.cpu(), row[1:]]) for row in rows)

    return dataclasses.replace(
        pairs,
        base_tokens=behind(pairs.base_tokens),
        source_tokens=behind(pairs.source_tokens),
        position=pairs.position + tokens,
        source_position=pairs.source_position + tokens,
    )


def deep(model: TransformerBridge, layers: int) -> TransformerBridge:
    """The architecture of the model with so many layers and random weights."""
    config = AutoConfig.from_pretrained(packaged_folder(), num_hidden_layers=layers)
    config.architectures = ["LlamaForCausalLM"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = AutoModelForCausalLM.from_config(config)
    bridge = TransformerBridge.boot_transformers(
        str(packaged_folder()), hf_model=weights, tokenizer=model.tokenizer, device="cpu"
    )
    return bridge.eval().requires_grad_(False)


def best(run: Callable[[], object], repeats: int = 3) -> float:
    """The least seconds of a few calls after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def measure(model: TransformerBridge, pairs: Pairs, layer: int) -> dict[str, float]:
    """Seconds of each work on these pairs."""
    start = time.perf_counter()
    cached = cache_pairs(model, pairs, Site(layer, "mlp_hidden"))
    prepared = time.perf_counter() - start
    rows = torch.arange(len(pairs))
    v = random_direction(cached.base.shape[1], seed=0).requires_grad_()

    def step() -> None:
        cross_entropy(cached, patch_subspace(cached.base, cached.source, v), rows).backward()

    evaluate = torch.no_grad()(
        lambda: cached.logit_difference(patch_subspace(cached.base, cached.source, v))
    )
    return dict(zip(WORK, (prepared, best(evaluate), best(step)), strict=True))


def measure_memory(n: int, budget: float) -> int:
    """Bytes beyond the loaded model at the most while `n` pairs are measured at layer 0."""
    model, site = load_model(device="cpu"), Site(0, "mlp_hidden")
    pairs, v = ioi_pairs(model, n), random_direction(model.cfg.d_mlp, seed=0)

    def patch(cached: CachedPairs) -> torch.Tensor:
        return patch_subspace(cached.base, cached.source, v)

    measure_in_batches(model, pairs[:20], site, patch)  # what the first run needs for good
    before = peak_memory()
    measure_in_batches(model, pairs, site, patch, memory=budget)
    return peak_memory() - before


def memory(n: int, budget: float) -> int:
    """As `measure_memory`, in a process that has done nothing else."""
    command = [sys.executable, "-m", "benchmarks.scaling", "--memory", str(n), str(budget)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=HERE.parent)
    return int(done.stdout.split()[-1])


def measure_all() -> dict:
    """Everything, by panel and by the number on its horizontal axis."""
    model = load_model(device="cpu")
    pairs = ioi_pairs(model, max(PAIRS))
    fifty = pairs[:50]
    length = len(fifty.base_tokens[0])
    return {
        "pairs": {n: measure(model, pairs[:n], LAYER) for n in PAIRS},
        "tokens": {n + length: measure(model, longer(model, fifty, n), LAYER) for n in TOKENS},
        "layer": {n: measure(model, fifty, n) for n in LAYERS},
        "depth": {n: measure(deep(model, n), fifty, n // 2) for n in DEPTHS},
        "memory": {
            n: {"at once": memory(n, 1e12), "budget of 100 MB": memory(n, 1e8)}
            for n in MEMORY_PAIRS
        },
    }


def draw(measured: dict) -> Figure:
    """A panel for everything the cost depends on."""
    plots.use_style()
    figure, axes = plots.new(11, 6.5, rows=2, columns=3)
    titles = {
        "pairs": "Many pairs cost in proportion",
        "tokens": "Longer prompts cost a patch little",
        "layer": "A patch pays for blocks above it",
        "depth": "Deep models cost in proportion",
    }
    labels = {
        "pairs": "pairs", "tokens": "tokens of a prompt", "layer": "layer of the site (of 30)",
        "depth": "layers of the model (site in the middle)",
    }  # fmt: skip
    for ax, (panel, title) in zip(axes.flat, titles.items(), strict=False):
        x = [int(n) for n in measured[panel]]
        for work in WORK:
            color, marker = STYLE[work]
            y = [at[work] for at in measured[panel].values()]
            ax.plot(x, y, color=color, marker=marker, label=work)
            if panel != "layer":
                ax.plot(x, [y[-1] * n / x[-1] for n in x], color=color, ls="--", lw=0.8)
        log = "linear" if panel == "layer" else "log"
        ax.set(xlabel=labels[panel], ylabel="seconds", xscale=log, yscale="log")
        ax.set_xticks(x, x)
        ax.minorticks_off()
        ax.set_title(title, fontsize=10)
    axes[0, 0].legend(fontsize=8)
    ax = axes[1, 1]
    x = [int(n) for n in measured["memory"]]
    for (name, marker), color in zip(
        {"at once": "s", "budget of 100 MB": "o"}.items(), (plots.BASE, plots.NATURAL), strict=True
    ):
        y = [at[name] / 1e6 for at in measured["memory"].values()]
        ax.plot(x, y, color=color, marker=marker, label=name)
    ax.set(xlabel="pairs, patched at layer 0", ylabel="MB beyond the model")
    ax.set_title("A budget bounds the memory", fontsize=10)
    ax.legend(fontsize=8)
    axes[1, 2].axis("off")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.scaling")
    parser.add_argument("--memory", nargs=2, type=float, metavar=("PAIRS", "BYTES"))
    options = parser.parse_args()
    if options.memory:
        return print(measure_memory(int(options.memory[0]), options.memory[1]))
    path = HERE / "results" / "scaling.json"
    path.write_text(json.dumps(measure_all(), indent=1) + "\n")
    draw(json.loads(path.read_text())).savefig(path.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
