"""What a sweep, a training and an audit would cost on models that we have not run: an estimate.

    python -m benchmarks.cost                      our two cores, by their measured rate
    python -m benchmarks.cost --gflops 19500       another machine, by a rate that you state

Time is work / rate * factor. The work is the multiplications and additions that cannot be avoided,
two for each weight and token. The factor is how many times longer our engine took than that on the
packaged model (`results/bench.json`); another machine, or another model, will have another one.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median

Work = dict[str, float]  # operations by the kind of work, for each has its factor
HERE = Path(__file__).resolve().parent
BYTES = 4  # float32
SITE = 0.7  # of the layers lie below the site: at 0.7 * layers, as in lesson 03
TOKENS, PAIRS, STEPS, DIRECTIONS = 19, 100, 100, 100
# Of one direction, reruns per pair of the layers above the site, forward and with a gradient:
# assumed, not counted.
RERUNS, GRADIENTS = 43, 4
KEPT = 2.3  # times keys and values: what the engine needed (`results/scaling.json`, at layer 0)


@dataclass(frozen=True)
class Shape:
    """What the cost depends on; `keys` are the dimensions of all heads' keys together."""

    layers: int
    d_model: int
    d_mlp: int
    keys: int
    vocabulary: int
    gated: bool

    @property
    def block(self) -> float:
        """Weights of a layer, without norms and biases."""
        attention = 2 * self.d_model * (self.d_model + self.keys)
        return attention + (2 + self.gated) * self.d_model * self.d_mlp

    @property
    def unembedding(self) -> float:
        return self.d_model * self.vocabulary

    @property
    def weights(self) -> float:
        return self.layers * self.block + self.unembedding


PACKAGED = Shape(30, 576, 1536, 192, 49152, gated=True)
SHAPES = {
    "SmolLM2-135M": PACKAGED,
    "GPT-2 XL": Shape(48, 1600, 6400, 1600, 50257, gated=False),
    "Llama 2 7B": Shape(32, 4096, 11008, 4096, 32000, gated=True),
}


def prompts(of: Shape, pairs: int, tokens: int = TOKENS) -> float:
    """Operations to run base and source prompts whole."""
    return 2 * pairs * tokens * 2 * of.layers * of.block


def rerun(of: Shape, layer: int) -> float:
    """Operations to patch one pair at a layer: its last token in the layers above, and logits."""
    return 2 * ((of.layers - 1 - layer) * of.block + of.unembedding)


def sweep(of: Shape, pairs: int, tokens: int = TOKENS) -> Work:
    """The prompts, then three patches (residual stream, attention, MLP) at every layer."""
    patches = sum(rerun(of, layer) for layer in range(of.layers))
    return {"sweep": prompts(of, pairs, tokens) + 3 * pairs * patches}


def training(of: Shape, pairs: int, steps: int, layer: int) -> Work:
    """Steps of one direction with all pairs (DAS): twice a rerun each, for the gradient."""
    return {"prompts": prompts(of, pairs), "step mlp": 2 * steps * pairs * rerun(of, layer)}


def audits(of: Shape, pairs: int, directions: int, layer: int) -> Work:
    """Audits of many directions at one site, whose prompts are run once."""
    reruns = directions * (RERUNS + 2 * GRADIENTS) * pairs
    return {"prompts": prompts(of, pairs), "evaluate mlp": reruns * rerun(of, layer)}


def memory(of: Shape, pairs: int, layer: int, tokens: int = TOKENS) -> float:
    """Bytes: the weights, and for each pair what is kept of the layers above, and logits."""
    kept = KEPT * 2 * tokens * (of.layers - layer) * of.keys + 2 * of.vocabulary
    return BYTES * (of.weights + pairs * kept)


def factors(measured: dict) -> dict[str, float]:
    """How many times longer than the work our engine took, by the kind of work."""
    setting, rate = measured["setting"], measured["matrix rate"]
    tokens, pairs = setting["tokens"], setting["pairs"]
    one = rerun(PACKAGED, setting["layer"])
    work = {
        "prompts": ("evaluate 1000", prompts(PACKAGED, setting["many"], tokens)),
        "sweep": ("sweep", sweep(PACKAGED, setting["sweep pairs"], tokens)["sweep"]),
        "step mlp": ("step mlp", 2 * pairs * one),
        "evaluate mlp": ("evaluate mlp", pairs * one),
    }
    seconds = {kind: measured["works"][name]["seconds"]["ours"] for kind, (name, _) in work.items()}
    return {kind: median(seconds[kind]) * rate / of for kind, (_, of) in work.items()}


def table(gflops: float | None = None) -> str:
    """The estimates as Markdown, with what they are computed from."""
    measured = json.loads((HERE / "results" / "bench.json").read_text(encoding="utf-8"))
    rate, factor = gflops * 1e9 if gflops else measured["matrix rate"], factors(measured)
    at = {name: int(SITE * of.layers) for name, of in SHAPES.items()}
    works = {
        f"sweep, {PAIRS} pairs": lambda of, at: sweep(of, PAIRS),
        f"training, {PAIRS} pairs, {STEPS} steps": lambda of, at: training(of, PAIRS, STEPS, at),
        f"audit, {2 * PAIRS} pairs": lambda of, at: audits(of, 2 * PAIRS, 1, at),
        f"{DIRECTIONS} audits": lambda of, at: audits(of, 2 * PAIRS, DIRECTIONS, at),
    }
    rows = {
        "weights, millions": [f"{of.weights / 1e6:,.0f}" for of in SHAPES.values()],
        "GFLOP of a token": [f"{2 * of.weights / 1e9:.1f}" for of in SHAPES.values()],
    }
    for title, work in works.items():
        each = [work(of, at[name]) for name, of in SHAPES.items()]
        times = [sum(factor[kind] * ops for kind, ops in one.items()) / rate for one in each]
        rows[f"{title}: TFLOP"] = [f"{sum(one.values()) / 1e12:,.1f}" for one in each]
        rows[f"{title}: time"] = [span(seconds) for seconds in times]
    sizes = [memory(of, 2 * PAIRS, at[name]) for name, of in SHAPES.items()]
    rows[f"memory, {2 * PAIRS} pairs, GB"] = [f"{size / 1e9:.1f}" for size in sizes]
    used = ", ".join(f"{kind} {value:.1f}" for kind, value in factor.items())
    lines = [["", *SHAPES], ["---", *("---:" for _ in SHAPES)], *([x, *rows[x]] for x in rows)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"At {rate / 1e9:,.0f} GFLOP/s in float32; factors: {used}.\n\n{text}"


def span(seconds: float) -> str:
    """A time in two digits, in the unit that suits it."""
    for unit, size in (("s", 1), ("min", 60), ("h", 3600)):
        if seconds < 100 * size or unit == "h":
            value = seconds / size
            return f"{float(f'{value:.2g}'):g} {unit}"


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.cost", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--gflops", type=float, help="the rate of matrix products in float32 "
                        "(default: the measured one)")  # fmt: skip
    print(table(parser.parse_args().gflops))


if __name__ == "__main__":
    main()
