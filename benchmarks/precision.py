"""What a direction of the float32 model does on weights, or in arithmetic, of less precision.

Full forward passes with one hook, without the engine of `helpers.patching`, so that nothing but
the precision is different.
"""

import functools
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import TransformerBridge

from helpers.directions.geometry import patch_subspace, row_null_split
from helpers.models.load import load_model
from helpers.models.smollm import packaged_folder
from helpers.patching.metrics import logit_difference
from helpers.patching.sites import Site
from helpers.tasks.pairs import Pairs

COARSE = (torch.bfloat16, torch.float16)


def ways() -> dict[str, Callable[[], TransformerBridge]]:
    """Loads the packaged model, by what is less precise about it."""
    load = functools.partial(load_model, device="cpu")
    found: dict[str, Callable[[], TransformerBridge]] = {"nothing": load}
    for dtype in COARSE:
        name = str(dtype).removeprefix("torch.")
        found[f"weights: {name}"] = lambda dtype=dtype: round_weights(load(), dtype)
        found[f"weights and arithmetic: {name}"] = functools.partial(boot, dtype)
    return found


@torch.no_grad()
def round_weights(model: TransformerBridge, dtype: torch.dtype) -> TransformerBridge:
    """The same model with every weight rounded, in place, to what a coarser type can hold."""
    for parameter in model.parameters():
        parameter.copy_(parameter.to(dtype))
    return model


def boot(dtype: torch.dtype) -> TransformerBridge:
    """The model computing in another type throughout."""
    model = TransformerBridge.boot_transformers(str(packaged_folder()), device="cpu", dtype=dtype)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def measure(
    model: TransformerBridge,
    pairs: Pairs,
    site: Site,
    direction: Float[Tensor, "d"],
    W_out: Float[Tensor, "d d_model"],
) -> dict[str, Float[Tensor, "pairs"]]:
    """Logit differences, in nats, of prompts of one length: unpatched and under each patch.

    The direction is split by `W_out`, the float32 weights; the patch is computed as precisely as
    the model computes.
    """
    base, source = (torch.stack(rows) for rows in (pairs.base_tokens, pairs.source_tokens))
    base_act, clean = run(model, base, site)
    source_act, _ = run(model, source, site)
    row, null = row_null_split(direction, W_out)
    patched = {
        name: patch_subspace(base_act, source_act, v.to(base_act))
        for name, v in {"direction": direction, "row part": row, "null part": null}.items()
    }
    logits = {"clean": clean} | {
        name: run(model, base, site, new)[1]
        for name, new in ({"whole MLP": source_act} | patched).items()
    }
    return {
        name: logit_difference(values, pairs.answer, pairs.counterfactual)
        for name, values in logits.items()
    }


def run(
    model: TransformerBridge,
    tokens: Int[Tensor, "prompts pos"],
    site: Site,
    new: Float[Tensor, "prompts d"] | None = None,
) -> tuple[Float[Tensor, "prompts d"], Float[Tensor, "prompts d_vocab"]]:
    """The activation of the last token, after `new` is written there, and the logits in float32."""
    seen = []

    def write(activation: Tensor, hook: object) -> Tensor:
        if new is not None:
            activation = activation.clone()
            activation[:, -1] = new
        seen.append(activation[:, -1])
        return activation

    logits = model.run_with_hooks(tokens, fwd_hooks=[(site.hook_name, write)])
    return seen[0], logits[:, -1].float()
