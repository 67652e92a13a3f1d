"""Rank-1 edits, second moments and ROME against conditions of optimality and full passes."""

import math

import pandas as pd
import pytest
import torch
from conftest import build_tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.directions.geometry import cosine, orthonormal, patch_subspace
from helpers.editing import moments
from helpers.editing.edits import (
    DirectionIntervention,
    RankOneEdit,
    anatomy,
    down_projection,
    edit_to_patch,
    edits_side_by_side,
    extra_variance,
    least_read,
    patch_to_edit,
    rank_one_edit,
    rewrite_score,
)
from helpers.editing.rome import RomeSettings, find_shifts, rome_edit, rome_pairs
from helpers.editing.runs import EditedRuns, causal_trace
from helpers.patching.caching import cache_pairs
from helpers.patching.sites import Site
from helpers.tasks.pairs import Pairs
from helpers.tasks.tokens import encode
from tools.evidence.moments import packed, training_passages

seeds = st.integers(0, 2**31)
FIELDS = ("read", "write")


def normal(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def random_tokens(model, n: int, length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, model.cfg.d_vocab, (n, length), generator=generator)


def random_pairs(model, n: int, length: int, position: int = -1) -> Pairs:
    position = torch.full((n,), position % length)
    return Pairs(
        base_tokens=tuple(random_tokens(model, n, length)),
        source_tokens=tuple(random_tokens(model, n, length, seed=1)),
        answer=torch.zeros(n, dtype=torch.long),
        counterfactual=torch.ones(n, dtype=torch.long),
        position=position,
        source_position=position,
        table=pd.DataFrame(index=range(n)),
    )


def hidden_and_output(model, tokens, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the down projection reads, and what it writes before any norm behind it."""
    names = [f"blocks.{layer}.mlp.hook_post", f"blocks.{layer}.mlp.hook_out"]
    _, cache = model.run_with_cache(tokens, names_filter=names)
    return cache[names[0]], cache[names[1]]


def random_edit(model, layer: int, seed: int = 0, size: float = 1.0) -> RankOneEdit:
    read, write = normal(model.cfg.d_mlp, seed=seed), normal(model.cfg.d_model, seed=seed + 1)
    return RankOneEdit(layer, (size * read / model.cfg.d_mlp**0.5).float(), write.float())


def weights_of(model) -> list[torch.Tensor]:
    return [parameter.clone() for parameter in model.parameters()]


def same_weights(model, before: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, model.parameters(), before))


# --- editing a model -----------------------------------------------------------------------------


def test_an_edit_changes_the_model_at_every_token(any_model):
    layer, tokens = 1, random_tokens(any_model, 3, 9)
    edit = random_edit(any_model, layer)
    clean = any_model(tokens)
    hidden, _ = hidden_and_output(any_model, tokens, layer)

    def write(output, hook):
        return output + (hidden @ edit.read)[..., None] * edit.write

    hook = (f"blocks.{layer}.mlp.hook_out", write)
    expected = any_model.run_with_hooks(tokens, fwd_hooks=[hook])
    with rank_one_edit(any_model, edit):
        found = any_model(tokens)
    assert (expected - clean).abs().max() > 1e-2, "an edit that moves nothing proves nothing"
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_weights_come_back_bit_for_bit(any_model):
    before, last = weights_of(any_model), any_model.cfg.n_layers - 1
    with rank_one_edit(any_model, random_edit(any_model, 1), random_edit(any_model, last)):
        once = weights_of(any_model)
        with pytest.raises(KeyError):
            with rank_one_edit(any_model, random_edit(any_model, 1, seed=7, size=1e4)):
                raise KeyError
        assert same_weights(any_model, once)
    changed = [not torch.equal(a, b) for a, b in zip(before, once, strict=True)]
    assert sum(changed) == 2
    assert same_weights(any_model, before)
    assert not any(parameter.requires_grad for parameter in any_model.parameters())


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox"])
def test_unprocessed_weights_and_two_edits_of_one_layer(architecture, tiny_model):
    model = tiny_model(architecture, processed=False)
    edits = [random_edit(model, 0, seed=seed) for seed in (0, 5)]
    before = down_projection(model, 0).clone()
    with rank_one_edit(model, *edits):
        change = down_projection(model, 0) - before
    expected = sum(torch.outer(edit.read, edit.write) for edit in edits)
    assert torch.allclose(change, expected, atol=1e-6)
    assert torch.equal(down_projection(model, 0), before)


def test_gradients_flow_inside_and_may_not_cross_the_border(tiny_model):
    model = tiny_model("llama")
    cached = cache_pairs(model, random_pairs(model, 2, 6), Site(1, "mlp_hidden"))
    new = cached.base.clone().requires_grad_()
    with rank_one_edit(model, random_edit(model, 1)):
        cached.patched_logits(new).sum().backward()
    assert new.grad.abs().max() > 0
    with rank_one_edit(model, random_edit(model, 1)):
        logits = cached.patched_logits(new)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logits.sum().backward()


def test_side_by_side_each_prompt_has_its_own_edit(any_model):
    tokens, before = random_tokens(any_model, 3, 9), weights_of(any_model)
    single = [random_edit(any_model, 1, seed=seed) for seed in (0, 10, 20)]
    reads, writes = (torch.stack([getattr(e, of) for e in single]) for of in ("read", "write"))
    expected = []
    for row, edit in enumerate(single):
        with rank_one_edit(any_model, edit):
            expected.append(any_model(tokens[row : row + 1]))
    with edits_side_by_side(any_model, RankOneEdit(1, reads, writes)):
        found = any_model(tokens)
        with pytest.raises(ValueError, match="3 edits cannot be run on a batch of 2 prompts"):
            any_model(tokens[:2])
    assert (torch.cat(expected) - found).abs().max() < 1e-4 * found.abs().max()
    assert (any_model(tokens) - found).abs().max() > 1e-2, "nothing was edited, or it stayed"
    assert same_weights(any_model, before)


def test_runs_with_an_edit_for_each_prompt_are_those_of_the_edited_model(any_model):
    prompts = [random_tokens(any_model, 1, n, seed=n)[0] for n in (9, 6, 9)]
    runs = EditedRuns(any_model, prompts, [0, 1])
    single = [random_edit(any_model, 1, seed=seed) for seed in (0, 10, 20)]
    edits = RankOneEdit(1, *(torch.stack([getattr(e, of) for e in single]) for of in FIELDS))
    expected = []
    for prompt, edit in zip(prompts, single, strict=True):
        clean = any_model(prompt[None])[:, -1]
        assert torch.allclose(runs.clean[len(expected)], clean[0], atol=1e-4 * clean.abs().max())
        with rank_one_edit(any_model, edit):
            expected.append(any_model(prompt[None])[0, -1])
    found, wanted = runs.logits(edits), torch.stack(expected)
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert (found - runs.clean).abs().max() > 1e-2, "nothing was edited"
    assert torch.allclose(runs.logits(edits[:2]), found[:2], atol=1e-4)
    for call, message in [
        (lambda: runs.logits(RankOneEdit(1, edits.read[[0] * 4], edits.write[[0] * 4])), "4 edits"),
        (lambda: EditedRuns(any_model, prompts, [0]).logits(edits), "prepared for the layers"),
        (lambda: EditedRuns(any_model, [], [0]), "no prompts"),
        (lambda: EditedRuns(any_model, prompts, [9]), "out of range"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_causal_tracing_brings_back_what_was_lost(any_model):
    tokens, position, answer = random_tokens(any_model, 1, 7)[0], 3, 5
    noise = 5 * normal(any_model.cfg.d_model, seed=1).float()

    def run(hooks):
        logits = any_model.run_with_hooks(tokens[None], fwd_hooks=hooks)
        return logits[0, -1].softmax(-1)[answer].item()

    def corrupt(x, hook):
        return torch.cat([x[:, :position], x[:, position : position + 1] + noise, x[:, 4:]], 1)

    name = "blocks.1.hook_resid_post"
    _, saved = any_model.run_with_cache(tokens[None], names_filter=[name])

    def restore(x, hook):
        return torch.cat([x[:, :position], saved[name][:, position : position + 1], x[:, 4:]], 1)

    corrupted, clean = run([("hook_embed", corrupt)]), run([])
    by_stream = run([("hook_embed", corrupt), (name, restore)]) - corrupted
    places = [[name], ["blocks.0.hook_resid_pre"], [name, "blocks.0.hook_resid_pre"]]
    found, left = causal_trace(any_model, tokens, position, answer, places, noise)
    assert left == pytest.approx(corrupted, rel=1e-3) and left != pytest.approx(clean, rel=1e-2)
    # the stream before the first layer is all there is to restore
    wanted = [by_stream, clean - corrupted, clean - corrupted]
    assert found.tolist() == pytest.approx(wanted, abs=1e-3 * max(clean, corrupted))
    with pytest.raises(ValueError, match=r"no hooks \['blocks.9"):
        causal_trace(any_model, tokens, position, answer, [["blocks.9.hook_mlp_out"]], noise)


def test_side_by_side_refuses_a_single_edit_and_an_unknown_layer(tiny_model):
    model = tiny_model("llama")
    for edit, message in [
        (random_edit(model, 1), "not a single one"),
        (RankOneEdit(9, torch.ones(1, 96), torch.ones(1, 48)), "out of range"),
    ]:
        with pytest.raises(ValueError, match=message):
            with edits_side_by_side(model, edit):
                pass


def test_a_row_of_edits_is_taken_apart(tiny_model):
    model = tiny_model("llama")
    edits = RankOneEdit(1, torch.ones(3, 96), torch.arange(3.0)[:, None].expand(3, 48))
    assert [edit.write[0].item() for edit in edits] == [0, 1, 2]
    assert len(edits) == 3 and len(edits[1:]) == 2
    with pytest.raises(ValueError, match="choose: edits"), rank_one_edit(model, edits):
        pass
    with pytest.raises(TypeError, match="one edit"):
        edits[0][0]


# --- from a patch to an edit ---------------------------------------------------------------------


@given(seed=seeds, d=st.integers(1, 9))
def test_least_read_solves_its_conditions(seed, d):
    x, key = normal(3 * d, d, seed=seed), normal(2, d, seed=seed + 1)
    second = x.T @ x / len(x) + 0.01 * torch.eye(d, dtype=x.dtype)
    read = least_read(key, second)
    assert torch.allclose((read * key).sum(-1), torch.ones(2, dtype=x.dtype))
    # Lagrange's conditions as one linear system: 2 C b = m k and k . b = 1
    for k, b in zip(key, read, strict=True):
        system = torch.zeros(d + 1, d + 1, dtype=x.dtype)
        system[:d, :d], system[:d, d], system[d, :d] = 2 * second, -k, k
        solution = torch.linalg.solve(system, torch.eye(d + 1, dtype=x.dtype)[d])
        assert torch.allclose(b, solution[:d], rtol=1e-6, atol=1e-8)
    # and no other way to read 1 at the key senses less
    step = normal(2, d, seed=seed + 2)
    step -= (step * key).sum(-1, keepdim=True) / key.square().sum(-1, keepdim=True) * key
    other = read + step
    sensed = [((b @ second) * b).sum(-1) for b in (read, other)]
    assert (sensed[0] <= sensed[1] + 1e-9).all()
    # the minimum, and that the key's length cancels
    minimum = 1 / (key @ torch.linalg.inv(second) * key).sum(-1)
    assert torch.allclose(sensed[0], minimum)
    assert torch.allclose(least_read(-3 * key, second), -read / 3)


def test_patch_equals_edit_at_the_key(any_model):
    # One token: the key is all there is. Last layer: no later attention carries other tokens here.
    for length, layer in ((1, 0), (1, 1), (7, any_model.cfg.n_layers - 1)):
        cached = cache_pairs(
            any_model, random_pairs(any_model, 3, length), Site(layer, "mlp_hidden")
        )
        direction = normal(any_model.cfg.d_mlp, seed=3).float()
        W_out = down_projection(any_model, layer)
        tokens = random_tokens(any_model, 80, 9, seed=5)
        second = moments.second_moment(any_model, [layer], tokens)[layer]
        edits = patch_to_edit(direction, cached.base, cached.source, W_out, second, layer=layer)
        patched = cached.patched_logits(patch_subspace(cached.base, cached.source, direction))
        clean = cached.patched_logits(cached.base)
        assert (patched - clean).abs().max() > 1e-2
        for row, edit in enumerate(edits):
            with rank_one_edit(any_model, edit):
                found = any_model(cached.pairs.base_tokens[row][None])[0, -1]
            assert (found - patched[row]).abs().max() < 1e-4 * patched.abs().max()


def test_patch_equals_edit_at_a_key_in_mid_prompt(any_model):
    layer, position = 1, 4
    pairs = random_pairs(any_model, 3, 9, position)
    cached = cache_pairs(any_model, pairs, Site(layer, "mlp_hidden"))
    direction = normal(3, any_model.cfg.d_mlp, seed=3).float()  # one for each pair
    W_out = down_projection(any_model, layer)
    tokens = random_tokens(any_model, 80, 9, seed=5)
    second = moments.regularised(moments.second_moment(any_model, [layer], tokens)[layer])
    edits = patch_to_edit(direction, cached.base, cached.source, W_out, second, layer=layer)
    for row, edit in enumerate(edits):
        ours = cached.base[row][None], cached.source[row][None]
        moved = (patch_subspace(*ours, direction[row]) - ours[0]) @ W_out
        _, before = hidden_and_output(any_model, pairs.base_tokens[row][None], layer)
        with rank_one_edit(any_model, edit):
            _, after = hidden_and_output(any_model, pairs.base_tokens[row][None], layer)
        change = after - before
        assert (change[0, position] - moved[0]).abs().max() < 1e-4
        assert moved.norm() > 1e-2
        assert change[0, :position].abs().max() > 1e-4  # it is an edit: other tokens move too


def test_patch_to_edit_ignores_the_length_of_the_direction():
    base, source, W_out = normal(2, 6, seed=0), normal(2, 6, seed=1), normal(6, 4, seed=2)
    v, second = normal(6, seed=3), torch.eye(6)
    edits = [patch_to_edit(c * v, base, source, W_out, second, layer=2) for c in (1, -5)]
    assert torch.allclose(edits[0].write, edits[1].write)
    single = patch_to_edit(v, base[1], source[1], W_out, second, layer=2)
    assert torch.allclose(single.read, edits[0].read[1])
    assert torch.allclose(single.write, edits[0].write[1])


# --- from an edit to a patch ---------------------------------------------------------------------


def problem(seed: int, d_mlp: int = 7, d_model: int = 3, n: int = 2):
    """Activations, their second moment, a down projection, edits and a key for each."""
    scales = torch.logspace(-1, 1, d_mlp, dtype=torch.float64)
    x = normal(60, d_mlp, seed=seed) * scales @ orthonormal(normal(d_mlp, d_mlp, seed=seed + 1))
    W_out = normal(d_mlp, d_model, seed=seed + 2)
    edit = RankOneEdit(0, normal(n, d_mlp, seed=seed + 3), normal(n, d_model, seed=seed + 4))
    return x, x.T @ x / len(x), W_out, edit, normal(n, d_mlp, seed=seed + 5)


def solve_conditions(second, W_out, read, write, key=None, beta=None):
    """`z` and `beta` from Lagrange's conditions, all unknowns in one dense linear system.

    Minimise (z + b)^T C (z + b) over z and beta with z @ W = beta a (and z . k = -b . k). If beta
    is given, the condition that its derivative vanishes makes way for the one that it is so.
    """
    d, m = W_out.shape
    columns = W_out if key is None else torch.cat([W_out, key[:, None]], 1)
    size = d + 1 + columns.shape[1]
    system, right = torch.zeros(size, size, dtype=read.dtype), torch.zeros(size, dtype=read.dtype)
    system[:d, :d], system[:d, d + 1 :], right[:d] = 2 * second, columns, -2 * second @ read
    system[d, d + 1 : d + 1 + m] = -write  # the derivative with respect to beta
    system[d + 1 :, :d], system[d + 1 : d + 1 + m, d] = columns.T, -write
    if key is not None:
        right[-1] = -read @ key
    if beta is not None:
        system[d] = torch.eye(size, dtype=read.dtype)[d]
        right[d] = beta
    solution = torch.linalg.solve(system, right)
    return solution[:d], solution[d]


@settings(max_examples=100, deadline=None)
@given(seed=seeds, exact=st.booleans(), fixed=st.sampled_from([None, 1.0, -0.3]))
def test_edit_to_patch_solves_its_conditions(seed, exact, fixed):
    _, second, W_out, edit, key = problem(seed)
    found = edit_to_patch(edit, W_out, second, key=key if exact else None, beta=fixed)
    for row in range(2):
        one = second, W_out, edit.read[row], edit.write[row]
        z, beta = solve_conditions(*one, key[row] if exact else None, fixed)
        expected = torch.outer(z, z) / beta  # v has no sign of its own
        v = found.direction[row]
        error = found.sign[row] * torch.outer(v, v) - expected
        assert error.norm() < 1e-6 * expected.norm()
        assert found.sign[row] == beta.sign()
        # acts along what the edit writes, and nowhere else
        assert cosine(v @ W_out, edit.write[row]).abs().item() == pytest.approx(1)
        if exact:
            moved = (found[row](key[row]) - key[row]) @ W_out
            wanted = (edit.read[row] @ key[row]) * edit.write[row]
            assert torch.allclose(moved, wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_no_direction_found_by_descent_imitates_the_edit_better(seed):
    x, second, W_out, edit, _ = problem(seed, n=1)
    edit = edit[0]
    found = edit_to_patch(edit, W_out, second)
    wanted = (x @ edit.read)[:, None] * edit.write

    def error(v, sign):
        return (DirectionIntervention(0, v, sign)(x) @ W_out - x @ W_out - wanted).square().mean()

    best = error(found.direction, found.sign)
    writer, null = torch.linalg.pinv(W_out), torch.linalg.svd(W_out.T)[2][3:]
    reached = []
    for sign in (torch.tensor(1.0), torch.tensor(-1.0)):
        for start in range(2):
            # every v with v @ W_out along the edit: c times a writer of it, and any null part
            free = normal(5, seed=10 * start + 1).requires_grad_()
            descent = torch.optim.LBFGS([free], max_iter=300, line_search_fn="strong_wolfe")

            def loss(free=free, sign=sign, descent=descent):
                descent.zero_grad()
                value = error(free[0] * edit.write @ writer + free[1:] @ null, sign)
                value.backward()
                return value

            descent.step(loss)
            reached.append(loss().item())
    assert min(reached) == pytest.approx(best.item(), rel=1e-3)
    assert best < min(reached) * (1 + 1e-6)


def test_a_beta_for_each_edit():
    _, second, W_out, edit, _ = problem(1)
    betas = torch.tensor([0.4, -2.0], dtype=torch.float64)
    found = edit_to_patch(edit, W_out, second, beta=betas)
    for row, beta in enumerate(betas.tolist()):
        alone = edit_to_patch(edit[row], W_out, second, beta=beta)
        assert torch.allclose(found.direction[row], alone.direction)
        assert found.sign[row] == alone.sign
    for wrong in (betas[:1], betas[0]):
        with pytest.raises(ValueError, match="one for each edit"):
            edit_to_patch(edit, W_out, second, beta=wrong)


def test_the_anatomy_of_an_intervention_follows_from_beta():
    """With `z = alpha v`: moves `h` by |z.h||z|/|beta|, writes -(z.h) of `a`, adds z^T C z."""
    _, second, W_out, edit, key = problem(2)
    for beta in (None, 0.3):
        found = edit_to_patch(edit, W_out, second, beta=beta)
        of = anatomy(found, edit, key, W_out, second)
        z = of["beta"].sqrt()[:, None] * found.direction
        read, length = (z * key).sum(-1), z.norm(dim=-1)
        assert torch.allclose(of["moved"], read.abs() * length / of["beta"] / key.norm(dim=-1))
        # z and -z are one direction: that which writes along +beta a counts
        z *= (found.sign * ((z @ W_out) * edit.write).sum(-1).sign())[:, None]
        assert torch.allclose(of["at key"], -(z * key).sum(-1))
        variance = torch.einsum("ni,ij,nj->n", z, second, z)
        usual = torch.einsum("ni,ij,nj->n", edit.read, second, edit.read)
        assert torch.allclose(of["variance"], variance / usual)
        in_rows = found.direction @ W_out @ torch.linalg.pinv(W_out)
        share = in_rows.square().sum(-1) / found.direction.square().sum(-1)
        assert torch.allclose(of["kernel"], 1 - share, atol=1e-8)
        assert torch.allclose(of["cos"], cosine(found.direction, edit.read).abs())
    assert torch.allclose(of["beta"], torch.full((2,), 0.3, dtype=torch.float64))


def test_both_signs_occur_and_the_scale_of_an_edit_cancels():
    signs = set()
    for seed in range(6):
        _, second, W_out, edit, _ = problem(seed)
        found = edit_to_patch(edit, W_out, second)
        rescaled = RankOneEdit(0, -4 * edit.read, -edit.write / 4)  # the same change of weights
        again = edit_to_patch(rescaled, W_out, second)
        assert torch.equal(found.sign, again.sign)
        assert torch.allclose(
            cosine(found.direction, again.direction).abs(), torch.ones(2).double()
        )
        assert torch.allclose(found.direction.norm(dim=-1), again.direction.norm(dim=-1))
        signs |= set(found.sign.tolist())
    assert signs == {1.0, -1.0}


def test_centred_weights_write_all_but_the_mean():
    x, second, W_out, edit, _ = problem(0, d_mlp=12, d_model=5)
    centred = (W_out - W_out.mean(-1, keepdim=True)).float()  # rank 4, up to rounding
    found = edit_to_patch(edit, centred, second)
    written = edit.write - edit.write.mean(-1, keepdim=True)
    assert cosine(found.direction @ centred.double(), written).abs().min().item() > 1 - 1e-6
    assert found.direction.norm(dim=-1).max() < 100  # a rank of 5 would divide by rounding noise
    alike = edit_to_patch(RankOneEdit(0, edit.read, written), centred, second)
    assert torch.allclose(found.direction, alike.direction, rtol=1e-4, atol=1e-6)


@given(seed=seeds)
def test_an_intervention_is_an_edit_and_costs_what_it_adds(seed):
    x, second, W_out, edit, _ = problem(seed)
    found = edit_to_patch(edit, W_out, second)
    as_edit = found.as_edit(W_out)
    for row in range(2):
        added = (found[row](x) - x) @ W_out
        assert torch.allclose((x @ as_edit[row].read)[:, None] * as_edit[row].write, added)
        cost = extra_variance(as_edit[row], second)
        assert cost.item() == pytest.approx(added.square().sum(-1).mean().item())
    assert torch.allclose(extra_variance(as_edit, second)[1], cost)
    one_each = found(x[:2])
    assert torch.allclose(one_each[1], found[1](x[1]))


def test_intervening_equals_editing_a_model(any_model):
    layer, tokens = 1, random_tokens(any_model, 2, 8)
    W_out = down_projection(any_model, layer)
    many = random_tokens(any_model, 80, 9, seed=5)
    second = moments.second_moment(any_model, [layer], many)[layer]
    found = edit_to_patch(random_edit(any_model, layer), W_out, second)
    hook = (Site(layer, "mlp_hidden").hook_name, lambda hidden, hook: found(hidden))
    expected = any_model.run_with_hooks(tokens, fwd_hooks=[hook])
    with rank_one_edit(any_model, found.as_edit(W_out)):
        edited = any_model(tokens)
    assert (edited - any_model(tokens)).abs().max() > 1e-2
    assert (edited - expected).abs().max() < 1e-4 * expected.abs().max()


def test_rewrite_score():
    original, edited = torch.tensor([0.0, 0.5, 0.2]), torch.tensor([1.0, 0.75, 0.1])
    assert rewrite_score(original, edited).tolist() == pytest.approx([1, 0.5, -0.125])
    assert rewrite_score(original, original).tolist() == [0, 0, 0]


# --- second moments ------------------------------------------------------------------------------


def test_second_moment_is_the_mean_over_all_tokens_but_the_first(any_model):
    tokens, layers = random_tokens(any_model, 5, 7), [1, any_model.cfg.n_layers - 1]
    found = moments.second_moment(any_model, layers, tokens, batch_size=2)
    everything = moments.second_moment(any_model, layers[:1], tokens, skip=0)
    for layer in layers:
        hidden, _ = hidden_and_output(any_model, tokens, layer)
        kept = hidden[:, 1:].reshape(-1, any_model.cfg.d_mlp)
        expected = sum(torch.outer(x, x) for x in kept.double()) / len(kept)
        assert found[layer].dtype == torch.float32
        assert torch.allclose(found[layer].double(), expected, rtol=1e-4, atol=1e-5)
    hidden, _ = hidden_and_output(any_model, tokens, 1)
    expected = torch.einsum("npi,npj->ij", hidden, hidden) / tokens.numel()
    assert torch.allclose(everything[1], expected, rtol=1e-4, atol=1e-4)


def test_nothing_above_the_highest_layer_is_run(any_model):
    run = []
    names = [f"blocks.{layer}.mlp.hook_out" for layer in range(any_model.cfg.n_layers)]
    hooks = [(name, lambda act, hook: run.append(hook.name.split(".")[1])) for name in names]
    with any_model.hooks(fwd_hooks=hooks):
        moments.second_moment(any_model, [0, 1], random_tokens(any_model, 2, 5))
    assert run == ["0", "1"]


def test_regularised_adds_to_the_diagonal_only():
    second = torch.diag(torch.tensor([1.0, 2.0, 1000.0])) + 0.5
    added = moments.regularised(second, 0.1) - second
    assert torch.allclose(added, 0.25 * torch.eye(3), atol=1e-4)
    assert torch.equal(moments.regularised(second, 0), second)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SUBSPACE_ILLUSION_CACHE", str(tmp_path))
    return tmp_path / moments.FOLDER_NAME


def test_kept_and_found_again(own_cache, monkeypatch):
    model = build_tiny_model("llama")
    tokens = random_tokens(model, 4, 6)
    first = moments.cached_second_moment(model, [0, 2], tokens)
    direct = moments.second_moment(model, [0, 2], tokens)
    assert torch.equal(first[0], direct[0]) and torch.equal(first[2], direct[2])
    assert len(list(own_cache.glob("*.safetensors"))) == 1
    assert not list(own_cache.glob("*tmp*"))
    asked = []
    monkeypatch.setattr(
        moments, "second_moment", lambda m, layers, *a, **k: asked.append(layers) or {1: first[0]}
    )
    again = moments.cached_second_moment(model, [0, 2], tokens)
    assert list(again) == [0, 2] and all(torch.equal(again[k], first[k]) for k in (0, 2))
    assert asked == []
    moments.cached_second_moment(model, [1], tokens)
    assert asked == [[1]]


def test_never_the_statistics_of_another_model_or_text(own_cache):
    model = build_tiny_model("llama")
    tokens = random_tokens(model, 4, 6)
    keep = lambda **k: moments.cached_second_moment(model, [1], k.pop("tokens", tokens), **k)[1]  # noqa: E731
    clean = keep()
    tiny_change = RankOneEdit(2, torch.eye(96)[7] * 1e-3, torch.eye(48)[5])  # one number
    for edit in (random_edit(model, 0), tiny_change):
        with rank_one_edit(model, edit):
            assert torch.equal(keep(), moments.second_moment(model, [1], tokens)[1])
    assert len(list(own_cache.glob("*.safetensors"))) == 3
    with rank_one_edit(model, random_edit(model, 0)):
        assert not torch.allclose(keep(), clean)
    assert torch.equal(keep(), clean)
    others = [keep(skip=2), keep(tokens=tokens.flip(0)), keep(tokens=tokens[:, :5])]
    assert len(list(own_cache.glob("*.safetensors"))) == 6
    assert not any(torch.equal(other, clean) for other in (others[0], others[2]))
    kept = set(own_cache.glob("*.safetensors"))
    moments.cached_second_moment(build_tiny_model("llama"), [1], tokens)  # the same once more
    assert set(own_cache.glob("*.safetensors")) == kept
    moments.cached_second_moment(build_tiny_model("llama", seed=1), [1], tokens)
    assert len(list(own_cache.glob("*.safetensors"))) == 7


def test_a_damaged_file_is_made_again_and_a_folder_that_cannot_be_written_is_no_obstacle(
    own_cache, monkeypatch
):
    model = build_tiny_model("llama")
    tokens = random_tokens(model, 4, 6)
    clean = moments.cached_second_moment(model, [1], tokens)[1]
    (file,) = own_cache.glob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    assert torch.equal(moments.cached_second_moment(model, [1], tokens)[1], clean)
    assert file.read_bytes() == whole
    monkeypatch.setenv("SUBSPACE_ILLUSION_CACHE", str(file))  # a file where a folder should be
    with pytest.warns(UserWarning, match="not kept"):
        assert torch.equal(moments.cached_second_moment(model, [1], tokens)[1], clean)
    full = lambda *a: (_ for _ in ()).throw(OSError("No space left on device"))  # noqa: E731
    monkeypatch.setattr(moments.files, "write", full)
    monkeypatch.setenv("SUBSPACE_ILLUSION_CACHE", str(own_cache / "other"))
    with pytest.warns(UserWarning, match="No space left"):
        assert torch.equal(moments.cached_second_moment(model, [1], tokens)[1], clean)
    assert not list((own_cache / "other").rglob("*.safetensors"))


def test_a_second_moment_packed_into_bytes_stays_positive_definite():
    x = normal(200, 40, seed=3) @ torch.diag(torch.logspace(-1, 1, 40).double())
    moment = x.T @ x / len(x)
    below, scale, diagonal = packed(moment)
    assert below.dtype == torch.int8 and below.numel() == 40 * 39 // 2
    again = moments.unpacked(below, scale, diagonal)
    assert torch.equal(again, again.T) and torch.linalg.eigvalsh(again.double()).min() > 0
    spread = moment.diagonal().sqrt()
    assert ((again - moment).abs() / torch.outer(spread, spread)).max() < 0.02
    with pytest.raises(RuntimeError):  # rounding could hide what is singular
        packed(torch.ones(3, 3))


def test_shipped_moments_agree_with_a_small_sample_of_the_text(smollm):
    found, tokens = moments.shipped_second_moments(smollm)
    assert tokens > 40_000 and list(found) == [2, 7, 12, 17, 22, 27]
    sample = moments.second_moment(smollm, [2, 7], training_passages(smollm)[:24])
    for layer, here in sample.items():
        whole = found[layer]
        torch.linalg.cholesky(whole.double())  # positive definite without a ridge
        assert cosine(whole.flatten(), here.flatten()) > 0.8
        ratio = (here.diagonal() / whole.diagonal()).sqrt()  # of each unit's size
        assert ratio.quantile(0.1) > 0.8 and ratio.quantile(0.9) < 1.25
        assert ratio.median().item() == pytest.approx(1, abs=0.05)


def test_shipped_moments_are_not_for_other_weights(smollm):
    edit = RankOneEdit(5, *(normal(d, seed=1) for d in down_projection(smollm, 5).shape))
    with rank_one_edit(smollm, edit):
        assert moments.shipped_second_moments(smollm) == ({}, 0)


# --- ROME ----------------------------------------------------------------------------------------

TEMPLATES = [
    "The capital of {subject} is",
    "{} is a city in the country of",
    "The capital city of {} is",
]
SUBJECTS = ["France", "Rome", "Italy and Spain"]
TARGETS = (" Tokyo", " Asia", " Berlin")


def facts(model, rows=(0, 1, 2), **options) -> Pairs:
    targets = [model.tokenizer(word)["input_ids"][-1] for word in TARGETS]
    choose = lambda column: [column[row] for row in rows]  # noqa: E731
    return rome_pairs(model, choose(TEMPLATES), choose(SUBJECTS), choose(targets), **options)


@pytest.mark.parametrize("bos", [True, False])
def test_rome_pairs_point_at_the_end_of_the_subject(tiny_model, bos):
    model = tiny_model("llama", bos=bos)
    pairs = facts(model, prefixes=2, prefix_length=4)
    decode = model.tokenizer.decode
    *start, _ = [decode(token) for token in encode(model, "France")]
    for row, (tokens, place) in enumerate(zip(pairs.base_tokens, pairs.position, strict=True)):
        fact, role = pairs.table["fact"][row], pairs.table["role"][row]
        assert decode(tokens[place]).strip() == SUBJECTS[fact].split()[-1]
        text = (
            SUBJECTS[fact]
            if role == "essence"
            else TEMPLATES[fact].replace("subject", "").format(SUBJECTS[fact])
        )
        assert [decode(token) for token in tokens[: len(start)]] == start
        own = encode(model, text)[len(start) :].tolist()
        assert tokens[-len(own) :].tolist() == own
        assert (role == "plain") == (len(tokens) == len(own) + len(start))
        assert decode(pairs.counterfactual[row]) == TARGETS[fact]
    assert pairs.table["role"].value_counts().to_dict() == dict(plain=3, prefixed=6, essence=3)
    aligned = pairs.position[torch.tensor((pairs.table["role"] != "plain").to_numpy())]
    assert len(aligned.unique()) == 1
    alone = facts(model, prefixes=0)
    assert len(alone) == 6 and len(alone.base_tokens[3]) == len(encode(model, SUBJECTS[0]))


def shifted_log_probabilities(model, pairs: Pairs, layer: int, shift) -> torch.Tensor:
    """By full forward passes, with the shift added to the output of the MLP."""
    rows = []
    for row, tokens in enumerate(pairs.base_tokens):
        place, fact = pairs.position[row], pairs.table["fact"][row]

        def add(output, hook, place=place, fact=fact):
            output = output.clone()
            output[:, place] += shift[fact]
            return output

        hook = (f"blocks.{layer}.mlp.hook_out", add)
        logits = model.run_with_hooks(tokens[None], fwd_hooks=[hook])
        rows.append(logits[0, -1].log_softmax(-1))
    return torch.stack(rows)


def test_loss_of_a_shift_equals_brute_force(any_model):
    layer = 1
    pairs = facts(any_model, prefixes=2, prefix_length=4)
    cached = cache_pairs(any_model, pairs, Site(layer, "mlp_hidden"))
    weights = {"kl_weight": 2.0, "weight_decay": 20.0, "learning_rate": 5.0, "clamp": 50.0}
    found = find_shifts(cached, RomeSettings(steps=4, stop_below=0, **weights))
    assert found.steps.tolist() == [4, 4, 4] and found.shift.norm(dim=-1).min() > 0.1
    before = shifted_log_probabilities(any_model, pairs, layer, torch.zeros_like(found.shift))
    after = shifted_log_probabilities(any_model, pairs, layer, found.shift)
    role, fact = pairs.table["role"].to_numpy(), torch.tensor(pairs.table["fact"].to_numpy())
    for number in range(3):
        asked = (fact == number) & torch.tensor(role != "essence")
        nll = -after[asked, pairs.counterfactual[asked]].mean()
        essence = int(((fact == number) & torch.tensor(role == "essence")).nonzero())
        kl = (after[essence].exp() * (after[essence] - before[essence])).sum()
        _, output = hidden_and_output(any_model, pairs.base_tokens[number][None], layer)
        size = output[0, pairs.position[number]].square().sum()
        loss = nll + 2 * kl + 20 * found.shift[number].norm() / size
        assert found.loss[number].item() == pytest.approx(loss.item(), rel=1e-3)
        assert found.probability[number].item() == pytest.approx((-nll).exp().item(), rel=1e-3)


def test_facts_do_not_influence_each_other_and_stop_alone(tiny_model):
    model = tiny_model("llama")
    options = RomeSettings(steps=12, learning_rate=0.5, stop_below=4.8)
    site = Site(1, "mlp_hidden")
    joint = find_shifts(cache_pairs(model, facts(model, prefixes=0), site), options)
    assert len(joint.steps.unique()) == 3  # one at once, one midway, one never
    assert ((joint.probability > math.exp(-4.8)) == (joint.steps < 12)).all()
    for row in range(3):
        alone = find_shifts(cache_pairs(model, facts(model, [row], prefixes=0), site), options)
        assert alone.steps[0] == joint.steps[row]
        assert torch.allclose(alone.shift[0], joint.shift[row], atol=1e-3)


def test_a_shift_is_clamped(tiny_model):
    model = tiny_model("llama")
    pairs = facts(model, prefixes=0)
    cached = cache_pairs(model, pairs, Site(1, "mlp_hidden"))
    found = find_shifts(cached, RomeSettings(learning_rate=50.0, steps=3, clamp=0.5, stop_below=0))
    for row in range(3):
        _, output = hidden_and_output(model, pairs.base_tokens[row][None], 1)
        limit = 0.5 * output[0, pairs.position[row]].norm()
        assert found.shift[row].norm().item() == pytest.approx(limit.item(), rel=1e-4)


def test_rome_edits_write_the_shift_at_the_key_and_make_the_target_likely(any_model):
    layer = 0
    pairs = facts(any_model, prefixes=1, prefix_length=4)
    cached = cache_pairs(any_model, pairs, Site(layer, "mlp_hidden"))
    many = random_tokens(any_model, 80, 9, seed=5)
    second = moments.regularised(moments.second_moment(any_model, [layer], many)[layer])
    options = RomeSettings(steps=6)
    shifts, edits = find_shifts(cached, options), rome_edit(cached, second, options)
    assert torch.allclose(shifts.shift, edits.write)
    mean_key = [
        cached.base[torch.tensor((pairs.table["fact"] == row) & (pairs.table["role"] != "essence"))]
        for row in range(3)
    ]
    for row, edit in enumerate(edits):
        tokens, place = pairs.base_tokens[row][None], pairs.position[row]
        clean, (_, before) = any_model(tokens)[0, -1], hidden_and_output(any_model, tokens, layer)
        with rank_one_edit(any_model, edit):
            edited, (_, after) = (
                any_model(tokens)[0, -1],
                hidden_and_output(any_model, tokens, layer),
            )
        assert (after - before)[0, place].sub(shifts.shift[row]).abs().max() < 1e-3
        target = pairs.counterfactual[row]
        assert edited.log_softmax(-1)[target] > clean.log_softmax(-1)[target]
        along = least_read(mean_key[row].mean(0), second)
        assert cosine(edit.read, along).item() == pytest.approx(1, abs=1e-5)


# --- bad input -----------------------------------------------------------------------------------

EYE = torch.eye(6)
EDIT = RankOneEdit(0, torch.ones(6), torch.ones(3))
WEIGHT = normal(6, 3, seed=0).float()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: RankOneEdit(0, torch.ones(2, 6), torch.ones(3)), "one write per read"),
        (lambda m: RankOneEdit(0, torch.full((6,), torch.nan), torch.ones(3)), "NaN"),
        (lambda m: rank_one_edit(m, random_edit(m, 9)).__enter__(), "layer 9 is out of range"),
        (lambda m: rank_one_edit(m, EDIT).__enter__(), r"shape \(96, 48\)"),
        (lambda m: least_read(torch.zeros(6), EYE), "zero vector"),
        (lambda m: least_read(torch.ones(6), torch.ones(6, 6)), "singular"),
        (lambda m: least_read(torch.ones(6), -EYE), "singular"),
        (lambda m: least_read(torch.ones(6), EYE.roll(1, 0)), "symmetric"),
        (lambda m: least_read(torch.ones(6), torch.full((6, 6), torch.nan)), "NaN"),
        (lambda m: patch_to_edit(torch.zeros(6), EYE, EYE, WEIGHT, EYE, layer=0), "zero vector"),
        (lambda m: patch_to_edit(torch.ones(5), EYE, EYE, WEIGHT, EYE, layer=0), "fit together"),
        (
            lambda m: patch_to_edit(torch.ones(6), EYE, EYE[:2], WEIGHT, EYE, layer=0),
            "fit together",
        ),
        (
            lambda m: edit_to_patch(RankOneEdit(0, torch.ones(6), torch.zeros(3)), WEIGHT, EYE),
            "no direction imitates",
        ),
        (lambda m: edit_to_patch(EDIT, WEIGHT, EYE, key=WEIGHT[:, 0]), "sees all of the key"),
        (
            lambda m: edit_to_patch(RankOneEdit(0, torch.zeros(6), torch.ones(3)), WEIGHT, EYE),
            "no direction imitates",
        ),
        (lambda m: rewrite_score(torch.zeros(2), torch.zeros(3)), "probabilities"),
        (lambda m: rewrite_score(torch.zeros(2), torch.full((2,), 7.0)), "logits"),
        (lambda m: rewrite_score(torch.ones(1), torch.ones(1)), "certain"),
        (lambda m: moments.second_moment(m, [], random_tokens(m, 2, 4)), "need a layer"),
        (lambda m: moments.second_moment(m, [3], random_tokens(m, 2, 4)), "layer 3 is out of"),
        (lambda m: moments.second_moment(m, [1], random_tokens(m, 2, 1)), "longer than 1"),
        (lambda m: moments.cached_second_moment(m, [], random_tokens(m, 2, 4)), "need a layer"),
        (lambda m: moments.regularised(EYE, -1), "zero or a positive"),
        (lambda m: rome_pairs(m, ["The {}"], ["book", "key"], [3]), "for each fact"),
        (lambda m: rome_pairs(m, ["The book"], ["book"], [3]), "one {}"),
        (lambda m: rome_pairs(m, ["The {}Mary"], ["book"], [3]), "shares a token"),
        (
            lambda m: find_shifts(cache_pairs(m, facts(m, prefixes=0), Site(1, "mlp_out"))),
            "mlp_hidden site",
        ),
        (
            lambda m: find_shifts(cache_pairs(m, random_pairs(m, 2, 5), Site(1, "mlp_hidden"))),
            "rome_pairs",
        ),
    ],
)
def test_bad_input_is_named(tiny_model, own_cache, call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny_model("llama"))


def test_a_weight_that_cannot_be_reached_is_refused(monkeypatch):
    model = build_tiny_model("llama")
    copied = property(lambda mlp: mlp.out.weight.T.clone())
    monkeypatch.setattr(type(model.blocks[0].mlp), "W_out", copied)
    with pytest.raises(ValueError, match="no single W_out"):
        down_projection(model, 0)
