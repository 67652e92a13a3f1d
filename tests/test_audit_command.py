"""The command `python -m tools.audit`: files and names as people have them, and what it writes."""

import hashlib
import json
import os
import pickle
import subprocess
import sys

import jsonschema
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
from tools.audit import provenance
from tools.audit.command import main
from tools.audit.features import read_features
from tools.audit.report import to_dict
from tools.audit.sites import parse_site
from tools.audit.submissions import read_submission
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
    assert {**found, "provenance": {}} == to_dict(expected)
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


# Files as people have them.


def test_one_vector_out_of_many(tmp_path):
    W = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    cube = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(1))
    torch.save({"W_dec": W, "other": W[0]}, tmp_path / "sae.pth")
    torch.save(cube, tmp_path / "cube.bin")
    torch.save({3: W[3], 4: W[4]}, tmp_path / "by_layer.pt")
    torch.save({"layer_03": W[3], "layer_04": W[4]}, tmp_path / "named.pt")
    np.savez(tmp_path / "params.npz", W_dec=W.numpy(), b=W[0].numpy())
    read = read_directions
    assert torch.equal(*[*read(tmp_path / "sae.pth", key="W_dec", row="3").values(), W[3]])
    rows = read(tmp_path / "params.npz", key="W_dec", row="1:3,-1")
    assert list(rows) == ["params:W_dec[1]", "params:W_dec[2]", "params:W_dec[4]"]
    assert all(torch.equal(v, W[i]) for v, i in zip(rows.values(), (1, 2, 4), strict=True))
    columns = read(tmp_path / "sae.pth", key="W_dec", column="all")
    assert len(columns) == 7 and torch.equal(columns["sae:W_dec[6]"], W[:, 6])
    for name in ("by_layer.pt", "named.pt"):
        assert torch.equal(*[*read(tmp_path / name, layer=4).values(), W[4]])
    assert torch.equal(*[*read(tmp_path / "cube.bin", layer=2, pos=-1).values(), cube[1, 2]])
    torch.save(W, tmp_path / "layers.pt")
    assert torch.equal(*[*read(tmp_path / "layers.pt", layer=2).values(), W[2]])
    torch.save(W.T.contiguous(), tmp_path / "subspace.pt")
    assert torch.equal(*[*read(tmp_path / "subspace.pt").values(), W.T])


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"key": "W_enc", "row": "0"}, r"holds \['W_dec', 'b'\]: call the tensor 'direction', or"),
        ({}, r"holds \['W_dec', 'b'\]"),
        ({"key": "W_dec", "row": "9"}, "--row 9 is out of range: there are 5"),
        ({"key": "W_dec", "row": "x"}, "--row 'x' must be like 5, 3:9, 1,4 or all"),
        ({"key": "W_dec", "row": "3:3"}, "--row '3:3' chooses none of 5"),
        ({"key": "W_dec", "layer": 9}, "--layer 9 is out of range"),
        ({"key": "b", "row": "0"}, "--row and --column take part of a matrix"),
    ],
)
def test_what_is_not_in_a_file_is_explained(tmp_path, chosen, message):
    torch.save({"W_dec": torch.ones(5, 7), "b": torch.ones(7)}, tmp_path / "sae.pt")
    with pytest.raises(ValueError, match=message):
        read_directions(tmp_path / "sae.pt", **chosen)


def test_features_of_an_autoencoder_in_three_conventions(tmp_path):
    draw = torch.Generator().manual_seed(0)
    W_enc, W_dec = torch.randn(4, 9, generator=draw), torch.randn(9, 4, generator=draw)
    b_enc, b_dec = torch.randn(9, generator=draw), torch.randn(4, generator=draw)
    ours = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec}
    safetensors.torch.save_file(ours, tmp_path / "sae_weights.safetensors")
    layers = {"encoder.weight": W_enc.T, "decoder.weight": W_dec.T, "encoder.bias": b_enc,
              "decoder.bias": b_dec}  # fmt: skip
    torch.save(layers, tmp_path / "plain.pt")
    threshold = torch.full((9,), 0.3)
    np.savez(
        tmp_path / "params.npz", **{n: v.numpy() for n, v in ours.items()}, threshold=threshold
    )
    x = torch.randn(6, 4, generator=draw)
    before = (x - b_dec) @ W_enc + b_enc
    jump = x @ W_enc + b_enc
    expected = {"plain.pt": before.relu(), "params.npz": jump.relu() * (jump > 0.3)}
    (tmp_path / "in_folder").mkdir()
    (tmp_path / "sae_weights.safetensors").rename(tmp_path / "in_folder/sae_weights.safetensors")
    expected["in_folder"] = before.relu()
    for name, values in expected.items():
        for number in (0, 5):
            (feature,) = read_features(tmp_path / name, str(number)).values()
            assert torch.allclose(feature.value(x), values[:, number], atol=1e-5), name
            assert torch.equal(feature.decoder, W_dec[number])
    (tmp_path / "in_folder/cfg.json").write_text('{"apply_b_dec_to_input": false}')
    (feature,) = read_features(tmp_path / "in_folder", "2").values()
    assert torch.allclose(feature.value(x), jump.relu()[:, 2], atol=1e-5)
    (tmp_path / "in_folder/cfg.json").write_text('{"architecture": "topk"}')
    with pytest.raises(DirectionFileError, match="top-k autoencoder"):
        read_features(tmp_path / "in_folder", "2")
    torch.save({"W_enc": W_enc}, tmp_path / "half.pt")
    with pytest.raises(DirectionFileError, match="no W_dec"):
        read_features(tmp_path / "half.pt", "2")
    torch.save({"W_enc": W_enc, "W_dec": W_enc}, tmp_path / "unfit.pt")
    with pytest.raises(DirectionFileError, match="do not fit each other"):
        read_features(tmp_path / "unfit.pt", "2")


UNITS = ("ResidualStream(Layer-1,Token-last_token)", "AttentionHead(Layer-0,Head-2,Token-last)")


def write_unit(folder, name, matrix, back=None, indices=None, kind="SubspaceFeaturizerModule"):
    """The three files of a unit, as the benchmark's own code writes them."""
    folder.mkdir(exist_ok=True)
    for end, m in (
        ("_featurizer", matrix),
        ("_inverse_featurizer", matrix if back is None else back),
    ):
        info = {"featurizer_class": kind, "inverse_featurizer_class": kind, "n_features": len(m),
                "additional_config": {"rotation_matrix": m, "requires_grad": True}}  # fmt: skip
        torch.save(
            {"model_info": info, "state_dict": {"rotate.weight": m}}, folder / f"{name}{end}"
        )
    (folder / f"{name}_indices").write_text(json.dumps(indices))


def rotation(d, k, seed=0):
    return torch.linalg.qr(torch.randn(d, k, generator=torch.Generator().manual_seed(seed)))[0]


def test_a_submission_is_read_and_its_interchange_is_the_benchmarks(tmp_path):
    folder = tmp_path / "ioi_task_Tiny_output_token"
    R, head = rotation(8, 5), rotation(6, 2)
    write_unit(folder, UNITS[0], R, indices=[0, 3])
    write_unit(folder, UNITS[1], head)
    first, second = sorted(read_submission(folder), key=lambda unit: unit.name, reverse=True)
    assert first.site == Site(1, "resid_pre") and second.site == Site(0, "head_output", head=2)
    assert (first.token, first.changes) == ("last_token", 0)
    assert read_submission(folder, block_output=True)[1].site == Site(1, "resid_post")
    base, source = rotation(8, 3, seed=1).T, rotation(8, 3, seed=2).T
    features, error = base @ R, base - base @ R @ R.T  # as their interchange does it
    features[:, [0, 3]] = (source @ R)[:, [0, 3]]
    assert torch.allclose(first.subspace(base, source), features @ R.T + error, atol=1e-5)
    assert torch.allclose(first.subspace(base, base), base, atol=1e-6), "the identity control"


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        (dict(matrix=rotation(8, 3), back=rotation(8, 3, seed=5)), "fails the identity control"),
        (dict(matrix=rotation(8, 3), back=rotation(8, 2)), "featurizer and inverse have shapes"),
        (dict(matrix=rotation(8, 3), kind="MyModule"), "is a MyModule, which comes with code"),
        (dict(matrix=rotation(8, 8)), "exchanges the whole activation"),
        (dict(matrix=rotation(8, 3), indices=[]), "exchanges nothing"),
        (dict(matrix=rotation(8, 3), indices=[7]), "must name some of 3 features"),
        (dict(matrix=rotation(8, 3), indices="x"), "must name some of 3 features"),
        (dict(matrix=2 * rotation(8, 3)), "are not orthonormal"),
        (dict(matrix=torch.full((8, 3), torch.nan)), "no matrix of finite numbers"),
    ],
)
def test_what_is_wrong_with_a_submission_is_said(tmp_path, unit, message):
    write_unit(tmp_path / "x", UNITS[0], **unit)
    with pytest.raises(DirectionFileError, match=message):
        read_submission(tmp_path / "x")


def test_a_submission_of_single_coordinates(tmp_path):
    kind = "IdentityFeaturizerModule"
    write_unit(tmp_path / "x", UNITS[0], torch.eye(8), indices=[2, 5], kind=kind)
    (unit,) = read_submission(tmp_path / "x")
    assert torch.equal(unit.subspace.writes.abs().sum(1).nonzero()[:, 0], torch.tensor([2, 5]))


def test_other_folders_are_no_submissions(tmp_path):
    with pytest.raises(DirectionFileError, match="holds no unit of a submission"):
        read_submission(tmp_path / "none")
    write_unit(tmp_path / "x", "Elsewhere", rotation(8, 3))
    with pytest.raises(DirectionFileError, match="must be called ResidualStream"):
        read_submission(tmp_path / "x")
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / f"{UNITS[0]}_featurizer").write_bytes(b"hello")
    with pytest.raises(DirectionFileError, match="is damaged, or no featurizer"):
        read_submission(tmp_path / "y")


# What the command does with them.


def test_a_folder_gives_a_table(folder, model, capsys):
    os.mkdir("several")
    for seed in range(3):
        np.save(f"several/{seed}.npy", np.random.default_rng(seed).normal(size=96))
    assert main(command(direction="several")) == 0
    assert sorted(os.listdir("audit")) == ["audits.csv", "audits.html", "audits.json"]
    content = json.loads((folder / "audit/audits.json").read_text())
    rows = pd.read_csv("audit/audits.csv", dtype={"name": str}).set_index("name")
    pairs = audit_cli.read_pairs(model, "pairs.csv")
    for row in content["audits"]:
        direction = read_direction(f"several/{row['name']}.npy")
        expected = audit(model, SITE, direction, pairs, name="smollm2-135m", progress=False)
        assert {**row, "provenance": {}, "name": ""} == {**to_dict(expected), "name": ""}
        assert rows.loc[row["name"], "FLDD"] == pytest.approx(expected.effect.fldd.value)
        assert rows.loc[row["name"], "verdict"] == expected.verdict
    page = (folder / "audit/audits.html").read_text()
    assert page.count("<details>") == 3 and "http" not in page
    assert "measuring 3 at mlp_hidden.1 on 14 pairs" in capsys.readouterr().out


def test_an_audit_is_never_written_over(folder, capsys):
    for name in ("audit", "audit-2", "audit-3"):
        assert main(command()) == 0
        assert sorted(os.listdir(name)) == sorted(FILES)
    assert "Results are in audit-3 (audit holds an audit already)" in capsys.readouterr().out


def test_a_report_says_where_it_comes_from(folder, model):
    arguments = command(pairs=str(folder / "pairs.csv"), seed="4")
    assert main(arguments) == 0
    found = json.loads((folder / "audit/audit.json").read_text())["provenance"]
    digest = hashlib.sha256((folder / "v.npy").read_bytes()).hexdigest()
    assert found["files"][0] == {"name": "v.npy", "sha256": digest}
    assert [file["name"] for file in found["files"]] == ["v.npy", "pairs.csv"]
    assert found["pairs"] == {"of": "pairs.csv", "number": 14}
    assert found["command"].endswith("--direction v.npy --pairs pairs.csv --seed 4")
    pairs = audit_cli.read_pairs(model, "pairs.csv")
    assert [row["base"] for row in found["prompts"]] == [t.tolist() for t in pairs.base_tokens]
    first = found["examples"][0]
    assert "".join(first["base"]).endswith(pairs.table["base"][0])
    assert first["position"] == len(first["base"]) - 1
    for text in ((folder / "audit" / name).read_text() for name in FILES[:3]):
        assert str(folder) not in text
    page = (folder / "audit/audit.html").read_text()
    assert digest in page and "\u25b8" in page, "hash, and the patched token is marked"


def test_weights_are_known_by_their_hash(tmp_path):
    build_hf_model("llama", len(build_tokenizer()), seed=1).save_pretrained(tmp_path / "saved")
    weights = (tmp_path / "saved/model.safetensors").read_bytes()
    found = provenance.of_model(str(tmp_path / "saved"))
    expected = hashlib.sha256(weights).hexdigest()
    assert found == {"name": "saved", "revision": None, "weights sha256": expected}
    assert provenance.of_model("nobody/nothing")["weights sha256"] is None


def test_a_preview_shows_what_is_read_and_stops(folder, model, capsys):
    assert main([*command(), "--preview"]) == 0
    assert not os.path.exists("audit")
    out = capsys.readouterr().out
    pairs = audit_cli.read_pairs(model, "pairs.csv")
    base = "|".join(model.tokenizer.decode([token]) for token in pairs.base_tokens[0])
    last = len(pairs.base_tokens[0]) - 1
    assert f"1 base   {base}\n  patched token: ' the', number {last} from 0" in out
    margin = model(pairs.base_tokens[0][None])[0, -1, [pairs.answer[0], pairs.counterfactual[0]]]
    assert f"after the base prompt {margin[0] - margin[1]:+.2f} nats" in out
    assert main([*GOOD_WITHOUT, "--preview"]) == 0, "without a direction, too"


GOOD_WITHOUT = ["--site", "mlp_hidden.1", "--pairs", "pairs.csv"]


@pytest.mark.parametrize(
    "options",
    [
        ["--direction", "three.npy"],
        ["--direction", "v.npy", "--add", "4"],
        ["--sae", "sae.pt", "--row", "2"],
        ["--sae", "sae.pt", "--row", "2", "--clamp", "3"],
        ["--submission", "x", "--block-output"],
    ],
    ids=" ".join,
)
def test_reports_of_all_kinds_follow_the_published_schema(folder, options):
    draw = np.random.default_rng(1)
    np.save("three.npy", draw.normal(size=(96, 3)))
    W = torch.from_numpy(draw.normal(size=(96, 5)))
    torch.save({"W_enc": W, "W_dec": W.T.contiguous()}, "sae.pt")
    write_unit(folder / "x", UNITS[0], rotation(48, 2))
    site = [] if "--submission" in options else ["--site", "mlp_hidden.1"]
    assert main([*site, "--pairs", "pairs.csv", *options]) == 0
    schema = json.loads((ROOT / "docs/audit.schema.json").read_text())
    found = json.loads((folder / "audit/audit.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(found, schema)
    assert set(found) == set(schema["properties"]), "nothing is written that the schema lacks"
    for broken in ({**found, "verdict": "guilty"}, {**found, "n_pairs": -1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema)


# Whatever a user gives, the command ends with a report or with a word of its own.


def strange_files():
    """Files in the working folder, good ones and others; of each kind what may be named."""
    draw = np.random.default_rng(0)
    np.save("plane.npy", draw.normal(size=(96, 2)))
    np.save("rows.npy", draw.normal(size=(3, 96)))
    np.save("cube.npy", draw.normal(size=(2, 3, 96)))
    np.save("nan.npy", np.full(96, np.nan))
    np.save("zero.npy", np.zeros(96))
    np.save("words.npy", np.array(["a", "b"]))
    with open("text.safetensors", "w") as file:
        file.write("hello")
    os.makedirs("none", exist_ok=True)
    W = torch.from_numpy(draw.normal(size=(96, 5)))
    torch.save({"W_enc": W, "W_dec": W.T.contiguous(), "b_enc": W[0, :5]}, "sae.pt")
    with open("empty.csv", "w") as file:
        file.write("base,source,answer,counterfactual\n")
    with open("odd.csv", "w") as file:
        file.write("base,source,answer,counterfactual,position\nMary ,John,Mary,John,9\n")
    files = ["v.npy", "plane.npy", "rows.npy", "cube.npy", "nan.npy", "zero.npy", "words.npy"]
    return [*files, "text.safetensors", "none", "sae.pt", "gone.npy", "pairs.csv"]


def strange_command(draw, files):
    """Options of all kinds, drawn by chance; most of them do not fit each other."""
    pick = lambda *values: str(draw.choice(values))  # noqa: E731
    sites = [
        *("mlp_hidden.1", "mlp_hidden.1", "resid_post.1", "head_output.1.0", "head_output.1.9"),
        *("resid_mid.0", "mlp_hidden.9", "head_query.1.0", "mlp.1", "model.layers.1.mlp.down_proj"),
        *("blocks.1.hook_resid_post", "model.layers.2", "blocks.1.mlp.hook_post"),
    ]
    options = [
        "--pairs",
        pick("pairs.csv", "pairs.csv", "pairs.csv", "empty.csv", "odd.csv", "v.npy"),
    ]
    options += ["--site", pick(*sites)] * bool(draw.random() < 0.95)
    options += ["--direction", pick(*files)] * bool(draw.random() < 0.8)
    options += ["--sae", pick("sae.pt", "v.npy", "none")] * bool(draw.random() < 0.1)
    options += ["--submission", pick("none", "v.npy")] * bool(draw.random() < 0.05)
    for name, values in {
        "row": ("0", "all", "1:2", "9", "x", "-1"), "key": ("W_dec", "x"), "column": ("0", "all"),
        "layer": ("0", "1", "99", "-7"), "pos": ("-1", "5"), "add": ("2", "-1e30", "nan"),
        "clamp": ("3", "inf"), "answers": ("plain", "space"),
    }.items():  # fmt: skip
        options += [f"--{name}={pick(*values)}"] * bool(draw.random() < 0.07)
    return (
        options + ["--preview"] * bool(draw.random() < 0.1) + ["--chat"] * bool(draw.random() < 0.1)
    )


@pytest.mark.parametrize(
    "seeds", [range(120), pytest.param(range(40, 600), marks=pytest.mark.long)]
)
@pytest.mark.filterwarnings("ignore")
def test_no_command_ends_in_a_traceback(folder, capsys, seeds):
    files, ended = strange_files(), set()
    for seed in seeds:
        arguments = strange_command(np.random.default_rng(seed), files)
        try:
            status = main(arguments)
        except SystemExit as stop:
            status = stop.code
        error = capsys.readouterr().err
        assert status in (0, 2), arguments
        assert status == 0 or "error: " in error, arguments
        assert "Traceback" not in error, arguments
        ended.add(status)
    assert ended == {0, 2}, "some of them fit"
