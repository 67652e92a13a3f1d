"""What works on which family of models, on tiny random ones: `python -m tools.families`.

Of each family that TransformerLens bridges and transformers can build here: whether `load_model`
takes a folder of it, which sites its layers have, how far patched runs are from full forward passes
with hooks, and where an audit runs. Writes docs/models.md; a test compares its rows.
"""

import contextlib
import sys
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pandas as pd
import torch
import transformers
from tokenizers import Tokenizer, models
from torch import Tensor
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

from helpers.audit import audit
from helpers.audit.measure import Audit
from helpers.models import Model, ModelError, load_model
from helpers.output.files import ROOT
from helpers.patching import Acts, CachedPairs, Site, cache_pairs, cache_sites
from helpers.patching.sites import HOOKS, OF_ONE_HEAD, present
from helpers.tasks import Pairs

PAGE = ROOT / "docs" / "models.md"
WORDS, LENGTH = [f"word{n}" for n in range(30)], 8
PLACES = ((1, 3), (2, -1))  # a layer in the middle and the last one, with the patched token
BINS = (1e-4, 1e-3, 1e-2)  # what an error is said to lie below, in logits of about 10

NOT_INSTALLED = (
    "Their code comes with the weights and not with transformers (`load_model` runs none)"
)
NOT_TEXT = "No causal language models of text alone"
PAGE_TEXT = """\
# Families of models

`load_model` takes a name, a hub id or a folder of any causal language model that TransformerLens \
bridges. This is what works on which family, found on tiny random models: `python -m \
tools.families` writes this page.

- **Exact to**: how far the logits of patched runs are from full forward passes with hooks, at \
most, at a site of each kind in a middle and in the last layer. Logits are up to about 10.
- **Sites**: the kinds that these two layers have, of those in `helpers.patching.Site`. Where an \
MLP is several experts, there is no one hidden activation; where attention is latent, queries are \
not made head by head; layers without attention or without an MLP lack what belongs to it.
- **Audit**: where one ran, which says nothing of how often its verdicts err: that has been \
measured on two real models. Tests that need the hidden activations of later MLPs do not apply \
where there are none, and the report says so.
- *Whole prompts are rerun*: the model keeps more of earlier tokens than keys and values, or \
TransformerLens cannot resume from them. That is exact too, and slower; a warning says so.

| Family | Loads | Exact to | Sites | Audit | Remark |
| --- | --- | --- | --- | --- | --- |
{table}

Not tried:

{rest}

A folder whose weights do not fit its architecture (some missing, left over or of another shape), \
that holds only an adapter, or whose weights are quantised is refused by a `ModelError` that says \
what to do.
"""

# What a family gets of this: what its configuration knows.
COMMON = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "head_dim": 8, "max_position_embeddings": 64, "n_positions": 64,
    "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4}
EXPERTS |= {"num_experts_per_tok": 2, "moe_k": 2, "moe_intermediate_size": 16}
EXPERTS |= {"shared_expert_intermediate_size": 16}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
          "v_head_dim": 8, "num_key_value_heads": 4}  # fmt: skip
MAMBA = {"mamba_chunk_size": 8, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1,
         "mamba_d_state": 8}  # fmt: skip
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
         "linear_value_head_dim": 8,
         "layer_types": ["linear_attention", "full_attention", "linear_attention"]}  # fmt: skip
SHORT_LAYERS = ["conv", "full_attention", "conv"]

FAMILIES = {
    "AfmoeForCausalLM": EXPERTS | {"num_dense_layers": 1},
    "ApertusForCausalLM": {},
    "ArceeForCausalLM": {},
    "BambaForCausalLM": MAMBA | {"attn_layer_indices": [1]},
    "BertLMHeadModel": {"is_decoder": True},
    "BitNetForCausalLM": {},
    "BloomForCausalLM": {"n_head": 4},
    "CodeGenForCausalLM": {"rotary_dim": 4},
    "Cohere2ForCausalLM": {},
    "CohereForCausalLM": {},
    "DeepseekV2ForCausalLM": EXPERTS
    | LATENT
    | {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    "DeepseekV3ForCausalLM": EXPERTS
    | LATENT
    | {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    "DeepseekV4ForCausalLM": EXPERTS | LATENT,
    "Ernie4_5ForCausalLM": {},
    "Ernie4_5_MoeForCausalLM": EXPERTS,
    "Exaone4ForCausalLM": {},
    "FalconForCausalLM": {"new_decoder_architecture": False},
    "FalconH1ForCausalLM": MAMBA | {"mamba_d_ssm": 64},
    "FalconMambaForCausalLM": {"state_size": 4},
    "FlexOlmoForCausalLM": EXPERTS,
    "GPT2LMHeadModel": {},
    "GPTBigCodeForCausalLM": {},
    "GPTJForCausalLM": {"rotary_dim": 4},
    "GPTNeoForCausalLM": {"attention_types": [[["global"], 1], [["local"], 2]], "window_size": 6},
    "GPTNeoXForCausalLM": {},
    "Gemma2ForCausalLM": {},
    "Gemma3ForCausalLM": {},
    "Gemma4ForCausalLM": {
        "global_head_dim": 8,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 41,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    },
    "GemmaForCausalLM": {},
    "Glm4ForCausalLM": {},
    "Glm4MoeForCausalLM": EXPERTS,
    "Glm4MoeLiteForCausalLM": EXPERTS | LATENT,
    "GlmForCausalLM": {},
    "GlmMoeDsaForCausalLM": EXPERTS
    | LATENT
    | {"index_head_dim": 16, "index_n_heads": 2, "index_topk": 8},
    "GptOssForCausalLM": EXPERTS,
    "GraniteForCausalLM": {},
    "GraniteMoeForCausalLM": EXPERTS,
    "GraniteMoeHybridForCausalLM": EXPERTS
    | MAMBA
    | {"position_embedding_type": "rope"}
    | {"layer_types": ["mamba", "attention", "mamba"]},
    "HrmTextForCausalLM": {},
    "HunYuanDenseV1ForCausalLM": {},
    "Jais2ForCausalLM": {},
    "JambaForCausalLM": EXPERTS | {"attn_layer_period": 2, "attn_layer_offset": 1},
    "JetMoeForCausalLM": EXPERTS | {"kv_channels": 8},
    "LagunaForCausalLM": EXPERTS,
    "Lfm2ForCausalLM": {"layer_types": SHORT_LAYERS},
    "Lfm2MoeForCausalLM": EXPERTS | {"layer_types": SHORT_LAYERS},
    "Llama4ForCausalLM": EXPERTS | {"intermediate_size_mlp": 48},
    "LlamaForCausalLM": {},
    "Mamba2ForCausalLM": {"chunk_size": 8, "num_heads": 8, "state_size": 8, "n_groups": 1},
    "MambaForCausalLM": {"state_size": 4},
    "MiniMaxM2ForCausalLM": EXPERTS,
    "Ministral3ForCausalLM": {},
    "MistralForCausalLM": {},
    "MixtralForCausalLM": EXPERTS,
    "ModernBertDecoderForCausalLM": {},
    "MptForCausalLM": {"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 64},
    "NanoChatForCausalLM": {},
    "NemotronForCausalLM": {},
    "NemotronHForCausalLM": {
        "layers_block_type": ["linear_attention", "full_attention", "mlp"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "chunk_size": 8,
        "n_groups": 1,
        "ssm_state_size": 8,
    },
    "OPTForCausalLM": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "Olmo2ForCausalLM": {},
    "Olmo3ForCausalLM": {},
    "OlmoForCausalLM": {},
    "OlmoHybridForCausalLM": DELTA,
    "OlmoeForCausalLM": EXPERTS,
    "OpenAIGPTLMHeadModel": {},
    "Phi3ForCausalLM": {},
    "PhiForCausalLM": {"num_key_value_heads": 4},
    "Qwen2ForCausalLM": {},
    "Qwen2MoeForCausalLM": EXPERTS,
    "Qwen3ForCausalLM": {},
    "Qwen3MoeForCausalLM": EXPERTS,
    "Qwen3NextForCausalLM": EXPERTS | DELTA,
    "Qwen3_5ForCausalLM": DELTA,
    "Qwen3_5MoeForCausalLM": EXPERTS | DELTA,
    "RecurrentGemmaForCausalLM": {"lru_width": 32, "attention_window_size": 16},
    "RwkvForCausalLM": {"attention_hidden_size": 32, "context_length": 64},
    "SeedOssForCausalLM": {},
    "SmolLM3ForCausalLM": {},
    "StableLmForCausalLM": {},
    "Starcoder2ForCausalLM": {},
    "VaultGemmaForCausalLM": {},
    "XGLMForCausalLM": {"ffn_dim": 48, "attention_heads": 4, "num_layers": 3, "d_model": 32},
    "YoutuForCausalLM": LATENT,
    "Zamba2ForCausalLM": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention"],
        "hybrid_layer_ids": [1],
        "mamba_headdim": 8,
        "n_mamba_heads": 8,
        "chunk_size": 8,
        "mamba_d_state": 8,
        "num_mem_blocks": 1,
    },
}


class Row(NamedTuple):
    """What docs/models.md says of a family."""

    family: str
    loads: str
    exact: str = ""
    sites: str = ""
    audit: str = ""
    remark: str = ""

    def __str__(self) -> str:
        return f"| {' | '.join(cell or '–' for cell in self)} |"


def examine(family: str) -> Row:
    """Build, load, patch and audit a tiny model of a family."""
    with tempfile.TemporaryDirectory() as folder:
        make_folder(family, Path(folder))
        try:
            model = load_model(folder, "cpu")
        except ModelError as error:
            return Row(family, "no", remark=_words(error, folder))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pairs = make_pairs(model)
        accepted = [list(everywhere(model, pairs, *place)) for place in PLACES]
        errors = [distance(model, pairs, cached) for cached in accepted if cached]
        kinds = [{at.site.kind for at in cached} for cached in accepted]
        site = next((kind for kind in ("mlp_hidden", "resid_post") if kind in kinds[0]), "")
        if site:
            measured(model, pairs, Site(PLACES[0][0], site))
    if not errors:
        return Row(family, "yes", sites="none", remark="its residual stream has no hook")
    slow = any("slower" in str(warning.message) for warning in caught)
    remark = "whole prompts are rerun" if slow else ""
    return Row(family, "yes", _bin(max(errors)), _in_words(kinds), site and f"`{site}`", remark)


def everywhere(model: Model, pairs: Pairs, layer: int, position: int) -> Iterator[CachedPairs]:
    """The pairs at a site of each kind that a layer has and the engine takes."""
    sites = sites_of(model, layer, position)
    try:
        yield from cache_sites(model, pairs, sites) if sites else ()
    except ValueError:  # not all of them: which?
        for site in sites:
            with contextlib.suppress(ValueError):
                yield cache_pairs(model, pairs, site)


def sites_of(model: Model, layer: int, position: int | None = None) -> list[Site]:
    """One site of each kind that the layer has."""
    sites = [Site(layer, kind, 1 if kind in OF_ONE_HEAD else None, position) for kind in HOOKS]
    return present(model, sites)


def distance(model: Model, pairs: Pairs, cached: Sequence[CachedPairs]) -> float:
    """How far the logits of patched runs are from one full forward pass with hooks at all sites.

    Each site has a copy of the prompts to itself.
    """
    tokens, n, hooks, found = torch.stack(pairs.base_tokens), len(pairs), [], []
    for place, at in enumerate(cached):
        noise = torch.randn(at.base.shape, generator=torch.Generator().manual_seed(place))
        where = (slice(place * n, place * n + n), at.site.position)
        where += () if at.site.head is None else (at.site.head,)
        hooks.append((at.site.hook_name, _writing(where, at.base + noise)))
        if at.site.kind == "resid_mid":  # its hook changes what the MLP reads, not what passes it
            hooks.append((f"blocks.{at.site.layer}.hook_resid_post", _writing(where, noise, True)))
        found.append(at.patched_logits(at.base + noise))
    with torch.no_grad():
        expected = model.run_with_hooks(tokens.repeat(len(cached), 1), fwd_hooks=hooks)[:, -1]
    return (torch.cat(found) - expected).abs().max().item()


def _writing(where: tuple, value: Acts, add: bool = False) -> Callable[[Tensor, object], Tensor]:
    def hook(activation: Tensor, hook: object) -> Tensor:
        activation = activation.clone()
        activation[where] = activation[where] + value if add else value
        return activation

    return hook


def measured(model: Model, pairs: Pairs, site: Site) -> Audit:
    """The audit of the mean change at a site; few draws for its intervals, which nobody reads."""
    cached = cache_pairs(model, pairs, site)
    with mock.patch("helpers.patching.metrics.RESAMPLES", 50):
        return audit(model, site, (cached.source - cached.base).mean(0), pairs, progress=False)


def _in_words(found: Sequence[set[str]]) -> str:
    """The kinds of sites, for layers of one sort or of several."""
    always, ever = set.intersection(*found), set.union(*found)
    few, some = len(always) < len(HOOKS) / 2, _listed(ever - always)
    if few:
        return f"only {_listed(always)}" + f"; in some layers {some}" * bool(some)
    never = _listed(HOOKS.keys() - ever)
    return "all" + f" but {never}" * bool(never) + f"; in some layers only {some}" * bool(some)


def _listed(kinds: Collection[str]) -> str:
    return ", ".join(f"`{kind}`" for kind in HOOKS if kind in kinds)


def _bin(value: float) -> str:
    return next((f"< {bound:.0e}".replace("e-0", "e-") for bound in BINS if value < bound), "no")


def _words(error: Exception, folder: str) -> str:
    """What an error says, in its first sentence and without what differs from run to run."""
    return str(error).replace(repr(folder), "the folder").split(". ")[0].replace("|", "/")[:200]


def make_folder(family: str, folder: Path) -> Path:
    """Write a random model of a family, small and with large weights, and its tokenizer."""
    vocabulary = ["<unk>", "<end>", *WORDS]
    tokenizer = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>")
    )
    special = {"unk_token": "<unk>", "eos_token": "<end>", "pad_token": "<end>"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.save_pretrained(folder)
    model_class = getattr(transformers, family)
    kind = model_class.config_class
    usual = kind()
    known = {k: v for k, v in COMMON.items() if k in vars(usual) or k in usual.attribute_map}
    config = kind(vocab_size=len(vocabulary), bos_token_id=1, eos_token_id=1, pad_token_id=1,
                  architectures=[family], **known | FAMILIES[family])  # fmt: skip
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = model_class(config).eval()
        for parameter in model.parameters():  # large, so that a patch moves the logits
            noise = torch.randn_like(parameter)
            parameter.add_((0.2 if parameter.ndim == 1 else 0.3) * noise)
    model.save_pretrained(folder)
    return folder


def make_pairs(model: Model) -> Pairs:
    """Prompts that differ in the last token, each answered by what the model itself prefers."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randint(3, model.cfg.d_vocab, (8, LENGTH), generator=generator)
    base[:, -1] = 3
    source = base.clone()
    source[:, -1] = 4
    with torch.no_grad():
        answer = model(base)[:, -1].argmax(-1)
        other = model(source)[:, -1].scatter(1, answer[:, None], -torch.inf).argmax(-1)
    last, table = torch.full((len(base),), LENGTH - 1), pd.DataFrame(index=range(len(base)))
    return Pairs(tuple(base), tuple(source), answer, other, last, last, table)


def elsewhere() -> dict[str, list[str]]:
    """What TransformerLens bridges and is not built here, by the reason."""
    found: dict[str, list[str]] = {}
    for name in sorted(SUPPORTED_ARCHITECTURES.keys() - FAMILIES.keys()):
        known = hasattr(transformers, name)
        found.setdefault(NOT_TEXT if known else NOT_INSTALLED, []).append(name)
    return found


def page(rows: Sequence[Row]) -> str:
    """docs/models.md."""
    table = "\n".join(map(str, rows))
    rest = "\n".join(f"- {reason}: {', '.join(names)}." for reason, names in elsewhere().items())
    return PAGE_TEXT.format(table=table, rest=rest)


def main() -> int:
    """Examine all families and write the page."""
    transformers.utils.logging.disable_progress_bar()
    rows = []
    for family in sorted(FAMILIES):
        rows.append(examine(family))
        print(rows[-1], flush=True)
    PAGE.write_text(page(rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
