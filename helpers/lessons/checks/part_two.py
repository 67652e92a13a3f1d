"""Checks of part II, lessons 11 to 15: shortcuts, fine-tuning, heads, readings, painted words."""

import torch
from torch import Tensor

from helpers.lessons.checks.compare import Draw, exercise, unit


@exercise("the gradient times the change, one number per pair")
def check_taylor_term(draw: Draw) -> tuple:
    """Exercise 1 of lesson 11: `(gradient, base, source) -> [pairs]`, all `[pairs d]`."""
    pairs, d = draw.size(4), draw.size(3)
    gradient, base, source = (draw.normal(pairs, d) for _ in range(3))
    change = source - base
    turn = 1 - 2.0 * (torch.arange(pairs) % 2)  # so that some effects have either sign
    gradient = gradient * (turn * (gradient * change).sum(-1).sign())[:, None]
    right, crossed = (gradient * change).sum(-1), gradient @ change.T
    mistakes = {
        "the sign is wrong: the patch goes from the base to the source": -right,
        "sum over the last dimension: a patch moves all of them at once": gradient * change,
        "a sum, not a mean: every dimension adds its own effect": right / d,
        "times the change, source minus base, not times the source": (gradient * source).sum(-1),
        "times the change, not times the base: that is another question": (gradient * base).sum(-1),
        "keep one number per pair": right.sum(),
        "the mean over pairs comes later: keep one number per pair": right.mean(),
        "that is the size of the effect: its sign says which way": right.abs(),
        "that is every pair with every other: keep those of a pair with itself": crossed,
    }
    return (gradient, base, source), right, mistakes


@exercise("half to each factor, so that nothing is counted twice")
def check_half_rule(draw: Draw) -> tuple:
    """Exercise 2 of lesson 11: `(flow, a, u) -> [2 tokens d_mlp]`, all `[tokens d_mlp]`."""
    shape = draw.size(3), draw.size(4)
    flow, a, u = (draw.normal(*shape) for _ in range(3))
    full = torch.stack([flow * u, flow * a])
    mistakes = {
        "that is the plain product rule: the two shares count the flow twice": full,
        "each factor gets the flow times the *other* factor": full.flip(0) / 2,
        "half, not a quarter": full / 4,
        "the flow from above is missing": torch.stack([u, a]) / 2,
        "half of the flow, times the other factor": torch.stack([flow, flow]) / 2,
    }
    return (flow, a, u), full / 2, mistakes


@exercise("correlated without the cell of the largest effect")
def check_without_top(draw: Draw) -> tuple:
    """Exercise 3 of lesson 11: `(estimate, exact) -> number`, both `[layers pos]`."""
    shape = draw.size(5), draw.size(3)
    exact, estimate = draw.normal(*shape) + 0.7, draw.normal(*shape) - 0.5
    cells = draw.order(exact.numel())[:3]
    exact.view(-1)[cells[0]], exact.view(-1)[cells[1]] = -9.0, 4.0  # the largest by size is below 0
    estimate.view(-1)[cells[0]], estimate.view(-1)[cells[2]] = -5.0, 7.0
    x, y = estimate.flatten(), exact.flatten()
    top = y.abs().argmax()
    rest = torch.arange(len(y)) != top

    def pearson(x: Tensor, y: Tensor) -> Tensor:
        return torch.corrcoef(torch.stack([x, y]))[0, 1]

    def without(cell: Tensor) -> Tensor:
        return pearson(*(values[torch.arange(len(y)) != cell] for values in (x, y)))

    mistakes = {
        "the top cell is still there": pearson(x, y),
        "the largest by size, not the most positive: use abs()": without(y.argmax()),
        "leave out the cell of the largest *exact* effect": without(x.abs().argmax()),
        "zero is a value, too: leave the cell out": pearson(x * rest, y * rest),
        "that is the square of a correlation": without(top) ** 2,
    }
    return (estimate, exact), without(top), mistakes


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


@exercise("the first directions are kept, and the rest is the mean")
def check_compress(draw: Draw) -> tuple:
    """Exercise 1 of lesson 13: `(x, mean, basis, rank)`: `[prompts d]`, `[d]`, `[d d]`, number."""
    prompts, d = draw.size(3), draw.size(5)
    x, mean = draw.normal(prompts, d) + 1, 2 * draw.normal(d)
    basis = torch.linalg.qr(draw.normal(d, d)).Q
    rank = torch.tensor(d - 3)
    kept, dropped = basis[:, :rank], basis[:, rank:]
    mistakes = {
        "the others have the mean, not zero: project x - mean, and add the mean": x @ kept @ kept.T,
        "the mean is missing: add it again": (x - mean) @ kept @ kept.T,
        "subtract the mean before you project": mean + x @ kept @ kept.T,
        "those are the last directions: keep the first": mean + (x - mean) @ dropped @ dropped.T,
        "directions are columns, not rows": mean + (x - mean) @ basis[:rank].T @ basis[:rank],
        "everything is kept: use only the first columns": x,
    }
    return (x, mean, basis, rank), mean + (x - mean) @ kept @ kept.T, mistakes


@exercise("a ratio of means, above the floor")
def check_share_kept(draw: Draw) -> tuple:
    """Exercise 2 of lesson 13: `(kept, none, full) -> number`, each `[prompts]`."""
    prompts = draw.size(6)
    none = draw.uniform(0.5, 1.5, prompts)
    full = none + draw.uniform(0.5, 3.0, prompts)
    kept = none + draw.uniform(0.2, 1.5, prompts)
    right = (kept.mean() - none.mean()) / (full.mean() - none.mean())
    mistakes = {
        "subtract the floor: what is left without any variation is no merit of the directions": (
            kept.mean() / full.mean()
        ),
        "subtract the floor below, too": (kept.mean() - none.mean()) / full.mean(),
        "a ratio of means, not the mean of ratios: some prompts bring nearly nothing": (
            (kept - none) / (full - none)
        ).mean(),
        "that is the share that is lost": 1 - right,
        "upside down: kept over full": 1 / right,
        "one number for all prompts": (kept - none) / (full - none),
    }
    return (kept, none, full), right, mistakes


@exercise("the part of the variance that lies between the groups")
def check_explained(draw: Draw) -> tuple:
    """Exercise 3 of lesson 13: `(x, groups) -> number`, both `[n]`."""
    n = draw.size(9)
    groups = draw.shuffled(torch.arange(n) % 3)
    groups = torch.where(groups == 2, torch.tensor(7), groups)  # numbers are names, not places
    x = draw.normal(n) + 2.0 * (groups == 1) + 5.0
    means = torch.stack([x[groups == group].mean() for group in groups])
    inside, total = ((x - means) ** 2).sum(), ((x - x.mean()) ** 2).sum()
    line = torch.corrcoef(torch.stack([x, groups.float()]))[0, 1] ** 2
    mistakes = {
        "that is the part that is not explained: one minus it": inside / total,
        "take the variance around the mean of x, not around zero": 1 - inside / (x**2).sum(),
        "groups are names, not numbers on a line: no correlation": line,
        "that is a correlation, not a share of variance": (1 - inside / total).sqrt(),
        "one number, not one for each entry": 1 - (x - means) ** 2 / total,
    }
    return (x, groups), 1 - inside / total, mistakes


@exercise("every vector has the length of the state in its place")
def check_same_norm(draw: Draw) -> tuple:
    """Exercise 1 of lesson 14: `(noise, states)`, both `[layers subjects d]`."""
    shape = draw.size(2), draw.size(3), draw.size(5)
    noise, states = draw.normal(*shape), draw.uniform(1, 9, *shape[:2], 1) * draw.normal(*shape)
    norms = states.norm(dim=-1, keepdim=True)
    mistakes = {
        "divide by the noise's own length, too": noise * norms,
        "length one: multiply by the length of the state": unit(noise),
        "the length is taken of everything together": noise * states.norm() / noise.norm(),
    }
    return (noise, states), unit(noise) * norms, mistakes


@exercise("right first, then leaked, then wrong")
def check_kinds(draw: Draw) -> tuple:
    """Exercise 2 of lesson 14: `(top, right, objects)`: `[layers n]`, `[n]`, `[k]`, places."""
    right, objects = torch.arange(draw.size(6)) % 4, torch.arange(3, 3 + draw.size(3))
    named = torch.tensor([3, 4, objects[-1], *range(20, 20 + draw.size(1))])  # 3 is right for some
    top = torch.cat([right[None], named[:, None].expand(-1, len(right))])
    leaked, correct = torch.isin(top, objects), top == right
    mistakes = {
        "an example's object that is right is right": torch.where(leaked, 1, 2 * ~correct),
        "all can leak, not only the last": torch.where(correct, 0, 2 - (top == objects[-1]).int()),
        "nothing is right: compare with right, too": torch.where(leaked, 1, 2),
    }
    return (top, right, objects), torch.where(correct, 0, torch.where(leaked, 1, 2)), mistakes


@exercise("over all pairs of a true and a false claim")
def check_auc(draw: Draw) -> tuple:
    """Exercise 3 of lesson 14: `(true, false) -> number`, `[n]` and `[m]`."""
    true, false = (draw.integers(low, low + 9, draw.size(5)) / 2 for low in (-4, -10))
    false[0] = true[1]  # a tie
    above, tie = (found(true[:, None], false).float().mean() for found in (torch.gt, torch.eq))
    mistakes = {
        "a tie counts half, not nothing": above,
        "a tie counts half, not in full": above + tie,
        "that is how often the false claim is above": 1 - above - tie / 2,
        "no threshold: compare claims with one another": (true > 0).float().mean(),
    }
    return (true, false), above + tie / 2, mistakes


@exercise("keys, and which of them are words, come from the source where it is asked for")
def check_inject(draw: Draw) -> tuple:
    """Exercise 1 of lesson 15: `(keys, real, source_keys, source_real, where)`.

    Keys are `[n heads tokens d]`, the others `[n heads tokens]` and `[heads tokens]`, booleans.
    """
    shape = draw.size(2), draw.size(3), draw.size(6)
    d = draw.size(4)
    keys, source = draw.normal(*shape, d), draw.normal(*shape, d)
    real, source_real = (draw.uniform(0, 1, *shape) < of for of in (0.4, 0.6))
    where = (torch.arange(shape[1] * shape[2]) % 2 == 0).reshape(shape[1:])
    wide = where[..., None]
    right = torch.where(wide, source * source_real[..., None], keys * real[..., None])
    mistakes = {
        "that puts the base into the source: the source stands where `where` is true": torch.where(
            wide, keys * real[..., None], source * source_real[..., None]
        ),
        "`real` is still the base's: the source's words stay masked where the base has none": (
            torch.where(wide, source, keys) * real[..., None]
        ),
        "`real` is the source's everywhere: change it only where `where` is true": (
            torch.where(wide, source, keys) * source_real[..., None]
        ),
        "keys without a word must be zero": torch.where(wide, source, keys),
        "all keys are the source's: look at `where`": source * source_real[..., None],
    }
    return (keys, real, source, source_real, where), right, mistakes


@exercise("sufficient alone, and necessary")
def check_readers(draw: Draw) -> tuple:
    """Exercise 2 of lesson 15: `(follow, without) -> booleans`, all `[layers]`."""
    cases = torch.tensor([[0.0, 0.1], [0.9, 0.1], [0.6, 0.8], [0.2, 0.9], [0.5, 0.2]])
    follow, without = draw.shuffled(*[cases] * draw.size(1)).T
    mistakes = {
        "also necessary: without them the letters must not follow": follow >= 0.5,
        "also sufficient: alone they must make half of the letters follow": without <= 0.2,
        "both, not one of the two": (follow >= 0.5) | (without <= 0.2),
        "half and a fifth count, too": (follow > 0.5) & (without < 0.2),
    }
    return (follow, without), (follow >= 0.5) & (without <= 0.2), mistakes


@exercise("along the way, over all pictures together")
def check_share(draw: Draw) -> tuple:
    """Exercise 3 of lesson 15: `(new, old, other) -> number`, all `[n pixels]`."""
    shape = draw.size(4), draw.size(7)
    old, other = draw.normal(*shape), 2 * draw.normal(*shape)
    way = other - old
    new = old + draw.uniform(0, 1, shape[0], 1) * way + 0.8 * draw.normal(*shape)
    each = ((new - old) * way).sum(1) / (way * way).sum(1)
    right = ((new - old) * way).sum() / (way * way).sum()
    mistakes = {
        "only what goes along the way counts, not how far it goes": (new - old).norm() / way.norm(),
        "that is a cosine: divide by the way's squared length": (
            ((new - old) * way).sum() / ((new - old).norm() * way.norm())
        ),
        "one ratio over all pictures, not the mean of ratios": each.mean(),
        "one number for all pictures": each,
        "measured from the source's end: 0 is old, 1 is other": 1 - right,
        "start from old: subtract it first": (new * way).sum() / (way * way).sum(),
    }
    return (new, old, other), right, mistakes
