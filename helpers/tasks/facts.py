"""Facts to recall, patch and edit: a relation, a subject, and an answer that the model completes.

A prompt is made from a template of the relation, which has the slot `{subject}` or `{}`; it ends
right before the answer. Subjects and answers may be several tokens long. Answers are compared by
their first token. `load_facts` gives the facts of the project, `tools.counterfact` more.
"""

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from helpers.models import Model, require
from helpers.output import files
from helpers.tasks.pairs import Pairs, Tokens
from helpers.tasks.tokens import Tokenizes, encode, next_logits

FOLDER = files.ROOT / "data" / "facts"
PROMPTS = FOLDER / "prompts.json"
SLOT, ANY_SLOT = "{subject}", re.compile(r"\{(?:subject)?\}")
COLUMNS = ("relation", "subject", "answer", "template")
Facts: TypeAlias = pd.DataFrame  # with these columns, a row per fact


def relations() -> list[str]:
    """The relations that come with the project."""
    return list(files.shipped(PROMPTS))


def prompts(relation: str) -> list[str]:
    """The templates of a relation: the one the default model completes best, then paraphrases."""
    if relation not in relations():
        raise ValueError(f"no relation {relation!r}: choose from {relations()}")
    return list(files.shipped(PROMPTS)[relation])


def reading(relation: str) -> dict:
    """How a relation is asked for when a state is read: texts about no subject of its facts.

    sentence (with `{}`); examples (three lists of subject and object, whose objects are no answers
    of the relation); object_first and subject_first, claims with `{subject}` and `{object}`. A
    ValueError names the relations that have them.
    """
    readings = files.shipped(FOLDER / "reading.json")
    if relation not in readings:
        raise ValueError(f"no examples for {relation!r}: choose from {list(readings)}")
    return readings[relation]


def load_facts(relations: str | Sequence[str] | None = None) -> Facts:
    """The facts of one relation or several, or of the whole project, with the main templates."""
    names = [relations] if isinstance(relations, str) else relations
    names = files.shipped(PROMPTS) if names is None else names
    templates = {name: prompts(name)[0] for name in names}
    facts = pd.read_csv(FOLDER / "facts.csv")
    facts = facts[facts["relation"].isin(list(templates))].reset_index(drop=True)
    return facts.assign(template=facts["relation"].map(templates))


def fill(template: str, subject: str) -> str:
    """The prompt of a fact: the template with the subject in its slot."""
    return ANY_SLOT.sub(lambda _: subject, template)


def known_facts(model: Model, facts: Facts | None = None, *, batch_size: int = 64) -> Facts:
    """The facts that the model completes: the answer's first token has the largest logit of all.

    On one core the packaged model reads about 20 prompts a second: half a minute for all facts,
    which are tried by default. Prompts of equal length share a forward pass, up to `batch_size`.

    Returns the known rows of `facts` in their order, with four more columns: prompt (the text),
    subject_tokens (their number in mid-sentence: a patch at the last one carries all of a subject
    only if it is the only one), answer_token (the answer's first) and probability (of that).
    """
    require.whole("batch_size", batch_size, least=1)
    facts = load_facts() if facts is None else facts
    _check_table(facts)
    first = {}
    for row, answer in enumerate(facts["answer"]):
        with contextlib.suppress(ValueError):  # unknown to the tokenizer: unknown to the model
            first[row] = answer_token(model, answer)
    facts = facts.iloc[list(first)]
    texts, answers = _fill(facts), torch.tensor(list(first.values()), dtype=torch.long)
    known, probability = torch.zeros(len(texts), dtype=torch.bool), torch.zeros(len(texts))
    for rows, logits in next_logits(model, [encode(model, t) for t in texts], batch_size):
        known[rows] = logits.argmax(-1) == answers[rows]
        probability[rows] = logits.softmax(-1)[torch.arange(len(rows)), answers[rows]]
    columns = {
        "prompt": texts,
        "subject_tokens": [len(_after_space(model, subject)) for subject in facts["subject"]],
        "answer_token": answers.tolist(),
        "probability": probability.tolist(),
    }
    return facts.assign(**columns)[known.numpy()].reset_index(drop=True)


def count_known(facts: Facts, known: Facts) -> pd.DataFrame:
    """How much of `facts` is in `known`, by relation.

    Columns: total; known; answers (different first tokens among the known); pairs (ordered pairs of
    known facts with different answers, if they share a template).
    """
    counts = known.groupby("relation")["answer_token"].agg(
        known="size",
        answers="nunique",
        pairs=lambda token: len(token) ** 2 - (token.value_counts() ** 2).sum(),
    )
    total = facts.groupby("relation", sort=False).size().to_frame("total")
    return total.join(counts).fillna(0).astype(int)


def count_pairs(known: Facts) -> int:
    """How many pairs `make_pairs` can draw from known facts, if each relation has one template."""
    return int(count_known(known, known)["pairs"].sum())


def split_subjects(facts: Facts, *, seed: int = 0) -> tuple[Facts, Facts]:
    """Training and test facts, half each (of each answer too, if possible), of other subjects."""
    _check_table(facts)
    rng = np.random.default_rng(require.whole("seed", seed, least=0))
    shuffled = facts.sample(frac=1, random_state=rng)
    ordered = shuffled.sort_values(["relation", "answer"], kind="stable")
    subjects = ordered["subject"].drop_duplicates()
    if len(subjects) < 2:
        raise ValueError(f"two subjects are needed for a split, but there are {len(subjects)}")
    train = facts["subject"].isin(subjects[::2])
    return facts[train].reset_index(drop=True), facts[~train].reset_index(drop=True)


def neighbours(facts: Facts, fact: Mapping[str, str], *, same_answer: bool | None = None) -> Facts:
    """Facts of other subjects in the relation of `fact`: what an edit of it should leave alone.

    `fact` is a row of a table of facts. `same_answer` True keeps those with its answer, False the
    others, None all.
    """
    rows = facts[(facts["relation"] == fact["relation"]) & (facts["subject"] != fact["subject"])]
    if same_answer is not None:
        rows = rows[(rows["answer"] == fact["answer"]) == same_answer]
    return rows.reset_index(drop=True)


def make_pairs(model: Tokenizes, facts: Facts, n: int, *, seed: int = 0) -> Pairs:
    """Pairs of facts with one relation and template, different subjects and different answers.

    If the patch carries the source's fact, the model says the source's answer. The patched position
    is the last token of the subject; base and source may differ in length.

        base    The location of the Eiffel Tower is in the country of    answer France
        source  The location of Mount Fuji is in the country of          counterfactual Japan

    Relations take turns, and within a relation so do the bases, until their pairs run out. No pair
    comes twice. The first pairs do not depend on `n`. `facts` is (part of) what `known_facts` gave.

    Returns pairs whose table has the columns base, source, relation, subject, source_subject,
    answer, counterfactual and template. Raises ValueError: more pairs than there are, or a
    tokenizer that cannot tell where a subject ends or does not know an answer.
    """
    _check_table(facts)
    rng = np.random.default_rng(require.whole("seed", seed, least=0))
    facts = facts.drop_duplicates(["relation", "template", "subject"]).reset_index(drop=True)
    answers = np.array([answer_token(model, answer) for answer in facts["answer"]], dtype=int)
    base, source = _draw(facts, answers, n, rng).T
    ours, theirs = (facts.iloc[rows].reset_index(drop=True) for rows in (base, source))
    base_tokens, position = subject_ends(model, ours)
    source_tokens, source_position = subject_ends(model, theirs)
    table = pd.DataFrame({"base": _fill(ours), "source": _fill(theirs)}).assign(
        relation=ours["relation"], subject=ours["subject"], source_subject=theirs["subject"],
        answer=ours["answer"], counterfactual=theirs["answer"], template=ours["template"],
    )  # fmt: skip
    labels = torch.from_numpy(answers[[base, source]])
    return Pairs(base_tokens, source_tokens, *labels, position, source_position, table)


def subject_ends(model: Tokenizes, facts: Facts) -> tuple[Tokens, Int[Tensor, "n"]]:
    """The tokens of each prompt, and the position of the last token of its subject.

    A ValueError if the tokenizer cannot tell where a subject ends.
    """
    prompts = _fill(facts)
    starts = [ANY_SLOT.search(template).start() for template in facts["template"]]
    ends = [start + len(subject) for start, subject in zip(starts, facts["subject"], strict=True)]
    positions = [_token_before(model, *both) for both in zip(prompts, ends, strict=True)]
    return tuple(encode(model, prompt) for prompt in prompts), torch.tensor(positions)


def answer_token(model: Tokenizes, answer: str) -> int:
    """The first token of an answer after a space; a ValueError if it is unknown."""
    tokens = _after_space(model, answer)
    if not tokens or tokens[0] == getattr(model, "tokenizer", model).unk_token_id:
        raise ValueError(f"the tokenizer does not know how {answer!r} begins")
    return tokens[0]


def last_subject_token(offsets: Sequence, subject_stop: int, n_before: int) -> int | None:
    """The token whose characters, `offsets` `(start, stop)`, include the last before the stop."""
    spans = enumerate(offsets, n_before)
    holding = [token for token, (start, stop) in spans if start < subject_stop <= stop]
    return holding[-1] if holding else None


def _check_table(facts: Facts) -> None:
    """Every row must be a fact: texts in all columns, one slot in the template."""
    if not isinstance(facts, pd.DataFrame) or not set(COLUMNS) <= set(facts):
        raise ValueError(f"a table of facts is a DataFrame with the columns {', '.join(COLUMNS)}")
    for row, fact in enumerate(facts[list(COLUMNS)].to_dict("records")):
        for name, text in fact.items():
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"fact {row} has no {name}: fill every cell of the table")
        if len(ANY_SLOT.findall(template := fact["template"])) != 1:
            raise ValueError(
                f"a template needs one {SLOT} or {{}}, but fact {row} has {template!r}"
            )


def _fill(facts: Facts) -> list[str]:
    return [fill(*fact) for fact in zip(facts["template"], facts["subject"], strict=True)]


def _after_space(model: Tokenizes, words: str) -> list[int]:
    """The tokens of words in mid-sentence."""
    tokenizer = getattr(model, "tokenizer", model)
    tokens = tokenizer(f" {words.strip()}", add_special_tokens=False)["input_ids"]
    split_off = tokens and not tokenizer.decode(tokens[:1]).strip()  # the space
    return tokens[1:] if split_off else tokens


def _draw(
    facts: Facts, answers: Int[np.ndarray, "facts"], n: int, rng: np.random.Generator
) -> Int[np.ndarray, "n 2"]:
    """Rows of the base and the source of each pair: relations take turns, and bases in each."""
    queues = []
    for _, group in facts.groupby("relation", sort=False):
        rows, template = group.index.to_numpy(), group["template"].to_numpy()
        fits = (template[:, None] == template) & (answers[rows][:, None] != answers[rows])
        pairs = rows[rng.permutation(np.argwhere(fits))]
        turn = pd.Series(pairs[:, 0]).groupby(pairs[:, 0]).cumcount()
        queues.append(pairs[np.argsort(turn, kind="stable")])
    queues = [queues[place] for place in rng.permutation(len(queues))]
    most = sum(map(len, queues))
    if not 1 <= require.whole("n", n) <= most:
        which = "the pairs with one relation and template but different answers"
        among = f"{which} among these {len(facts)} facts"
        raise ValueError(f"n must be from 1 to {most}, {among}, and it is {n}")
    turn = np.concatenate([np.arange(len(queue)) for queue in queues])
    return np.concatenate(queues)[np.argsort(turn, kind="stable")[:n]]


def _token_before(model: Tokenizes, prompt: str, end: int) -> int:
    """The position of the token that holds the last character before `end`."""
    tokenizer, tokens = getattr(model, "tokenizer", model), encode(model, prompt).tolist()
    if tokenizer.is_fast:
        plain = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
        before = len(tokens) - len(plain["input_ids"])  # BOS
        position = last_subject_token(plain["offset_mapping"], end, before)
        if position is not None and tokens[max(before, 0) :] == plain["input_ids"]:
            return position
    else:
        start = encode(model, prompt[:end]).tolist()
        if start and tokens[: len(start)] == start:
            return len(start) - 1
    raise ValueError(f"this tokenizer does not tell where {prompt[:end]!r} ends in {prompt!r}")
