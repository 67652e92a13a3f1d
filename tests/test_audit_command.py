"""The command `python -m tools.audit`: files and names as people have them, and what it writes."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from conftest import build_hf_model, build_tokenizer

from helpers.audit import audit
from helpers.models.smollm import ModelError
from helpers.output.files import ROOT
from helpers.patching.sites import Site
from tools.audit import command as audit_cli
from tools.audit.command import main
from tools.audit.sites import parse_site
from tools.audit.vectors import DirectionFileError, read_directions

SITE = Site(1, "mlp_hidden")
FILES = ["audit.json", "audit.md", "audit.html", "audit.png"]


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("llama", seed=1)


def read_direction(path):
    """The one direction in a file."""
    (direction,) = read_directions(path).values()
    return direction


@pytest.mark.parametrize(
    "site", [Site(21, "mlp_hidden"), Site(0, "resid_post"), Site(23, "head_output", head=1)]
)
def test_sites_are_read_as_they_are_written(site):
    assert parse_site(f" {site} ") == site


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mlp.3", "unknown kind of site 'mlp' in 'mlp.3': do you mean mlp_out or mlp_hidden?"),
        ("", "unknown kind"),
        ("mlp_hidden", "must have the form mlp_hidden.LAYER"),
        ("mlp_hidden.x", "must have the form"),
        ("mlp_hidden.-1", "must have the form"),
        ("mlp_hidden.1.2", "must have the form mlp_hidden.LAYER"),
        ("head_output.1", "must have the form head_output.LAYER.HEAD"),
    ],
)
def test_bad_sites_are_explained(text, message):
    with pytest.raises(ValueError, match=message):
        parse_site(text)


@pytest.mark.parametrize(
    ("text", "site"),
    [
        ("blocks.21.hook_resid_post", Site(21, "resid_post")),
        ("blocks.21.hook_out", Site(21, "resid_post")),
        ("blocks.0.hook_resid_pre", Site(0, "resid_pre")),
        ("blocks.3.mlp.hook_post", Site(3, "mlp_hidden")),
        ("blocks.3.mlp.out.hook_in", Site(3, "mlp_hidden")),
        ("blocks.23.attn.hook_z.1", Site(23, "head_output", head=1)),
        ("model.layers.21", Site(21, "resid_post")),
        ("layers.21", Site(21, "resid_post")),
        ("transformer.h.8", Site(8, "resid_post")),
        ("gpt_neox.layers.2.mlp", Site(2, "mlp_out")),
        ("model.layers.4.self_attn", Site(4, "attn_out")),
    ],
)
def test_sites_have_the_names_of_other_libraries(text, site):
    assert parse_site(text) == site


def test_names_of_hooks_mean_the_same_activation(model):
    """The aliases are TransformerLens's own: both hooks see one tensor."""
    names = {"hook_in": "resid_pre", "hook_out": "resid_post", "mlp.out.hook_in": "mlp_hidden"}
    _, cache = model.run_with_cache(torch.tensor([[3, 4, 5]]))
    for name, kind in names.items():
        site = parse_site(f"blocks.1.{name}")
        assert site == Site(1, kind)
        assert torch.equal(cache[f"blocks.1.{name}"], cache[site.hook_name])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.layers.21.mlp.down_proj", "mlp_hidden.21 is its input, mlp_out.21 its output"),
        ("transformer.h.3.attn.c_proj", "head_output.3.HEAD is its input, attn_out.3 its output"),
        ("model.layers.2.self_attn.q_proj", "no site of an audit: choose one of resid_pre.2"),
        ("blocks.2.hook_resid_pots", "the nearest are blocks.2.hook_resid_post"),
        ("blocks.23.attn.hook_z", "must have the form head_output.LAYER.HEAD"),
    ],
)
def test_names_that_may_mean_two_things_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_site(text)


VECTOR = torch.tensor([1.0, -2.0, 3.0])


@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 3)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.bfloat16])
def test_directions_come_back_from_all_formats(tmp_path, shape, dtype):
    vector = VECTOR.to(dtype).reshape(shape)
    torch.save(torch.nn.Parameter(vector), tmp_path / "v.pt")
    torch.save({"direction": vector, "other": 1}, tmp_path / "named.PT")
    safetensors.torch.save_file({"any": vector}, tmp_path / "v.safetensors")
    named = {"direction": vector, "other": torch.ones(2)}
    safetensors.torch.save_file(named, tmp_path / "named.safetensors")
    names = ["v.pt", "named.PT", "v.safetensors", "named.safetensors"]
    if dtype != torch.bfloat16:  # which numpy lacks
        np.save(tmp_path / "v.npy", vector.numpy().astype(vector.numpy().dtype.newbyteorder(">")))
        names.append("v.npy")
    for name in names:
        found = read_direction(str(tmp_path / name))
        assert torch.equal(found, VECTOR) and found.dtype == torch.float32, name


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_reading_a_direction_runs_no_code(tmp_path):
    for name in ("v.npy", "v.pt"):
        (tmp_path / name).write_bytes(pickle.dumps(Malicious(tmp_path / "owned"), 2))
        with pytest.raises(DirectionFileError, match="is damaged, or holds more than numbers"):
            read_direction(tmp_path / name)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.npy", np.ones((2, 3)), r"has the shape \(2, 3\): --row all takes each row"),
        ("v.npy", np.ones((3, 3)), r"has the shape \(3, 3\): --row all takes each row"),
        ("v.npy", np.ones(()), r"has the shape \(\)"),
        ("v.npy", np.ones(0), r"has the shape \(0,\)"),
        ("v.npy", np.ones((1, 1, 3)), "choose one with --pos and --layer"),
        ("v.npy", np.ones((1, 1, 1, 3)), "has the shape"),
        ("v.npy", np.arange(3), "holds int64, not floating-point numbers"),
        ("v.npy", np.array([1.0, np.nan]), "holds NaN or infinity"),
        ("v.npy", np.array([1.0, 1e300]), "holds NaN or infinity"),
        ("v.npy", b"", "is damaged"),
        ("v.pt", b"hello", "is damaged"),
        ("v.safetensors", b"hello", "is damaged"),
        ("v.pt", [1.0, 2.0], "holds list, not floating-point numbers"),
        ("v.pt", {"a": VECTOR, "b": VECTOR}, r"holds \['a', 'b'\]: call the tensor"),
        ("v.pt", {}, r"holds \[\]"),
        ("v.pt", torch.ones(3, dtype=torch.bool), "holds torch.bool"),
        ("v.txt", b"1 2 3", "must end in .npy, .npz, .pt, .pth, .bin, .safetensors"),
    ],
)
def test_bad_direction_files_are_explained(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, np.ndarray):
        np.save(path, content)
    else:
        torch.save(content, path)
    with pytest.raises(DirectionFileError, match=rf"{name} .*{message}"):
        read_direction(path)


def test_direction_files_that_are_not_there_are_explained(tmp_path):
    with pytest.raises(DirectionFileError, match="none.npy does not exist: save one vector"):
        read_direction(tmp_path / "none.npy")
    with pytest.raises(DirectionFileError, match="is a folder"):
        read_direction(tmp_path)


WORDS = "Then After While Mary John book park".split()


@pytest.fixture
def folder(tmp_path, model, monkeypatch):
    """A working folder with a direction and pairs for `model`, which is what every name loads."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(audit_cli, "load_model", lambda name, device: model)
    np.save("v.npy", np.random.default_rng(0).normal(size=96))
    write_pairs(model)
    return tmp_path


def write_pairs(model) -> None:
    """pairs.csv: prompts of two words, answered by what the model itself prefers."""
    base = [f"{first} Tom gave {last}" for first in WORDS for last in ("the", "a")]
    source = [f"{first} Anna gave {last}" for first in WORDS for last in ("the", "a")]
    words = torch.tensor([model.tokenizer.convert_tokens_to_ids(f"Ġ{word}") for word in WORDS])
    best = torch.stack([model(prompt)[0, -1, words] for prompt in base]).mean(0).argsort()
    columns = {"answer": WORDS[best[-1]], "counterfactual": WORDS[best[0]]}
    pd.DataFrame({"base": base, "source": source, **columns}).to_csv("pairs.csv", index=False)


GOOD = {"--site": "mlp_hidden.1", "--direction": "v.npy", "--pairs": "pairs.csv"}


def command(**changes) -> list[str]:
    options = GOOD | {f"--{name}": value for name, value in changes.items()}
    return [text for option in options.items() for text in option]


def test_the_command_does_what_the_function_does(folder, model, capsys):
    assert main(command(model="my/tiny")) == 0
    assert sorted(os.listdir("audit")) == sorted(FILES)
    direction, pairs = read_direction("v.npy"), audit_cli.read_pairs(model, "pairs.csv")
    expected = audit(model, SITE, direction, pairs, name="tiny", progress=False)
    found = json.loads((folder / "audit" / "audit.json").read_text())
    assert {**found, "provenance": {}} == expected.to_dict()
    out = capsys.readouterr().out
    assert "measuring mlp_hidden.1 on 14 pairs" in out and expected.summary in out
    assert "Results are in audit" in out and ", ".join(FILES) in out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"direction": "none.npy"}, "none.npy does not exist"),
        ({"pairs": "none.csv"}, "none.csv does not exist"),
        ({"site": "resid_post.1"}, "do you mean mlp_hidden.1?"),
        ({"site": "mlp_hidden.99"}, "layer 99 is out of range"),
        ({"out": "v.npy"}, "v.npy is not a folder"),
        ({"out": "v.npy/there"}, "v.npy"),
        ({"pairs": "ioi", "n": "999999"}, "n must be from 1 to"),
        ({"pairs": "facts", "n": "999999"}, "n must be from 1 to"),
    ],
)
def test_what_cannot_be_used_ends_with_status_2(folder, capsys, changes, message):
    before = sorted(os.listdir())
    assert main(command(**changes)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    "changes", [{"direction": "none.npy"}, {"pairs": "none.csv"}, {"out": "v.npy"}]
)
def test_files_are_checked_before_the_model_is_loaded(folder, monkeypatch, changes):
    monkeypatch.setattr(audit_cli, "load_model", lambda *_: pytest.fail("loaded"))
    assert main(command(**changes)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: --pairs"),
        (["--pairs", "ioi", "--site", "resid_post.1"], "give one of --direction, --sae and --sub"),
        (["--pairs", "ioi", "--direction", "v.npy"], "required: --site"),
        (command(sae="x"), "give one of --direction, --sae and --submission"),
        ([*command(), "--clamp", "3"], "--clamp sets a feature of an autoencoder"),
        ([*command(), "--add", "0"], "a finite number that is not 0"),
        ([*command(), "--add", "nan"], "a finite number that is not 0"),
        ([*command(pairs="ioi"), "--chat"], "for pairs from a file, not for ioi"),
        (["--pairs", "ioi", "--site", "resid_post.1", "--sae", "x"], "--sae needs --row"),
        (["--pairs", "ioi", "--site", "resid_post.1", "--submission", "x"], "leave out --site"),
        (command(site="mlp.1"), "unknown kind of site 'mlp'"),
        (command(n="0"), "'0' is no whole number from 1 to 999999999"),
        (command(seed="-1"), "'-1' is no whole number from 0"),
        (command(split="all"), "invalid choice: 'all'"),
    ],
)
def test_bad_usage_ends_with_status_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ModelError("no such model"), 1, "error: no such model"),
        (KeyboardInterrupt(), 130, "Interrupted; nothing was written."),
    ],
)
def test_the_model_and_the_user_may_end_it(folder, capsys, monkeypatch, error, status, message):
    def fail(name, device):
        raise error

    monkeypatch.setattr(audit_cli, "load_model", fail)
    before = sorted(os.listdir())
    assert main(command()) == status
    assert message in capsys.readouterr().err and sorted(os.listdir()) == before


def test_the_tasks_of_the_project_can_be_named(folder, model):
    options = audit_cli.parse(command(pairs="ioi", n="9", seed="3"))
    assert len(audit_cli.load_pairs(model, options)) == 9


def test_the_program_runs_on_a_saved_model(folder, model):
    build_hf_model("llama", len(build_tokenizer()), seed=1).save_pretrained("saved")
    build_tokenizer().save_pretrained("saved")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}
    program = [sys.executable, "-m", "tools.audit"]
    done = subprocess.run(
        [*program, *command(model="saved", device="cpu", out="here")],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    direction, pairs = read_direction("v.npy"), audit_cli.read_pairs(model, "pairs.csv")
    expected = audit(model, SITE, direction, pairs, name="saved", progress=False)
    found = json.loads((folder / "here" / "audit.json").read_text())
    assert found["effect"]["fldd"] == pytest.approx(expected.effect.fldd._asdict(), abs=1e-3)
