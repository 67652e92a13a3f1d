"""What moves the numbers: hash seeds, threads, CPU kernels, package versions and precision.

    python -m benchmarks.reproducibility         four minutes on two otherwise idle cores

Trains lesson 03's direction, on fewer pairs, in several fresh processes and compares each with the
first; then lets that direction act on weights and arithmetic of less precision. Writes
`results/reproducibility.md`. The environments of `make test-versions` take part if they are there.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import TransformerBridge

from benchmarks import precision
from helpers.directions.geometry import patch_subspace, row_null_split
from helpers.directions.search import answer_logit_difference, find_direction
from helpers.models.load import load_model
from helpers.output import files
from helpers.patching.caching import cache_pairs
from helpers.patching.sites import Site
from helpers.tasks.ioi import make_pairs
from helpers.tasks.pairs import Pairs
from tools.report import versions

ROOT = Path(__file__).resolve().parent.parent
TABLES = ROOT / "benchmarks" / "results" / "reproducibility.md"
SITE, PAIRS, EPOCHS, BATCH = Site(21, "mlp_hidden"), 60, 15, 30
FEW = 20  # pairs of the table of precisions, which is made by full forward passes

FIRST = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "1", "TQDM_DISABLE": "1"}
# What is different from the first process: variables, or the environment.
PROCESSES = {
    "the hash seed only": {"PYTHONHASHSEED": "2"},
    "two threads": {"OMP_NUM_THREADS": "2"},
    "AVX2 kernels": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
    "oldest packages": {},
    "newest packages": {},
}
TRAINED = ("whole MLP", "direction", "row part", "null part")
Found = dict[str, Tensor | str]


def train_and_measure(first: Float[Tensor, "d"] | None) -> Found:
    """Logits, a newly trained direction, and the FLDD in percent of its parts and of `first`."""
    model = load_model(device="cpu")
    train, test = (cache_pairs(model, pairs, SITE) for pairs in splits(model))
    fitting = dict(loss=answer_logit_difference, epochs=EPOCHS, batch_size=BATCH, progress=False)
    v = find_direction(train, **fitting).direction
    row, null = row_null_split(v, W_out(model))
    directions = {"direction": v, "row part": row, "null part": null}
    directions["first direction"] = v if first is None else first
    activations = {k: patch_subspace(test.base, test.source, d) for k, d in directions.items()}
    activations["whole MLP"] = test.source
    with torch.no_grad():
        after = {name: test.logit_difference(h) for name, h in activations.items()}
        found: Found = {"logits": test.patched_logits(test.base), "v": v, "versions": versions()}
    return found | {k: share_lost(test.clean_logit_difference, left) for k, left in after.items()}


def splits(model: TransformerBridge) -> list[Pairs]:
    """Training and test pairs of lesson 03, but fewer."""
    return [make_pairs(model, PAIRS, split=s, seed=i) for i, s in enumerate(("train", "test"))]


def W_out(model: TransformerBridge) -> Float[Tensor, "d_mlp d_model"]:
    """The down projection at the site."""
    return model.blocks[SITE.layer].mlp.W_out.detach()


def share_lost(clean: Float[Tensor, "pairs"], patched: Float[Tensor, "pairs"]) -> Float[Tensor, ""]:
    """The FLDD in percent, without an interval."""
    return 100 * (1 - patched.double().mean() / clean.double().mean())


def in_process(what: str, folder: Path) -> Found | None:
    """What a fresh process finds; None if `make test-versions` has not made its environment."""
    name = what.removesuffix(" packages")
    python = Path(sys.executable) if name == what else ROOT / ".venvs" / name / "bin" / "python"
    if not python.exists():
        return None
    print(f"{what} ...", flush=True)
    command = [str(python), "-m", "benchmarks.reproducibility", "--worker", str(folder), what]
    environment = os.environ | FIRST | PROCESSES.get(what, {})
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
    return torch.load(folder / f"{what}.pt", weights_only=True)


def differences(found: Found, first: Found) -> list[str]:
    """The largest differences in logits, in the direction, and in FLDD of `first` and anew."""
    numbers = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    if all(torch.equal(value, first[name]) for name, value in numbers.items()):
        return ["identical"] * 4
    apart = {name: (value - first[name]).abs().max().item() for name, value in numbers.items()}
    anew = max(apart[name] for name in TRAINED)
    turned = (found["v"] - first["v"]).norm().item()
    largest = (apart["logits"], turned, apart["first direction"], anew)
    return [f"{number:.0e}" if number else "0" for number in largest]


def precisions(v: Float[Tensor, "d"]) -> list[list[str]]:
    """A row for every precision: FLDD in percent, and how far the null part moves a pair."""
    rows, W = [], W_out(load_model(device="cpu"))
    for name, load in precision.ways().items():
        print(f"{name} ...", flush=True)
        model = load()
        measured = precision.measure(model, splits(model)[1][:FEW], SITE, v, W)
        clean = measured["clean"]
        shares = [decimals(share_lost(clean, measured[patch])) for patch in TRAINED]
        moved = (measured["null part"] - clean).abs().max().item()
        rows.append([name, *shares, f"{moved:.0e}"])
    return rows


def markdown(processes: Mapping[str, Found], rows: list[list[str]]) -> str:
    """Both tables, with what they were measured on."""
    first = processes["first"]
    values = ", ".join(f"{name} {decimals(first[name])} %" for name in TRAINED)
    compared = [
        [what, *differences(found, first)] for what, found in processes.items() if what != "first"
    ]
    used = [
        f"{what}: {found['versions']}"
        for what, found in processes.items()
        if what == "first" or what.endswith("packages")
    ]
    lines = [
        "# What moves the numbers",
        f"SmolLM2-135M-Instruct, {SITE}, one direction trained for {EPOCHS} epochs on {PAIRS} IOI "
        f"pairs, {PAIRS} others to test. FLDD in the first process: {values}. Made by "
        "`python -m benchmarks.reproducibility`.",
        *used,
        "## Another process",
        "The largest differences from the first process (one thread, kernels for "
        f"{torch.backends.cpu.get_cpu_capability()}): in the logits of the test prompts, in the "
        "unit vector trained anew (length of the difference), in the FLDD of the first process's "
        "direction, and in the FLDD of what is trained anew (whole MLP, direction, row part, null "
        "part), in percentage points.",
        table(
            ["different", "logits", "direction", "FLDD, first direction", "FLDD, anew"], compared
        ),
        "## Less precision",
        f"The direction of the first process on {FEW} of the test pairs, FLDD in percent, and the "
        "largest change of a pair's logit difference by the null part, in nats.",
        table(["less precise", *TRAINED, "null part, a pair"], rows),
    ]
    return "\n\n".join(lines) + "\n"


def decimals(number: Float[Tensor, ""]) -> str:
    """Three decimals, and no minus before a zero."""
    return f"{round(number.item(), 3) + 0.0:.3f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    ruled = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in ruled)


def main() -> None:
    """Measure everything, or what one process is asked for."""
    parser = argparse.ArgumentParser("python -m benchmarks.reproducibility")
    parser.add_argument("--worker", nargs=2, metavar=("FOLDER", "WHAT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        folder, what = Path(options.worker[0]), options.worker[1]
        first = torch.load(folder / "first.pt", weights_only=True)["v"] if what != "first" else None
        return torch.save(train_and_measure(first), folder / f"{what}.pt")
    with tempfile.TemporaryDirectory() as name:
        found = {what: in_process(what, Path(name)) for what in ("first", *PROCESSES)}
    processes = {what: results for what, results in found.items() if results is not None}
    files.write(TABLES, markdown(processes, precisions(processes["first"]["v"])))


if __name__ == "__main__":
    main()
