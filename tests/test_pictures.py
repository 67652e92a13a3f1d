"""Painted words: what is drawn, what is read, and what an injection changes."""

import json

import pytest
import torch

from helpers import pictures
from helpers.claims import shipped_evidence
from helpers.pictures import Injection, drawing, noise, sample
from helpers.pictures.painter import PAINTERS, Text
from tools.pictures.__main__ import main
from tools.pictures.edits import OLD, Way, along, edited, swap, with_letter
from tools.pictures.measure import EARLY, Task, carrying, outputs, replaced, share, sites
from tools.pictures.muon import orthogonal
from tools.pictures.train import RECIPES, legible, train, untrained

NAMES = ["seed0", "seed1", "seed2", "late"]


@pytest.fixture(scope="module")
def painter():
    return pictures.load_painter("seed0")


@pytest.fixture(scope="module")
def task(painter):
    return Task.of(painter, pictures.pairs(6, "test", seed=4), seed=4)


# ------------------------------------------------------------------------------- signs


def test_words_are_split_once_and_for_all():
    parts = [set(drawing.words(split)) for split in ("train", "test", "fresh")]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 26**3
    assert set(drawing.REAL) <= parts[1] and min(len(parts[1]), len(parts[2])) > 800


def test_pairs_share_nothing():
    for base, source in zip(*pictures.pairs(50, "fresh", seed=1), strict=True):
        assert not any(a == b for a, b in zip(base.word, source.word, strict=True))
        assert base.color != source.color and base.thing != source.thing
        assert {base.word, source.word} <= set(drawing.words("fresh"))


@pytest.mark.parametrize("wording", range(3))
def test_a_prompt_says_all_that_the_picture_shows(wording):
    sign = pictures.Sign("CAT", "red", "wall", wording)
    tokens = pictures.tokenize([sign.prompt])
    said = [drawing.VOCABULARY[n] for n in tokens.ids[0, tokens.real[0]].tolist()]
    assert said[0] == "<begin>" and said[-1] == "<end>" and {"red", "wall"} <= set(said)
    first = said.index('"')
    assert said[first + 1 : first + 5] == ["C", "A", "T", '"']


def test_each_letter_stays_in_its_cell_and_differs_from_all_others():
    glyphs = drawing._glyphs()
    flat = glyphs[1, :, 0].flatten(1)
    assert torch.cdist(flat, flat).fill_diagonal_(9).min() > 0.5
    for slot in range(drawing.LETTERS):
        columns = glyphs[1, :, slot].sum((0, 1)).nonzero()[:, 0]
        middle = drawing.MARGIN + drawing.CELL * (slot + 0.5)
        assert (columns - middle).abs().max() <= drawing.CELL / 2 + 2  # W and M are wide


def test_style_says_nothing_about_the_text():
    one, other = (pictures.Sign(word, "blue", "card") for word in ("AAA", "WWW"))
    a, b = (pictures.render([sign], seed=3, noise=0.0) for sign in (one, other))
    ink = drawing._glyphs()[:, [0, 22]].amax((0, 1, 2)) > 0
    assert torch.equal(a[:, :, ~ink], b[:, :, ~ink])


def test_the_same_seed_draws_the_same():
    signs = pictures.signs(5, seed=2)
    assert signs == pictures.signs(5, seed=2) != pictures.signs(5, seed=3)
    assert torch.equal(pictures.render(signs, seed=1), pictures.render(signs, seed=1))


@pytest.mark.parametrize(
    "prompt, message",
    [
        ("a pink wall", r"does not know \['pink'\].*red blue green purple grey sign wall card"),
        ('a red wall that says "CÄT"', "does not know .*capitals A-Z"),
        ("", "1 to 11 words"),
        ('a red wall that says "' + "A" * 9 + '"', "1 to 11 words"),
    ],
)
def test_bad_prompts_name_what_is_known(prompt, message):
    with pytest.raises(ValueError, match=message):
        pictures.tokenize([prompt])


@pytest.mark.parametrize("word", ["cat", "CATS", "", "C T"])
def test_a_sign_takes_three_capitals(word):
    with pytest.raises(ValueError, match="3 capitals"):
        pictures.render([pictures.Sign(word, "red", "wall")])


def test_unknown_styles_layers_and_painters_are_refused(painter):
    with pytest.raises(ValueError, match="colours are"):
        pictures.render([pictures.Sign("CAT", "pink", "wall")])
    with pytest.raises(ValueError, match="layers are counted from 0 to 5"):
        painter.where([6])
    with pytest.raises(ValueError, match="steps are counted from 0 to 11"):
        sample(painter, painter.encode(["a"]), noise(1), when=[12])
    with pytest.raises(ValueError, match="no painter 'x'"):
        pictures.load_painter("x")
    with pytest.raises(ValueError, match="no split"):
        pictures.signs(3, "other")


# --------------------------------------------------------------------------- injections


@pytest.mark.parametrize("name", NAMES)
def test_ones_own_text_changes_nothing(name):
    task = Task.of(pictures.load_painter(name), pictures.pairs(4, "test", seed=1))
    every = range(len(task.painter.blocks))
    assert torch.allclose(task.paint(every, task.base), task.paint([]), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_all_layers_are_the_source_on_the_bases_noise(name):
    task = Task.of(pictures.load_painter(name), pictures.pairs(4, "test", seed=1))
    source = sample(task.painter, task.text(task.source), task.noise)
    assert torch.allclose(task.paint(range(6)), source, atol=1e-5)


def test_blind_layers_move_nothing_at_all():
    task = Task.of(pictures.load_painter("late"), pictures.pairs(4, "test", seed=1))
    assert torch.equal(task.paint([0, 1]), task.paint([]))
    assert not torch.equal(task.paint([2]), task.paint([]))


def test_one_layer_is_a_hook_on_its_keys_and_values(task):
    """Brute force, with prompts of one length: the maps put out what they made of the source."""
    painter = task.painter
    base, source = ([s._replace(wording=1) for s in of] for of in (task.base, task.source))
    ours, theirs = task.text(base), task.text(source)
    for layer in (0, 3):
        maps = [painter.blocks[layer].cross.keys, painter.blocks[layer].cross.values]
        with replaced({module: module(theirs.states) for module in maps}):
            expected = sample(painter, ours, task.noise)
        injection = Injection(theirs, painter.where([layer]))
        found = sample(painter, ours, task.noise, injection=injection)
        assert torch.allclose(found, expected, atol=1e-5)


def test_a_longer_source_keeps_its_last_words(painter):
    """The mask comes along: what stands behind the base's end is heard."""
    base, source = (painter.encode([pictures.Sign("CAT", "red", "wall", n).prompt]) for n in (0, 1))
    assert base.real.sum() < source.real.sum()
    everything = Injection(source, painter.where())
    assert torch.allclose(
        painter(noise(1), 0.5, base, everything), painter(noise(1), 0.5, source), atol=1e-5
    )


def test_heads_tokens_and_steps_are_chosen(task):
    painter, text = task.painter, task.text(task.base)
    source, x = task.text(task.source), task.noise
    parts = [[n] for n in range(painter.heads)]
    masks = [painter.where([0], heads=heads) for heads in parts]
    assert torch.equal(torch.stack(masks).any(0), painter.where([0]))
    assert painter.where([1], [2], [3, 4]).nonzero().tolist() == [[1, 2, 3], [1, 2, 4]]
    nothing = Injection(source, torch.zeros_like(masks[0]))
    assert torch.equal(painter(x, 0.5, text, nothing), painter(x, 0.5, text))
    never = sample(painter, text, x, injection=Injection(source, masks[0]), when=[])
    assert torch.equal(never, sample(painter, text, x))


def test_one_source_serves_all(task):
    one = task.text(task.source[:1])
    copies = Text(*(part.expand(len(task.base), *part.shape[1:]) for part in one))
    text, where = task.text(task.base), task.painter.where([0])
    for each in (one, copies):
        found = sample(task.painter, text, task.noise, injection=Injection(each, where))
        assert torch.allclose(found, task.paint([0], task.source[:1] * len(task.base)), atol=1e-5)


# ------------------------------------------------------------------- sampling, one call


@pytest.mark.parametrize("steps", [1, 5, 12])
def test_a_painter_that_knows_the_picture_is_sampled_to_it(steps):
    """Closed form: with the true picture as answer, x_t stays on the straight line to it."""
    picture, start, times = pictures.render(pictures.signs(2), seed=1), noise(2), []

    def knows(x, t, *_):
        assert torch.allclose(x, (1 - t) * picture + t * start, atol=1e-5)
        times.append(t)
        return picture

    found = sample(knows, None, start, steps=steps)
    assert torch.allclose(found, picture, atol=1e-6)
    assert times[0] == 1 and times == sorted(times, reverse=True) and len(times) == steps


def test_strips_are_cut_and_joined():
    from helpers.pictures.painter import _picture, _strips

    x = noise(3)
    assert torch.equal(_picture(_strips(x)), x)
    assert torch.equal(_strips(x)[0, 2], x[0, :, :, 8:12].flatten())


@torch.no_grad()
def test_the_stream_carries_everything_in_the_end(task):
    found = carrying(task)
    assert found["stream"][-1] == pytest.approx(1, abs=1e-4)
    assert found["stream"][0] == pytest.approx(found["cross-attention"][0], abs=1e-4)
    assert found["keys and values"][0] == pytest.approx(found["cross-attention"][0], abs=1e-4)


@torch.no_grad()
def test_no_hook_stays(task):
    painter, text = task.painter, task.text(task.base)
    plain = painter(task.noise, EARLY, text)
    modules = sites(painter)["MLP"]
    with pytest.raises(RuntimeError), replaced({modules[0]: torch.zeros(1)}):
        raise RuntimeError
    outputs(painter, modules, task.noise, EARLY, text)
    assert torch.equal(painter(task.noise, EARLY, text), plain)


def test_share_is_linear_in_the_way():
    old, other = noise(3, seed=1), noise(3, seed=2)
    for x in (0.0, 0.3, 1.0):
        assert share(old + x * (other - old), old, other).item() == pytest.approx(x, abs=1e-5)


# ---------------------------------------------------------------- training, edits, reader


def test_training_starts_the_same_each_time():
    (_, one), (_, other) = (train(RECIPES["seed0"], 20, tell=lambda row: None) for _ in range(2))
    assert one[-1]["loss"] == pytest.approx(other[-1]["loss"], abs=1e-4)
    assert one[-1]["loss"] < 1.6  # of about 2.4 before the first step


def test_muon_steps_have_singular_values_near_one():
    generator = torch.Generator().manual_seed(0)
    for shape in ((20, 30), (30, 20)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=generator)))
        assert values.min() > 0.3 and values.max() < 1.3


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_painters_write_words_they_never_saw(name):
    record = json.loads((PAINTERS / "training.json").read_text("utf-8"))[name]
    found = legible(pictures.load_painter(name))
    assert min(found.values()) > 0.95
    assert found["letters"] == pytest.approx(record["curve"][-1]["letters"], abs=0.03)
    assert (PAINTERS / f"{name}.safetensors").stat().st_size < 2e6


def test_an_untrained_painter_writes_nothing():
    assert legible(untrained(RECIPES["seed0"]))["letters"] < 0.2


def test_the_reader_reads_words_it_never_saw():
    asked = pictures.signs(400, "fresh", seed=8)
    for of in (0.02, 0.1):
        seen = pictures.load_reader().read(pictures.render(asked, seed=8, noise=of))
        found = pictures.agreement(seen, asked)
        assert min(share.mean() for share in found.values()) > 0.98


def test_an_edit_changes_only_the_layers_it_is_given(painter):
    new = edited(painter, [2], Way(1, 1e-3))
    changed = {
        name
        for (name, a), b in zip(new.named_parameters(), painter.parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert changed == {f"blocks.2.cross.{m}.{w}" for m in ("keys", "values")
                       for w in ("weight", "bias")}  # fmt: skip


def test_words_with_one_old_letter():
    words = [sign.word for sign in with_letter(30, "train", seed=1)]
    assert all(word.count(OLD) == 1 and "X" not in word for word in words)


@torch.no_grad()
def test_a_part_along_a_direction_is_a_projection(painter):
    pairs = swap(painter, 1, 5, "test", seed=2)
    difference = pairs.new - pairs.old
    direction = noise(1)[0].flatten()[: difference[0].numel()].reshape(difference[0].shape)
    part = along(difference, direction)
    assert torch.allclose(along(part, direction), part, atol=1e-5)
    assert torch.allclose(along(difference, 3 * direction), part, atol=1e-5)
    rest = ((difference - part) * direction).sum((1, 2))
    assert rest.abs().max() < 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_the_evidence_says_what_is_measured_again(name):
    """Counted here from the words that are read, with none of the functions that made it."""
    known = shipped_evidence("pictures")[name]
    base, source = pictures.pairs(60, "fresh", seed=10)
    painter, start = pictures.load_painter(name), noise(60, seed=10)
    ours, theirs = (painter.encode([sign.prompt for sign in of]) for of in (base, source))
    where = painter.where([known["best"]])
    found = sample(painter, ours, start, injection=Injection(theirs, where))
    read = "".join(pictures.load_reader().read(found).words)
    asked = "".join(sign.word for sign in source)
    share = sum(a == b for a, b in zip(read, asked, strict=True)) / len(asked)
    row = known["sweep"][f"only {known['best']}"]
    assert share == pytest.approx(row["letters of source"][0], abs=0.02)
    distance = (found - sample(painter, ours, start)).square().mean().item()
    assert distance == pytest.approx(row["distance"][0], rel=0.02)


def test_a_later_layer_is_not_the_best_by_luck():
    """In every painter the layer that was chosen reads far more than the next."""
    for name in NAMES:
        known = shipped_evidence("pictures")[name]
        alone = [known["sweep"][f"only {n}"]["letters of source"][0] for n in range(6)]
        ordered = sorted(alone, reverse=True)
        assert alone[known["best"]] == ordered[0] > ordered[1] + 0.5


def test_the_command_refuses_unknown_painters(capsys):
    with pytest.raises(SystemExit):
        main(["nobody"])
    assert "choose from" in capsys.readouterr().err
