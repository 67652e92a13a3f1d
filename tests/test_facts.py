"""Facts: what the data hold, which of them a model knows, and the pairs made of them."""

import json
import re
import urllib.error
from collections import Counter
from itertools import pairwise

import pandas as pd
import pytest
import torch
import transformers
from conftest import FACTS, NAMES, build_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from helpers.models.smollm import packaged_folder
from helpers.tasks.facts import (
    SLOT,
    _token_before,
    answer_token,
    count_known,
    count_pairs,
    fill,
    known_facts,
    load_facts,
    make_pairs,
    neighbours,
    prompts,
    reading,
    relations,
    split_subjects,
)
from helpers.tasks.tokens import encode
from tools import counterfact
from tools.counterfact import load_counterfact

COLUMNS = ["relation", "subject", "answer", "template"]
READ = ["city_country", "person_country", "company_country", "food_country", "country_language"]
TABLE = ["base", "source", *COLUMNS[:2], "source_subject", "answer", "counterfactual", "template"]


# The data.


def test_facts_are_enough_and_clean():
    facts = load_facts()
    assert list(facts.columns) == COLUMNS
    assert len(relations()) >= 8 and len(facts) >= 600
    assert list(facts["relation"].drop_duplicates()) == relations()
    assert not facts.duplicated(["relation", "subject"]).any()
    for column in ("subject", "answer"):
        assert facts[column].str.fullmatch(r"\S(.*\S)?").all()  # not empty, no space around
    by_relation = facts.groupby("relation")
    assert by_relation.size().min() >= 40 and by_relation["answer"].nunique().min() >= 4
    for fact in facts.itertuples():
        assert fact.answer not in fact.subject.split(), f"{fact} gives its answer away"


@pytest.mark.parametrize("relation", READ)
def test_examples_of_a_reading_say_no_answer_and_name_no_subject(smollm, relation):
    """So an example's object is never right, and is told from every answer by its first token."""
    facts, found = load_facts(relation), reading(relation)
    answers = {answer_token(smollm, answer) for answer in facts["answer"]}
    pairs = [pair for examples in found["examples"] for pair in examples]
    objects = [answer_token(smollm, said) for _, said in pairs]
    assert len(found["examples"]) == 3 and len(pairs) == len(set(objects)) == 9
    assert not answers & set(objects)
    assert not set(facts["subject"]) & {subject for subject, _ in pairs}
    assert found["sentence"].count("{}") == 1
    for order in (["{object}", "{subject}"], ["{subject}", "{object}"]):
        name = order[0][1:-1] + "_first"
        assert re.findall(r"\{\w+\}", found[name]) == order


def test_no_two_answers_of_a_relation_begin_with_the_same_token(smollm):
    """Else "known" would mean less on the default model, and equal tokens not equal answers."""
    facts = load_facts()
    for relation, group in facts.groupby("relation"):
        tokens = {answer: answer_token(smollm, answer) for answer in set(group["answer"])}
        assert len(set(tokens.values())) == len(tokens), relation
        if relation != "element_symbol":
            pieces = [smollm.tokenizer.decode([token]).strip() for token in tokens.values()]
            assert min(map(len, pieces)) >= 3, f"{relation}: {sorted(pieces, key=len)[:3]}"


@pytest.mark.parametrize("relation", relations())
def test_templates_are_prompts_with_one_slot(relation):
    texts = prompts(relation)
    assert 3 <= len(texts) == len(set(texts))
    for text in texts:
        assert text.count(SLOT) == 1 and text.count("{") == text.count("}") == 1
        assert text == text.strip() and not text.endswith((SLOT, SLOT + ","))
        assert not text.startswith(SLOT)  # "the Eiffel Tower" would need a capital
    assert load_facts(relation)["template"].unique().tolist() == [texts[0]]


def test_some_facts_by_hand():
    facts = load_facts().set_index(["relation", "subject"])["answer"]
    assert facts["country_capital", "France"] == "Paris"
    assert facts["element_symbol", "sodium"] == "Na"
    assert facts["landmark_country", "the Eiffel Tower"] == "France"
    assert facts["country_continent", "Angola"] == "Africa"


def test_relations_can_be_chosen():
    chosen = load_facts(["city_state", "country_capital"])
    assert set(chosen["relation"]) == {"city_state", "country_capital"}
    pd.testing.assert_frame_equal(load_facts("city_state"), load_facts(["city_state"]))
    prompts("city_state").clear()
    assert prompts("city_state")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_facts("city"), "no relation 'city': choose from .*'city_state'"),
        (lambda: load_facts(["city_state", "x"]), "no relation 'x'"),
        (lambda: prompts("city"), "no relation 'city'"),
    ],
)
def test_unknown_names_are_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# What a model knows.


def sample(per_relation: int) -> pd.DataFrame:
    return load_facts().groupby("relation").sample(per_relation, random_state=0)


def test_known_facts_are_those_of_a_plain_forward(smollm):
    """The packaged weights in transformers' own model, one prompt at a time, BOS by hand."""
    facts = sample(1)
    known = known_facts(smollm, facts, batch_size=3)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        packaged_folder(), dtype=torch.float32
    )
    tokenizer = smollm.tokenizer
    expected = []
    for fact in facts.itertuples():
        prompt = fact.template.format(subject=fact.subject)
        ids, longer = tokenizer([prompt, f"{prompt} {fact.answer}"], add_special_tokens=False)[
            "input_ids"
        ]
        with torch.no_grad():
            logits = model(torch.tensor([[tokenizer.bos_token_id, *ids]])).logits
        chances, first = logits[0, -1].softmax(-1), longer[len(ids)]
        if chances.argmax() == first:
            after = tokenizer.tokenize(prompt.split(fact.subject)[1])
            before = tokenizer.tokenize(prompt.split(fact.subject)[0].strip())
            length = len(ids) - len(before) - len(after)
            row = (fact.relation, fact.subject, fact.answer, fact.template, prompt, length, first)
            expected.append((*row, chances.max().item()))
    columns = [*COLUMNS, "prompt", "subject_tokens", "answer_token", "probability"]
    assert 5 < len(expected) < len(facts)  # both kinds occur
    pd.testing.assert_frame_equal(known, pd.DataFrame(expected, columns=columns), rtol=1e-3)


def test_lessons_have_known_facts(smollm):
    """On the packaged model: several known answers in most relations, and enough pairs."""
    facts = sample(5)
    counts = count_known(facts, known_facts(smollm, facts))
    assert list(counts.index) == sorted(relations()) and (counts["total"] == 5).all()
    assert (counts["answers"] >= 2).sum() >= 8
    assert counts["known"].sum() >= 35 and counts["pairs"].sum() >= 100


WORDS = tuple(NAMES + FACTS)


def tiny_facts(model) -> pd.DataFrame:
    """Facts about names, some of which are made true: the answer is what the model says."""
    rows = []
    for number, subject in enumerate(NAMES):
        template = "The capital of " + SLOT + (" is" if number % 3 else " is the")
        with torch.no_grad():
            best = model(model.to_tokens(fill(template, subject)))[0, -1].topk(len(WORDS)).indices
        words = [model.tokenizer.decode([token]) for token in best]
        answer = next((word for word in words[:1] if word[1:] in WORDS), " Paris")
        rows.append(("capital", subject, answer.strip(), template))
    return pd.DataFrame(rows, columns=COLUMNS)


def test_known_facts_on_every_architecture(any_model):
    facts = tiny_facts(any_model)
    known = known_facts(any_model, facts, batch_size=5)
    expected = []
    for number, fact in facts.iterrows():
        with torch.no_grad():
            logits = any_model(any_model.to_tokens(fill(fact["template"], fact["subject"])))[0, -1]
        if logits.argmax() == any_model.tokenizer.encode(f" {fact['answer']}")[-1]:
            expected.append((number, logits.softmax(-1).max().item()))
    assert known["subject"].tolist() == facts["subject"].iloc[[n for n, _ in expected]].tolist()
    assert known["probability"].tolist() == pytest.approx([p for _, p in expected], rel=1e-3)


def test_answers_that_a_tokenizer_lacks_are_not_known(tiny_model):
    model = tiny_model("llama")
    facts = pd.DataFrame([("capital", "Mary", "Ouagadougou", f"Then {SLOT} is")], columns=COLUMNS)
    assert known_facts(model, facts).empty
    with pytest.raises(ValueError, match="does not know how 'Ouagadougou' begins"):
        answer_token(model, "Ouagadougou")
    counts = count_known(facts, known_facts(model, facts))
    assert counts.loc["capital"].to_dict() == {"total": 1, "known": 0, "answers": 0, "pairs": 0}


def test_counts_by_hand():
    relation, answer = list("aaaabbbcc"), [1, 1, 2, 3, 4, 4, 4, 5, 6]
    known = pd.DataFrame({"relation": relation, "answer_token": answer})
    facts = pd.DataFrame({"relation": ["c"] * 2 + ["a"] * 5 + ["b"] * 4 + ["d"] * 3})
    counts = count_known(facts, known)
    assert counts.index.tolist() == ["c", "a", "b", "d"]
    assert counts["total"].tolist() == [2, 5, 4, 3]
    assert counts["known"].tolist() == [2, 4, 3, 0]
    assert counts["answers"].tolist() == [2, 3, 1, 0]
    assert counts["pairs"].tolist() == [2, 2 * (2 + 2 + 1), 0, 0]
    assert count_pairs(known) == 12
    assert count_pairs(known[:0]) == 0


def test_as_many_pairs_as_counted_can_be_drawn(smollm):
    facts = load_facts(["country_continent", "river_continent"])
    facts = facts.groupby(["relation", "answer"]).head(2)
    tokens = [answer_token(smollm, answer) for answer in facts["answer"]]
    n = count_pairs(facts.assign(answer_token=tokens))
    assert len(make_pairs(smollm, facts, n)) == n
    with pytest.raises(ValueError, match=f"n must be from 1 to {n},"):
        make_pairs(smollm, facts, n + 1)


# Where the subject ends.


def trained_tokenizer(kind: str):
    """A small BPE of our prompts that splits most subjects: bytes as GPT-2, or words as Llama 2."""
    facts = load_facts()
    texts = [fill(*row) for row in zip(facts["template"], facts["subject"], strict=True)]
    bytes_ = kind == "bytes"
    tokenizer = Tokenizer(models.BPE(unk_token=None if bytes_ else "<unk>"))
    tokenizer.pre_tokenizer = (
        pre_tokenizers.ByteLevel(add_prefix_space=False) if bytes_ else pre_tokenizers.Metaspace()
    )
    tokenizer.decoder = decoders.ByteLevel() if bytes_ else decoders.Metaspace()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if bytes_ else []
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<s>", "<unk>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(texts, trainer)
    if not bytes_:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>"
    )


class Slow:
    """A tokenizer without offsets."""

    is_fast = False

    def __init__(self, tokenizer):
        self.tokenizer_ = tokenizer
        self.unk_token_id, self.decode = tokenizer.unk_token_id, tokenizer.decode

    def __call__(self, text, **options):
        if "return_offsets_mapping" in options:
            raise NotImplementedError
        return self.tokenizer_(text, **options)


@pytest.fixture(scope="module", params=["smollm", "bytes", "words"])
def reader(request, smollm):
    return smollm if request.param == "smollm" else trained_tokenizer(request.param)


def check_end(reader, prompt: str, subject: str, position: int) -> None:
    """The text up to the position ends with the subject, and without it does not."""
    tokenizer = getattr(reader, "tokenizer", reader)
    tokens = encode(reader, prompt)
    special = tokenizer.all_special_ids
    text = tokenizer.decode([token for token in tokens[: position + 1] if token not in special])
    shorter = tokenizer.decode([token for token in tokens[:position] if token not in special])
    before = prompt[: prompt.index(subject)]
    assert text == before + subject
    assert not shorter.startswith(text)


def reworded(facts, place):
    """The same facts with another of their templates."""
    return facts.assign(template=[prompts(name)[place] for name in facts["relation"]])


def subject_position(reader, prompt, subject):
    """Where the subject, which stands once in the prompt, ends."""
    return _token_before(reader, prompt, re.search(rf"\b{re.escape(subject)}", prompt).end())


def test_positions_are_where_the_subject_ends(reader):
    facts = reworded(load_facts(), 1)
    lengths = Counter()
    for fact in facts.iloc[::7].itertuples():
        prompt = fill(fact.template, fact.subject)
        position = subject_position(reader, prompt, fact.subject)
        check_end(reader, prompt, fact.subject, position)
        lengths[len(encode(reader, prompt)) - position] += 1
    assert len(lengths) > 3


def test_slow_tokenizers_give_the_same_positions(reader):
    slow = Slow(getattr(reader, "tokenizer", reader))
    bos = len(encode(reader, "is")) - len(encode(slow, "is"))  # the model puts it, if not they
    for fact in load_facts().iloc[::11].itertuples():
        prompt = fill(fact.template, fact.subject)
        expected = subject_position(reader, prompt, fact.subject)
        assert subject_position(slow, prompt, fact.subject) + bos == expected


def test_known_positions():
    """BOS shifts them by one, and of several tokens the last one counts."""
    for bos in (False, True):
        tokenizer = build_tokenizer(bos=bos)
        assert subject_position(tokenizer, "The capital of France is", "France") == 3 + bos
        assert subject_position(tokenizer, "Then Mary and John went to", "Mary and John") == 3 + bos


def test_a_token_that_reaches_over_the_end_of_the_subject_is_found(smollm):
    prompt = "Apple Inc., based in"
    tokens, position = smollm.to_str_tokens(prompt), subject_position(smollm, prompt, "Apple Inc.")
    assert tokens[position - 1 : position + 2] == [" Inc", ".,", " based"]
    with pytest.raises(ValueError, match="does not tell where 'Apple Inc.' ends"):
        subject_position(Slow(smollm.tokenizer), prompt, "Apple Inc.")


def test_tokens_after_the_prompt_are_an_error():
    """As T5's tokenizer puts: the offsets no longer line up with the tokens."""
    tokenizer = trained_tokenizer("words")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A <unk>", special_tokens=[("<s>", 0), ("<unk>", 1)]
    )
    with pytest.raises(ValueError, match="does not tell where 'The capital of France' ends"):
        subject_position(tokenizer, "The capital of France is", "France")


def test_a_space_of_its_own_is_no_answer():
    class Splitting(Slow):
        def __call__(self, text, **options):
            return {"input_ids": [5, *super().__call__(text.strip(), **options)["input_ids"]]}

    tokenizer = Splitting(build_tokenizer())
    tokenizer.decode = lambda ids: "" if ids == [5] else "Paris"
    assert answer_token(tokenizer, "Paris") == build_tokenizer().convert_tokens_to_ids("Paris")


# Pairs.


def check_pairs(pairs, facts: pd.DataFrame, reader) -> None:
    """What has to hold of all pairs, whatever the facts and the tokenizer."""
    assert list(pairs.table.columns) == TABLE
    answer_of = facts.set_index(["relation", "template", "subject"])["answer"]
    for row, about in pairs.table.iterrows():
        base = about["relation"], about["template"], about["subject"]
        source = about["relation"], about["template"], about["source_subject"]
        assert about["answer"] == answer_of[base]
        assert about["counterfactual"] == answer_of[source]
        assert about["base"] == about["template"].format(subject=about["subject"])
        assert about["source"] == about["template"].format(subject=about["source_subject"])
        assert torch.equal(pairs.base_tokens[row], encode(reader, about["base"]))
        assert torch.equal(pairs.source_tokens[row], encode(reader, about["source"]))
        for side, name, position in [
            ("base", "subject", pairs.position[row]),
            ("source", "source_subject", pairs.source_position[row]),
        ]:
            check_end(reader, about[side], about[name], position)
        assert pairs.answer[row] == answer_token(reader, about["answer"])
        assert pairs.counterfactual[row] == answer_token(reader, about["counterfactual"])
    key = ["relation", "template", "subject", "source_subject"]
    assert not pairs.table.duplicated(key).any()


@st.composite
def fact_tables(draw):
    """Facts in words of the tiny tokenizer; some answers are longer but begin alike."""
    answers = ["Paris", "Paris was", "Rome", "Tokyo and", "Tokyo or"]
    rows = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["one", "two", "three"]),
                st.sampled_from(["Mary", "John and Tom", "Emma", "Paul", "the book", "Anna"]),
                st.sampled_from(answers),
                st.sampled_from([f"The {SLOT} is in", f"Then {SLOT} went to the"]),
            ),
            min_size=1,
            max_size=14,
        )
    )
    return pd.DataFrame(rows, columns=COLUMNS).drop_duplicates(["relation", "subject", "template"])


@settings(max_examples=60, deadline=None)
@given(facts=fact_tables(), data=st.data(), bos=st.booleans())
def test_pairs_are_what_they_promise(facts, data, bos):
    tokenizer = build_tokenizer(bos=bos)
    possible = {
        (a.relation, a.template, a.subject, b.subject)
        for a in facts.itertuples()
        for b in facts.itertuples()
        if (a.relation, a.template) == (b.relation, b.template)
        and a.answer.split()[0] != b.answer.split()[0]
    }
    with pytest.raises(ValueError, match=f"n must be from 1 to {len(possible)}, "):
        make_pairs(tokenizer, facts, len(possible) + 1)
    if not possible:
        return
    n, seed = data.draw(st.integers(1, len(possible))), data.draw(st.integers(0, 2**32 - 1))
    pairs = make_pairs(tokenizer, facts, n, seed=seed)
    check_pairs(pairs, facts, tokenizer)
    # as even as the facts allow: a relation with fewer pairs than another has no more to give
    size, used = Counter(key[0] for key in possible), Counter(pairs.table["relation"])
    for relation in size:
        assert used[relation] in (size[relation], max(used.values()), max(used.values()) - 1)
    everything = make_pairs(tokenizer, facts, len(possible), seed=seed)
    key = ["relation", "template", "subject", "source_subject"]
    assert set(map(tuple, everything.table[key].to_numpy())) == possible
    # the first pairs do not depend on n
    pd.testing.assert_frame_equal(everything.table.iloc[:n], pairs.table)


def test_pairs_of_the_lessons(smollm):
    facts = load_facts()
    pairs = make_pairs(smollm, facts, 5 * len(relations()), seed=1)
    check_pairs(pairs, facts, smollm)
    assert set(Counter(pairs.table["relation"]).values()) == {5}
    assert not pairs.table.duplicated(["relation", "subject"]).any()  # bases take turns
    lengths = [(len(b), len(s)) for b, s in zip(pairs.base_tokens, pairs.source_tokens)]  # noqa: B905
    assert any(base != source for base, source in lengths)


def test_pairs_on_tokenizers_that_split_subjects(reader):
    facts = reworded(load_facts(["element_symbol", "city_country"]), 2)
    tokenizer = getattr(reader, "tokenizer", reader)
    check_pairs(make_pairs(tokenizer, facts, 20), facts, tokenizer)


def test_seed_alone_decides():
    tokenizer = build_tokenizer()
    words = list(zip(NAMES, FACTS, strict=False))
    facts = pd.DataFrame([("a", s, w, f"The {SLOT} is in") for s, w in words], columns=COLUMNS)
    first, again = make_pairs(tokenizer, facts, 30), make_pairs(tokenizer, facts, 30)
    pd.testing.assert_frame_equal(first.table, again.table)
    assert not first.table.equals(make_pairs(tokenizer, facts, 30, seed=1).table)
    sources = make_pairs(tokenizer, facts, 132).table.groupby("subject")["source_subject"]
    assert (sources.nunique() == 11).all()
    order = make_pairs(tokenizer, facts, 12).table["subject"]
    assert sum(NAMES.index(a) + 1 == NAMES.index(b) for a, b in pairwise(order)) < 6


@pytest.mark.parametrize("n", [0, -1, 10**9])
def test_impossible_numbers_are_errors(smollm, n):
    with pytest.raises(ValueError, match=rf"n must be from 1 to \d+, .* and it is {n}"):
        make_pairs(smollm, load_facts("country_capital"), n)


def test_one_answer_makes_no_pairs(smollm):
    facts = load_facts("country_continent")
    with pytest.raises(ValueError, match="from 1 to 0, "):
        make_pairs(smollm, facts[facts["answer"] == "Africa"], 1)
    with pytest.raises(ValueError, match="among these 0 facts"):
        make_pairs(smollm, facts[:0], 1)


# Parts of a table.


@settings(max_examples=40, deadline=None)
@given(facts=fact_tables(), seed=st.integers(0, 2**32 - 1))
def test_splits_share_no_subject(facts, seed):
    if facts["subject"].nunique() < 2:
        with pytest.raises(ValueError, match="two subjects are needed"):
            split_subjects(facts, seed=seed)
        return
    train, test = split_subjects(facts, seed=seed)
    assert not set(train["subject"]) & set(test["subject"])
    both = pd.concat([train, test])
    assert sorted(map(tuple, both.to_numpy())) == sorted(map(tuple, facts.to_numpy()))
    assert abs(train["subject"].nunique() - test["subject"].nunique()) <= 1


def test_splits_halve_every_answer():
    facts = load_facts("country_continent")
    train, test = split_subjects(facts, seed=3)
    counts = [part["answer"].value_counts() for part in (train, test)]
    assert ((counts[0] - counts[1]).abs() <= 1).all()
    other = split_subjects(facts, seed=4)[0]
    assert set(other["subject"]) != set(train["subject"])
    pd.testing.assert_frame_equal(split_subjects(facts, seed=3)[0], train)


def test_neighbours():
    facts = load_facts()
    fact = facts[(facts["relation"] == "city_country") & (facts["subject"] == "Paris")].iloc[0]
    others = neighbours(facts, fact)
    assert set(others["relation"]) == {"city_country"} and "Paris" not in set(others["subject"])
    assert len(others) == (facts["relation"] == "city_country").sum() - 1
    same, different = (neighbours(facts, fact, same_answer=value) for value in (True, False))
    assert set(same["answer"]) == {"France"} and "France" not in set(different["answer"])
    assert len(same) + len(different) == len(others)


# CounterFact.

RECORDS = [
    {
        "case_id": 0,
        "requested_rewrite": {
            "prompt": "The mother tongue of {} is",
            "relation_id": "P103",
            "target_new": {"str": "English", "id": "Q1860"},
            "target_true": {"str": "French", "id": "Q150"},
            "subject": "Marie Dubois",
        },
        "paraphrase_prompts": ["A sentence. Marie Dubois was born to speak"],
        "neighborhood_prompts": ["The mother tongue of Jean Petit is"],
    },
    {
        "case_id": 1,
        "requested_rewrite": {
            "prompt": "The mother tongue of {} is",
            "relation_id": "P103",
            "target_new": {"str": "French", "id": "Q150"},
            "target_true": {"str": " Dutch", "id": "Q7411"},
            "subject": "Jan Klein",
        },
        "paraphrase_prompts": [],
        "neighborhood_prompts": [],
    },
]


class Site:
    """The public address, without a network."""

    def __init__(self, content: bytes | None):
        self.content, self.asked = content, []

    def __call__(self, url, timeout):
        self.asked.append(url)
        if self.content is None:
            raise urllib.error.URLError("Name or service not known")
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def read(self):
        return self.content


@pytest.fixture
def site(monkeypatch, tmp_path):
    monkeypatch.setenv("SUBSPACE_ILLUSION_CACHE", str(tmp_path / "cache"))
    site = Site(json.dumps(RECORDS).encode())
    monkeypatch.setattr(counterfact.urllib.request, "urlopen", site)
    return site


def test_counterfact_is_a_table_of_facts(site, smollm, tmp_path):
    file = tmp_path / "mine.json"
    file.write_bytes(site.content)
    facts = load_counterfact(file)
    assert list(facts.columns) == [*COLUMNS, "counterfactual", "paraphrases", "neighbourhood"]
    assert facts["answer"].tolist() == ["French", "Dutch"]
    assert facts["counterfactual"].tolist() == ["English", "French"]
    assert facts["template"].tolist() == ["The mother tongue of {subject} is"] * 2
    assert facts["neighbourhood"][0] == ["The mother tongue of Jean Petit is"]
    check_pairs(make_pairs(smollm, facts, 2), facts, smollm)
    assert len(known_facts(smollm, facts)) <= 2
    assert site.asked == [] and not (tmp_path / "cache").exists()


def test_other_forms_of_counterfact_are_read_too(tmp_path):
    file, orsk = tmp_path / "facts.json", "Lake Orsk is located in the continent of"
    known = {"subject": "Lake Orsk", "attribute": "Europe", "prompt": orsk, "relation_id": "P30"}
    known["template"] = "{} is located in the continent"  # cut short, as in known_1000.json
    flat = {"subject": "Mira Ott", "prompt": "The mother tongue of Mira Ott is"}
    flat |= {"target_new": "English", "ground_truth": "French", "rephrase_prompt": "Mira speaks"}
    file.write_text(json.dumps([known, flat]))
    facts = load_counterfact(file)
    prompts = [fill(*row) for row in zip(facts["template"], facts["subject"], strict=True)]
    assert prompts == [known["prompt"], flat["prompt"]]  # the prompt wins
    assert facts["answer"].tolist() == ["Europe", "French"]
    assert facts["relation"].tolist() == ["P30", "The mother tongue of {subject} is"]
    assert facts["counterfactual"].tolist() == ["", "English"]
    assert facts["paraphrases"].tolist() == [[], ["Mira speaks"]]
    file.write_text(
        json.dumps([flat | {"subject": "Rome", "prompt": "Rome, the Rome of kings, is in"}])
    )
    assert load_counterfact(file)["template"].tolist() == ["{subject}, the Rome of kings, is in"]
    file.write_text(json.dumps([flat | {"subject": "Ira Mott"}]))
    with pytest.raises(ValueError, match="does not name its subject 'Ira Mott'"):
        load_counterfact(file)


def test_a_slot_without_a_name_will_do(smollm):
    named = load_facts("city_country").head(6)
    bare = named.assign(template=named["template"].str.replace("{subject}", "{}"))
    pairs = [make_pairs(smollm, facts, 4) for facts in (named, bare)]
    assert pairs[0].table["base"].tolist() == pairs[1].table["base"].tolist()
    assert torch.equal(pairs[0].position, pairs[1].position)


def test_counterfact_is_downloaded_once(site, tmp_path):
    first = load_counterfact()
    assert site.asked == [counterfact.COUNTERFACT]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["counterfact.json"]
    site.content = None
    pd.testing.assert_frame_equal(load_counterfact(), first)
    assert len(site.asked) == 1


def test_without_a_network_the_error_says_what_to_do(site, tmp_path):
    site.content = None
    with pytest.raises(ConnectionError, match=r"service not known.*pass its path.*load_facts\(\)"):
        load_counterfact()
    with pytest.raises(FileNotFoundError):
        load_counterfact(tmp_path / "missing.json")


@pytest.mark.parametrize("content", [b"<html>Please log in", b"{}", b'[{"subject": 1}]', b"[1]"])
def test_other_files_are_errors_and_are_not_kept(site, tmp_path, content):
    site.content = content
    with pytest.raises(ValueError, match="none of the forms of CounterFact"):
        load_counterfact()
    assert not (tmp_path / "cache" / "counterfact.json").exists()
