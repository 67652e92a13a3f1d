"""Does a GPU give what the CPU gives, and how fast? At most eight minutes, `make gpu-check`.

    python -m benchmarks.gpu                            writes results/gpu.md
    python -m benchmarks.gpu --device cpu --out FOLDER  a rehearsal: CPU against CPU

The same pairs on both: patched logits, the closed form, an audit, attribution. Then the times of a
training step, a sweep and an audit, and lessons 00 to 05 with their small sizes. Exit status: 0 if
all agrees and runs, 1 if not, 2 without a GPU.
"""

import argparse
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from helpers.attribution import attribution
from helpers.audit import audit
from helpers.directions import best_directions, mean_difference, patch_subspace
from helpers.models import Model, ModelError, load_model, model_slug
from helpers.output import files
from helpers.output.files import ROOT
from helpers.patching import CachedPairs, Site, cache_pairs, cache_sites, effects
from helpers.tasks import Pairs, ioi
from tools.pages import markdown_table

RESULTS = Path(__file__).resolve().parent / "results" / "gpu.md"
TOLERANCE = 1e-3  # of logits and shares, or relative to the largest value where it is above one
PAIRS, REPEATS = 60, 5
LESSONS = ("00", "01", "02", "03", "04", "05")
LIMIT = 360  # seconds for the lessons
KINDS = ("resid_pre", "mlp_out")


def prepared(model: Model, n: int) -> tuple[Pairs, CachedPairs, CachedPairs]:
    """Pairs, cached at the MLP and at the stream seven tenths up."""
    pairs = ioi.make_pairs(model, n, split="train", seed=0)
    layer = round(0.7 * (model.cfg.n_layers - 1))
    sites = [Site(layer, kind) for kind in ("mlp_hidden", "resid_post")]
    return pairs, *cache_sites(model, pairs, sites)


def measured(model: Model, n: int, v: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor]:
    """What is compared, by name, on the CPU, and the direction that was audited.

    The direction is given for the second device: a spectrum's ends may swap where they are equal.
    """
    pairs, mlp, stream = prepared(model, n)
    v = mean_difference(mlp).cpu() if v is None else v
    found = {"patched logits, MLP": mlp.patched_logits(patch_subspace(mlp.base, mlp.source, v))}
    found["patched logits, stream"] = stream.patched_logits(stream.source)
    found["closed form, eigenvalues"] = best_directions(mlp).spectrum[:10]
    one = audit(model, mlp.site, v, pairs, progress=False)
    values = [one.effect.fldd.value, one.whole.fldd.value]
    values += [f.value.value for f in one.findings if f.value is not None]
    found["audit, effects and tests"] = torch.tensor(values)
    for kind, scores in attribution(model, pairs, KINDS, method="relp").items():
        found[f"attribution, {kind}"] = scores
    return {name: value.detach().float().cpu() for name, value in found.items()}, v


def compare(here: dict[str, Tensor], there: dict[str, Tensor]) -> list[tuple[str, float, bool]]:
    """The largest difference of each, relative to large values, and whether it is small."""
    rows = []
    for name, value in here.items():
        scale = max(1.0, value.abs().max().item())
        same = value.shape == there[name].shape
        gap = (value - there[name]).abs().max().item() / scale if same else float("inf")
        rows.append((name, gap, gap <= TOLERANCE))
    return rows


def seconds(work: Callable[[], object], device: str) -> float:
    """The median time of a few calls, after one that does not count."""

    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    times = []
    for _ in range(REPEATS + 1):
        wait()
        start = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[REPEATS // 2]


def timed(model: Model, n: int, device: str) -> dict[str, float]:
    """Seconds of a training step, of a sweep from tokens, and of an audit from tokens."""
    pairs, mlp, _ = prepared(model, n)
    v = mean_difference(mlp)
    weights = v.clone().requires_grad_()
    sites = [Site(at, kind) for at in range(model.cfg.n_layers)
             for kind in ("resid_post", "attn_out", "mlp_out")]  # fmt: skip

    def step() -> None:
        weights.grad = None
        mlp.logit_difference(patch_subspace(mlp.base, mlp.source, weights)).mean().backward()

    return {
        f"a training step of one direction, {n} pairs": seconds(step, device),
        f"a sweep of {len(sites)} sites, {n} pairs, from tokens": seconds(
            lambda: effects(cache_sites(model, pairs, sites)), device),
        f"an audit of one direction, {n} pairs, from tokens": seconds(
            lambda: audit(model, mlp.site, v, pairs, progress=False), device),
        f"prompts of {n} pairs": seconds(lambda: cache_pairs(model, pairs, mlp.site), device),
    }  # fmt: skip


def lessons(name: str | None, device: str, numbers: Sequence[str]) -> tuple[bool, float, str]:
    """Whether the lessons run to their ends on the device, in how long, and what they said last."""
    command = [sys.executable, "-m", "tools.run", "--device", device, "--lesson", *numbers]
    command += ["--model", name] if name else []
    with tempfile.TemporaryDirectory() as folder:
        own = {"SUBSPACE_ILLUSION_RESULTS": folder, "SUBSPACE_ILLUSION_SIZES": "small"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        start = time.monotonic()
        with subprocess.Popen(command, cwd=ROOT, env={**os.environ, **own}, **pipes) as process:
            try:
                said = process.communicate(timeout=LIMIT)[0]
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)  # at which it stops its kernels
                said = f"{process.communicate()[0]}\nstopped after {LIMIT} s"
    last = [line for line in said.splitlines() if line.strip()][-1:]
    return process.returncode == 0, time.monotonic() - start, "".join(last)


def card(device: str) -> str:
    """What the device is called."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return f"{device} ({platform.machine()}): a rehearsal, no GPU"


def report(name: str, device: str, n: int, rows: Sequence, times: dict, ran: tuple | None,
           numbers: Sequence[str]) -> str:  # fmt: skip
    """What was found, as Markdown."""
    table = [[what, f"{gap:.1e}", "yes" if ok else "NO"] for what, gap, ok in rows]
    parts = [
        f"# The CPU against {card(device)}",
        f"{model_slug(name)}, {n} IOI pairs, float32; torch {torch.__version__}, Python "
        f"{platform.python_version()}. Made by `python -m benchmarks.gpu`.",
        f"Differences, relative where the largest value is above one; at most {TOLERANCE:g}:",
        markdown_table(["what", "largest difference", "agrees"], table),
        f"Median of {REPEATS} calls after a first one:",
        markdown_table(["work", "seconds"], [[what, f"{s:.4f}"] for what, s in times.items()]),
    ]
    if ran is not None:
        end = "ran to their ends" if ran[0] else f"did not all run to their ends: {ran[2]}"
        parts.append(f"Lessons {', '.join(numbers)} with the sizes `small` {end}, in "
                     f"{ran[1]:.0f} s.")  # fmt: skip
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m benchmarks.gpu`; returns its exit status."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1; cpu rehearses")
    parser.add_argument("--model", help="name, hub id or folder (default: the packaged model)")
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"(default: {PAIRS})")
    parser.add_argument("--lesson", nargs="*", default=LESSONS, metavar="NN", help="which lessons "
                        "(default: 00 to 05; without a number: none)")  # fmt: skip
    parser.add_argument("--out", type=Path, help="the folder of gpu.md (default: results/)")
    options = parser.parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("There is no GPU here that torch can use: nothing was measured.", file=sys.stderr)
        return 2
    try:
        here, v = measured(load_model(options.model, "cpu"), options.pairs)
        model = load_model(options.model, options.device)
        rows = compare(here, measured(model, options.pairs, v)[0])
        times = timed(model, options.pairs, options.device)
    except (ModelError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    ran = lessons(options.model, options.device, options.lesson) if options.lesson else None
    text = report(options.model, options.device, options.pairs, rows, times, ran, options.lesson)
    print(text)
    if options.out or options.device != "cpu":
        files.write(options.out / "gpu.md" if options.out else RESULTS, text)
    agrees = all(ok for *_, ok in rows) and (ran is None or ran[0])
    print("All agrees, and runs." if agrees else "Not all agrees, or runs: see above.")
    return 0 if agrees else 1


if __name__ == "__main__":
    raise SystemExit(main())
