"""Checks of lesson 12: which answer of four, a mask, and what is special about a prompt."""

import torch

from helpers.lessons.checks.compare import Draw, exercise


@exercise("the top token of the whole vocabulary, against each of the four")
def check_four_ways(draw: Draw) -> tuple:
    """Exercise 1 of lesson 12: `(logits, choices) -> [n]`, of `[pairs vocab]`, `[pairs n]`."""
    pairs, vocab, n = draw.size(8), draw.size(12), draw.size(4)
    logits = draw.normal(pairs, vocab)
    tokens = torch.stack([draw.order(vocab)[: n + 1] for _ in range(pairs)])
    rows, choices = torch.arange(pairs), tokens[:, :n]
    logits[rows, tokens[rows, rows % (n + 1)]] = logits.amax() + 0.5  # the last one is no choice
    top, places = logits.argmax(-1)[:, None], torch.arange(n)
    hits, chances = (top == choices).float(), logits.softmax(-1).gather(1, choices)
    best_of_four = (logits.gather(1, choices).argmax(-1)[:, None] == places).float()
    by_place = (top == places).float()
    mistakes = {
        "of the *whole* vocabulary: a pair may name none of the four": best_of_four.mean(0),
        "that is the mean probability: ask which token is on top": chances.mean(0),
        "a share, not a count: take the mean over pairs": hits.sum(0),
        "the mean over pairs, not over the four": hits.mean(1),
        "keep the four apart": hits.mean(),
        "compare token ids with token ids, not with the place among the four": by_place.mean(0),
    }
    return (logits, choices), hits.mean(0), mistakes


@exercise("each head keeps its share, and gets the rest from the source")
def check_mix(draw: Draw) -> tuple:
    """Exercise 2 of lesson 12: `(own, source, keep)`: `[pairs heads d_head]` twice, `[heads]`."""
    pairs, heads, d_head = draw.size(2), draw.size(3), draw.size(4)
    own, source = (draw.normal(pairs, heads, d_head) for _ in range(2))
    keep = draw.uniform(0.1, 0.9, heads)
    keep[draw.order(heads)[0]] = 1.0
    m = keep[:, None]
    kept, given, swapped = m * own, (1 - m) * source, (1 - m) * own + m * source
    mistakes = {
        "keep is the share of the head's *own* output: 1 means untouched": swapped,
        "the rest, 1 - keep, is missing for the source": kept + source,
        "the shares must add up to 1: keep of its own, 1 - keep of the source's": own + given,
        "what the head keeps is missing": given,
        "a mask that is learnt has no steps: do not round it": torch.where(m < 0.5, source, own),
        "every head has its own share": keep.mean() * own + (1 - keep.mean()) * source,
    }
    return (own, source, keep), kept + given, mistakes


@exercise("the own mean, and what the donor says of this prompt alone")
def check_specific_part(draw: Draw) -> tuple:
    """Exercise 3 of lesson 12: `(own, theirs) -> [prompts d]`, both `[prompts d]`."""
    prompts, d = draw.size(4), draw.size(3)
    own, theirs = draw.normal(prompts, d) + 1.0, 2 * draw.normal(prompts, d) - 3.0
    special, shift = theirs - theirs.mean(0), theirs.mean(0) - own.mean(0)
    of_rows = (own - theirs).mean(1, keepdim=True) + theirs
    mistakes = {
        "nothing is taken away: that is the whole activation": theirs,
        "that is the constant shift: the same for every prompt": own + shift,
        "the own mean is missing: the state would lie around zero": special,
        "the mean over prompts (dimension 0), not over coordinates": of_rows,
        "one mean for each coordinate": own.mean() + theirs - theirs.mean(),
        "not the own activation, but its mean: the own prompt would speak twice": own + special,
    }
    return (own, theirs), own.mean(0) + special, mistakes
