"""The same experiment at any MLP: pieces against closed forms, the table against full runs."""

from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from conftest import build_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from test_ioi import word_tokenizer as ioi_tokenizer
from test_patching import brute_force, random_pairs

from helpers.directions.geometry import (
    patch_subspace,
    random_direction,
    read_write_patch,
    row_null_split,
)
from helpers.directions.layers import (
    AtLayer,
    RandomMLP,
    cache_layers,
    construct,
    difference_of_means,
    halves,
    illusion_tests,
    illusions_at_layer,
    mean_difference,
    mean_gradient,
    sign_of,
)
from helpers.directions.search import answer_logit_difference, find_direction
from helpers.patching.cached import CachedPairs
from helpers.patching.caching import cache_pairs
from helpers.patching.metrics import (
    Estimate,
    logit_difference,
)
from helpers.patching.sites import Site
from helpers.tasks import agreement, ioi
from helpers.tasks.pairs import Pairs

VALUES = ["singular", "plural"]
UNTRAINED = ["random", "constructed", "whole MLP", "whole random MLP", "random MLP"]
TRAINED = ["trained", "row", "read null"]
seeds = st.integers(0, 2**31)


def normal(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def valued_pairs(model, n: int = 6, **kwargs) -> Pairs:
    """Pairs of random tokens whose table says, as that of agreement, which value a base has."""
    pairs = random_pairs(model, n, **kwargs)
    table = pd.DataFrame({"value": (VALUES * n)[:n]})
    return Pairs(**{**vars(pairs), "table": table})


def full_runs(cached: CachedPairs, activation: torch.Tensor) -> torch.Tensor:
    """Logit differences of full forward passes, with the activation written by a hook."""
    logits = brute_force(cached.model, cached.pairs, cached.site, activation)
    return logit_difference(logits, cached.pairs.answer, cached.pairs.counterfactual)


class Linear:
    """Pairs whose answer is a linear function of the activation, turned round by value."""

    def __init__(self, base: torch.Tensor, source: torch.Tensor, reads: torch.Tensor) -> None:
        self.base, self.source, self.reads = base, source, reads
        self.pairs = SimpleNamespace(
            table=pd.DataFrame({"value": (VALUES * len(base))[: len(base)]})
        )

    def logit_difference(self, activation: torch.Tensor) -> torch.Tensor:
        return -sides(len(self.base)) * (activation @ self.reads)

    @property
    def base_gradient(self) -> torch.Tensor:
        return -sides(len(self.base))[:, None] * self.reads


def sides(n: int) -> torch.Tensor:
    """1 for a singular, -1 for a plural."""
    return torch.tensor(([1.0, -1.0] * n)[:n], dtype=torch.float64)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request, tiny_model):
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def layers(model) -> tuple[AtLayer, AtLayer]:
    """Training and test pairs at the MLP of layer 1."""
    train = cache_layers(model, valued_pairs(model, 8, seed=1), [1])[1]
    return train, cache_layers(model, valued_pairs(model, 5, seed=2), [1])[1]


def test_signs_are_those_of_the_first_value():
    pairs = ioi.make_pairs(ioi_tokenizer(), 6)
    assert pairs.table["pattern"].tolist() == ["ABB", "BAB"] * 3
    assert sign_of(pairs).tolist() == [1, -1] * 3
    nouns = "river rivers box boxes knife knives key keys was were"
    pairs = agreement.make_pairs(build_tokenizer(tuple(nouns.split())), "number", 5)
    assert pairs.table["value"].tolist() == ["singular", "plural"] * 2 + ["singular"]
    assert sign_of(pairs).tolist() == [-1, 1, -1, 1, -1]


@pytest.mark.parametrize(
    "table",
    [
        {"relation": ["a", "b", "a"]},
        {"value": ["a", "b", "c"]},
        {"value": ["a", "a", "a"]},
    ],
)
def test_pairs_without_two_values_are_an_error(table):
    with pytest.raises(ValueError, match="'pattern', 'value'.*two values"):
        sign_of(SimpleNamespace(table=pd.DataFrame(table)))


@given(seed=seeds, n=st.integers(2, 9))
def test_gradient_of_a_linear_answer_is_what_is_read(seed, n):
    reads = normal(5, seed=seed)
    base, source = normal(n, 5, seed=seed + 1), normal(n, 5, seed=seed + 2)
    cached = Linear(base, source, reads)
    assert torch.allclose(mean_gradient(cached), reads)
    assert not base.requires_grad
    first = torch.cat([base[sides(n) < 0], source[sides(n) > 0]]).mean(0)
    second = torch.cat([base[sides(n) > 0], source[sides(n) < 0]]).mean(0)
    assert torch.allclose(mean_difference(cached), first - second)


def test_gradient_equals_finite_differences(model):
    cached = cache_pairs(model, valued_pairs(model), Site(1, "resid_post"))
    with torch.no_grad():
        gradient = mean_gradient(cached)
    step, sign = 1e-2, sign_of(cached.pairs)
    for seed in range(4):
        axis = random_direction(48, seed=seed)
        up, down = (full_runs(cached, cached.base + s * step * axis) for s in (1, -1))
        expected = (sign * (up - down)).mean() / (2 * step)
        assert (gradient @ axis).item() == pytest.approx(expected.item(), rel=0.05, abs=5e-3)
    assert gradient.norm() > 0.05


@given(seed=seeds)
def test_constructed_direction_is_half_sensor_half_actuator(seed):
    W, difference, reads = (
        normal(9, 4, seed=seed),
        normal(9, seed=seed + 1),
        normal(4, seed=seed + 2),
    )
    v = construct(difference, reads, W)
    null = torch.eye(9, dtype=torch.float64) - W @ torch.linalg.pinv(W)
    assert v.norm().item() == pytest.approx(1)
    sensor, actuator = 2**0.5 * null @ v, 2**0.5 * (v - null @ v)
    assert torch.allclose(sensor @ W, torch.zeros(4, dtype=torch.float64), atol=1e-8)
    assert torch.allclose(sensor, null @ difference / (null @ difference).norm())
    assert torch.allclose(actuator, W @ reads / (W @ reads).norm())


@given(seed=seeds, n=st.integers(1, 5))
def test_effect_of_the_constructed_direction_in_closed_form(seed, n):
    """Half of the sensor's difference times what the actuator writes where it is read.

    The actuator senses as well, unless the pairs do not differ along it.
    """
    n, W, reads = 2 * n, normal(9, 4, seed=seed), normal(4, seed=seed + 1)
    null = torch.eye(9, dtype=torch.float64) - W @ torch.linalg.pinv(W)
    change, actuator = normal(9, seed=seed + 2), W @ reads / (W @ reads).norm()
    for half, senses in ((change, change @ actuator), (null @ change, 0)):
        middle = normal(n, 9, seed=seed + 3)
        base, source = middle - sides(n)[:, None] * half, middle + sides(n)[:, None] * half
        hidden = Linear(base, source, W @ reads)
        difference = mean_difference(hidden)
        assert torch.allclose(difference, 2 * half)
        v = construct(difference, reads, W)
        patched = patch_subspace(base, source, v)
        fall = hidden.logit_difference(base) - hidden.logit_difference(patched)
        sensed = (null @ difference).norm() + 2 * senses
        expected = 0.5 * sensed * (actuator @ W @ reads)
        assert torch.allclose(fall, expected.expand(n), atol=1e-8)


def test_nothing_is_constructed_where_nothing_listens_or_is_carried():
    W, some, none = normal(9, 4, seed=0), normal(9, seed=1), torch.zeros(9, dtype=torch.float64)
    assert construct(none, normal(4, seed=2), W) is None
    assert construct(some, none[:4], W) is None
    assert construct(some, normal(4, seed=2), W) is not None


def test_random_mlp_has_the_shapes_and_sizes_of_the_real_one(model):
    mlp, real = RandomMLP(model, 1), model.blocks[1].mlp
    assert (mlp.W_gate is not None) == model.cfg.gated_mlp
    for name in ("W_in", "W_out") + (("W_gate",) if model.cfg.gated_mlp else ()):
        drawn, weight = getattr(mlp, name), getattr(real, name)
        assert drawn.shape == weight.shape and drawn.dtype == weight.dtype
        assert drawn.std().item() == pytest.approx(weight.std().item(), rel=0.05)
        assert drawn.mean().abs() < 0.1 * drawn.std()
        together = torch.stack([drawn.flatten(), weight.flatten()])
        assert torch.corrcoef(together)[0, 1].abs() < 0.05


def test_seed_alone_decides_about_the_random_mlp(model):
    before = torch.get_rng_state()
    first, again, other = (RandomMLP(model, 1, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.W_in, again.W_in) and torch.equal(first.W_out, again.W_out)
    assert not torch.equal(first.W_in, other.W_in)
    assert first.W_gate is None or not torch.equal(first.W_gate, first.W_in)


def test_with_the_real_weights_it_is_the_real_mlp(tiny_model):
    model = tiny_model("llama")  # without biases
    at = cache_layers(model, random_pairs(model), [1])[1]
    mlp = model.blocks[1].mlp
    same = RandomMLP(model, 1)
    same.W_in, same.W_gate, same.act = mlp.W_in, mlp.W_gate, torch.nn.functional.silu
    assert torch.allclose(same.hidden(at.input.base), at.hidden.base, atol=1e-4)
    drawn = RandomMLP(model, 1)
    x = at.input.source
    expected = torch.nn.functional.silu(x @ drawn.W_gate) * (x @ drawn.W_in)
    assert torch.allclose(drawn.hidden(x), expected, atol=1e-5)


def test_without_a_gate_there_is_only_the_nonlinearity(tiny_model):
    model = tiny_model("gpt2")
    drawn, x = RandomMLP(model, 1), torch.randn(4, 48)
    expected = torch.nn.functional.gelu(x @ drawn.W_in, approximate="tanh")
    assert torch.allclose(drawn.hidden(x), expected, atol=1e-5)


def test_layers_come_with_what_enters_is_hidden_and_leaves(model):
    pairs = valued_pairs(model, position=4)
    at = cache_layers(model, pairs, iter([2, 0]))
    assert list(at) == [2, 0]
    for layer, found in at.items():
        sites = [Site(layer, kind) for kind in ("mlp_hidden", "mlp_in", "resid_post")]
        assert [found.hidden.site, found.input.site, found.stream.site] == sites
        for cached, site in zip(found, sites, strict=True):
            _, seen = model.run_with_cache(
                torch.stack(pairs.source_tokens), names_filter=site.hook_name
            )
            assert torch.allclose(cached.source, seen[site.hook_name][:, 4], atol=1e-4)


def column(table: pd.DataFrame, patch: str, name: str = "patched") -> torch.Tensor:
    return torch.tensor(table.loc[table["patch"] == patch, name].to_numpy())


def test_patches_of_a_layer_equal_full_runs(layers):
    train, test = layers
    hidden = test.hidden
    W = hidden.model.blocks[1].mlp.W_out
    table = illusions_at_layer(train, test, seeds=())
    assert list(table.columns) == ["layer", "patch", "pair", "clean", "patched"]
    assert sorted(table["patch"].unique()) == sorted(UNTRAINED)
    assert (table["layer"] == 1).all()
    assert table.groupby("patch")["pair"].agg(list).map(lambda pairs: pairs == [*range(5)]).all()
    expected = {
        "whole MLP": hidden.source,
        "random": patch_subspace(
            hidden.base, hidden.source, random_direction(hidden.base.shape[1], seed=1)
        ),
        "constructed": patch_subspace(
            hidden.base,
            hidden.source,
            construct(mean_difference(train.hidden), mean_gradient(train.stream), W),
        ),
    }
    clean = full_runs(hidden, hidden.base)
    for patch in UNTRAINED:
        assert torch.allclose(column(table, patch, "clean"), clean, atol=1e-3)
    for patch, activation in expected.items():
        assert torch.allclose(column(table, patch), full_runs(hidden, activation), atol=1e-3)


def test_a_random_mlp_is_patched_beside_the_real_one(layers):
    train, test = layers
    table = illusions_at_layer(train, test, seeds=())
    mlp, sign = RandomMLP(test.hidden.model, 1), sign_of(train.hidden.pairs)
    seen = [mlp.hidden(x) for x in (train.input.base, train.input.source)]
    difference = (sign[:, None] * (seen[0] - seen[1])).mean(0)
    v = construct(difference, mean_gradient(train.stream), mlp.W_out)
    base, source = mlp.hidden(test.input.base), mlp.hidden(test.input.source)
    changes = {
        "whole random MLP": source - base,
        "random MLP": patch_subspace(base, source, v) - base,
    }
    for patch, change in changes.items():
        expected = full_runs(test.stream, test.stream.base + change @ mlp.W_out)
        assert torch.allclose(column(table, patch), expected, atol=1e-3)
        assert (column(table, patch) - column(table, patch, "clean")).abs().max() > 1e-2


def test_nothing_is_made_where_pairs_differ_by_rounding_only(layers):
    train, test = layers
    base = train.hidden.base
    same = replace(train.hidden, source=base * (1 + 1e-7 * normal(*base.shape, seed=0).to(base)))
    made = set(illusions_at_layer(train._replace(hidden=same), test)["patch"])
    assert made.isdisjoint({"constructed", "trained", "row", "read null"})
    assert {"whole MLP", "random"} <= made


@pytest.mark.parametrize("seeds", [(0,), (0, 1, None), (1, 0)])
def test_starts_are_trained_as_one_by_one_and_parts_of_the_best_are_patched(layers, seeds):
    train, test = layers
    W, reads = train.hidden.model.blocks[1].mlp.W_out, mean_gradient(train.stream)
    start = construct(mean_difference(train.hidden), reads, W)
    alone = dict(loss=answer_logit_difference, epochs=4, batch_size=len(train.hidden))
    fits = [
        find_direction(
            train.hidden, **alone, seed=seed or 0, progress=False, patience=None,
            init=start if seed is None else None,
        )
        for seed in seeds
    ]  # fmt: skip
    v = min(fits, key=lambda fit: fit.losses[-1]).direction
    base, source, (row, null) = test.hidden.base, test.hidden.source, row_null_split(v, W)
    expected = {
        "trained": patch_subspace(base, source, v),
        "row": patch_subspace(base, source, row),
        "read null": read_write_patch(base, source, null, v),
    }
    table = illusions_at_layer(train, test, seeds=seeds, epochs=4)
    for patch, activation in expected.items():
        runs = full_runs(test.hidden, activation)
        assert torch.allclose(column(table, patch), runs, atol=1e-3)


def test_training_starts_from_the_constructed_direction(layers):
    train, test = layers
    table = illusions_at_layer(train, test, seeds=[None], epochs=1)
    assert sorted(table["patch"].unique()) == sorted(UNTRAINED + TRAINED)
    table = illusions_at_layer(train, train, seeds=[None, 0], epochs=12)
    trained, constructed, random = (
        column(table, patch).mean() for patch in ("trained", "constructed", "random")
    )
    assert trained < min(constructed, random)  # judged on the training pairs


def test_what_cannot_be_constructed_is_left_out(model):
    """Nobody reads the last layer before the last token."""
    last = model.cfg.n_layers - 1
    at = cache_layers(model, valued_pairs(model, position=4), [last])[last]
    table = illusions_at_layer(at, at, seeds=[None], epochs=1)
    assert sorted(table["patch"].unique()) == ["random", "whole MLP", "whole random MLP"]
    assert torch.allclose(
        torch.tensor(table["patched"].to_numpy()),
        torch.tensor(table["clean"].to_numpy()),
        atol=1e-4,
    )


def test_the_difference_of_means_is_that_of_two_averages():
    x, first = torch.randn(5, 3), torch.tensor([True, False, True, False, False])
    expected = (x[0] + x[2]) / 2 - (x[1] + x[3] + x[4]) / 3
    assert torch.allclose(difference_of_means(x, first), expected, atol=1e-6)


@pytest.mark.parametrize("exact", [True, False])
def test_halves_sense_what_is_not_read_and_write_what_is(exact):
    difference, reads, W = torch.randn(9).double(), torch.randn(4).double(), torch.randn(9, 4)
    W = W.double()
    sensor, actuator, direction = halves(difference, reads, W, exact=exact)
    assert torch.allclose(sensor @ W, torch.zeros(4).double(), atol=1e-12)
    assert sensor @ difference > 0
    assert sensor.norm() == pytest.approx(1) == actuator.norm()
    assert torch.allclose(direction, (sensor + actuator) / (sensor + actuator).norm())
    if exact:
        assert torch.allclose((actuator @ W) / (actuator @ W).norm(), reads / reads.norm())
    else:
        assert torch.equal(direction, construct(difference, reads, W))


def test_marks_of_an_illusion():
    at = {
        "whole MLP": Estimate(0.05, 0.0, 0.1),
        "random": Estimate(0.0, -0.01, 0.01),
        "trained": Estimate(0.3, 0.25, 0.35),
        "row": Estimate(0.1, 0.05, 0.15),
        "null share": Estimate(0.6, 0.55, 0.7),
    }
    assert illusion_tests(at) == (True,) * 5
    for patch, value, expected in [
        ("whole MLP", Estimate(-0.2, -0.3, -0.1), (False, True, True, True, True)),
        ("whole MLP", Estimate(0.1, 0.0, 0.26), (True, False, False, True, True)),
        ("random", Estimate(0.2, 0.1, 0.3), (True, False, False, True, True)),
        ("trained", Estimate(0.19, 0.12, 0.3), (True, True, False, False, True)),
        ("row", Estimate(0.16, 0.1, 0.2), (True, True, True, False, True)),
        ("null share", Estimate(0.6, 0.5, 0.7), (True, True, True, True, False)),
    ]:
        assert illusion_tests(at | {patch: value}) == expected, patch
    nothing_trained = {name: at[name] for name in ("whole MLP", "random")}
    assert illusion_tests(nothing_trained) == (True, False, False, False, False)
