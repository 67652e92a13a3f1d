"""Multiple choice: prompts read back, balanced labels, labels found where they stand."""

import collections
import re

import pytest
import torch
import transformers
from conftest import build_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.models import load_model
from helpers.output.files import ROOT
from tools import ranks
from tools.choices import measure, train
from tools.choices.__main__ import main, page
from tools.choices.measure import Head, by_rank, label_accuracy, queries, writers
from tools.choices.task import _read, multiple_choice, vocabulary

NOUNS = (ROOT / "data" / "tracking" / "nouns.txt").read_text("utf-8").split()
COLOURS = _read()["colours"].split()
PICKER = train.PICKERS / "labels"
LABELS = [*"ABCDEFGH", *"0123456789"]
TEXT = "The is What colour the Answer . ? : Ċ".split()


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(tuple(dict.fromkeys([*TEXT, *NOUNS, *COLOURS, *LABELS])), True)


def asked(prompt):
    """Of the last question the right label, as a reader finds it."""
    question = prompt.split("\n\n")[-1]
    thing, colour = re.match(r"The (\w+) is (\w+)\.\n", question).groups()
    assert f"What colour is the {thing}?" in question and question.endswith("\nAnswer:")
    (label,) = re.findall(rf"^(.)\. {colour}$", question, flags=re.M)
    return label


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(LABELS), min_size=2, max_size=6, unique=True), st.integers(0, 3))
def test_the_answer_is_the_label_of_the_right_option(tokenizer, labels, shots):
    pairs = multiple_choice(tokenizer, 7, labels="".join(labels), shots=shots, seed=shots)
    for row in pairs.table.to_dict("records"):
        assert asked(row["base"]) == labels[row["place"]]
        assert asked(row["source"]) == labels[row["source_place"]] != labels[row["place"]]
        assert row["base"].count("Answer:") == shots + 1
        assert re.findall(r"Answer: (.)", row["base"]) == re.findall(r"Answer: (.)", row["source"])
    ids = [pairs.choices[str(place + 1)][row] for row, place in enumerate(pairs.table["place"])]
    assert pairs.answer.tolist() == ids


def test_labels_are_found_where_they_stand(tokenizer):
    pairs = multiple_choice(tokenizer, 8, labels="CAD7", shots=2)
    for row, tokens in enumerate(pairs.base_tokens):
        found = [tokenizer.decode(tokens[pairs.table[f"label_{n}"][row]]) for n in (1, 2, 3, 4)]
        assert found == list("CAD7")
        assert pairs.table["label_1"][row] > len(tokens) / 2  # of the last question


def test_places_are_balanced_and_a_seed_decides(tokenizer):
    pairs = multiple_choice(tokenizer, 48, seed=1)
    both = collections.Counter(zip(pairs.table["place"], pairs.table["source_place"], strict=True))
    assert len(both) == 12 and set(both.values()) == {4}
    assert multiple_choice(tokenizer, 48, seed=1).table.equals(pairs.table)
    assert not multiple_choice(tokenizer, 48, seed=2).table.equals(pairs.table)


def test_examples_have_right_answers(tokenizer):
    for prompt in multiple_choice(tokenizer, 6, shots=3, seed=4).table["base"]:
        for example in prompt.split("\n\n")[:-1]:
            question, label = example.rsplit(" ", 1)
            assert asked(question) == label


@pytest.mark.parametrize(
    "options, message",
    [
        ({"labels": "A"}, "labels must be different characters"),
        ({"labels": "AAB"}, "labels must be different characters"),
        ({"labels": "ABCDEFGHIJK"}, "there are 10 colours"),
        ({"labels": "AÄ"}, "must be a single token"),
        ({"shots": -1}, "shots must"),
        ({"shots": 500}, "and .* things, no more"),
        ({"n": 0}, "n must"),
        ({"split": "valid"}, "the split must be"),
    ],
)
def test_bad_input_is_named(tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        multiple_choice(tokenizer, **{"n": 4, **options})


def test_the_vocabulary_holds_every_prompt():
    tokenizer = train.tokenizer()
    assert set(vocabulary()) >= {*TEXT, *NOUNS, *COLOURS, *LABELS}
    for prompt in multiple_choice(tokenizer, 4, labels="Q7Z", shots=2).table["base"]:
        ids = tokenizer(prompt)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids[1:]) == prompt


class TestTraining:
    STAGES = (train.Stage("AB", 12, 32), train.Stage("ABC", 3, 80, shuffled=True))

    def test_twice_the_same_and_better_than_before(self, capsys):
        tokens = train.tokenizer()
        pool, answers = train.texts(tokens, self.STAGES[0])
        before, first, again = (
            train.train(train.untrained(tokens), tokens, stages)
            for stages in ((), self.STAGES, self.STAGES)
        )
        theirs = again.state_dict()
        assert all(torch.equal(x, theirs[name]) for name, x in first.state_dict().items())
        assert all(torch.equal(x, x.half().float()) for x in theirs.values())
        assert loss(first, pool, answers) < loss(before, pool, answers) - 1

    @pytest.mark.parametrize("shuffled", [False, True])
    def test_answers_are_where_labels_stand(self, shuffled):
        tokens = train.tokenizer()
        pool, answers = train.texts(tokens, train.Stage("ABC", 0, 240, shuffled))
        options = {"".join(re.findall(r"^(.)\. ", tokens.decode(row), flags=re.M)) for row in pool}
        assert len({labels[:3] for labels in options}) == (6 if shuffled else 1)
        assert len(answers) == train.SHOTS + 1 and answers[-1] == pool.shape[1] - 1
        for row in pool:
            assert {tokens.decode(row[at]).strip() for at in answers} <= set("ABC")
            assert all(tokens.decode(row[at - 2 : at]) == "Answer:" for at in answers)


@torch.no_grad()
def loss(model, pool, answers):
    logits = model(pool[:, :-1]).logits[:, [at - 1 for at in answers]]
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), pool[:, answers].flatten()
    ).item()


@pytest.fixture
def few(monkeypatch):
    """Two ranks, one random basis: the same code, faster."""
    monkeypatch.setattr(measure, "RANKS", (0, 1))
    monkeypatch.setattr(ranks, "BASES", 1)


@pytest.fixture(scope="module")
def picker():
    return load_model(str(PICKER), "cpu")


@pytest.mark.parametrize("name, shuffled", [("places", 0.0), ("labels", 1.0)])
def test_the_shipped_toys_do_what_their_names_say(name, shuffled):
    folder = train.PICKERS / name
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for labels, wanted in {"ABCD": 1.0, "BCDA": shuffled}.items():
        asked = {"labels": labels, "shots": train.SHOTS, "split": "test"}
        pairs = multiple_choice(train.tokenizer(), 48, **asked)
        with torch.no_grad():
            logits = theirs(torch.stack(pairs.base_tokens)).logits[:, -1]
        right = (logits.argmax(-1) == pairs.answer).float().mean().item()
        assert right == pytest.approx(wanted, abs=0.15)
        ours = label_accuracy(load_model(str(folder), "cpu"), 48, labels, train.SHOTS)
        assert ours.value == pytest.approx(right, abs=0.15)


def test_a_writer_is_what_a_whole_pass_with_its_output_says(picker):
    pairs = multiple_choice(picker, 12, shots=train.SHOTS, split="test", seed=2)
    base, source = (torch.stack(tokens) for tokens in (pairs.base_tokens, pairs.source_tokens))
    found = writers(picker, pairs)
    clean = margins(picker, pairs, base).mean()
    for head in found[:3]:
        name = f"blocks.{head.layer}.attn.hook_z"
        with torch.no_grad():
            z = picker.run_with_cache(source, names_filter=[name])[1][name]

        def swap(value, hook, z=z, head=head):
            value = value.clone()
            value[:, -1, head.head] = z[:, -1, head.head]
            return value

        left = margins(picker, pairs, base, [(name, swap)]).mean()
        assert head.effect == pytest.approx(100 * (1 - left / clean).item(), abs=0.05)
    assert [h.effect for h in found] == sorted((h.effect for h in found), reverse=True)
    assert all(0 <= h.right and 0 <= h.wrong and h.right + h.wrong <= 1.001 for h in found)


@torch.no_grad()
def margins(model, pairs, tokens, hooks=()):
    with model.hooks(fwd_hooks=list(hooks)):
        logits = model(tokens)[:, -1]
    rows = torch.arange(len(pairs))
    return logits[rows, pairs.answer] - logits[rows, pairs.counterfactual]


def test_rank_zero_is_the_mean_of_the_train_prompts(picker, few):
    heads = [Head(2, n, 0.0, 0.0, 0.0, 0.0) for n in range(4)]
    found = by_rank(picker, 24, "ABCD", train.SHOTS, heads)
    assert {"queries", "keys", "values", "queries, letters", "queries, shuffled"} <= set(found)
    learn, judge = (
        multiple_choice(picker, 24, shots=train.SHOTS, split=split, seed=1)
        for split in ("train", "test")
    )
    mean = torch.stack([at.base.mean(0) for at in queries(picker, learn, heads)[1:]])

    def hold(value, hook):
        value = value.clone()
        value[:, -1] = mean
        return value

    tokens = torch.stack(judge.base_tokens)
    with torch.no_grad(), picker.hooks(fwd_hooks=[("blocks.2.attn.hook_rot_q", hold)]):
        logits = picker(tokens)[:, -1]
    ids = torch.stack(list(judge.choices.values()), 1)
    right = (ids.gather(1, logits.gather(1, ids).argmax(1)[:, None])[:, 0] == judge.answer).float()
    assert found["queries"]["0"]["right"] == pytest.approx(right.mean().item(), abs=1e-6)


class TestTheCommand:
    def test_it_runs_to_the_end_on_a_model_that_picks(self, tmp_path, capsys, few):
        out = tmp_path / "report.md"
        options = ["--model", str(PICKER), "--shots", str(train.SHOTS), "--n", "12"]
        assert main([*options, "--out", str(out)]) == 0
        text = out.read_text("utf-8")
        assert text.strip() == capsys.readouterr().out.strip()
        for title in ("## Heads", "## Queries", "## Keys", "## Values", "## Queries, shuffled"):
            assert title in text

    @pytest.mark.parametrize(
        "options, message",
        [
            (["--model", "/not/there"], "/not/there"),
            (["--labels", "A"], "labels must be different characters"),
            (["--n", "0"], "n must"),
            (["--shots", "-1"], "shots must"),
        ],
    )
    def test_what_a_user_can_mend_is_named(self, options, message, capsys):
        options = options if "--model" in options else ["--model", str(PICKER), *options]
        assert main(options) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error

    def test_a_model_that_does_not_pick_has_a_short_page(self):
        row = {"labels": "ABCD", "examples": 4, "chance": 0.25, "right": [0.3, 0.2, 0.4]}
        found = {"accuracy": [row, {**row, "labels": "ÄB", "error": "ÄB are no tokens"}]}
        del found["accuracy"][1]["right"]
        text = page(found, "a model")
        assert "0.30 [0.20, 0.40]" in text and "ÄB are no tokens" in text
        assert "no heads to find" in text and "## Heads" not in text
