"""Fine-tuning on a tiny model, and whether the adapters that ship are made by the recipe."""

import json

import pytest
import torch
from conftest import build_hf_model
from peft import PeftModel
from safetensors.torch import load_file
from test_tracking import word_tokenizer

from helpers.models import load_model
from tools.evidence import finetuning
from tools.evidence.store import Evidence
from tools.training import load_plain, training_batch

SETTINGS = "r lora_alpha lora_dropout bias peft_type task_type use_rslora use_dora".split()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a tiny model that knows all the words."""
    folder, tokenizer = tmp_path_factory.mktemp("tiny"), word_tokenizer()
    build_hf_model("llama", len(tokenizer), tie_word_embeddings=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.setattr(finetuning, "FIRST_LAYER", 1)


def train(tiny, folder, steps=(1, 2), run="seed0"):
    folders = {step: folder / f"{run}-{step}" for step in steps}
    model = load_plain(tiny, "cpu")
    return folders, finetuning.fine_tune(model, word_tokenizer(), run, folders)


def test_training_moves_the_adapter_alone_and_the_same_way_again(tiny, recipe, tmp_path):
    folders, found = train(tiny, tmp_path / "a")
    again, same = train(tiny, tmp_path / "b")
    assert found["loss"] == same["loss"] and len(found["loss"]) == len(found["seconds"]) == 2
    for step in folders:
        one, two = (load_file(f[step] / "adapter_model.safetensors") for f in (folders, again))
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
        layers = {name.split(".layers.")[1][0] for name in one}
        assert layers == {"1", "2"} and len(one) == 2 * 4 * 2
        assert {weight.dtype for weight in one.values()} == {torch.float16}
    others = [train(tiny, tmp_path / run, run=run)[1]["loss"] for run in ("seed1", "shuffled")]
    assert found["loss"] not in others and others[0] != others[1]


def test_the_first_step_is_the_one_of_transformers_own_loss(tiny, recipe, tmp_path):
    """The loss is that of all logits with labels; the step is that of AdamW, by hand."""
    folders, found = train(tiny, tmp_path, (1,))
    tokens, labels = training_batch(word_tokenizer(), finetuning.BATCH, 0)
    with torch.no_grad():
        loss = load_plain(tiny, "cpu")(input_ids=tokens, labels=labels).loss
    assert found["loss"] == pytest.approx([loss.item()], rel=1e-5)
    step = finetuning.RATE / finetuning.WARM_UP  # a first step of Adam has the size of its rate
    for name, weight in load_file(folders[1] / "adapter_model.safetensors").items():
        if "lora_B" in name:  # began at zero
            assert weight.float().abs().max() == pytest.approx(step, rel=2e-3)


def test_what_is_saved_is_an_adapter_for_the_model(tiny, recipe, tmp_path):
    folders, _ = train(tiny, tmp_path, (2,))
    assert sorted(path.name for path in folders[2].iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    ours = load_model(tiny, "cpu", adapter=folders[2])
    theirs = PeftModel.from_pretrained(load_plain(tiny, "cpu"), folders[2]).eval()
    tokens = torch.arange(3, 15)[None]
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-3, rtol=1e-3)


def test_an_interrupted_run_goes_on(tiny, recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(finetuning, "load_plain", lambda device: load_plain(tiny, device))
    monkeypatch.setattr(
        finetuning,
        "load_model",
        lambda device, adapter=None: load_model(tiny, device, adapter=adapter),
    )
    name = "seed0 step 1"
    for setting, value in {
        "SAVED": {"seed0": (1,)},
        "LEARNT": {name: tmp_path / "seed0"},
        "MAPPED": (name,),
        "TABLES": {"published": {"3 boxes": (3, "boxes")}, "others": {"bare": (3, "bare")}},
        "PROMPTS": 4,
        "PAIRS": 6,
    }.items():
        monkeypatch.setattr(finetuning, setting, value)
    file = tmp_path / "finetuning.json"
    finetuning.run(Evidence(file))
    whole = json.loads(file.read_text("utf-8"))
    assert whole["accuracy"].keys() == {finetuning.UNTOUCHED, name}
    for tokens in whole["four ways"][name].values():
        assert [len(tokens[way]) for way in ("own", "position", "label", "object")] == [3] * 4
    left = json.loads(file.read_text("utf-8"))
    del left["accuracy"][name]["bare"], left["four ways"][name]["query"]
    file.write_text(json.dumps(left), "utf-8")
    monkeypatch.setattr(finetuning, "fine_tune", None)  # no second training
    finetuning.run(Evidence(file))
    assert json.loads(file.read_text("utf-8")) == whole
    finetuning.show(Evidence(file))
    shown = capsys.readouterr().out
    assert "| untouched | 0.00 [0.00, 0." in shown and f"## {name}, query token" in shown


@pytest.mark.parametrize("name", finetuning.LEARNT)
def test_shipped_adapters_are_those_of_the_recipe(name):
    folder = finetuning.LEARNT[name]
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    recipe = finetuning.lora(30).to_dict()
    assert all(config[key] == getattr(recipe[key], "value", recipe[key]) for key in SETTINGS)
    assert config["target_modules"] == sorted(recipe["target_modules"])
    assert config["layers_to_transform"] == recipe["layers_to_transform"]
    assert config["base_model_name_or_path"] == finetuning.BASE and config["revision"] is None
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    assert file.stat().st_size < 2e6 and len(weights) == 2 * 4 * 24
    for weight in weights.values():
        assert weight.dtype == torch.float16 and min(weight.shape) == finetuning.RANK
        assert weight.isfinite().all() and weight.any()
