"""Tables and a figure from what `bench` measured, so that they can be made again without it.

python -m benchmarks.report benchmarks/results/bench.json
"""

import json
import platform
import statistics
import sys
import textwrap
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from benchmarks.floor import needed
from benchmarks.peers.steps import DAS_STEPS
from helpers.output import plots

NAMES = {
    "ours": "this project",
    "ours, answers": "this project, loss on the two answers",
    "ours, products": "the matrix products that it needs, alone",
    "ours, closed form": "this project, closed form",
    "ours, closed form and steps": "this project, closed form and ten small steps",
    "transformer_lens_hooks": "TransformerLens 4",
    "transformer_lens_hooks, all logits": "TransformerLens 4, logits of all tokens",
    "transformer_lens_hooks, fit_das": "TransformerLens 4, `fit_das`, sources included",
    "plain_hooks": "plain PyTorch hooks",
    "pyvene_peer": "pyvene, sources included",
    "nnsight_peer": "nnsight",
    "published": "published method",
    "published, vector": "published method, but a vector",
}
TITLES = {
    "step mlp": "One training step, MLP hidden activation",
    "step resid": "One training step, residual stream",
    "evaluate mlp": "One evaluation of a direction, MLP hidden activation",
    "evaluate resid": "One evaluation of a direction, residual stream",
    "evaluate 1000": "One direction on many pairs, from tokens",
    "sweep": "Layers x {residual stream, attention, MLP} at the last token, from tokens",
    "positions": "Layers x positions of the residual stream, from tokens",
    "facts": "One direction for each of 40 pairs of facts, one gradient",
}
_EVERYWHERE = (
    "At every MLP and residual stream, 100 pairs, prompts included: {:.1f} s, with one backward "
    "pass for all of them.\n"
)
COLOURS = dict.fromkeys(("ours", "ours, answers"), plots.NATURAL) | {"ours, products": "0.75"}


def describe(problem: dict[str, Tensor], rounds: int) -> dict:
    """The machine, the versions and the sizes."""
    packages = ("torch", "transformer_lens", "transformers")
    return {
        "versions": {name: version(name) for name in packages} | _pinned(),
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "pairs": len(problem["base"]),
        "tokens": problem["base"].shape[1],
        "many": len(problem["many base"]),
        "sweep pairs": int(problem["sweep pairs"]),
        "position pairs": int(problem["position pairs"]),
        "layer": int(problem["layer"]),
        "facts layer": int(problem["facts layer"]),
        "facts tokens": int((problem["facts base length"] - problem["facts position"]).sum()),
    }


def _pinned() -> dict[str, str]:
    """The versions of the peers that have an environment of their own."""
    folder = Path(__file__).resolve().parent / "requirements"
    lines = [line for file in folder.glob("*.txt") for line in file.read_text().split()]
    pins = dict(line.split("==") for line in lines)
    return {name: pins[name] for name in ("pyvene", "nnsight")}


def write(measured: dict, folder: Path) -> None:
    """`bench.json`, `bench.md` and `bench.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(measured, indent=1) + "\n")
    (folder / "bench.md").write_text(markdown(measured))
    draw(measured).savefig(folder / "bench.png", dpi=110)


def ratios(seconds: dict[str, list[float]], entry: str) -> list[float]:
    """How many times as long as ours an entry took, round by round."""
    return [other / own for other, own in zip(seconds[entry], seconds["ours"], strict=True)]


def markdown(measured: dict) -> str:
    """All tables."""
    setting, works = measured["setting"], measured["works"]
    versions = ", ".join(f"{name} {number}" for name, number in setting["versions"].items())
    lines = [
        "# Speed and memory beside other tools\n",
        f"SmolLM2-135M-Instruct, float32, {setting['pairs']} IOI pairs of {setting['tokens']} "
        f"tokens, layer {setting['layer']}; {setting['many']} pairs in the large evaluation, "
        f"{setting['sweep pairs']} and {setting['position pairs']} in the two sweeps.\n",
        f"{setting['machine']}, {setting['threads']} threads, matrix products at "
        f"{measured['matrix rate'] / 1e9:.0f} GFLOP/s; {versions}. Made by `make bench`.\n",
        f"Medians over {setting['rounds']} rounds in turn (two for facts and n x n matrices). "
        "*Times ours*: the median of the rounds' ratios, with their range. *Times the floor*: the "
        "time divided by what the needed multiplications would take at the machine's matrix rate. "
        "Work from tokens was timed once.\n",
        "Where it says so, source prompts are run at every call; else they were run before. All "
        "but pyvene and the published method compute the logits of the last token only, except "
        "where TransformerLens is said to compute those of all tokens, which is what its model "
        "does unless it is told otherwise. *Published method* is our rewriting of it: three runs "
        "of whole prompts for every patch, and in training an orthogonal n x n matrix, computed "
        "anew from its parameters at each of its three uses. "
        f"{measured['repeated calls']} calls were repeated because the machine was busy.\n",
    ]
    rate = measured["matrix rate"]
    for name, title in TITLES.items():
        if name in works:
            lines += _table(name, title, works, setting, rate)
    if "closed form" in works:
        lines += _closed_form(works, measured["quality"])
    return "\n".join([*lines, *_quality(measured["quality"]), *_memory(measured["memory"]),
                      *_loading(measured.get("loading", {}))])  # fmt: skip


def _table(name: str, title: str, works: dict, setting: dict, rate: float) -> list[str]:
    seconds = dict(works[name]["seconds"])
    rotation = works.get(name.replace("step", "rotation"), {}).get("seconds", {})
    floor = needed(name, setting) / rate
    lines = [
        f"## {title}\n",
        f"Results agree to {works[name]['largest difference']:.0e}.\n",
        "| | seconds | times ours | times the floor |",
        "|---|---:|---:|---:|",
    ]
    own = statistics.median(seconds["ours"])
    for entry in sorted(seconds, key=lambda entry: statistics.median(seconds[entry])):
        each = ratios(seconds, entry)
        median = statistics.median(seconds[entry])
        spread = "1" if entry == "ours" else f"{statistics.median(each):.2g}"
        if entry != "ours" and len(each) > 1:
            spread += f" ({min(each):.2g} to {max(each):.2g})"
        floors = "" if entry == "ours, answers" else f"{median / floor:.1f}"
        lines.append(f"| {NAMES[entry]} | {median:.3f} | {spread} | {floors} |")
    if name.startswith("step") and rotation:
        median = statistics.median(rotation["published"])
        lines.append(
            f"| {NAMES['published']}, n x n matrix (other rounds) | {median:.3f} "
            f"| {median / own:.0f} | {median / floor:.1f} |"
        )
    return [*lines, ""]


def _closed_form(works: dict, quality: dict) -> list[str]:
    """The best direction without training, beside what training takes."""
    work = works["closed form"]
    lines = [
        "## The best direction of an MLP in closed form, and by training\n",
        f"From cached prompts; eigenvalues agree to {work['largest difference']:.0e}. Training: "
        f"{DAS_STEPS} steps with all pairs; `fit_das` runs the prompts too; one call.\n",
        "| | seconds | times the closed form |",
        "|---|---:|---:|",
    ]
    seconds = {
        "closed form, this project": work["seconds"]["ours"],
        "closed form, plain PyTorch hooks and the whole matrix": work["seconds"]["plain_hooks"],
        "training, this project, loss on the two answers": work["seconds"]["ours, DAS"],
    }
    if theirs := quality.get("transformer_lens_hooks, fit_das"):
        seconds["training, TransformerLens 4, `fit_das`"] = [theirs["seconds"]]
    own = statistics.median(seconds["closed form, this project"])
    for name, each in seconds.items():
        median = statistics.median(each)
        lines.append(f"| {name} | {median:.3f} | {median / own:.2g} |")
    everywhere = statistics.median(works["closed forms"]["seconds"]["ours"])
    return [*lines, "", _EVERYWHERE.format(everywhere)]


def _quality(quality: dict) -> list[str]:
    lines = [
        f"## Until a direction removes {quality['target']:.0%} on unseen pairs\n",
        "From tokens, MLP hidden activation, all pairs in every step, given up after "
        f"{quality['most steps']} steps; the same start, loss and optimiser. `fit_das` starts at "
        f"random and is called once, for {DAS_STEPS} steps; once, too, both closed forms.\n",
        "| | seconds | calls | effect reached |",
        "|---|---:|---:|---:|",
    ]
    for peer, found in quality.items():
        if peer in NAMES:
            lines.append(
                f"| {NAMES[peer]} | {found['seconds']:.1f} | {found['steps']} "
                f"| {found['effect']:.1%} |"
            )
    return [*lines, ""]


def _memory(memory: dict) -> list[str]:
    """Peaks of fresh processes, in megabytes."""
    peers = list(next(iter(memory.values())))
    lines = [
        "## Peak memory\n",
        "Megabytes of a fresh process that does the work once, its packages and the model (540 MB) "
        "included.\n",
        "| | " + " | ".join(NAMES[peer] for peer in peers) + " |",
        "|---|" + "---:|" * len(peers),
    ]
    for job, found in memory.items():
        cells = [f"{found[p]['peak'] / 1e6:.0f}" if p in found else "" for p in peers]
        lines.append(f"| {TITLES[job]} | {' | '.join(cells)} |")
    return [*lines, ""]


def _loading(seconds: dict[str, list[float]]) -> list[str]:
    if not seconds:  # of a quick run
        return []
    lines = [
        "## Loading the packaged model\n",
        "Without imports and download.\n",
        "| | seconds, median (range) |",
        "|---|---:|",
    ]
    for way, each in seconds.items():
        lines.append(
            f"| {way} | {statistics.median(each):.1f} ({min(each):.1f} to {max(each):.1f}) |"
        )
    return [*lines, ""]


def draw(measured: dict) -> plt.Figure:
    """How many times as long as ours each way took, a panel per work."""
    plots.use_style()
    names = [name for name in TITLES if name in measured["works"]]
    figure, axes = plots.new(11, 10, rows=4, columns=2, sharex=True)
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    for ax, name in zip(axes.flat, names, strict=False):
        seconds = measured["works"][name]["seconds"]
        entries = sorted(seconds, key=lambda entry: -statistics.median(seconds[entry]))
        for row, entry in enumerate(entries):
            each = ratios(seconds, entry)
            middle = statistics.median(each)
            ax.barh(row, middle, color=COLOURS.get(entry, plots.BASE), height=0.7)
            ax.text(max(middle, 1) * 1.1, row, f"{middle:.2g}", va="center", fontsize=8)
        labels = [NAMES[entry].replace("`", "") for entry in entries]
        ax.set_yticks(range(len(entries)), labels, fontsize=8)
        ax.set_title(textwrap.fill(TITLES[name], 36), fontsize=9)
        ax.set(xscale="log", xlim=(0.3, 150))
        ax.set_xticks([1, 10, 100], ["1", "10", "100"])
        ax.axvline(1, color="0.2", lw=1)
    for ax in axes[-1]:
        ax.set_xlabel("times as long as this project")
    return figure


if __name__ == "__main__":
    path = Path(sys.argv[1])
    write(json.loads(path.read_text()), path.parent)
