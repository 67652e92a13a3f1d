"""Weights that fit, and adapters (PEFT, such as LoRA) merged into them.

What is missing, transformers would fill with random numbers. Adapters are small files that say how
fine-tuning changed a model.
"""

import os
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge.sources.transformers import get_hf_model_class_for_architecture
from transformers import PretrainedConfig, PreTrainedModel

from helpers.models.smollm import ModelError

# Constants that older versions of transformers saved with the weights of GPT-Neo, GPT-J, CodeGen.
CONSTANTS = re.compile(r"(attn|attention)\.(masked_)?bias$|\.(causal_mask|inv_freq|position_ids)$")
CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
CLOSE = 1e-3  # of the largest logit: rounding alone stays far below


class CompleteModel:
    """What TransformerLens is to load a model with, so that no weight is made up."""

    @staticmethod
    def from_pretrained(name: str, *, config: PretrainedConfig, **options: Any) -> PreTrainedModel:
        """The model; weights that it shares or is known to ignore may be missing or left over.

        Raises ModelError: the weights are quantised, or are not those of this architecture.
        """
        if quantised := getattr(config, "quantization_config", None):
            settings = quantised if isinstance(quantised, dict) else vars(quantised)
            method = getattr(method := settings.get("quant_method", "?"), "value", method)
            raise ModelError(
                f"The weights of {name!r} are quantised ({method}), and patching needs plain ones. "
                "Take the model as it was before, or save it so: load it with transformers, then "
                "model.dequantize().save_pretrained(folder)."
            )
        loader = get_hf_model_class_for_architecture((config.architectures or [""])[0])
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, info = loader.from_pretrained(name, config=config, **options)
        left = [key for key in info["unexpected_keys"] if not CONSTANTS.search(key)]
        if said := listed(info["missing_keys"], left, info["mismatched_keys"]):
            raise ModelError(
                f"The weights of {name!r} do not fit {type(model).__name__}: {said}. "
                "Save the whole model again, with model.save_pretrained(folder); an adapter is "
                "first merged, by model.merge_and_unload()."
            )
        return model


class AdaptedModel:
    """What TransformerLens is to load a model with, so that an adapter is merged into it."""

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = os.path.expanduser(folder)
        files = os.listdir(self.folder) if os.path.isdir(self.folder) else []
        if CONFIG not in files:
            raise ModelError(
                f"{folder} is not a folder with an adapter: there is no {CONFIG} in it."
            )
        if not any(name in files for name in WEIGHTS):
            raise ModelError(
                f"The adapter {folder} has no weights: there is no {WEIGHTS[0]} in it."
            )

    def from_pretrained(self, name: str, **options: Any) -> PreTrainedModel:
        """The model, with weights that the adapter has changed for good; errors as `merged`."""
        model = CompleteModel.from_pretrained(name, **options)
        try:
            return merged(model, self.folder, name)
        except ModelError:
            raise
        except ImportError as error:
            raise ModelError(
                f"Adapters need the package peft, which cannot be imported ({error}): "
                "pip install peft"
            ) from error
        except Exception as error:  # whatever peft stumbles over in a user's folder
            reason = f"The adapter {self.folder} cannot be loaded: {type(error).__name__}: {error}"
            raise ModelError(f"{reason[:400]}. Save it again if its files are damaged.") from error


@torch.no_grad()
def merged(model: PreTrainedModel, folder: str, name: str) -> PreTrainedModel:
    """`model`, called `name`, with the adapter added to its weights.

    Raises ModelError: the adapter was made for another model, or is of a kind that no weights can
    stand for. Errors of `peft` about files pass through.
    """
    import peft  # here, since only adapters need it

    config = peft.PeftConfig.from_pretrained(folder)
    kind = getattr(config.peft_type, "value", config.peft_type)
    base = config.base_model_name_or_path or "another model"  # peft will write over it
    cannot = f"The adapter {folder} cannot be merged into the weights of {name!r}"
    if config.is_prompt_learning:
        raise ModelError(
            f"{cannot}: its kind, {kind}, adds tokens. Take one of another kind: LoRA."
        )
    given = peft.load_peft_weights(folder, device="cpu").items()
    given = {key: w for key, w in given if ".base_layer." not in key}  # of an embedding: a copy
    try:
        adapted = peft.get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"The adapter {folder} does not fit {name!r}: {error}") from error
    wanted = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
    if said := misfits(wanted, given):
        reason = f"The weights of the adapter {folder} do not fit {name!r}: {said}"
        raise ModelError(f"{reason}. It was made for {base!r}: name that model.")
    peft.set_peft_model_state_dict(adapted, given)
    tokens = torch.arange(8, device=model.device)[None]  # any
    before = adapted.eval()(tokens).logits
    try:
        model = adapted.merge_and_unload(safe_merge=True)
    except (NotImplementedError, AttributeError) as error:
        raise ModelError(f"{cannot}: its kind, {kind}, has no such form.") from error
    change = (model(tokens).logits - before).abs().max()
    if not change <= CLOSE * before.abs().max():
        raise ModelError(f"{cannot}: other logits would come out, by up to {change:.2g}.")
    return model


def misfits(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """What is wrong with given weights, in words; an empty text if they are as wanted."""
    missing, left = wanted.keys() - given.keys(), given.keys() - wanted.keys()
    both = [(key, given[key].shape, wanted[key].shape) for key in wanted.keys() & given.keys()]
    return listed(missing, left, [shapes for shapes in both if shapes[1] != shapes[2]])


def listed(missing: Collection[str], left: Collection[str], shapes: Collection[tuple]) -> str:
    """`2 missing (a, b); 1 left over (c)`; of many names only the first three."""
    misshapen = [f"{key} {tuple(a)} for {tuple(b)}" for key, a, b in shapes]
    wrong = {"missing": missing, "left over": left, "of another shape": misshapen}
    return "; ".join(
        f"{len(keys)} {kind} ({', '.join(sorted(keys)[:3])}{', ...' if len(keys) > 3 else ''})"
        for kind, keys in wrong.items()
        if keys
    )
