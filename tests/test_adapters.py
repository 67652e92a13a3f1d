"""Adapters merged into a model, against matrices multiplied by hand and PEFT's own model."""

import shutil
import sys

import pytest
import torch
from conftest import build_hf_model, build_tokenizer
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from helpers.models import ModelError, load_model
from tools.training import load_plain

TOKENS = torch.arange(3, 19)[None]
TARGETS = {
    "llama": ["q_proj", "o_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc"],  # whose weights are stored the other way round
    "gemma3": ["q_proj", "v_proj"],
}
SCALE = 3


def save(folder, architecture, **config):
    tokenizer = build_tokenizer()
    build_hf_model(architecture, len(tokenizer), **config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("bases")


@pytest.fixture(scope="module")
def bases(root):
    return {architecture: save(root / architecture, architecture) for architecture in TARGETS}


def adapter(base, folder, config=None, half=False):
    """Write an adapter with random weights."""
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        adapted = get_peft_model(plain, config)
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.data.normal_(std=0.3)
    adapted.save_pretrained(folder)
    if half:
        file = folder / "adapter_model.safetensors"
        halves = {name: weight.half() for name, weight in load_file(file).items()}
        save_file(halves, file, metadata={"format": "pt"})
    return folder


def lora(architecture="llama", **more):
    options = {"r": 2, "lora_alpha": 2 * SCALE, "target_modules": TARGETS[architecture]}
    return LoraConfig(task_type="CAUSAL_LM", **options | more)


@pytest.fixture(scope="module")
def of_llama(root, bases):
    return adapter(bases["llama"], root / "of llama", lora())


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_merged_weights_are_those_computed_by_hand(bases, tmp_path, half):
    folder = adapter(bases["llama"], tmp_path, lora(), half)
    given = load_file(folder / "adapter_model.safetensors")
    assert {weight.dtype for weight in given.values()} == {torch.half if half else torch.float32}
    before = load_plain(bases["llama"], "cpu").state_dict()
    after = load_model(bases["llama"], "cpu", adapter=folder)
    q = after.blocks[1].attn.q.original_component.weight
    A, B = (
        given[f"base_model.model.model.layers.1.self_attn.q_proj.lora_{part}.weight"].float()
        for part in "AB"
    )
    by_hand = before["model.layers.1.self_attn.q_proj.weight"] + SCALE * B @ A
    torch.testing.assert_close(q, by_hand)
    k = after.blocks[1].attn.k.original_component.weight
    assert torch.equal(k, before["model.layers.1.self_attn.k_proj.weight"]), "no target"
    assert {p.dtype for p in after.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in after.parameters()) and not after.training


@pytest.mark.parametrize("architecture", TARGETS)
def test_the_merged_model_says_what_peft_says(architecture, bases, tmp_path, capfd, recwarn):
    folder = adapter(bases[architecture], tmp_path, lora(architecture, use_rslora=True))
    plain = AutoModelForCausalLM.from_pretrained(bases[architecture], dtype=torch.float32)
    unmerged = PeftModel.from_pretrained(plain, folder).eval()
    capfd.readouterr(), recwarn.clear()
    merged = load_model(bases[architecture], "cpu", adapter=str(folder))
    assert capfd.readouterr() == ("", "") and not recwarn.list
    with torch.no_grad():
        wanted, got = unmerged(TOKENS).logits, merged(TOKENS)
        base = load_model(bases[architecture], "cpu")(TOKENS)
    torch.testing.assert_close(got.log_softmax(-1), wanted.log_softmax(-1), atol=1e-3, rtol=1e-3)
    assert (got - base).abs().max() > 0.1


def test_other_kinds_that_can_be_merged(bases, tmp_path):
    config = IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[])
    folder = adapter(bases["llama"], tmp_path, config)
    (scale,) = (w for n, w in load_file(folder / "adapter_model.safetensors").items() if ".2." in n)
    before = load_plain(bases["llama"], "cpu").model.layers[2].self_attn.k_proj.weight
    after = load_model(bases["llama"], "cpu", adapter=folder).blocks[2].attn.k
    torch.testing.assert_close(after.original_component.weight, before * scale)


def test_a_plain_model_is_the_same_and_can_be_trained(bases, capfd):
    plain, ours = load_plain(bases["llama"], "cpu"), load_model(bases["llama"], "cpu")
    assert capfd.readouterr() == ("", "")
    logits = plain(TOKENS).logits
    torch.testing.assert_close(logits, ours(TOKENS))
    logits.sum().backward()
    assert all(p.grad is not None and p.dtype == torch.float32 for p in plain.parameters())


def lost(folder):
    shutil.rmtree(folder)


def without(name):
    return lambda folder: (folder / name).unlink()


def broken(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:100])


def changed(change):
    def write(folder):
        file = folder / "adapter_model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})

    return write


def no_number(weights):
    return {name: weight / 0 for name, weight in weights.items()}


PREFIX = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
DAMAGED = {
    "no folder": (lost, "is not a folder with an adapter: there is no adapter_config.json"),
    "no config": (without("adapter_config.json"), "is not a folder with an adapter"),
    "no weights": (without("adapter_model.safetensors"), "there is no adapter_model.safetensors"),
    "config": (broken("adapter_config.json"), "cannot be loaded: .* Save it again"),
    "weights": (broken("adapter_model.safetensors"), "cannot be loaded: .* Save it again"),
    "a part lost": (
        changed(lambda w: {n: x for n, x in w.items() if n != PREFIX}),
        r"do not fit .*: 1 missing \(base_model.model.model.layers.0",
    ),
    "a part more": (changed(lambda w: w | {"x": torch.zeros(1)}), r"fit .*: 1 left over \(x\)"),
    "NaN": (changed(no_number), "cannot be loaded: ValueError: NaNs"),
}


@pytest.mark.parametrize("damage, message", DAMAGED.values(), ids=DAMAGED)
def test_damaged_adapters_are_refused(damage, message, bases, of_llama, tmp_path):
    folder = shutil.copytree(of_llama, tmp_path / "adapter")
    damage(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(bases["llama"], "cpu", adapter=folder)
    assert len(str(caught.value)) < 800


def test_an_adapter_of_another_model_is_refused(bases, of_llama, tmp_path):
    wide = save(tmp_path / "wide", "llama", hidden_size=32)
    with pytest.raises(ModelError, match=r"15 of another shape .*made for .*llama': name that"):
        load_model(wide, "cpu", adapter=of_llama)
    deep = save(tmp_path / "deep", "llama", num_hidden_layers=4)
    with pytest.raises(ModelError, match=r"do not fit .*: 6 missing"):
        load_model(deep, "cpu", adapter=of_llama)
    with pytest.raises(ModelError, match="does not fit .*Target modules"):
        load_model(bases["gpt2"], "cpu", adapter=of_llama)


def test_adapters_that_no_weights_can_stand_for_are_refused(bases, tmp_path):
    prompts = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    folder = adapter(bases["llama"], tmp_path / "prompts", prompts)
    with pytest.raises(ModelError, match="cannot be merged .*: its kind, PROMPT_TUNING, adds"):
        load_model(bases["llama"], "cpu", adapter=folder)
    # GPT-2's unembedding is its embedding: merging would change both.
    tied = adapter(bases["gpt2"], tmp_path / "tied", lora("gpt2", target_modules=["lm_head"]))
    with pytest.raises(ModelError, match="cannot be merged .*: other logits would come out, by up"):
        load_model(bases["gpt2"], "cpu", adapter=tied)


def test_without_peft_it_says_what_to_install(bases, of_llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match="need the package peft.*: pip install peft"):
        load_model(bases["llama"], "cpu", adapter=of_llama)
    load_model(bases["llama"], "cpu")


def test_an_adapter_is_no_model(of_llama):
    with pytest.raises(ModelError, match=r"holds an adapter .*load_model\(name, adapter=folder\)"):
        load_model(str(of_llama), "cpu")
