"""Readers against brute force: whole passes of the reader's prompt, with hooks set by hand."""

import pandas as pd
import pytest
import torch

from helpers.patching import Reader, states
from helpers.tasks.facts import subject_ends
from helpers.tasks.tokens import encode

EXAMPLES = [("Paris", "France"), ("Rome", "Italy")]
TEXT = "Paris is in France. Rome is in Italy. city is in"
WORDS = torch.tensor([5, 40, 77, 120])  # candidates
SUBJECTS = pd.DataFrame(
    {
        "relation": "city_country",
        "subject": ["Madrid", "Tokyo", "Berlin"],
        "answer": ["Spain", "Japan", "Germany"],
        "template": ["The people of {} speak", "The city of {} is in", "They said {} was"],
    }
)


def reader(model) -> Reader:
    return Reader.of(model, "{} is in", EXAMPLES, placeholder="city")


def where(model) -> int:
    """The position of the placeholder, counted by hand: it is the third token from the end."""
    return len(encode(model, TEXT)) - 3


def random_states(model, n: int = 3) -> torch.Tensor:
    shape = (model.cfg.n_layers, n, model.cfg.d_model)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def written(new: torch.Tensor, position: int):
    """A hook that puts these in place of what stands at a position."""

    def hook(activation, hook):
        activation = activation.clone()
        activation[:, position] = new
        return activation

    return hook


def whole(model, n: int, hooks, text: str = TEXT) -> torch.Tensor:
    """The last token's logits of whole passes."""
    tokens = encode(model, text).expand(n, -1)
    return model.run_with_hooks(tokens, fwd_hooks=list(hooks))[:, -1]


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, rtol=0, atol=1e-4 * expected.abs().max().clamp(min=1))


def test_the_text_has_the_examples_and_then_the_placeholder(tiny_model):
    model = tiny_model("llama")
    made = reader(model)
    assert made.text == TEXT and Reader.of(model, "{} is in", [], placeholder="x").text == "x is in"
    assert made.cached[0].pairs.position.tolist() == [where(model)]


def test_its_own_states_change_nothing(any_model):
    made = reader(any_model)
    expected = whole(any_model, 1, []).log_softmax(-1)[:, WORDS]
    found = made.read(made.own, WORDS)
    assert found.shape == (any_model.cfg.n_layers, 1, len(WORDS))
    assert all(close(at, expected) for at in found)


def test_a_state_at_its_own_layer_equals_a_hook_on_a_whole_pass(any_model):
    new, made = random_states(any_model), reader(any_model)
    found = made.read(new, WORDS)
    for layer, state in enumerate(new):
        hook = (f"blocks.{layer}.hook_resid_pre", written(state, where(any_model)))
        expected = whole(any_model, 3, [hook]).log_softmax(-1)
        assert close(made.logits(state, layer).log_softmax(-1), expected)
        assert close(found[layer], expected[:, WORDS])
    some = made.read(new[1:], WORDS, layers=range(1, any_model.cfg.n_layers))
    assert torch.equal(some, found[1:])


def test_written_at_layer_0_it_stands_for_the_embedding(any_model, tiny_model):
    new = random_states(any_model)
    found = reader(any_model).read(new, WORDS, into=0)
    for layer, state in enumerate(new):
        hook = ("blocks.0.hook_resid_pre", written(state, where(any_model)))
        assert close(found[layer], whole(any_model, 3, [hook]).log_softmax(-1)[:, WORDS])
    llama = tiny_model("llama")  # here nothing is added to embeddings
    new = random_states(llama)[2]
    expected = whole(llama, 3, [("hook_embed", written(new, where(llama)))])
    assert close(reader(llama).logits(new, 0), expected)


def test_held_mlps_equal_hooks_with_the_mean_of_the_batch(any_model):
    new, made = random_states(any_model), reader(any_model)
    layers, at, tokens = any_model.cfg.n_layers, where(any_model), encode(any_model, TEXT)
    found = made.read(new, WORDS, hold_mlps=True)
    for layer, state in enumerate(new):
        names = [f"blocks.{above}.hook_mlp_out" for above in range(layer, layers)]
        first = (f"blocks.{layer}.hook_resid_pre", written(state, at))
        with any_model.hooks(fwd_hooks=[first]):
            seen = any_model.run_with_cache(tokens.expand(3, -1), names_filter=names)[1]
        held = [(name, written(seen[name][:, at].mean(0), at)) for name in names]
        expected = whole(any_model, 3, [first, *held]).log_softmax(-1)[:, WORDS]
        assert close(found[layer], expected)
    assert not close(found[0], made.read(new, WORDS)[0])  # it is no small change


def test_the_text_is_that_of_greedy_whole_passes(any_model, tiny_model):
    state, made = 9 * random_states(any_model, 4)[1], reader(any_model)
    tokens = encode(any_model, TEXT).expand(4, -1)
    hook = ("blocks.1.hook_resid_pre", written(state, where(any_model)))
    for _ in range(3):
        last = any_model.run_with_hooks(tokens, fwd_hooks=[hook])[:, -1:]
        tokens = torch.cat([tokens, last.argmax(-1)], 1)
    expected = [any_model.tokenizer.decode(row[-3:]) for row in tokens]
    assert made.tell(state, 1, n_tokens=3) == expected
    if any_model is tiny_model("llama"):  # not the same text for all
        assert len(set(expected)) > 1


def test_states_are_those_of_whole_prompts(any_model):
    tokens, positions = subject_ends(any_model, SUBJECTS)
    found = states(any_model, tokens, positions)
    for row, (prompt, at) in enumerate(zip(tokens, positions.tolist(), strict=True)):
        subject = any_model.tokenizer.decode(prompt[at : at + 1])
        assert subject.strip() == SUBJECTS["subject"][row]
        cache = any_model.run_with_cache(prompt[None])[1]
        for layer in range(any_model.cfg.n_layers):
            expected = cache[f"blocks.{layer}.hook_resid_pre"][0, at]
            assert close(found[layer, row], expected)


def test_a_prompt_read_into_itself_goes_on_as_before(tiny_model):
    """The whole chain: the states of a prompt's own subject, at their own layers."""
    model = tiny_model("qwen2")
    made = Reader.of(model, "The city of {} is in", [], placeholder="Tokyo")
    own = states(model, *subject_ends(model, SUBJECTS[1:2]))
    expected = model(encode(model, "The city of Tokyo is in")[None])[:, -1].log_softmax(-1)
    assert all(close(at, expected[:, WORDS]) for at in made.read(own, WORDS))


def test_rows_can_be_recorded_more_than_once(tiny_model):
    """What holding the MLPs rests on: one prompt with several states at a time."""
    model = tiny_model("gpt2")
    at, name = reader(model).cached[1], "blocks.2.hook_mlp_out"
    new = random_states(model)[1]
    found = at.record(new, [name], torch.zeros(3, dtype=torch.long))[name]
    for state, seen in zip(new, found, strict=True):
        assert close(seen[None], at.record(state[None], [name])[name])


@pytest.mark.parametrize("layer", [-1, 9])
def test_layers_that_are_not_there(tiny_model, layer):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match=f"layer {layer} is out of range"):
        reader(model).logits(random_states(model)[0], layer)
