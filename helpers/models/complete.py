"""Weights that fit: what is missing, transformers would fill with random numbers."""

import re
from collections.abc import Collection
from typing import Any

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
        shapes = [f"{key} {tuple(a)} for {tuple(b)}" for key, a, b in info["mismatched_keys"]]
        wrong = {"missing": info["missing_keys"], "left over": left, "of another shape": shapes}
        if said := [_listed(kind, keys) for kind, keys in wrong.items() if keys]:
            raise ModelError(
                f"The weights of {name!r} do not fit {type(model).__name__}: {'; '.join(said)}. "
                "Save the whole model again, with model.save_pretrained(folder); an adapter is "
                "first merged, by model.merge_and_unload()."
            )
        return model


def _listed(kind: str, keys: Collection[str]) -> str:
    """`2 missing (a, b)`; of many only the first three."""
    return f"{len(keys)} {kind} ({', '.join(sorted(keys)[:3])}{', ...' if len(keys) > 3 else ''})"
