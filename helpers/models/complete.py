"""Weights that fit: what is missing, transformers would fill with random numbers."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor
from transformer_lens.model_bridge.sources.transformers import get_hf_model_class_for_architecture
from transformers import PretrainedConfig, PreTrainedModel

from helpers.models.smollm import ModelError

# Constants that older versions of transformers saved with the weights of GPT-Neo, GPT-J, CodeGen.
CONSTANTS = re.compile(r"(attn|attention)\.(masked_)?bias$|\.(causal_mask|inv_freq|position_ids)$")


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
