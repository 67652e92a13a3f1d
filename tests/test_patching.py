"""The engine against brute force: a full forward pass with one hook."""

import warnings

import pandas as pd
import pytest
import torch
from conftest import build_tiny_model

from helpers.patching.caching import cache_pairs, cache_sites
from helpers.patching.sites import Site, before_mlp
from helpers.patching.suffix import run_from
from helpers.tasks.pairs import Pairs

KINDS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_in", "mlp_out", "mlp_hidden")


def random_pairs(model, n: int = 5, length: int = 9, position: int = -1, seed: int = 0) -> Pairs:
    """Pairs of random tokens; the engine asks nothing else of a prompt."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randint(3, model.cfg.d_vocab, shape, generator=generator)  # noqa: E731
    position = torch.full((n,), position % length)
    return Pairs(
        base_tokens=tuple(draw(n, length)),
        source_tokens=tuple(draw(n, length)),
        answer=torch.arange(n) + 3,
        counterfactual=torch.arange(n) + 4,
        position=position,
        source_position=position,
        table=pd.DataFrame(index=range(n)),
    )


def join(*parts: Pairs) -> Pairs:
    columns = ("answer", "counterfactual", "position", "source_position")
    return Pairs(
        base_tokens=sum((part.base_tokens for part in parts), ()),
        source_tokens=sum((part.source_tokens for part in parts), ()),
        table=pd.DataFrame(index=range(sum(map(len, parts)))),
        **{name: torch.cat([getattr(part, name) for part in parts]) for name in columns},
    )


def brute_force(model, pairs: Pairs, site: Site, activation: torch.Tensor) -> torch.Tensor:
    """Last-token logits of full forward passes, with the activation written by a hook."""
    shapes = [(len(t), p) for t, p in zip(pairs.base_tokens, pairs.position.tolist(), strict=True)]
    rows: dict[int, torch.Tensor] = {}
    for shape in set(shapes):
        members = [i for i, other in enumerate(shapes) if other == shape]
        tokens = torch.stack([pairs.base_tokens[i] for i in members])
        position = shape[1] if site.position is None else site.position
        logits = full_forward(model, tokens, site, position, activation[members])
        rows |= dict(zip(members, logits, strict=True))
    return torch.stack([rows[i] for i in range(len(shapes))])


def full_forward(model, tokens, site: Site, position: int, new: torch.Tensor) -> torch.Tensor:
    def write(act, hook):
        act = act.clone()
        act[
            (slice(None), position) if site.head is None else (slice(None), position, site.head)
        ] = new
        return act

    hooks = [(site.hook_name, write)]
    if site.kind == "resid_mid":  # the hook sets what the MLP reads; the stream goes past it
        change = new - read(model, tokens, site, position)

        def shift(act, hook):
            act = act.clone()
            act[:, position] += change
            return act

        hooks.append((f"blocks.{site.layer}.hook_resid_post", shift))
    return model.run_with_hooks(tokens, fwd_hooks=hooks)[:, -1]


def read(model, tokens: torch.Tensor, site: Site, position: int) -> torch.Tensor:
    _, cache = model.run_with_cache(tokens, names_filter=site.hook_name)
    act = cache[site.hook_name][:, position]
    return act if site.head is None else act[:, site.head]


def sites_of(model, position=None) -> list[Site]:
    layers = {0, 1, model.cfg.n_layers - 1}
    sites = [Site(layer, kind, position=position) for layer in layers for kind in KINDS]
    for kind in ("head_output", "head_query"):
        sites += [Site(layer, kind, head=layer % 2, position=position) for layer in layers]
    return [site for site in sites if site.hook_name in model.hook_dict]


def perturbed(cached, seed: int = 1) -> torch.Tensor:
    noise = torch.randn(cached.base.shape, generator=torch.Generator().manual_seed(seed))
    return cached.base + noise


@pytest.mark.parametrize("position", [-1, 4, 1, 0])
def test_equals_brute_force_at_every_site(any_model, position):
    pairs, moved = random_pairs(any_model, n=3, position=position), []
    for cached in cache_sites(any_model, pairs, sites_of(any_model)):
        new = perturbed(cached)
        expected = brute_force(any_model, pairs, cached.site, new)
        clean = brute_force(any_model, pairs, cached.site, cached.base)
        found = cached.patched_logits(new)
        assert not cached._groups[0].from_start
        assert (found - expected).abs().max() < 1e-4, cached.site
        moved.append((expected - clean).abs().max() > 1e-3)
    # an earlier token need not reach the last one: there may be no attention above, or a window
    assert all(moved) if position == -1 else any(moved), "patches that move nothing prove nothing"


def test_activations_are_those_of_a_full_run(any_model):
    pairs = random_pairs(any_model, n=3, position=4)
    for cached in cache_sites(any_model, pairs, sites_of(any_model)):
        base = read(any_model, torch.stack(pairs.base_tokens), cached.site, 4)
        source = read(any_model, torch.stack(pairs.source_tokens), cached.site, 4)
        assert torch.allclose(cached.base, base, atol=1e-4)
        assert torch.allclose(cached.source, source, atol=1e-4)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox"])
def test_unprocessed_weights(architecture, tiny_model):
    model = tiny_model(architecture, processed=False)
    pairs = random_pairs(model)
    cached = cache_pairs(model, pairs, Site(1, "mlp_hidden"))
    new = perturbed(cached)
    expected = brute_force(model, pairs, cached.site, new)
    assert (cached.patched_logits(new) - expected).abs().max() < 1e-4


def test_mixed_lengths_positions_and_chunks(any_model):
    pairs = join(
        random_pairs(any_model, n=3, length=9, seed=1),
        random_pairs(any_model, n=4, length=12, position=5, seed=2),
        random_pairs(any_model, n=2, length=9, position=3, seed=3),
    )[torch.tensor([8, 3, 0, 5, 1, 7, 2, 4, 6])]
    cached = cache_pairs(any_model, pairs, Site(1, "resid_post"), batch_size=2)
    new = perturbed(cached)
    expected = brute_force(any_model, pairs, cached.site, new)
    assert (cached.patched_logits(new) - expected).abs().max() < 1e-4
    rows = torch.tensor([7, 0, 0, 4])
    assert (cached.patched_logits(new[rows], rows) - expected[rows]).abs().max() < 1e-4


def test_selected_tokens_are_columns_of_the_full_logits(any_model):
    pairs = join(random_pairs(any_model, n=3), random_pairs(any_model, n=3, length=6, seed=4))
    cached = cache_pairs(any_model, pairs, Site(1, "mlp_hidden"))
    new = perturbed(cached)
    full = cached.patched_logits(new)
    tokens = torch.randint(0, any_model.cfg.d_vocab, (6, 4))
    assert torch.allclose(
        cached.patched_logits(new, tokens=tokens), full.gather(1, tokens), atol=1e-4
    )
    expected = full.gather(1, pairs.answer[:, None]) - full.gather(1, pairs.counterfactual[:, None])
    assert torch.allclose(cached.logit_difference(new), expected[:, 0], atol=1e-4)


def test_gradient_equals_that_of_brute_force(any_model):
    pairs = random_pairs(any_model, n=3, position=4)
    cached = cache_pairs(any_model, pairs, Site(1, "mlp_hidden"))
    gradients = []
    for run in (cached.patched_logits, lambda x: brute_force(any_model, pairs, cached.site, x)):
        new = perturbed(cached).requires_grad_()
        run(new).square().sum().backward()
        gradients.append(new.grad)
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[1].norm()


def test_prompts_that_are_base_and_source_are_run_once(tiny_model):
    model = tiny_model("llama")
    pairs = random_pairs(model, n=4)
    swapped = Pairs(
        **(vars(pairs) | dict(base_tokens=pairs.source_tokens, source_tokens=pairs.base_tokens))
    )
    both = cache_pairs(model, join(pairs, swapped, pairs), Site(1, "resid_post"))
    assert len(both._groups[0].tokens) == 8  # 12 pairs of 8 different prompts
    assert torch.equal(both.base[:4], both.source[4:8])
    assert torch.equal(both.base[:4], both.base[8:])
    apart = cache_pairs(model, pairs, Site(1, "resid_post"))
    assert torch.allclose(both.source[:4], apart.source, atol=1e-4)


def test_hooks_around_a_call_see_the_patched_run(tiny_model):
    model = tiny_model("llama")
    cached = cache_pairs(model, random_pairs(model), Site(0, "mlp_hidden"))
    new, seen = perturbed(cached), []
    with model.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda a, hook: seen.append(a))]):
        cached.patched_logits(new)
    assert torch.allclose(seen[0][:, 0], new @ model.W_out[0], atol=1e-4)


def test_the_patched_site_itself_can_be_recorded_but_nothing_below(tiny_model):
    model = tiny_model("llama")
    cached = cache_pairs(model, random_pairs(model), Site(1, "mlp_hidden"))
    new = perturbed(cached)
    assert torch.equal(cached.record(new, [cached.site.hook_name])[cached.site.hook_name], new)
    with pytest.raises(ValueError, match="choose hooks above mlp_hidden.1"):
        cached.record(new, ["blocks.0.hook_resid_pre"])
    with pytest.raises(KeyError):
        cached.record(new, ["blocks.1.no_such_hook"])


def test_writing_resid_post_is_seen_at_resid_post(tiny_model):
    model = tiny_model("llama")
    cached = cache_pairs(model, random_pairs(model), Site(0, "mlp_hidden"))
    name, held = "blocks.1.hook_resid_post", torch.randn(5, 48)
    found = cached.record(cached.base, [name, name], clamp={Site(1, "resid_post"): held})
    assert torch.equal(found[name], held)
    with pytest.raises(ValueError, match="last token only"):
        cached.record(cached.base, ["unembed.hook_in"])


ADDED = {"mlp_out", "mlp_hidden"}
SHORTCUTS = {
    "gpt2": ADDED,  # its processed weights are the bridge's alone
    "gpt_neox": ADDED,
    "llama": {*ADDED, "plain"},
    "qwen2": {*ADDED, "plain"},
    "gemma3": {"mlp_out", "plain"},  # a norm lies between the hidden activation and the stream
}


@pytest.mark.parametrize("architecture", SHORTCUTS)
def test_shortcuts_are_those_that_the_architecture_allows(architecture, tiny_model, monkeypatch):
    monkeypatch.setattr("helpers.patching.suffix.ADDED", (*ADDED, "attn_out"))
    model = tiny_model(architecture)
    sites = [Site(1, kind) for kind in ("attn_out", *ADDED)]
    group = cache_sites(model, random_pairs(model, position=4), sites)[0]._groups[0]
    parallel = {"attn_out"} if architecture == "gpt_neox" else set()  # elsewhere the MLP reads it
    assert group.shortcuts == SHORTCUTS[architecture] | parallel


def test_a_shortcut_that_changes_logits_is_not_taken(tiny_model, monkeypatch):
    model = tiny_model("llama")

    def wrong(block):
        return lambda stream, *args, **kwargs: block.original_component(1.01 * stream, **kwargs)

    for broken in (wrong, lambda block: 1 / 0):
        monkeypatch.setattr("helpers.patching.suffix._unwrapped", broken)
        cached = cache_pairs(model, random_pairs(model), Site(0, "mlp_hidden"))
        assert cached._groups[0].shortcuts == ADDED - {"mlp_out"}
        new = perturbed(cached)
        expected = brute_force(model, cached.pairs, cached.site, new)
        assert (cached.patched_logits(new) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("layer", [1, 2])
def test_hooks_are_called_in_the_block_of_the_site_and_above(tiny_model, layer):
    model = tiny_model("llama")
    cached = cache_pairs(model, random_pairs(model, position=0), Site(1, "mlp_out"))
    new, block = perturbed(cached), model.blocks[layer]

    def reverse(act, hook):
        return act.flip(-1)

    with model.hooks(fwd_hooks=[(f"blocks.{layer}.mlp.hook_out", reverse)]):
        hooked = cached.patched_logits(new), brute_force(model, cached.pairs, cached.site, new)
    handle = block.mlp.register_forward_hook(lambda *args: args[-1].flip(-1))
    try:  # of PyTorch, around what TransformerLens calls
        handled = cached.patched_logits(new), brute_force(model, cached.pairs, cached.site, new)
    finally:
        handle.remove()
    clean = cached.patched_logits(new)
    for found, expected in (hooked, handled):
        assert (found - expected).abs().max() < 1e-4
        assert (found - clean).abs().max() > 1e-2


def test_blocks_without_the_bridge_share_its_weights():
    model = build_tiny_model("llama")
    cached = cache_pairs(model, random_pairs(model), Site(1, "mlp_hidden"))
    new = perturbed(cached)
    before = cached.patched_logits(new)
    with torch.no_grad():
        model.blocks[2].mlp.W_out.mul_(2)
    expected = brute_force(model, cached.pairs, cached.site, new)
    found = cached.patched_logits(new)
    assert (found - expected).abs().max() < 1e-4 < (found - before).abs().max()


def test_every_group_of_prompts_is_checked(tiny_model, monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setattr(
        "helpers.patching.suffix.Suffix.is_exact",
        lambda self: self.from_start or self.tokens.shape[1] == 9,  # the second group is wrong
    )
    pairs = join(random_pairs(model, n=2), random_pairs(model, n=2, length=6, seed=4))
    with pytest.warns(UserWarning, match="slower"):
        cached = cache_pairs(model, pairs, Site(1, "mlp_hidden"))
    assert all(group.from_start for group in cached._groups)


def test_many_rows_run_in_parts(tiny_model, monkeypatch):
    monkeypatch.setattr("helpers.patching.cached.ROWS_PER_FORWARD", 2)
    model = tiny_model("llama")
    pairs = join(random_pairs(model, n=3), random_pairs(model, n=3, length=6, seed=4))
    cached = cache_pairs(model, pairs, Site(0, "mlp_hidden"))
    new, held = perturbed(cached), torch.randn(6, 48)
    rows = torch.tensor([5, 0, 3, 1, 4, 2, 0])
    clamp = {Site(1, "mlp_out"): held[rows]}
    together = cached.patched_logits(new[rows], rows, clamp=clamp)
    for i, row in enumerate(rows):
        alone = {Site(1, "mlp_out"): held[row][None]}
        expected = cached.patched_logits(new[row][None], row[None], clamp=alone)
        assert torch.allclose(together[i], expected[0], atol=1e-4)


@pytest.mark.parametrize("from_start", [False, True])
def test_recorded_activations_are_those_of_the_patched_run(any_model, from_start, monkeypatch):
    if from_start:
        monkeypatch.setattr("helpers.patching.suffix.Suffix.is_exact", lambda self: self.from_start)
    long, short = random_pairs(any_model, n=2), random_pairs(any_model, n=2, length=6, seed=4)
    pairs = join(long, short)[torch.tensor([2, 0, 3, 1])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cached = cache_pairs(any_model, pairs, Site(1, "mlp_hidden", position=5))
    new = perturbed(cached)
    last = any_model.cfg.n_layers - 1  # attends in a window, in one of the architectures
    names = [f"blocks.{last}.attn.hook_pattern", "blocks.2.attn.hook_q", "blocks.2.hook_resid_post"]
    found = cached.record(new, names)
    for i, tokens in enumerate(pairs.base_tokens):

        def write(act, hook, i=i):
            act = act.clone()
            act[:, 5] = new[i]
            return act

        with any_model.hooks(fwd_hooks=[(cached.site.hook_name, write)]):
            _, seen = any_model.run_with_cache(tokens[None], names_filter=names)
        pattern = found[names[0]][i]
        assert torch.allclose(pattern[:, : len(tokens)], seen[names[0]][0, :, 5], atol=1e-4)
        assert not pattern[:, len(tokens) :].any()
        for name in names[1:]:
            assert torch.allclose(found[name][i], seen[name][0, 5], atol=1e-3)


def test_clamped_sites_equal_hooks_on_a_full_run(any_model):
    pairs = random_pairs(any_model)
    cached = cache_pairs(any_model, pairs, Site(0, "mlp_hidden"))
    new = perturbed(cached)
    held = {
        Site(1, "head_query", head=1): torch.randn(5, any_model.cfg.d_head),
        Site(2, "mlp_out"): torch.randn(5, any_model.cfg.d_model),
    }
    hooks = []
    for site, value in {cached.site: new, **held}.items():

        def write(act, hook, site=site, value=value):
            act = act.clone()
            act[(slice(None), -1) if site.head is None else (slice(None), -1, site.head)] = value
            return act

        hooks.append((site.hook_name, write))
    expected = any_model.run_with_hooks(torch.stack(pairs.base_tokens), fwd_hooks=hooks)[:, -1]
    assert (cached.patched_logits(new, clamp=held) - expected).abs().max() < 1e-4
    rows = torch.tensor([3, 1])
    part = {site: value[rows] for site, value in held.items()}
    assert (cached.patched_logits(new[rows], rows, clamp=part) - expected[rows]).abs().max() < 1e-4


def test_freezing_what_lies_between_leaves_the_direct_path(any_model):
    """With every sublayer above held at its clean output, only the change at the site is left."""
    long, short = random_pairs(any_model, n=2), random_pairs(any_model, n=2, length=6, seed=4)
    cached = cache_pairs(any_model, join(long, short), Site(0, "resid_post", position=5))
    sublayers = {
        Site(layer, kind): f"blocks.{layer}.hook_{kind}"
        for layer in range(1, any_model.cfg.n_layers)
        for kind in ("attn_out", "mlp_out")
    }
    clean = cached.record(cached.base, [*sublayers.values(), "blocks.2.hook_resid_pre"])
    frozen = {site: clean[name] for site, name in sublayers.items()}
    name = "blocks.2.hook_resid_pre"
    found = cached.record(cached.source, [name], clamp=frozen)[name]
    assert torch.allclose(found, clean[name] + cached.source - cached.base, atol=1e-3)


def test_bad_clamps_are_named(tiny_model):
    cached = cache_pairs(
        tiny_model("llama"), random_pairs(tiny_model("llama")), Site(1, "mlp_hidden")
    )
    with pytest.raises(ValueError, match="choose a site above"):
        cached.patched_logits(cached.base, clamp={Site(1, "attn_out"): torch.zeros(5, 48)})
    with pytest.raises(ValueError, match="finite activations"):
        cached.patched_logits(cached.base, clamp={Site(2, "attn_out"): torch.zeros(5, 48) / 0})
    with pytest.raises(ValueError, match="48 dimensions, not 1"):
        cached.patched_logits(cached.base, clamp={Site(2, "attn_out"): torch.zeros(5, 1)})
    with pytest.raises(ValueError, match="another token"):
        there = Site(2, "attn_out", position=0)
        cached.patched_logits(cached.base, clamp={there: torch.zeros(5, 48)})
    with pytest.raises(ValueError, match="shape"):
        cached.patched_logits(cached.base, clamp={Site(2, "attn_out"): torch.zeros(4, 48)})


def test_measure_agrees_with_brute_force(smollm):
    base = ["Then, Mary and John went to the store, and John gave a ring to"] * 2
    source = ["Then, John and Mary went to the store, and John gave a ring to"] * 2
    pairs = Pairs.from_prompts(smollm, base, source, [" Mary"] * 2, [" John"] * 2)
    for site in (Site(20, "resid_post"), Site(21, "mlp_hidden"), Site(21, "head_output", head=5)):
        cached = cache_pairs(smollm, pairs, site)
        effect = cached.measure(cached.source)
        expected = brute_force(smollm, pairs, site, cached.source)
        difference = expected[:, pairs.answer[0]] - expected[:, pairs.counterfactual[0]]
        assert torch.allclose(effect.logit_difference, difference, atol=1e-4)
        assert not cached._groups[0].from_start


def state(model) -> dict:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def hooks_of(model) -> int:
    points = {id(point): point for point in model.hook_dict.values()}.values()
    return sum(len(point.fwd_hooks) + len(point._forward_hooks) for point in points)


def overridden(model) -> list:
    return [m for m in (*model.blocks, model.unembed) if "forward" in m.__dict__]


def test_nothing_stays_behind_even_after_an_exception():
    model = build_tiny_model("llama")
    before, tokens = state(model), torch.randint(3, 50, (1, 7))
    logits = model(tokens)
    cached = cache_pairs(model, random_pairs(model), Site(1, "mlp_hidden"))
    cached.logit_difference(perturbed(cached))

    def fail(activation, hook):
        raise RuntimeError("a hook of the user's fails")

    with pytest.raises(RuntimeError, match="user's"):
        with model.hooks(fwd_hooks=[("blocks.2.hook_resid_pre", fail)]):
            cached.logit_difference(perturbed(cached))
    assert hooks_of(model) == 0 and overridden(model) == []
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(model(tokens), logits)


def test_hooks_of_the_user_survive():
    model = build_tiny_model("llama")
    calls = []
    model.add_hook("blocks.0.hook_resid_post", lambda act, hook: calls.append(1))
    cache_pairs(model, random_pairs(model), Site(1, "mlp_hidden"))
    calls.clear()
    model(torch.randint(3, 50, (1, 7)))
    assert calls == [1]


def test_architectures_that_cannot_be_resumed_fall_back(tiny_model, monkeypatch):
    monkeypatch.setattr("helpers.patching.suffix.Suffix.is_exact", lambda self: self.from_start)
    model = tiny_model("gemma3")
    pairs = join(random_pairs(model, n=3, position=4), random_pairs(model, n=2, length=5, seed=8))
    with pytest.warns(UserWarning, match="slower"):
        cached = cache_pairs(model, pairs, Site(1, "mlp_hidden"))
    new = perturbed(cached)
    expected = brute_force(model, pairs, cached.site, new)
    assert (cached.patched_logits(new) - expected).abs().max() < 1e-4
    difference = expected.gather(1, pairs.answer[:, None])
    difference = (difference - expected.gather(1, pairs.counterfactual[:, None]))[:, 0]
    assert (cached.logit_difference(new) - difference).abs().max() < 1e-4


def test_the_self_check_notices_a_wrong_resume(tiny_model):
    model = tiny_model("llama")
    cached = cache_pairs(model, random_pairs(model), Site(1, "mlp_hidden"))
    group = cached._groups[0]
    assert group.is_exact()
    group.prefix.layers[2].keys += 1.0
    assert not group.is_exact()


@pytest.mark.parametrize(
    "site, message",
    [
        (lambda: Site(99, "resid_post"), "layer 99 is out of range"),
        (lambda: Site(0, "head_output", head=99), "head 99 is out of range"),
        (lambda: Site(0, "head_output"), "give `head`"),
        (lambda: Site(0, "mlp_post"), "unknown kind"),
        (lambda: Site(0, "resid_post", position=50), "position 50 is out of range"),
    ],
)
def test_bad_sites_are_named(tiny_model, site, message):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match=message):
        cache_pairs(model, random_pairs(model), site())


def test_sites_the_architecture_lacks_are_named(tiny_model):
    model = tiny_model("gpt_neox")  # attention and MLP in parallel: nothing lies between them
    with pytest.raises(ValueError, match="has no resid_mid"):
        cache_pairs(model, random_pairs(model), Site(0, "resid_mid"))


def test_mlps_read_the_stream_that_is_said_to_lie_before_them(any_model):
    pairs = random_pairs(any_model)
    stream, entering = cache_sites(
        any_model, pairs, [Site(1, before_mlp(any_model)), Site(1, "mlp_in")]
    )
    name = entering.site.hook_name
    seen = stream.record(stream.source, [name])[name]
    assert torch.allclose(seen, entering.source, atol=1e-4)


def test_bad_activations_are_named(tiny_model):
    model = tiny_model("llama")
    cached = cache_pairs(model, random_pairs(model), Site(0, "resid_post"))
    with pytest.raises(ValueError, match="shape"):
        cached.patched_logits(cached.base[:, :-1])
    with pytest.raises(ValueError, match="NaN"):
        cached.patched_logits(cached.base * torch.nan)
    with pytest.raises(IndexError, match="between 0 and 4"):
        cached.patched_logits(cached.base[:1], torch.tensor([5]))
    with pytest.raises(ValueError, match="no rows"):
        cached.patched_logits(cached.base[:0], torch.tensor([], dtype=torch.long))
    with pytest.raises(ValueError, match="one position at a time"):
        sites = [Site(0, "resid_post", position=1), Site(0, "resid_post", position=2)]
        cache_sites(model, random_pairs(model), sites)


def test_the_last_token_reaches_the_unembedding_in_one_piece(tiny_model):
    model = tiny_model("llama")
    cached = cache_pairs(model, random_pairs(model, position=4), Site(1, "mlp_hidden"))
    seen = []
    handle = model.unembed.original_component.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].is_contiguous())
    )
    try:
        cached.patched_logits(cached.base)
    finally:
        handle.remove()
    assert seen == [True]


def test_from_a_block_on_nothing_below_is_run(any_model):
    tokens, layer = torch.arange(3, 17).reshape(2, 7), any_model.cfg.n_layers - 1
    entry, below = f"blocks.{layer}.hook_resid_pre", f"blocks.{layer - 1}.mlp.hook_post"
    with torch.no_grad():
        expected, cache = any_model.run_with_cache(tokens, names_filter=[entry])
        seen = []
        with any_model.hooks(fwd_hooks=[(below, lambda x, hook: seen.append(x))]):
            found = run_from(any_model, cache[entry], layer)
            last = run_from(any_model, cache[entry], layer, logits_to_keep=1)
        assert (found - expected).abs().max() < 1e-4
        assert (last - expected[:, -1:]).abs().max() < 1e-4
        assert not seen
        assert torch.equal(any_model(tokens), expected), "the skipped blocks are back"
    with pytest.raises(ValueError, match="layer 99 is out of range"):
        run_from(any_model, cache[entry], 99)


def test_gradient_at_the_base_is_that_of_full_forward_passes(any_model):
    pairs, site = random_pairs(any_model, position=4), Site(1, "mlp_hidden")
    cached = cache_pairs(any_model, pairs, site)
    activation = cached.base.clone().requires_grad_()
    with torch.enable_grad():
        logits = brute_force(any_model, pairs, site, activation)
        rows = torch.arange(len(pairs))
        total = (logits[rows, pairs.answer] - logits[rows, pairs.counterfactual]).sum()
    (expected,) = torch.autograd.grad(total, activation)
    with torch.no_grad():
        found = cached.base_gradient
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
