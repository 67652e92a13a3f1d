"""Families of models, tiny and random: what works is exact, and the rest is said in words."""

import random
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_patching import brute_force, perturbed, random_pairs

from helpers.audit import audit
from helpers.audit.diagnostics import later_sites
from helpers.models import ModelError, load_model
from helpers.patching import Site, cache_pairs, cache_sites
from helpers.patching.sites import HOOKS, OF_ONE_HEAD, present
from tools import families
from tools.families import FAMILIES, PAGE, make_folder, make_pairs

# Of the rows that are made anew: one of each sort, and the models that most people take.
SOME = """Bamba Bloom Cohere2 DeepseekV3 Falcon FalconH1 FalconMamba Gemma2 GptOss GraniteMoeHybrid
HrmText Jamba JetMoe Lfm2Moe Mamba2 Mistral NemotronH OPT OpenAIGPT Phi3 Qwen3 Qwen3Next Rwkv
StableLm Zamba2 DeepseekV4""".split()
WHOLE_BLOCKS = ["GPTJForCausalLM", "GPTNeoForCausalLM", "FalconForCausalLM", "BloomForCausalLM"]
EXPERTS = [
    "MixtralForCausalLM",
    "Qwen3MoeForCausalLM",
    "GptOssForCausalLM",
    "DeepseekV3ForCausalLM",
]
OTHER_MEMORY = ["Qwen3NextForCausalLM", "MambaForCausalLM", "JambaForCausalLM", "RwkvForCausalLM"]
WITHOUT_SITES = ["| DeepseekV4ForCausalLM", "| HrmTextForCausalLM"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`folder(family)`: a tiny model of it, made once."""
    made: dict[str, Path] = {}

    def make(family):
        if family not in made:
            made[family] = make_folder(family, tmp_path_factory.mktemp(family))
        return made[family]

    return make


@pytest.fixture(scope="module")
def model(folder):
    """`model(family)`: that model, loaded once."""
    loaded = {}

    def load(family):
        if family not in loaded:
            loaded[family] = load_model(str(folder(family)), "cpu")
        return loaded[family]

    return load


def rows() -> dict[str, str]:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    table = [line for line in lines if line.startswith("| ")][2:]
    return {line.split(" | ")[0].removeprefix("| "): line for line in table}


def sites_of(model, position=None) -> list[Site]:
    """One site of each kind in each layer, where it is."""
    heads = {kind: 1 if kind in OF_ONE_HEAD else None for kind in HOOKS}
    every = [Site(n, k, heads[k], position) for n in range(model.cfg.n_layers) for k in HOOKS]
    return present(model, every)


def assert_exact(model, cached, pairs) -> None:
    """A patched run is a full forward pass with a hook, and moves the logits."""
    new = perturbed(cached)
    expected = brute_force(model, pairs, cached.site, new)
    clean = brute_force(model, pairs, cached.site, cached.base)
    assert (cached.patched_logits(new) - expected).abs().max() < 1e-4, cached.site
    if cached.site.position is None:
        assert (expected - clean).abs().max() > 1e-3, f"{cached.site} moves nothing"


# ------------------------------------------------------------------------------- the documentation


def test_every_family_has_its_row():
    assert list(rows()) == sorted(FAMILIES) and len(FAMILIES) > 25
    assert all(row.count("|") == 7 for row in rows().values())
    cells = [row.split(" | ") for row in rows().values()]
    assert {exact for _, loads, exact, *_ in cells if loads == "yes"} == {"< 1e-4", "–"}
    assert [name for name, loads, exact, sites, *_ in cells if exact == "–"] == WITHOUT_SITES


@pytest.mark.long
@pytest.mark.parametrize("name", SOME)
def test_the_stored_row_is_what_is_measured(name):
    (family,) = (f for f in FAMILIES if f in (f"{name}ForCausalLM", f"{name}LMHeadModel"))
    assert str(families.examine(family)) == rows()[family]


# ------------------------------------------------------------------------------------------ engine


@pytest.mark.parametrize("position", [None, 3])
@pytest.mark.parametrize("family", WHOLE_BLOCKS)
@pytest.mark.filterwarnings("ignore:this architecture cannot be resumed")
def test_blocks_that_return_more_than_the_stream(family, position, model):
    pairs = random_pairs(model(family), n=3)
    cached = cache_sites(model(family), pairs, sites_of(model(family), position))
    assert {at.site.layer for at in cached} == {0, 1, 2}
    assert cached[0]._groups[0].from_start == (family == "BloomForCausalLM")
    for at in cached:
        assert_exact(model(family), at, pairs)


@pytest.mark.parametrize("family", OTHER_MEMORY)
def test_models_that_keep_no_keys_and_values_rerun_whole_prompts(family, model):
    pairs = random_pairs(model(family), n=3)
    with pytest.warns(UserWarning, match="whole prompts are recomputed"):
        cached = cache_sites(model(family), pairs, sites_of(model(family)))
    for at in cached:
        assert at._groups[0].from_start
        assert_exact(model(family), at, pairs)


@pytest.mark.filterwarnings("ignore:this architecture cannot be resumed")
@pytest.mark.parametrize("family", [*EXPERTS, *OTHER_MEMORY])
def test_an_audit_says_which_tests_do_not_apply(family, model):
    pairs, site = make_pairs(model(family)), Site(1, "resid_post")
    cached = cache_pairs(model(family), pairs, site)
    found = audit(model(family), site, (cached.source - cached.base).mean(0), pairs, progress=False)
    reasons = {finding.test: finding.reason for finding in found.findings}
    later = bool(later_sites(model(family), site))
    for test in ("lost in range", "far downstream"):
        assert later != (reasons[test] == "No later layer has an MLP with one hidden activation.")


@pytest.mark.parametrize("family", EXPERTS)
def test_several_experts_have_no_one_hidden_activation(family, model):
    pairs, site = make_pairs(model(family)), Site(2, "mlp_hidden")
    with pytest.raises(ValueError, match=r"layer 2 of this model has no mlp_hidden: .*experts"):
        cache_pairs(model(family), pairs, site)
    with pytest.raises(ValueError, match="no mlp_hidden"):
        audit(model(family), site, torch.ones(32), pairs, progress=False)
    stream = cache_pairs(model(family), pairs, Site(1, "resid_post"))
    with pytest.raises(ValueError, match="no mlp_hidden"):
        stream.patched_logits(stream.base, clamp={site: torch.zeros(len(pairs), 48)})
    with pytest.raises(ValueError, match=r"the direction has 48 dimensions, .* another model\?"):
        audit(model(family), Site(1, "resid_post"), torch.ones(48), pairs, progress=False)


def test_dense_layers_of_a_mixed_model_have_their_units(model):
    dense = model("DeepseekV3ForCausalLM")  # the first layer is dense
    assert present(dense, [Site(n, "mlp_hidden") for n in range(3)]) == [Site(0, "mlp_hidden")]
    mixed = model("JambaForCausalLM")  # every second layer has experts
    assert later_sites(mixed, Site(0, "resid_post")) == [Site(2, "mlp_hidden")]


def test_latent_queries_are_not_made_head_by_head(model):
    deepseek = model("DeepseekV3ForCausalLM")
    with pytest.raises(ValueError, match="no head_query: its queries are not made head by head"):
        cache_pairs(deepseek, make_pairs(deepseek), Site(1, "head_query", head=1))


@pytest.mark.parametrize("family", ["GPT2LMHeadModel", "LlamaForCausalLM", "DeepseekV3ForCausalLM"])
def test_sites_hold_what_their_matrices_write(family, model):
    """Read at a site and multiplied by its matrix, an activation is what the sublayer adds."""
    sites = [site for site in sites_of(model(family)) if site.kind == "mlp_hidden"]
    _, cache = model(family).run_with_cache(torch.arange(3, 11)[None])
    for site in sites:
        mlp = model(family).blocks[site.layer].mlp
        bias = 0 if mlp.b_out is None else mlp.b_out
        written = cache[site.hook_name] @ mlp.W_out + bias
        assert torch.allclose(written, cache[f"blocks.{site.layer}.hook_mlp_out"], atol=1e-4)
    assert sites


# ---------------------------------------------------------------------------------------- mischief

FEW = settings.default.max_examples // 4  # of what loads a model each time
FUZZED = [*WHOLE_BLOCKS[:3], *EXPERTS[:3], *OTHER_MEMORY, "LlamaForCausalLM", "GPT2LMHeadModel"]


def site(kind, layer=1, position=None) -> Site:
    return Site(layer, kind, 1 if kind in OF_ONE_HEAD else None, position)


def audited(model, kind, v, **options):
    audit(model, site(kind), v, make_pairs(model), progress=False, **options)


def patched(model, kind, shape, fill=0.0):
    cached = cache_pairs(model, random_pairs(model), site(kind))
    cached.patched_logits(torch.full(shape, fill))


MISCHIEF = {
    "none": lambda model, kind: patched(model, kind, (5, 32)),
    "audit": lambda model, kind: audited(model, kind, torch.ones(32)),
    "other dimension": lambda model, kind: audited(model, kind, torch.ones(31)),
    "zero": lambda model, kind: audited(model, kind, torch.zeros(32)),
    "of NaN": lambda model, kind: audited(model, kind, torch.full((48,), torch.nan)),
    "no layer": lambda model, kind: cache_pairs(model, random_pairs(model), site(kind, 3)),
    "no token": lambda model, kind: cache_pairs(model, random_pairs(model), site(kind, 1, 9)),
    "too long": lambda model, kind: cache_pairs(model, random_pairs(model, length=65), site(kind)),
    "rows": lambda model, kind: patched(model, kind, (4, 8)),
    "infinite": lambda model, kind: patched(model, kind, (5, 8), torch.inf),
    "clamp": lambda model, kind: cache_pairs(
        model, random_pairs(model), Site(0, "resid_post")
    ).patched_logits(torch.zeros(5, 32), clamp={site(kind): torch.zeros(5, 32)}),
}  # fmt: skip


@pytest.mark.fuzz
@pytest.mark.filterwarnings("ignore")
@settings(derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(FUZZED), st.sampled_from(list(HOOKS)), st.sampled_from(list(MISCHIEF)))
def test_mischief_ends_in_a_result_or_in_words(model, family, kind, mischief):
    loaded = model(family)
    try:
        MISCHIEF[mischief](loaded, kind)
    except ValueError as error:
        assert 20 < len(str(error)) < 600
    else:
        assert mischief in ("none", "audit", "too long", "clamp"), "this cannot be right"


@pytest.mark.fuzz
@settings(derandomize=True, suppress_health_check=list(HealthCheck), max_examples=FEW)
@given(st.sampled_from(FUZZED), st.integers(0, 10**6))
def test_weights_that_go_missing_are_noticed(folder, tmp_path_factory, family, seed):
    draw, here = random.Random(seed), tmp_path_factory.mktemp("damaged")
    shutil.copytree(folder(family), here, dirs_exist_ok=True)
    weights = load_file(here / "model.safetensors")
    for name in draw.sample(sorted(weights), draw.randint(1, 3)):
        weights.pop(name)
    save_file(weights, here / "model.safetensors", metadata={"format": "pt"})
    # Of experts that are stacked while they are loaded, transformers says no more than that.
    with pytest.raises(
        ModelError, match=r"do not fit \w+: [123] missing \(|issues during automatic"
    ):
        load_model(str(here), "cpu")
    shutil.rmtree(here)
