"""A backward pass that treats each nonlinearity as the straight line it is on this prompt (RelP).

    norm      x / scale                  the scale counts as a constant
    identity  act(x) = x (act(x) / x)    the ratio counts as a constant
    half      act(gate) * up             each factor gets half of the gradient
    pattern   attention pattern          counts as a constant, so queries get nothing

With all four the logits are linear in the residual stream, up to biases: at every layer coefficient
times activation sums to the logit. Rules: arXiv 2508.21258 (layerwise relevance propagation).
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from helpers.models import Model

RELP = ("norm", "identity", "half")  # the default of the paper
RULES = (*RELP, "pattern")
REBUILT = "A forward hook edited hook_scale"  # TransformerLens's warning: it is what we want


@contextmanager
def linearised(model: Model, rules: Sequence[str] = RELP) -> Iterator[None]:
    """Inside, gradients follow the `rules`, some of `RULES`; forward values stay, up to rounding.

    Rules are hooks by name, the same for every architecture and activation function. `half` changes
    nothing in an MLP without a gate. Norms of queries and keys are left alone: no published rule
    speaks of them. Hooks that are added inside see what the rules leave. ValueError: no such rule.
    """
    if isinstance(rules, str) or not set(rules) <= set(RULES):
        raise ValueError(f"rules are some of {RULES}, in a list or a tuple, not {rules!r}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=REBUILT)
        with model.hooks(fwd_hooks=list(_hooks(model, set(rules)))):
            yield


def _hooks(model: Model, rules: set[str]) -> Iterator[tuple[str, Callable]]:
    ends = {"norm": "hook_scale", "pattern": "attn.hook_pattern"}
    for end in [end for rule, end in ends.items() if rule in rules]:
        for name in model.hook_dict:
            if name.endswith(end) and not {"q_norm", "k_norm"} & set(name.split(".")):
                yield name, lambda value, hook: value.detach()
    for layer in range(model.cfg.n_layers if rules & {"identity", "half"} else 0):
        seen: dict[str, Tensor] = {}
        for end in ("hook_pre", "hook_pre_linear"):
            if (name := f"blocks.{layer}.mlp.{end}") in model.hook_dict:
                yield name, functools.partial(_keep, seen=seen, key=end)
        yield f"blocks.{layer}.mlp.hook_post", functools.partial(_mlp, seen=seen, rules=rules)


def _keep(value: Tensor, hook: object, *, seen: dict[str, Tensor], key: str) -> None:
    seen[key] = value


def _mlp(hidden: Tensor, hook: object, *, seen: dict[str, Tensor], rules: set[str]) -> Tensor:
    """The hidden activation, with the gradient of its stand-in."""
    gate, up = seen.pop("hook_pre"), seen.pop("hook_pre_linear", None)
    line = hidden
    if "identity" in rules:
        line = gate if up is None else gate * up
        line = line * torch.where(line == 0, 0.0, hidden / line).detach()  # act(x) / x
    if "half" in rules and up is not None:
        line = line / 2
    return hidden.detach() + (line - line.detach())  # in this order: exact in float32
