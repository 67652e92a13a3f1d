"""Folders whose weights are not those of the model: none is loaded with numbers made up."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import build_hf_model, build_tokenizer
from safetensors.torch import load_file, save_file

from helpers.models import load_model
from helpers.models.smollm import ModelError

UNTIED = {"tie_word_embeddings": False}


def save(folder: Path, architecture: str, **settings) -> Path:
    tokenizer = build_tokenizer()
    build_hf_model(architecture, len(tokenizer), **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A Llama with an unembedding of its own, a GPT-2 without, a GPT-NeoX."""
    root = tmp_path_factory.mktemp("whole")
    return {
        "llama": save(root / "llama", "llama", **UNTIED),
        "gpt2": save(root / "gpt2", "gpt2"),
        "gpt_neox": save(root / "gpt_neox", "gpt_neox"),
    }


@pytest.fixture
def changed(folders, tmp_path):
    """`changed(architecture, change)`: the folder, with other weights."""

    def make(architecture, change):
        folder = shutil.copytree(folders[architecture], tmp_path / "model")
        file = folder / "model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})
        return str(folder)

    return make


def without(part):
    return lambda weights: {name: w for name, w in weights.items() if part not in name}


def classifier(weights):
    return without("lm_head")(weights) | {"score.weight": torch.zeros(2, 48)}


def cut(weights):
    name = "model.layers.1.mlp.down_proj.weight"
    return weights | {name: weights[name][:, :90].contiguous()}


PREFIX = "base_model.model."
WRONG = {
    "a prefix is left": (
        lambda weights: {PREFIX + name: w for name, w in weights.items()},
        r"30 missing \(lm_head.weight, model.embed_tokens.weight, .*, \.\.\.\); 30 left over "
        r"\(base_model.model.lm_head.weight, .*merge_and_unload",
    ),
    "a layer is lost": (without(".layers.1."), r"9 missing \(model.layers.1.input_layernorm"),
    "no unembedding": (without("lm_head"), r"LlamaForCausalLM: 1 missing \(lm_head.weight\)\. "),
    "a classifier": (classifier, r"1 missing \(lm_head.weight\); 1 left over \(score.weight\)"),
    "a layer too many": (
        lambda weights: weights | {"model.layers.3.mlp.up_proj.weight": torch.zeros(96, 48)},
        r": 1 left over \(model.layers.3.mlp.up_proj.weight\)",
    ),
    "misshapen": (cut, r"1 of another shape \(model.layers.1.mlp.down_proj.weight \(48, 90\) for"),
    "nothing of the model": (lambda weights: {"x": torch.zeros(1)}, r"30 missing .*; 1 left over"),
}  # fmt: skip


@pytest.mark.parametrize("change, message", WRONG.values(), ids=WRONG)
def test_weights_that_do_not_fit_are_named(changed, change, message):
    with pytest.raises(ModelError, match=message) as caught:
        load_model(changed("llama", change), "cpu")
    assert "model.save_pretrained(folder)" in str(caught.value) and len(str(caught.value)) < 800


def masks(place):
    """What older versions of transformers saved beside the weights."""
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    return {f"{place}.{name}": mask.clone() for name in ("bias", "masked_bias")}


AS_ON_THE_HUB = {
    "gpt2": lambda w: {
        name.removeprefix("transformer."): x
        for name, x in (w | masks("transformer.h.0.attn")).items()
    },
    "gpt_neox": lambda w: w | masks("gpt_neox.layers.0.attention"),
    "llama": lambda w: w | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)},
}


@pytest.mark.parametrize("architecture", AS_ON_THE_HUB)
def test_older_folders_are_complete(architecture, folders, changed):
    tokens = torch.arange(3, 12)[None]
    whole = load_model(str(folders[architecture]), "cpu")
    older = load_model(changed(architecture, AS_ON_THE_HUB[architecture]), "cpu")
    assert torch.equal(whole(tokens), older(tokens))


def test_an_adapter_alone_is_no_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"x": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    for _ in range(2):  # with the base model's configuration beside it, too
        with pytest.raises(ModelError, match=r"holds an adapter .* adapter=folder\)"):
            load_model(str(tmp_path), "cpu")
        (tmp_path / "config.json").write_text('{"model_type": "llama"}')


QUANTISED = [
    {"quant_method": "bitsandbytes", "load_in_4bit": True},
    {"quant_method": "gptq", "bits": 4, "group_size": 128},
    {"quant_method": "awq", "bits": 4},
    {"quant_method": "fp8"},
    {"quant_method": "mxfp4"},
    {"bits": 4},
]


@pytest.mark.parametrize("settings", QUANTISED, ids=lambda s: s.get("quant_method", "unnamed"))
def test_quantised_weights_are_refused(settings, folders, tmp_path):
    folder = configured(folders["llama"], tmp_path / "model", quantization_config=settings)
    method = re.escape(settings.get("quant_method", "?"))
    with pytest.raises(ModelError, match=rf"are quantised \({method}\).*dequantize\(\)"):
        load_model(folder, "cpu")


def configured(folder: Path, to: Path, **change) -> str:
    to = shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | change))
    return str(to)


@pytest.mark.parametrize("names", [["UnheardOfForCausalLM"], None, [], ["LlamaForTokenLabels"]])
def test_weights_that_fit_load_whatever_the_class_is_called(names, folders, tmp_path):
    model = load_model(configured(folders["llama"], tmp_path / "model", architectures=names), "cpu")
    whole = load_model(str(folders["llama"]), "cpu")
    assert torch.equal(model(torch.arange(3, 9)[None]), whole(torch.arange(3, 9)[None]))


ODD = [
    {"model_type": "unheard-of"},
    {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]},
    {"num_attention_heads": 5},
    {"num_hidden_layers": 0},
    {"hidden_act": "unheard-of"},
    {"hidden_size": "wide"},
    {"vocab_size": -1},
]


@pytest.mark.parametrize("change", ODD, ids=str)
def test_odd_configurations_end_in_words(change, folders, tmp_path):
    with pytest.raises(ModelError) as caught:
        load_model(configured(folders["llama"], tmp_path / "model", **change), "cpu")
    assert len(str(caught.value)) < 800
