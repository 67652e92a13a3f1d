"""The multiplications and additions that a work cannot do without, for a Llama-like model.

A patch at layer `l` of the last token changes only that token in the layers above; a training step
needs as much again for the gradient, since the weights are fixed. Attention's own products are left
out: at these lengths they are below a hundredth. Work from tokens counts base and source prompts
whole, a little more than it must: nobody needs the first tokens' last block.

A floor in seconds is this number at the rate of large matrices. No processor reaches that rate with
few rows: `alone` times the same products at their own shapes, forward and backward.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import AutoConfig

from helpers.models.smollm import packaged_folder


def path(work: str, layer: int) -> list[tuple[int, int]]:
    """Inputs and outputs of the matrices between a site and the logits, in order."""
    config = AutoConfig.from_pretrained(packaged_folder())
    d, hidden, head = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = head * config.num_attention_heads, head * config.num_key_value_heads
    attention = [(d, queries), (d, keys), (d, keys), (queries, d)]
    block = [*attention, (d, hidden), (d, hidden), (hidden, d)]
    first = [] if "resid" in work else block[-1:]
    return [*first, *block * (config.num_hidden_layers - 1 - layer), (d, config.vocab_size)]


def alone(work: str, pairs: int, layer: int) -> Callable[[], Tensor]:
    """The products of an evaluation or a training step of these pairs, and nothing else."""
    weights = [torch.randn(outputs, inputs) for inputs, outputs in path(work, layer)]
    rows = {width: torch.randn(pairs, width) for weight in weights for width in weight.shape}

    def run() -> Tensor:
        last = [rows[weight.shape[1]] @ weight.T for weight in weights][-1]
        for weight in reversed(weights) if work.startswith("step") else ():
            last = rows[len(weight)] @ weight
        return last

    return run


def needed(work: str, setting: dict) -> float:
    """Floating-point operations of one call."""

    def of_token(matrices: list[tuple[int, int]]) -> int:
        return 2 * sum(inputs * outputs for inputs, outputs in matrices)

    *matrices, unembed = path(work, setting["layer"])
    one, vocabulary = of_token(matrices), of_token([unembed])  # behind the site
    layers = AutoConfig.from_pretrained(packaged_folder()).num_hidden_layers
    block = of_token(path("resid", layers - 2)[:-1])
    prompt = setting["tokens"] * block  # of one layer
    remaining = range(layers)  # blocks above each layer, highest layer first
    if work.startswith("evaluate 1000"):
        return setting["many"] * (prompt * (layers + setting["layer"] + 1) + one)
    if work.startswith("evaluate"):
        return setting["pairs"] * (one + vocabulary)
    if work.startswith("step"):
        return 2 * setting["pairs"] * (one + vocabulary)
    if work == "sweep":
        return setting["sweep pairs"] * (2 * prompt * layers + 3 * sum(remaining) * block)
    if work == "positions":
        tokens = range(1, setting["tokens"] + 1)
        return setting["position pairs"] * (
            2 * prompt * layers + sum(remaining) * sum(tokens) * block
        )
    if work == "facts":
        above = layers - 1 - setting["facts layer"]
        return 2 * setting["facts tokens"] * above * block
    raise ValueError(f"no floor is known for {work}")
