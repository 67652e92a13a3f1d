"""Every exercise check accepts several right answers and names the listed wrong ones.

Seed 0 is the visible check. Any other seed is a hidden one: the same question on other data.
"""

import json
import math
from pathlib import Path

import pytest
import torch

from helpers.directions import four_point_products
from helpers.editing import rewrite_score
from helpers.lessons import checks

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"

T = "Then, {} and {} went home. {} thanked"


def in_place(base, source, v):
    base += ((source - base) @ v)[:, None] * v / (v @ v)
    return base


def half_pi(a):
    return 1 + 4 * torch.sin(2 * a)


def by_units(a):
    moved = [4 * math.cos(angle) * math.sin(angle) for angle in a.tolist()]
    return torch.tensor([1 + 2 * second for second in moved])


def along(moved, way):
    return torch.dot(moved.flatten(), way.flatten()) / way.square().sum()


def injected(keys, real, source_keys, source_real, where):
    mixed = keys * ~where[..., None] + source_keys * where[..., None]
    return mixed * (real * ~where + source_real * where)[..., None]


def by_loop(v, w):
    along = sum(a * b for a, b in zip(v, w, strict=True)) / sum(b * b for b in w)
    row = torch.stack([along * b for b in w])
    return row, v - row


def swapped_text(io, s):
    base = T.format(io, s, s)
    return base, base.replace(f"{io} and {s}", f"{s} and {io}"), io, s


def joined(io, s):
    first, second = (" ".join(["Then,", *names, "went home."]) for names in named(io, s))
    return f"{first} {s} thanked", f"{second} {s} thanked", io, s


def named(io, s):
    return [(io, "and", s), (s, "and", io)]


def by_autograd(flow, a, u):
    a, u = (x.detach().clone().requires_grad_() for x in (a, u))
    return torch.stack(torch.autograd.grad(a * u / 2, (a, u), flow))


def without_top(estimate, exact):
    kept = exact.flatten().abs() < exact.abs().max()
    return torch.corrcoef(torch.stack([estimate.flatten()[kept], exact.flatten()[kept]]))[0, 1]


def most_positive(estimate, exact):
    kept = exact.flatten() < exact.max()
    return torch.corrcoef(torch.stack([estimate.flatten()[kept], exact.flatten()[kept]]))[0, 1]


def zeroed(estimate, exact):
    kept = exact.abs() < exact.abs().max()
    return torch.corrcoef(torch.stack([(estimate * kept).flatten(), (exact * kept).flatten()]))[
        0, 1
    ]


def without_top_by_hand(estimate, exact):
    pairs = zip(estimate.flatten().tolist(), exact.flatten().tolist(), strict=True)
    x, y = map(torch.tensor, zip(*sorted(pairs, key=lambda both: abs(both[1]))[:-1], strict=True))
    x, y = x - x.mean(), y - y.mean()
    return x @ y / (x.norm() * y.norm())


def in_fours(logits, choices):
    return (logits.argmax(-1)[:, None] == choices).float()


def counted(logits, choices):
    said = [max(range(len(row)), key=row.__getitem__) for row in logits.tolist()]
    return torch.tensor([[s == c for c in row] for s, row in zip(said, choices.tolist())]).float()  # noqa: B905


def explained(x, groups):
    left = sum(x[groups == g].var(correction=0) * (groups == g).sum() for g in groups.unique())
    return 1 - left / (x.var(correction=0) * len(x))


def per_vector(x):
    return x / x.norm(dim=-1, keepdim=True)


def kinds(top, right, objects):
    leaked = (top[..., None] == objects).any(-1)
    return torch.where(top == right, 0, torch.where(leaked, 1, 2))


def by_signs(true, false):
    apart = true.reshape(-1, 1) - false.reshape(1, -1)
    return (apart.sign().mean() + 1) / 2


def at(p, place):
    return p[torch.arange(len(p)), ..., place]


def preferences(p, i, s):
    n_pairs, n_heads, _ = p.shape
    totals = torch.zeros(n_heads)
    for n in range(n_pairs):
        for head in range(n_heads):
            totals[head] += p[n, head, i[n]] - p[n, head, s[n]]
    return totals / n_pairs


def gathered(p, place):
    return p.gather(2, place[:, None, None].expand(-1, p.shape[1], 1))[..., 0]


def row_null(v, W):
    q = torch.linalg.qr(W)[0]
    return v @ q @ q.T, v - v @ q @ q.T


def by_svd(v, W):
    u = torch.linalg.svd(W, full_matrices=False)[0]
    return u @ (u.T @ v), v - u @ (u.T @ v)


def by_pinv(v, W):
    row = v @ W @ torch.linalg.pinv(W)
    return row, v - row


def by_columns_of_length_one(v, W):
    return v @ rows(W.T).T @ rows(W.T)


def whole_space(v, W):
    u = torch.linalg.svd(W)[0]
    return v @ u @ u.T, v - v @ u @ u.T


def sense_in_place(b, s, r, w):
    b += ((s - b) @ r)[:, None] * w
    return b


def unit(x):
    return x / x.norm()


def subject_token(offsets, stop, before):
    return next(t for t, (a, b) in enumerate(offsets) if a < stop <= b) + before


def rows(x):
    return x / x.norm(dim=-1, keepdim=True)


def each_in_place(b, s, v):
    b += ((s - b) * rows(v)).sum(-1, keepdim=True) * rows(v)
    return b


def by_place(s, i, j):
    n = torch.arange(len(s))
    return s[n, torch.minimum(i, j)] - s[n, torch.maximum(i, j)]


def seen(v, W, g):
    q = torch.linalg.qr(torch.cat([g[:, None] * w for w in W], dim=1))[0]
    return v @ q @ q.T


def seen_by_pinv(v, W, g):
    columns = torch.cat([g[:, None] * w for w in W], dim=1)
    return v @ columns @ torch.linalg.pinv(columns)


def seen_by_solve(v, W, g):
    columns = torch.cat(list(W), dim=1) * g[:, None]
    return columns @ torch.linalg.solve(columns.T @ columns, columns.T @ v)


def rows_of(x):
    return x.norm(dim=-1)


def moved(z, b, h):
    return ((z * h).sum(-1) / b).abs() * rows_of(z) / rows_of(h)


def minimal(h, C):
    solved = torch.linalg.solve(C, h)
    return solved / (solved @ h)


def by_lagrange(h, C):
    """Stationary in b and in the multiplier: 2 C b = l h and h . b = 1, as one linear system."""
    d = len(h)
    system = torch.zeros(d + 1, d + 1)
    system[:d, :d], system[:d, d], system[d, :d] = 2 * C, -h, h
    return torch.linalg.solve(system, torch.eye(d + 1)[d])[:d]


def added_in_place(W, b, a):
    W += torch.outer(b, a)
    return W


def differences(x, four):
    a, b, c, e = (x[four[:, k]] for k in range(4))
    return a - b, c - e


def pinv_write(d, W):
    return d @ torch.linalg.pinv(W)


def first_units_only(d, W):
    first = torch.linalg.solve(W[: len(d)].T, d)
    return torch.cat([first, torch.zeros(len(W) - len(d))])


def rules(one, whole, random, row, null_share):
    return {
        "inert": abs(whole.value) <= 0.1,
        "strong": one.value >= 0.2,
        "above whole": one.low > whole.high,
        "above random": one.low > random.high,
        "above 0": one.low > 0,
        "lost by the row part": row.value <= one.value / 2,
        "sensed by the null part": null_share.low > 0.5,
    }


def without(rule):
    """An answer that forgets a rule."""
    return lambda **given: all(kept for name, kept in rules(**given).items() if name != rule)


def instead(rule, of):
    """An answer with another rule in place of this one: `of` gets what the exercise gives."""
    return lambda **given: without(rule)(**given) and of(**given)


def one_by_one(one, whole, random, row, null_share):
    if not -0.1 <= whole.value <= 0.1 or one.value < 0.2:
        return False
    if any(one.low <= other for other in (0, whole.high, random.high)):
        return False
    return 2 * row.value <= one.value and null_share.low > 0.5


def by_shares(one, whole, random, row, null_share):
    bar = max(whole.high, random.high, 0)
    weak = abs(100 * whole.value) > 10 or 100 * one.value < 20 or one.low - bar <= 0
    return not weak and row.value / one.value <= 0.5 and null_share[1] > 1 - null_share[1]


def beyond(value, natural):
    low, high = natural.aminmax()
    return torch.relu(torch.maximum(value - high, low - value)) / (high - low)


def won(opened, natural):
    return opened[:, None] > natural, opened[:, None] == natural


def rated(value):
    return "replicated" if value >= 20 else "partly"


def rule_of_c4(value, low, whole_high, random_high):
    return rated(value) if low > max(0, whole_high, random_high) else "not"


RIGHT = {
    checks.check_patch_direction: [
        lambda b, s, v: b + ((s - b) @ v)[:, None] * v / (v @ v),
        lambda b, s, v: b + (s - b) @ torch.outer(v, v) / v.norm() ** 2,
        lambda b, s, v: torch.stack(
            [x + (y - x).dot(v) / v.dot(v) * v for x, y in zip(b, s, strict=True)]
        ),
    ],
    checks.check_predicted_output: [half_pi, lambda a: 1 + 8 * a.sin() * a.cos(), by_units],
    checks.check_split: [
        lambda v, w: (w * (v @ w) / (w @ w), v - w * (v @ w) / (w @ w)),
        lambda v, w: [torch.outer(w, w) @ v / (w @ w), v - torch.outer(w, w) @ v / (w @ w)],
        lambda v, w: torch.stack(by_loop(v, w)),
        by_loop,
    ],
    checks.check_my_illusion: [
        torch.tensor([0.9659258, 0.2588190, 0.0]),
        torch.tensor([0.2588190, 0.9659258, 0.0]),
        torch.tensor([-0.9659258, -0.2588190, 0.0]),
    ],
    checks.check_make_pair: [
        lambda io, s: (T.format(io, s, s), T.format(s, io, s), io, s),
        lambda io, s: list(swapped_text(io, s)),
        swapped_text,
        joined,
    ],
    checks.check_fldd: [
        lambda c, p: 1 - p.mean() / c.mean(),
        lambda c, p: (c - p).sum() / c.sum(),
        lambda c, p: float(1 - p.mean() / c.mean()),
    ],
    checks.check_name_preference: [
        lambda p, i, s: (at(p, i) - at(p, s)).mean(0),
        lambda p, i, s: (gathered(p, i) - gathered(p, s)).mean(0),
        preferences,
    ],
    checks.check_row_null: [row_null, by_svd, by_pinv, lambda v, W: list(by_svd(v, W))],
    checks.check_read_write: [
        lambda b, s, r, w: b + ((s - b) @ r)[:, None] * w,
        lambda b, s, r, w: b + torch.outer((s - b) @ r, w),
        lambda b, s, r, w: b + (s - b) @ torch.outer(r, w),
    ],
    checks.check_share_lost: [
        lambda c, p, k: (k.mean() - p.mean()) / (c.mean() - p.mean()),
        lambda c, p, k: 1 - (c - k).sum() / (c - p).sum(),
        lambda c, p, k: float(1 - (c - k).mean() / (c - p).mean()),
    ],
    checks.check_share_moved: [
        lambda m, b, s, u, t: ((m - b) @ u * t).mean() / ((s - b) @ u * t).mean(),
        lambda m, b, s, u, t: float(t @ ((m - b) @ u) / (t @ ((s - b) @ u))),
        lambda m, b, s, u, t: ((m - b).T @ t @ u).sum() / ((s - b).T @ t @ u).sum(),
    ],
    checks.check_partner: [
        lambda r, n: n.norm() * unit(r) - r.norm() * unit(n),
        lambda r, n: r.norm() * unit(n) - n.norm() * unit(r),  # the other sign patches alike
        lambda r, n: unit(r / (r @ r) - n / (n @ n)),
        lambda r, n: unit(r - (r @ (r + n)) * (r + n)),
    ],
    checks.check_whole_effect: [
        lambda g, d: -(g * d).sum(-1).mean(),
        lambda g, d: -torch.trace(g.T @ d) / len(g),
        lambda g, d: float(-torch.einsum("nd,nd->n", g, d).mean()),
    ],
    checks.check_mean_difference: [
        lambda x, a: unit(x[a].mean(0) - x[~a].mean(0)),
        lambda x, a: torch.nn.functional.normalize(x[a].mean(0) - x[~a].mean(0), dim=0),
        lambda x, a: unit((a / a.sum() - ~a / (~a).sum()) @ x),
    ],
    checks.check_first_minus_second: [
        by_place,
        lambda s, i, j: torch.where(i < j, 1, -1) * (at(s, i) - at(s, j)),
        lambda s, i, j: torch.stack(
            [row[min(a, b)] - row[max(a, b)] for row, a, b in zip(s, i, j, strict=True)]
        ),
    ],
    checks.check_seen_by: [seen, seen_by_pinv, seen_by_solve],
    checks.check_through_one_head: [
        lambda x, b, s, W: x + (s - b) @ W,
        lambda x, b, s, W: x - b @ W + s @ W,
        lambda x, b, s, W: x + torch.einsum("ph,hd->pd", s - b, W),
    ],
    checks.check_last_subject_token: [
        subject_token,
        lambda o, stop, n: n + max(t for t, (a, b) in enumerate(o) if a <= stop - 1),
        lambda o, stop, n: [b >= stop for _, b in o].index(True) + n,
        lambda o, stop, n: (torch.tensor(o)[:, 1] >= stop).nonzero()[0, 0] + n,
    ],
    checks.check_start: [
        lambda b, s, g: rows(rows(s - b) - rows(g)),
        lambda b, s, g: torch.nn.functional.normalize(
            torch.nn.functional.normalize(s - b, dim=-1) - torch.nn.functional.normalize(g, dim=-1),
            dim=-1,
        ),
        lambda b, s, g: torch.stack(
            [unit(unit(y - x) - unit(z)) for x, y, z in zip(b, s, g, strict=True)]
        ),
        lambda b, s, g: rows(rows(b - s) + rows(g)),  # its negative patches alike
        lambda b, s, g: rows(rows(s - b) - rows(g)).tolist(),
    ],
    checks.check_patch_each: [
        lambda b, s, v: b + ((s - b) * v).sum(-1, keepdim=True) / (v * v).sum(-1, keepdim=True) * v,
        lambda b, s, v: torch.stack(
            [x + (y - x).dot(w) / w.dot(w) * w for x, y, w in zip(b, s, v, strict=True)]
        ),
        lambda b, s, v: b + torch.einsum("pd,pd,pe->pe", s - b, rows(v), rows(v)),
    ],
    checks.check_rank_one: [
        lambda W, b, a: W + torch.outer(b, a),
        lambda W, b, a: W + b[:, None] * a,
        lambda W, b, a: torch.addr(W, b, a),
    ],
    checks.check_minimal_reader: [
        minimal,
        lambda h, C: h @ torch.linalg.inv(C) / (h @ torch.linalg.inv(C) @ h),
        by_lagrange,
    ],
    checks.check_rewrite_score: [
        lambda p, q: (q - p) / (1 - p),
        lambda p, q: 1 - (1 - q) / (1 - p),
        lambda p, q: [(after - before) / (1 - before) for before, after in zip(p, q, strict=True)],
    ],
    checks.check_moved: [
        lambda z, b, h: ((z * h).sum(-1) / b).abs() * z.norm(dim=-1) / h.norm(dim=-1),
        lambda z, b, h: ((z * h).sum(-1, keepdim=True) / b[:, None] * z).norm(dim=1) / rows_of(h),
        lambda z, b, h: [
            float((z[i] @ h[i] / b[i] * z[i]).norm() / h[i].norm()) for i in range(len(b))
        ],
    ],
    checks.check_inner_products: [
        lambda x, four: torch.linalg.vecdot(*differences(x, four)),
        lambda x, four: torch.einsum("nd,nd->n", *differences(x, four)),
        lambda x, four: torch.stack([(x[a] - x[b]) @ (x[c] - x[e]) for a, b, c, e in four]),
        lambda x, four: [float((x[a] - x[b]) @ (x[c] - x[e])) for a, b, c, e in four.tolist()],
        lambda x, four: torch.diag(torch.inner(*differences(x, four))),
        four_point_products,
    ],
    checks.check_smallest_hidden: [
        pinv_write,
        lambda d, W: W @ torch.linalg.solve(W.T @ W, d),
        lambda d, W: torch.linalg.lstsq(W.T, d[:, None], driver="gelsd").solution[:, 0],
        lambda d, W: torch.linalg.lstsq(W.T, d[:, None]).solution.flatten(),
        lambda d, W: torch.einsum("d,dm->m", d, torch.linalg.pinv(W)),
        lambda d, W: torch.linalg.pinv(W.double().T).float() @ d,
    ],
    checks.check_is_illusion: [
        lambda **given: all(rules(**given).values()),
        one_by_one,
        by_shares,
        lambda **given: torch.tensor(list(rules(**given).values())).all(),
    ],
    checks.check_taylor_term: [
        lambda g, base, source: torch.linalg.vecdot(g, source - base),
        lambda g, base, source: torch.einsum("pd,pd->p", g, source - base),
        lambda g, base, source: torch.stack([a @ (c - b) for a, b, c in zip(g, base, source)]),  # noqa: B905
    ],
    checks.check_half_rule: [
        lambda flow, a, u: torch.stack([flow * u / 2, flow * a / 2]),
        lambda flow, a, u: 0.5 * flow * torch.stack([u, a]),
        by_autograd,
    ],
    checks.check_without_top: [
        without_top,
        without_top_by_hand,
        lambda x, y: float(without_top(x, y)),
    ],
    checks.check_four_ways: [
        lambda logits, c: in_fours(logits, c).mean(0),
        lambda logits, c: counted(logits, c).mean(0),
        lambda logits, c: (logits.gather(1, c) == logits.amax(1, keepdim=True)).double().mean(0),
    ],
    checks.check_mix: [
        lambda own, source, keep: source + keep[:, None] * (own - source),
        lambda own, source, keep: torch.lerp(source, own, keep[None, :, None]),
        lambda own, source, keep: torch.einsum("phd,h->phd", own - source, keep) + source,
    ],
    checks.check_specific_part: [
        lambda own, theirs: theirs + (own.mean(0) - theirs.mean(0)),
        lambda own, theirs: theirs - (theirs - own).mean(0, keepdim=True),
        lambda own, theirs: torch.stack([own.mean(0) + one - theirs.mean(0) for one in theirs]),
    ],
    checks.check_compress: [
        lambda x, m, b, r: m + (x - m) @ b[:, :r] @ b[:, :r].T,
        lambda x, m, b, r: x - (x - m) @ b[:, int(r) :] @ b[:, int(r) :].T,
        lambda x, m, b, r: m + sum(((x - m) @ c)[:, None] * c for c in b.T[: int(r)]),
    ],
    checks.check_share_kept: [
        lambda kept, none, full: (kept.mean() - none.mean()) / (full.mean() - none.mean()),
        lambda kept, none, full: (kept - none).sum() / (full - none).sum(),
        lambda kept, none, full: float((kept - none).mean() / (full - none).mean()),
    ],
    checks.check_explained: [
        explained,
        lambda x, g: (
            sum((g == k).sum() * (x[g == k].mean() - x.mean()) ** 2 for k in g.unique())
            / ((x - x.mean()) ** 2).sum()
        ),
        lambda x, g: float(explained(x, g)),
    ],
    checks.check_inject: [
        injected,
        lambda k, r, sk, sr, w: torch.where(w[..., None], sk * sr[..., None], k * r[..., None]),
        lambda k, r, sk, sr, w: torch.stack(
            [injected(*(x[n : n + 1] for x in (k, r, sk, sr)), w)[0] for n in range(len(k))]
        ),
    ],
    checks.check_share: [
        lambda new, old, other: along(new - old, other - old),
        lambda new, old, other: torch.linalg.lstsq(
            (other - old).flatten()[:, None], (new - old).flatten()[:, None]
        ).solution[0, 0],
        lambda new, old, other: float(along(new - old, other - old)),
    ],
    checks.check_readers: [
        lambda follow, without: (follow >= 0.5) & (without <= 0.2),
        lambda f, w: [a >= 0.5 and b <= 0.2 for a, b in zip(f, w, strict=True)],
        lambda f, w: ~((f < 0.5) | (w > 0.2)),
    ],
    checks.check_same_norm: [
        lambda noise, states: noise * (states.norm(dim=-1) / noise.norm(dim=-1))[..., None],
        lambda noise, states: per_vector(noise) * states.norm(dim=-1, keepdim=True),
        lambda noise, states: torch.einsum("lnd,ln->lnd", per_vector(noise), states.norm(dim=2)),
    ],
    checks.check_kinds: [
        kinds,
        lambda top, right, objects: (top != right) * (2 - torch.isin(top, objects).int()),
        lambda top, right, objects: torch.stack([kinds(row, right, objects) for row in top]),
    ],
    checks.check_removed: [
        lambda h, ways, dose: h - dose * h @ ways.T @ ways,
        lambda h, ways, dose: (1 - dose) * h + dose * (h - h @ ways.T @ ways),
        lambda h, ways, dose: h - dose * sum(torch.outer(h @ way, way) for way in ways),
    ],
    checks.check_penalty: [
        lambda values, writes: (values @ writes.norm(dim=1)).mean(),
        lambda values, writes: values.mean(0) @ writes.square().sum(1).sqrt(),
        lambda values, writes: float((values[..., None] * writes).norm(dim=2).sum(1).mean()),
    ],
    checks.check_answered: [
        lambda found, true: (found * true).sum(1) / true.square().sum(),
        lambda found, true: found @ true / (true @ true),
        lambda found, true: torch.linalg.lstsq(true[:, None], found.T).solution[0],
    ],
    checks.check_auc: [
        by_signs,
        lambda true, false: torch.heaviside(true[:, None] - false, torch.tensor(0.5)).mean(),
        lambda true, false: float(by_signs(true, false)),
    ],
    checks.check_opened: [
        lambda fall, shut: 1 - shut.mean() / fall.mean(),
        lambda fall, shut: (fall - shut).sum() / fall.sum(),
        lambda fall, shut: float((fall - shut).mean() / fall.mean()),
    ],
    checks.check_beyond: [
        beyond,
        lambda v, n: (v - v.clamp(n.min(), n.max())).abs() / (n.max() - n.min()),
        lambda v, n: torch.stack([beyond(one[None], n)[0] for one in v]),
    ],
    checks.check_auroc: [
        lambda o, n: (won(o, n)[0] + won(o, n)[1] / 2).mean(),
        lambda o, n: ((o[:, None] - n).sign().mean() + 1) / 2,
        lambda o, n: sum((a > b) + 0.5 * (a == b) for a in o for b in n) / len(o) / len(n),
    ],
    checks.check_verdict: [
        rule_of_c4,
        lambda value, low, whole_high, random_high: (
            "not" if min(low, low - whole_high, low - random_high) <= 0 else rated(value)
        ),
        lambda v, low, w, r: rated(v) if all(low > x for x in (0, w, r)) else "not",
    ],
    checks.check_largest_share: [
        lambda n: 1 - 0.025 ** (1 / n),
        lambda n: 1 - math.exp(math.log(0.025) / n),
        lambda n: torch.tensor(1 - 0.025 ** (1 / n), dtype=torch.float64),
    ],
    checks.check_is_fragile: [
        lambda v, low, h, t: (low >= t) != (h >= t),
        lambda value, low, high, threshold: low < threshold <= high,
        lambda v, low, h, t: len({x >= t for x in (v, low, h)}) == 2,
    ],
}

WRONG = [
    (checks.check_share, lambda n, o, s: (n - o).norm() / (s - o).norm(), "how far"),
    (
        checks.check_share,
        lambda n, o, s: torch.cosine_similarity((n - o).flatten(), (s - o).flatten(), 0),
        "cosine",
    ),
    (checks.check_share, lambda n, o, s: along(n, s - o), "subtract it first"),
    (checks.check_share, lambda n, o, s: 1 - along(n - o, s - o), "source's end"),
    (checks.check_inject, lambda k, r, sk, sr, w: injected(sk, sr, k, r, w), "into the source"),
    (checks.check_inject, lambda k, r, sk, sr, w: injected(k, r, sk, r, w), "stay masked"),
    (checks.check_inject, lambda k, r, sk, sr, w: injected(k, sr, sk, sr, w), "everywhere"),
    (checks.check_inject, lambda k, r, sk, sr, w: injected(k, r | True, sk, sr | True, w), "zero"),
    (checks.check_inject, lambda k, r, sk, sr, w: injected(sk, sr, sk, sr, w), "all keys"),
    (checks.check_readers, lambda f, w: f >= 0.5, "necessary"),
    (checks.check_readers, lambda f, w: w <= 0.2, "sufficient"),
    (checks.check_readers, lambda f, w: (f >= 0.5) | (w <= 0.2), "both"),
    (checks.check_readers, lambda f, w: (f > 0.5) & (w < 0.2), "count, too"),
    (checks.check_patch_direction, in_place, "in place"),
    (checks.check_patch_direction, lambda b, s, v: None, "returns nothing"),
    (checks.check_patch_direction, lambda b, s, v: b + ((s - b) @ v)[:, None] * v, "any length"),
    (
        checks.check_patch_direction,
        lambda b, s, v: b + ((s - b) @ v)[:, None] * v / v.norm(),
        "once",
    ),
    (
        checks.check_patch_direction,
        lambda b, s, v: b + (s @ v)[:, None] * v / (v @ v),
        "taking the base's away",
    ),
    (
        checks.check_patch_direction,
        lambda b, s, v: s + ((b - s) @ v)[:, None] * v / (v @ v),
        "swapped",
    ),
    (
        checks.check_patch_direction,
        lambda b, s, v: ((s - b) @ v)[:, None] * v / (v @ v),
        "only the change",
    ),
    (checks.check_patch_direction, lambda b, s, v: s.clone(), "whole source"),
    (
        checks.check_patch_direction,
        lambda b, s, v: b.mean(),
        r"expected a tensor of shape \(\d, \d\), got one number$",
    ),
    (
        checks.check_patch_direction,
        lambda b, s, v: [x + (y - x).dot(v) / v.dot(v) * v for x, y in zip(b, s, strict=True)],
        r"expected a tensor of shape \(\d, \d\), got a list$",
    ),
    (checks.check_patch_direction, lambda b, s, v: b, r"expected \[\[.*\], got tensor"),
    (checks.check_predicted_output, lambda a: 4 * torch.sin(2 * a), "before the patch"),
    (checks.check_predicted_output, lambda a: 1 + 2 * torch.sin(2 * a), "its weight is 2"),
    (checks.check_predicted_output, lambda a: 1 + 8 * a.sin(), "4 cos a"),
    (checks.check_predicted_output, lambda a: half_pi(a.deg2rad()), "radians"),
    (checks.check_predicted_output, lambda a: 1 + 4 * torch.cos(2 * a), "cosine"),
    (
        checks.check_split,
        lambda v, w: (v - w * (v @ w) / (w @ w), w * (v @ w) / (w @ w)),
        "swapped",
    ),
    (checks.check_split, lambda v, w: (w / w.norm() * (v @ w).sign(), v), "rescaled"),
    (checks.check_split, lambda v, w: ((v @ w) * w, v), r"\|w_out\|²"),
    (checks.check_split, lambda v, w: ((v @ w) * w / w.norm(), v), "not by"),
    (
        checks.check_split,
        lambda v, w: (
            w * (v @ w) / (w @ w),
            torch.nn.functional.normalize(v - w * (v @ w) / (w @ w), dim=0),
        ),
        "null part is rescaled",
    ),
    (checks.check_split, lambda v, w: v, "a pair"),
    (checks.check_my_illusion, torch.tensor([0.0, 0.0, 1.0]), "mediator"),
    (checks.check_my_illusion, torch.tensor([1.0, 1.0, 0.0]), "length 1.414"),
    (checks.check_my_illusion, torch.tensor([0.5**0.5, 0.5**0.5, 0.0]), "45° overshoots"),
    (checks.check_my_illusion, torch.tensor([1.0, 0.0, 0.0]), "1.00, not 5"),
    (checks.check_my_illusion, torch.tensor([1.0, 0.0]), "three numbers"),
    (
        checks.check_make_pair,
        lambda i, s: (T.format(i, s, s), T.format(i, s, i), i, s),
        "comes again",
    ),
    (checks.check_make_pair, lambda i, s: (T.format(i, s, s), T.format(s, i, i), i, s), "roles"),
    (checks.check_make_pair, lambda i, s: (T.format(i, s, s), T.format(i, s, s), i, s), "equals"),
    (checks.check_make_pair, lambda i, s: (T.format(s, i, s), T.format(i, s, s), i, s), "ABB base"),
    (checks.check_make_pair, lambda i, s: (T.format(i, s, s), T.format(s, i, s), s, i), "on both"),
    (
        checks.check_make_pair,
        lambda i, s: (T.format(i, s, s), T.format(s, i, s), i, i),
        "label is the base's",
    ),
    (checks.check_make_pair, lambda i, s: T.format(i, s, s), "four things"),
    (checks.check_fldd, lambda c, p: (1 - p / c).mean(), "mean of ratios"),
    (checks.check_fldd, lambda c, p: 1 - p / c, "one value per pair"),
    (checks.check_fldd, lambda c, p: p.mean() / c.mean(), "subtract it from 1"),
    (checks.check_fldd, lambda c, p: 1 - c.mean() / p.mean(), "swapped"),
    (checks.check_fldd, lambda c, p: None, "returns nothing"),
    (checks.check_fldd, lambda c, p: 100 * (1 - p.mean() / c.mean()), "percent"),
    (checks.check_fldd, lambda c, p: p.mean() / c.mean() - 1, "sign"),
    (checks.check_fldd, lambda c, p: c.mean() - p.mean(), "nats"),
    (
        checks.check_name_preference,
        lambda p, i, s: (at(p, s) - at(p, i)).mean(0),
        "swapped",
    ),
    (
        checks.check_name_preference,
        lambda p, i, s: at(p, i) - at(p, s),
        "one number per head",
    ),
    (
        checks.check_name_preference,
        lambda p, i, s: (p[:, :, i[0]] - p[:, :, s[0]]).mean(0),
        "of the first one",
    ),
    (checks.check_name_preference, lambda p, i, s: at(p, i).mean(0), "only the"),
    (
        checks.check_name_preference,
        lambda p, i, s: (at(p, i) - at(p, s)).mean(1),
        "averaged over heads",
    ),
    (
        checks.check_name_preference,
        lambda p, i, s: (p[:, :, i] - p[:, :, s]).mean((0, 2)),
        "select one row",
    ),
    (checks.check_row_null, lambda v, W: row_null(v, W)[::-1], "swapped"),
    (checks.check_row_null, lambda v, W: row_null(v, W)[0], "pair"),
    (checks.check_row_null, lambda v, W: (unit(row_null(v, W)[0]), v), "rescaled"),
    (checks.check_row_null, lambda v, W: (row_null(v, W)[0], unit(row_null(v, W)[1])), "rescaled"),
    (checks.check_row_null, lambda v, W: (v @ W @ W.T, v), "not orthonormal"),
    (checks.check_row_null, lambda v, W: (by_columns_of_length_one(v, W), v), "orthogonal yet"),
    (
        checks.check_row_null,
        lambda v, W: [x[None] for x in row_null(v, W)],
        r"row part: expected a tensor of shape \(\d+,\), got a tensor of shape \(1, \d+\)$",
    ),
    (checks.check_row_null, lambda v, W: (v @ W, v), "hidden space"),
    (checks.check_row_null, lambda v, W: (v @ torch.linalg.qr(W)[0], v), "coordinates"),
    (checks.check_row_null, whole_space, "full_matrices"),
    (checks.check_read_write, sense_in_place, "in place"),
    (checks.check_read_write, lambda b, s, r, w: b + ((s - b) @ w)[:, None] * r, "swapped"),
    (
        checks.check_read_write,
        lambda b, s, r, w: b + ((s - b) @ unit(r))[:, None] * w,
        "normalised `read`",
    ),
    (
        checks.check_read_write,
        lambda b, s, r, w: b + ((s - b) @ r)[:, None] * unit(w),
        "normalised `write`",
    ),
    (
        checks.check_read_write,
        lambda b, s, r, w: b + ((s - b) @ unit(r))[:, None] * unit(w),
        "normalised both",
    ),
    (
        checks.check_read_write,
        lambda b, s, r, w: b + ((s - b) @ r)[:, None] * w / (r @ r),
        r"divided by \|read\|²",
    ),
    (
        checks.check_read_write,
        lambda b, s, r, w: b + ((b - s) @ r)[:, None] * w,
        "base and source are swapped",
    ),
    (checks.check_read_write, lambda b, s, r, w: b + (s @ r)[:, None] * w, "source alone"),
    (checks.check_read_write, lambda b, s, r, w: ((s - b) @ r)[:, None] * w, "only the change"),
    (checks.check_read_write, lambda b, s, r, w: b + ((s - b) @ r)[:, None] * r, "along `write`"),
    (checks.check_read_write, lambda b, s, r, w: None, "returns nothing"),
    (checks.check_share_lost, lambda c, p, k: ((k - p) / (c - p)).mean(), "mean of ratios"),
    (checks.check_share_lost, lambda c, p, k: (k - p) / (c - p), "one value per pair"),
    (
        checks.check_share_lost,
        lambda c, p, k: (c.mean() - k.mean()) / (c.mean() - p.mean()),
        "that is left",
    ),
    (checks.check_share_lost, lambda c, p, k: 1 - p.mean() / k.mean(), "compare effects"),
    (checks.check_share_lost, lambda c, p, k: (k - p).mean() / c.mean(), "divide by the effect"),
    (
        checks.check_share_lost,
        lambda c, p, k: 100 * (k - p).mean() / (c - p).mean(),
        "percent",
    ),
    (checks.check_share_lost, lambda c, p, k: (p - k).mean() / (c - p).mean(), "sign"),
    (checks.check_share_lost, lambda c, p, k: (k - p).mean(), "nats"),
    (
        checks.check_share_moved,
        lambda m, b, s, u, t: ((m - b) @ u).mean() / ((s - b) @ u).mean(),
        "cancel",
    ),
    (
        checks.check_share_moved,
        lambda m, b, s, u, t: (((m - b) @ u) / ((s - b) @ u)).mean(),
        "mean of ratios",
    ),
    (
        checks.check_share_moved,
        lambda m, b, s, u, t: (m - b).norm(dim=-1).mean() / (s - b).norm(dim=-1).mean(),
        "whole distances",
    ),
    (
        checks.check_share_moved,
        lambda m, b, s, u, t: (m @ u * t).mean() / (s @ u * t).mean(),
        "positions, not movements",
    ),
    (
        checks.check_share_moved,
        lambda m, b, s, u, t: ((s - b) @ u * t).mean() / ((m - b) @ u * t).mean(),
        "upside down",
    ),
    (
        checks.check_share_moved,
        lambda m, b, s, u, t: ((m - b) @ u) / ((s - b) @ u),
        "one value per pair",
    ),
    (
        checks.check_share_moved,
        lambda m, b, s, u, t: 100 * ((m - b) @ u * t).mean() / ((s - b) @ u * t).mean(),
        "percent",
    ),
    (checks.check_partner, lambda r, n: r - n, "equally long"),
    (checks.check_partner, lambda r, n: n.norm() * r - r.norm() * n, "scale the parts"),
    (checks.check_partner, lambda r, n: r + n, "the direction itself"),
    (checks.check_whole_effect, lambda g, d: (g * d).sum(-1).mean(), "turned round"),
    (checks.check_whole_effect, lambda g, d: -(g * d).sum(-1), "one value per pair"),
    (checks.check_whole_effect, lambda g, d: -(g * d).mean(), "averaged over dimensions"),
    (checks.check_whole_effect, lambda g, d: -(g * d).sum(), "summed over pairs"),
    (checks.check_whole_effect, lambda g, d: -(g.mean(0) @ d.mean(0)), "within each pair"),
    (
        checks.check_mean_difference,
        lambda x, a: unit(x[~a].mean(0) - x[a].mean(0)),
        "projects the other way",
    ),
    (checks.check_mean_difference, lambda x, a: x[a].mean(0) - x[~a].mean(0), "length 1"),
    (checks.check_mean_difference, lambda x, a: unit(x[a].sum(0) - x[~a].sum(0)), "would win"),
    (
        checks.check_mean_difference,
        lambda x, a: x[a].sum(0) - x[~a].sum(0),
        "sums instead of means, and",
    ),
    (checks.check_mean_difference, lambda x, a: x[a].mean(0) - x.mean(0), "mean of all"),
    (
        checks.check_first_minus_second,
        lambda s, i, j: at(s, i) - at(s, j),
        r"by role \(IO minus S\)",
    ),
    (
        checks.check_first_minus_second,
        lambda s, i, j: at(s, j) - at(s, i),
        r"by role \(S minus IO\)",
    ),
    (checks.check_first_minus_second, lambda s, i, j: -by_place(s, i, j), "turned round"),
    (checks.check_first_minus_second, lambda s, i, j: by_place(s, i, j).mean(), "per pair"),
    (
        checks.check_first_minus_second,
        lambda s, i, j: at(s, torch.minimum(i, j)),
        "subtract the second",
    ),
    (
        checks.check_first_minus_second,
        lambda s, i, j: s[:, min(i[0], j[0])] - s[:, max(i[0], j[0])],
        "first pair for all",
    ),
    (checks.check_seen_by, lambda v, W, g: seen(v, W, torch.ones_like(g)), "gain of the norm"),
    (checks.check_seen_by, lambda v, W, g: seen(v, W, 1 / g), "divide by the gain"),
    (checks.check_seen_by, lambda v, W, g: v - seen(v, W, g), "do NOT see"),
    (
        checks.check_seen_by,
        lambda v, W, g: by_columns_of_length_one(v, g[:, None] * torch.cat(list(W), 1)),
        "not orthogonal yet",
    ),
    (checks.check_seen_by, lambda v, W, g: seen(v, W[:1], g), "first head"),
    (
        checks.check_seen_by,
        lambda v, W, g: v @ (g[:, None] * torch.cat(list(W), 1)),
        "queries",
    ),
    (
        checks.check_seen_by,
        lambda v, W, g: (
            v @ (g[:, None] * torch.cat(list(W), 1)) @ (g[:, None] * torch.cat(list(W), 1)).T
        ),
        "not orthonormal",
    ),
    (checks.check_through_one_head, lambda x, b, s, W: x + s @ W, "take it away"),
    (checks.check_through_one_head, lambda x, b, s, W: x + (b - s) @ W, "swapped"),
    (checks.check_through_one_head, lambda x, b, s, W: (s - b) @ W, "change only"),
    (checks.check_through_one_head, lambda x, b, s, W: s @ W, "rest of the stream"),
    (checks.check_through_one_head, lambda x, b, s, W: x.add_((s - b) @ W), "in place"),
    (
        checks.check_last_subject_token,
        lambda o, stop, n: next(t for t, (a, b) in enumerate(o) if a <= stop < b) + n,
        "after the subject",
    ),
    (checks.check_last_subject_token, lambda o, stop, n: subject_token(o, stop, 0), "BOS"),
    (checks.check_last_subject_token, lambda o, stop, n: subject_token(o, stop, n) - 1, "early"),
    (checks.check_last_subject_token, lambda o, stop, n: n, "first token"),
    (checks.check_last_subject_token, lambda o, stop, n: None, "returns nothing"),
    (checks.check_last_subject_token, lambda o, stop, n: stop - 1, "place of a character"),
    (checks.check_last_subject_token, lambda o, stop, n: len(o) - 1 + n, "last token of the text"),
    (
        checks.check_last_subject_token,
        lambda o, stop, n: [t + n for t, (a, b) in enumerate(o) if a < stop <= b],
        "one position",
    ),
    (checks.check_last_subject_token, lambda o, stop, n: float(subject_token(o, stop, n)), "whole"),
    (checks.check_start, lambda b, s, g: rows(rows(s - b) + rows(g)), "rise"),
    (checks.check_start, lambda b, s, g: rows(rows(b - s) - rows(g)), "wrong way"),
    (checks.check_start, lambda b, s, g: rows(s - b - g), "before you mix"),
    (checks.check_start, lambda b, s, g: rows(s - b) - rows(g), "again"),
    (checks.check_start, lambda b, s, g: unit(unit(s - b) - unit(g)), "own length"),
    (checks.check_start, lambda b, s, g: rows(s - b), "only senses"),
    (checks.check_start, lambda b, s, g: -rows(g), "only acts"),
    (checks.check_start, lambda b, s, g: unit(unit((s - b).mean(0)) - unit(g.mean(0))), "its own"),
    (checks.check_patch_each, each_in_place, "in place"),
    (
        checks.check_patch_each,
        lambda b, s, v: b + ((s - b) * v).sum(-1, keepdim=True) * v,
        "any length",
    ),
    (
        checks.check_patch_each,
        lambda b, s, v: b + ((s - b) * rows(v)).sum(-1, keepdim=True) * v,
        "not by",
    ),
    (checks.check_patch_each, lambda b, s, v: b + (s - b) @ v.T @ v, "row by row"),
    (
        checks.check_patch_each,
        lambda b, s, v: b + ((s - b) * v).sum(-1) / (v * v).sum(-1) * v,
        "keepdim",
    ),
    (checks.check_patch_each, lambda b, s, v: s, "whole source"),
    (
        checks.check_patch_each,
        lambda b, s, v: b + ((s - b) * v).sum(-1, keepdim=True) * v / v.norm() ** 2,
        "one length",
    ),
    (
        checks.check_patch_each,
        lambda b, s, v: b + (s * rows(v)).sum(-1, keepdim=True) * rows(v),
        "taking the base's away",
    ),
    (
        checks.check_patch_each,
        lambda b, s, v: ((s - b) * rows(v)).sum(-1, keepdim=True) * rows(v),
        "only the change",
    ),
    (
        checks.check_patch_each,
        lambda b, s, v: b + ((b - s) * rows(v)).sum(-1, keepdim=True) * rows(v),
        "swapped",
    ),
    (checks.check_rank_one, lambda W, b, a: W + torch.outer(a, b), "transposed"),
    (checks.check_rank_one, lambda W, b, a: torch.outer(b, a), "change only"),
    (checks.check_rank_one, lambda W, b, a: W + b * a, "elementwise"),
    (checks.check_rank_one, lambda W, b, a: W + b @ a, "a number"),
    (checks.check_rank_one, lambda W, b, a: W - torch.outer(b, a), "sign"),
    (checks.check_rank_one, added_in_place, "in place"),
    (checks.check_rank_one, lambda W, b, a: None, "returns nothing"),
    (checks.check_minimal_reader, lambda h, C: C @ h / (h @ C @ h), "not inverted"),
    (checks.check_minimal_reader, lambda h, C: h / (h @ h), "ignores C"),
    (checks.check_minimal_reader, lambda h, C: torch.linalg.solve(C, h), "is not 1"),
    (
        checks.check_minimal_reader,
        lambda h, C: minimal(h, C) / minimal(h, C).norm(),
        "length 1",
    ),
    (checks.check_minimal_reader, lambda h, C: torch.linalg.solve(C, h) / (h @ h), "not by"),
    (checks.check_minimal_reader, lambda h, C: minimal(h, C @ C), "twice"),
    (checks.check_rewrite_score, lambda p, q: q - p, "the gain"),
    (checks.check_rewrite_score, lambda p, q: (q - p) / p, "not by original"),
    (checks.check_rewrite_score, lambda p, q: (q - p) / (1 - q), "not by 1 - edited"),
    (checks.check_rewrite_score, lambda p, q: (p - q) / (1 - p), "swapped"),
    (checks.check_rewrite_score, lambda p, q: ((q - p) / (1 - p)).mean(), "one value per fact"),
    (checks.check_rewrite_score, lambda p, q: ((q - p) / (1 - p)).clamp(min=0), "harm"),
    (checks.check_moved, lambda z, b, h: moved(z, b, h) * b.sign(), "value of beta"),
    (checks.check_moved, lambda z, b, h: moved(z, b, h) * ((z * h).sum(-1) * b).sign(), "negative"),
    (checks.check_moved, lambda z, b, h: moved(z, b, h) * rows_of(h), "length of the key"),
    (checks.check_moved, lambda z, b, h: moved(z, b, h) / rows_of(z), "length of z"),
    (checks.check_moved, lambda z, b, h: moved(z, b, h) * b**2, "not multiply"),
    (checks.check_moved, lambda z, b, h: moved(z, b, h) * b.abs().sqrt(), "not by its root"),
    (checks.check_moved, lambda z, b, h: moved(z, b, h) / b.abs(), "not by its square"),
    (checks.check_moved, lambda z, b, h: moved(z, b, h) * b.abs(), "beta is missing"),
    (checks.check_moved, lambda z, b, h: moved(z, b, h).mean(), "per fact"),
    (checks.check_taylor_term, lambda g, b, s: (g * (b - s)).sum(-1), "sign is wrong"),
    (checks.check_taylor_term, lambda g, b, s: g * (s - b), "sum over the last"),
    (checks.check_taylor_term, lambda g, b, s: (g * (s - b)).mean(-1), "not a mean"),
    (checks.check_taylor_term, lambda g, b, s: (g * s).sum(-1), "not times the source"),
    (checks.check_taylor_term, lambda g, b, s: (g * b).sum(-1), "not times the base"),
    (checks.check_taylor_term, lambda g, b, s: (g * (s - b)).sum(), "one number per pair"),
    (checks.check_taylor_term, lambda g, b, s: (g * (s - b)).sum(-1).mean(), "comes later"),
    (checks.check_taylor_term, lambda g, b, s: (g * (s - b)).sum(-1).abs(), "which way"),
    (checks.check_taylor_term, lambda g, b, s: g @ (s - b).T, "every pair with every other"),
    (checks.check_taylor_term, lambda g, b, s: None, "returns nothing"),
    (checks.check_half_rule, lambda f, a, u: f * torch.stack([u, a]), "count the flow twice"),
    (checks.check_half_rule, lambda f, a, u: f * torch.stack([a, u]) / 2, "other"),
    (checks.check_half_rule, lambda f, a, u: f * torch.stack([u, a]) / 4, "not a quarter"),
    (checks.check_half_rule, lambda f, a, u: torch.stack([u, a]) / 2, "flow from above"),
    (checks.check_half_rule, lambda f, a, u: torch.stack([f, f]) / 2, "times the other factor"),
    (checks.check_half_rule, lambda f, a, u: f * u / 2, "expected"),
    (
        checks.check_without_top,
        lambda x, y: torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1],
        "still there",
    ),
    (checks.check_without_top, most_positive, "use abs"),
    (checks.check_without_top, lambda x, y: without_top(y, x), r"\*exact\* effect"),
    (checks.check_without_top, zeroed, "leave the cell out"),
    (checks.check_without_top, lambda x, y: without_top(x, y) ** 2, "square"),
    (checks.check_without_top, lambda x, y: None, "returns nothing"),
    (
        checks.check_four_ways,
        lambda x, c: (
            (x.gather(1, c).argmax(1)[:, None] == torch.arange(c.shape[1])).float().mean(0)
        ),
        "whole",
    ),
    (checks.check_four_ways, lambda x, c: x.softmax(-1).gather(1, c).mean(0), "probability"),
    (checks.check_four_ways, lambda x, c: in_fours(x, c).sum(0), "not a count"),
    (checks.check_four_ways, lambda x, c: in_fours(x, c).mean(1), "not over the four"),
    (checks.check_four_ways, lambda x, c: in_fours(x, c).mean(), "keep the four apart"),
    (
        checks.check_four_ways,
        lambda x, c: in_fours(x, torch.arange(c.shape[1])).mean(0),
        "token ids",
    ),
    (checks.check_mix, lambda a, b, m: (1 - m)[:, None] * a + m[:, None] * b, "means untouched"),
    (checks.check_mix, lambda a, b, m: m[:, None] * a + b, "1 - keep, is missing"),
    (checks.check_mix, lambda a, b, m: a + (1 - m)[:, None] * b, "must add up to 1"),
    (checks.check_mix, lambda a, b, m: (1 - m)[:, None] * b, "keeps is missing"),
    (checks.check_mix, lambda a, b, m: torch.where(m[:, None] < 0.5, b, a), "do not round"),
    (checks.check_mix, lambda a, b, m: m.mean() * a + (1 - m.mean()) * b, "its own share"),
    (checks.check_specific_part, lambda a, b: b, "the whole activation"),
    (checks.check_specific_part, lambda a, b: a + b.mean(0) - a.mean(0), "constant shift"),
    (checks.check_specific_part, lambda a, b: b - b.mean(0), "around zero"),
    (
        checks.check_specific_part,
        lambda a, b: a.mean(1, keepdim=True) + b - b.mean(1, keepdim=True),
        "not over coordinates",
    ),
    (checks.check_specific_part, lambda a, b: a.mean() + b - b.mean(), "each coordinate"),
    (checks.check_specific_part, lambda a, b: a + b - b.mean(0), "speak twice"),
    (checks.check_compress, lambda x, m, b, r: x @ b[:, :r] @ b[:, :r].T, "not zero"),
    (checks.check_compress, lambda x, m, b, r: (x - m) @ b[:, :r] @ b[:, :r].T, "mean is missing"),
    (checks.check_compress, lambda x, m, b, r: m + x @ b[:, :r] @ b[:, :r].T, "before you project"),
    (
        checks.check_compress,
        lambda x, m, b, r: m + (x - m) @ b[:, r:] @ b[:, r:].T,
        "keep the first",
    ),
    (checks.check_compress, lambda x, m, b, r: m + (x - m) @ b[:r].T @ b[:r], "columns, not rows"),
    (checks.check_compress, lambda x, m, b, r: x, "everything is kept"),
    (checks.check_share_kept, lambda k, n, f: k.mean() / f.mean(), "no merit"),
    (checks.check_share_kept, lambda k, n, f: (k - n).mean() / f.mean(), "floor below"),
    (checks.check_share_kept, lambda k, n, f: ((k - n) / (f - n)).mean(), "ratio of means"),
    (checks.check_share_kept, lambda k, n, f: (f - k).mean() / (f - n).mean(), "is lost"),
    (checks.check_share_kept, lambda k, n, f: (f - n).mean() / (k - n).mean(), "upside down"),
    (checks.check_share_kept, lambda k, n, f: (k - n) / (f - n), "one number"),
    (checks.check_explained, lambda x, g: 1 - explained(x, g), "not explained"),
    (
        checks.check_explained,
        lambda x, g: 1 - (1 - explained(x, g)) * x.var(correction=0) / (x**2).mean(),
        "around zero",
    ),
    (
        checks.check_explained,
        lambda x, g: torch.corrcoef(torch.stack([x, g.float()]))[0, 1] ** 2,
        "no correlation",
    ),
    (checks.check_explained, lambda x, g: explained(x, g).sqrt(), "share of variance"),
    (checks.check_same_norm, lambda z, s: z * s.norm(dim=-1, keepdim=True), "own length, too"),
    (checks.check_same_norm, lambda z, s: per_vector(z), "length one"),
    (checks.check_same_norm, lambda z, s: z * s.norm() / z.norm(), "everything together"),
    (
        checks.check_kinds,
        lambda t, r, o: torch.where(torch.isin(t, o), 1, torch.where(t == r, 0, 2)),
        "that is right is right",
    ),
    (checks.check_kinds, lambda t, r, o: kinds(t, r, o[-1:]), "not only the last"),
    (checks.check_kinds, lambda t, r, o: 2 - torch.isin(t, o).int(), "nothing is right"),
    (checks.check_removed, lambda h, w, dose: h - h @ w.T @ w, "removes all of it"),
    (checks.check_removed, lambda h, w, dose: (1 - dose) * h @ w.T @ w, "keeps only the part"),
    (checks.check_removed, lambda h, w, dose: h - (1 - dose) * h @ w.T @ w, "not what is left"),
    (checks.check_penalty, lambda v, w: (v @ w.norm(dim=1)).sum(), "not the sum"),
    (checks.check_penalty, lambda v, w: (v @ w).norm(dim=1).mean(), "no norm of their sum"),
    (checks.check_penalty, lambda v, w: (v @ w.square().sum(1)).mean(), "not its square"),
    (checks.check_answered, lambda f, t: (f * t).sum(1) / f.square().sum(1), "what the coder does"),
    (checks.check_answered, lambda f, t: (f / t).mean(1), "no mean of ratios"),
    (
        checks.check_answered,
        lambda f, t: torch.cosine_similarity(f, t.expand_as(f), dim=1),
        "forgets the size",
    ),
    (checks.check_auc, lambda t, f: (t[:, None] > f).float().mean(), "not nothing"),
    (checks.check_auc, lambda t, f: (t[:, None] >= f).float().mean(), "not in full"),
    (checks.check_auc, lambda t, f: by_signs(f, t), "false claim is above"),
    (checks.check_auc, lambda t, f: (t > 0).float().mean(), "no threshold"),
    (
        checks.check_inner_products,
        lambda x, four: torch.mul(*differences(x, four)),
        "is one number",
    ),
    (
        checks.check_inner_products,
        lambda x, four: torch.mul(*differences(x, four)).mean(-1),
        "not a mean",
    ),
    (
        checks.check_inner_products,
        lambda x, four: (x[four[:, 0]] * x[four[:, 2]]).sum(-1),
        "multiplied the activations",
    ),
    (
        checks.check_inner_products,
        lambda x, four: torch.linalg.vecdot(*differences(x, four[:, [0, 2, 1, 3]])),
        r"not \(a, c\) and \(b, e\)",
    ),
    (
        checks.check_inner_products,
        lambda x, four: torch.linalg.vecdot(*differences(x, four[:, [0, 1, 3, 2]])),
        "wrong sign",
    ),
    (
        checks.check_inner_products,
        lambda x, four: torch.mul(*differences(x, four)).sum(),
        "keep one per row",
    ),
    (
        checks.check_inner_products,
        lambda x, four: torch.cosine_similarity(*differences(x, four)),
        "a cosine",
    ),
    (
        checks.check_inner_products,
        lambda x, four: torch.inner(*differences(x, four)),
        "every row with every other",
    ),
    (checks.check_inner_products, lambda x, four: None, "returns nothing"),
    (checks.check_inner_products, lambda x, four: torch.zeros(3), "expected"),
    (checks.check_smallest_hidden, lambda d, W: W @ d, "use the pseudo-inverse"),
    (checks.check_smallest_hidden, lambda d, W: pinv_write(d / d.norm(), W), "keep the length"),
    (checks.check_smallest_hidden, lambda d, W: unit(pinv_write(d, W)), "do not normalise"),
    (
        checks.check_smallest_hidden,
        first_units_only,
        "a shorter one does, too",
    ),
    (
        checks.check_smallest_hidden,
        lambda d, W: pinv_write(d, W) + row_null(torch.ones(len(W)), W)[1],
        "a shorter one does, too",
    ),
    (checks.check_smallest_hidden, lambda d, W: pinv_write(d, W)[None], "expected"),
    (checks.check_smallest_hidden, lambda d, W: unit(W @ d), "does not write d"),
    (checks.check_smallest_hidden, lambda d, W: -pinv_write(d, W), "is not d"),
    (checks.check_smallest_hidden, lambda d, W: None, "returns nothing"),
    (checks.check_is_illusion, without("inert"), "effect of its own"),
    (
        checks.check_is_illusion,
        lambda whole, **given: whole.value <= 0.1 and without("inert")(whole=whole, **given),
        r"take abs\(\)",
    ),
    (checks.check_is_illusion, without("strong"), "less than the 20 %"),
    (checks.check_is_illusion, without("above random"), "above that of the random direction"),
    (checks.check_is_illusion, without("above whole"), "above that of the whole MLP"),
    (checks.check_is_illusion, without("above 0"), "above 0"),
    (checks.check_is_illusion, without("lost by the row part"), "keeps more than half"),
    (checks.check_is_illusion, without("sensed by the null part"), "above one half"),
    (
        checks.check_is_illusion,
        lambda null_share, **given: (
            without("sensed by the null part")(null_share=null_share, **given)
            and null_share.value > 0.5
        ),
        "low end of the null part's share",
    ),
    (
        checks.check_is_illusion,
        instead("inert", lambda whole, **_: abs(whole.value) < 0.1),
        "\\+0.10 for the whole MLP",
    ),
    (
        checks.check_is_illusion,
        instead("inert", lambda whole, **_: -0.1 < whole.value <= 0.1),
        "-0.10 for the whole MLP",
    ),
    (
        checks.check_is_illusion,
        instead("inert", lambda whole, **_: abs(whole.high) <= 0.1),
        "not its interval",
    ),
    (
        checks.check_is_illusion,
        instead("inert", lambda whole, **_: whole.low >= -0.1 and whole.high <= 0.1),
        "not its interval",
    ),
    (
        checks.check_is_illusion,
        instead("strong", lambda one, **_: one.value > 0.2),
        "'at least' 0.20",
    ),
    (
        checks.check_is_illusion,
        instead("strong", lambda one, **_: one.low >= 0.2),
        "the low end need not",
    ),
    (
        checks.check_is_illusion,
        instead("strong", lambda one, **_: one.high >= 0.2),
        "whatever its high end",
    ),
    (
        checks.check_is_illusion,
        instead("above whole", lambda one, whole, **_: one.low >= whole.high),
        "as high as the whole",
    ),
    (
        checks.check_is_illusion,
        instead("above whole", lambda one, whole, **_: one.low > whole.value),
        "above that of the whole",
    ),
    (
        checks.check_is_illusion,
        instead("above whole", lambda one, whole, **_: one.value > whole.high),
        "above that of the whole",
    ),
    (
        checks.check_is_illusion,
        instead("above random", lambda one, random, **_: one.low >= random.high),
        "as high as the random",
    ),
    (
        checks.check_is_illusion,
        instead("above random", lambda one, random, **_: one.low > random.value),
        "above that of the random",
    ),
    (
        checks.check_is_illusion,
        instead("above 0", lambda one, **_: one.low >= 0),
        "not 'above 0'",
    ),
    (
        checks.check_is_illusion,
        instead("lost by the row part", lambda one, row, **_: row.high <= one.value / 2),
        "not its high end",
    ),
    (
        checks.check_is_illusion,
        instead("lost by the row part", lambda one, row, **_: row.low <= one.value / 2),
        "low end does not count",
    ),
    (
        checks.check_is_illusion,
        instead("lost by the row part", lambda one, row, **_: row.value < one.value / 2),
        "'at most half'",
    ),
    (
        checks.check_is_illusion,
        instead("lost by the row part", lambda one, row, **_: row.value <= one.low / 2),
        "not of its low end",
    ),
    (
        checks.check_is_illusion,
        instead("sensed by the null part", lambda null_share, **_: null_share.low >= 0.5),
        "not 'above one half'",
    ),
    (checks.check_is_illusion, lambda **given: True, "effect of its own"),
    (checks.check_is_illusion, lambda **given: None, "returns nothing"),
    (checks.check_is_illusion, lambda **given: False, "passes all four"),
    (checks.check_opened, lambda fall, shut: shut.mean() / fall.mean(), "share that is left"),
    (checks.check_opened, lambda fall, shut: 1 - (shut / fall).mean(), "mean of ratios"),
    (checks.check_opened, lambda fall, shut: (fall - shut).mean(), "difference in nats"),
    (
        checks.check_opened,
        lambda fall, shut: (fall - shut).mean() / shut.mean(),
        "not by the one with the pathway shut",
    ),
    (checks.check_opened, lambda fall, shut: 1 - shut / fall, "one number for all pairs"),
    (checks.check_opened, lambda fall, shut: None, "returns nothing"),
    (checks.check_opened, lambda fall, shut: 1 - fall.mean() / shut.mean(), "expected"),
    (
        checks.check_beyond,
        lambda v, n: beyond(v, n) * (n.max() - n.min()),
        "divide by the width",
    ),
    (
        checks.check_beyond,
        lambda v, n: (v - n.max()).relu() / (n.max() - n.min()),
        "values below the range",
    ),
    (
        checks.check_beyond,
        lambda v, n: (n.min() - v).relu() / (n.max() - n.min()),
        "values above the range",
    ),
    (
        checks.check_beyond,
        lambda v, n: torch.maximum(v - n.max(), n.min() - v) / (n.max() - n.min()),
        "not negative: clamp",
    ),
    (
        checks.check_beyond,
        lambda v, n: (v - n.mean()).abs() / (n.max() - n.min()),
        "distance from the mean",
    ),
    (
        checks.check_beyond,
        lambda v, n: beyond(v, n) * (n.max() - n.min()) / n.std(),
        "not the standard deviation",
    ),
    (checks.check_beyond, lambda v, n: None, "returns nothing"),
    (checks.check_auroc, lambda o, n: won(o, n)[0].float().mean(), "not nothing"),
    (checks.check_auroc, lambda o, n: (o[:, None] >= n).float().mean(), "not one"),
    (
        checks.check_auroc,
        lambda o, n: (won(n, o)[0] + won(n, o)[1] / 2).mean(),
        "wrong way round",
    ),
    (
        checks.check_auroc,
        lambda o, n: (won(o, n)[0] + won(o, n)[1] / 2).sum(),
        "not their number",
    ),
    (checks.check_auroc, lambda o, n: (o.mean() > n.mean()).float(), "the two means"),
    (checks.check_auroc, lambda o, n: None, "returns nothing"),
    (checks.check_verdict, lambda v, low, w, r: rated(v), "whole MLP may do as much"),
    (checks.check_verdict, lambda v, low, w, r: rated(v) if low > max(w, r) else "not", "holds 0"),
    (checks.check_verdict, lambda v, low, w, r: rated(v) if low > w else "not", "random direction"),
    (
        checks.check_verdict,
        lambda v, low, w, r: rated(v) if low >= max(0, w, r) else "not",
        "as high",
    ),
    (
        checks.check_verdict,
        lambda *x: rated(x[0] - 0.001) if x[1] > max(0, *x[2:]) else "not",
        "20 % is enough",
    ),
    (
        checks.check_verdict,
        lambda *x: "replicated" if rule_of_c4(*x) == "replicated" else "not",
        "missed",
    ),
    (checks.check_verdict, lambda *x: None, "returns nothing"),
    (checks.check_largest_share, lambda n: 0.025 ** (1 / n), "subtract it"),
    (checks.check_largest_share, lambda n: 100 - 100 * 0.025 ** (1 / n), "percent"),
    (checks.check_largest_share, lambda n: 1 - 0.05 ** (1 / n), "not from 5 %"),
    (checks.check_largest_share, lambda n: 1 - 0.975 ** (1 / n), "chance that some"),
    (checks.check_largest_share, lambda n: 0.025 / n, "do not add"),
    (checks.check_largest_share, lambda n: 0, "0 is not"),
    (checks.check_largest_share, lambda n: 3 / n, "expected"),
    (checks.check_largest_share, lambda n: None, "returns nothing"),
    (checks.check_is_fragile, lambda v, low, h, t: v >= t, "both ends pass"),
    (checks.check_is_fragile, lambda v, low, h, t: low <= t <= h, "lower end still passes"),
    (checks.check_is_fragile, lambda v, low, h, t: low < t < h, "upper end passes, the value"),
    (checks.check_is_fragile, lambda v, low, h, t: h >= t > v, "lower end fails"),
    (checks.check_is_fragile, lambda v, low, h, t: low < t <= v, "value fails and the upper"),
    (checks.check_is_fragile, lambda v, low, h, t: None, "returns nothing"),
]


# Right for the visible data only: sizes, positions or values are typed in.
TYPED_IN = [
    (
        checks.check_patch_direction,
        lambda b, s, v: b + ((s - b) @ v)[:, None] * v / (9 if v.norm() > 2 else 1),
    ),
    (checks.check_predicted_output, lambda a: 1 + 8 * a.sin() * (1 - a.sin() ** 2).sqrt()),
    (
        checks.check_name_preference,
        lambda p, i, s: (p[torch.arange(4), :, i] - p[torch.arange(4), :, s]).mean(0),
    ),
    (checks.check_fldd, lambda c, p: 1 - p[:3].sum() / c[:3].sum()),
    (checks.check_mean_difference, lambda x, a: unit(x[a].sum(0) / 4 - x[~a].sum(0) / 2)),
    (
        checks.check_first_minus_second,
        lambda s, i, j: torch.stack(
            [s[n, min(i[n], j[n])] - s[n, max(i[n], j[n])] for n in range(4)]
        ),
    ),
    (checks.check_seen_by, lambda v, W, g: seen(v, W[:2], g)),
    (checks.check_last_subject_token, lambda o, stop, n: n + {13: 3, 5: 0}.get(stop, -1)),
    (checks.check_inner_products, lambda x, four: torch.linalg.vecdot(*differences(x, four[:2]))),
    (
        checks.check_rewrite_score,
        lambda p, q: torch.stack([(q - p)[n] / (1 - p)[n] for n in (0, 1, 2)]),
    ),
    (
        checks.check_is_illusion,
        lambda **given: (
            all(rules(**given).values()) and given["one"].value in (0.36, 0.2, 0.24, 0.4)
        ),
    ),
]


def each_right():
    return [(check, answer) for check, answers in RIGHT.items() for answer in answers]


def names(checked):
    return [check.__name__ for check in checked]


class Keeps:
    """An answer that stores what it was given and what it gave back."""

    def __init__(self, answer):
        self.answer = answer
        self.given, self.gave = [], []

    def __call__(self, *arguments, **named):
        self.given.append(arguments or named)
        self.gave.append(self.answer(*arguments, **named))
        return self.gave[-1]


def visible(check):
    """The first right answer after the visible check."""
    answer = Keeps(RIGHT[check][0])
    check(answer)
    return answer


def learnt_by_heart(check):
    """An answer that knows the visible results only, and gives the last one for anything else."""
    kept = visible(check)
    results = dict(zip(map(str, kept.given), kept.gave, strict=True))
    return lambda *arguments, **named: results.get(str(arguments or named), kept.gave[-1])


FUNCTIONS = [check for check in RIGHT if check is not checks.check_my_illusion]
WITH_TENSORS = [
    check
    for check in FUNCTIONS
    if check
    not in (
        checks.check_make_pair,
        checks.check_last_subject_token,
        checks.check_is_illusion,
        checks.check_verdict,
        checks.check_largest_share,
        checks.check_is_fragile,
    )
]


def test_every_check_has_right_and_wrong_answers():
    every = {getattr(checks, name) for name in checks.__all__}
    assert every == set(RIGHT) == {check for check, _, _ in WRONG}
    assert all(len(answers) >= 3 for answers in RIGHT.values())


@pytest.mark.parametrize("check, answer", each_right())
def test_right_answers_pass(check, answer, capsys):
    for seed in range(6):
        check(answer, seed=seed)
        assert capsys.readouterr().out.startswith("PASS")


@pytest.mark.parametrize("check, answer, mistake", WRONG)
def test_wrong_answers_are_named(check, answer, mistake):
    for seed in range(3):
        with pytest.raises(AssertionError, match=mistake):
            check(answer, seed=seed)


@pytest.mark.parametrize("check", RIGHT, ids=names(RIGHT))
def test_any_seed_tells_right_from_wrong(check):
    _, wrong, mistake = next(entry for entry in WRONG if entry[0] is check)
    for seed in range(30):
        check(RIGHT[check][0], seed=seed)
        with pytest.raises(AssertionError, match=mistake):
            check(wrong, seed=seed)


@pytest.mark.parametrize("check", FUNCTIONS, ids=names(FUNCTIONS))
def test_visible_results_by_heart_fail_the_hidden_check(check):
    check(learnt_by_heart(check))
    for seed in range(1, 6):
        with pytest.raises(AssertionError):
            check(learnt_by_heart(check), seed=seed)


@pytest.mark.parametrize("check, answer", TYPED_IN, ids=names(check for check, _ in TYPED_IN))
def test_typed_in_data_fail_the_hidden_check(check, answer):
    check(answer)
    for seed in range(1, 6):
        with pytest.raises((AssertionError, IndexError)):
            check(answer, seed=seed)


@pytest.mark.parametrize("check", WITH_TENSORS, ids=names(WITH_TENSORS))
def test_hidden_sizes_are_not_the_visible_ones(check):
    seen = visible(check).given[0]
    for seed in range(1, 6):
        hidden = Keeps(RIGHT[check][0])
        check(hidden, seed=seed)
        for place, (one, other) in enumerate(zip(seen, hidden.given[0], strict=True)):
            sizes = enumerate(zip(one.shape, other.shape, strict=True))
            four_tokens = (check, place) == (checks.check_inner_products, 1)
            assert [axis for axis, (old, new) in sizes if new <= old] == [1] * four_tokens


@pytest.mark.parametrize("check", WITH_TENSORS, ids=names(WITH_TENSORS))
def test_a_check_is_the_same_each_time(check):
    for seed in (0, 1):
        first, second = Keeps(RIGHT[check][0]), Keeps(RIGHT[check][0])
        check(first, seed=seed)
        check(second, seed=seed)
        for one, other in zip(first.given, second.given, strict=True):
            assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("check", WITH_TENSORS, ids=names(WITH_TENSORS))
def test_an_edit_in_place_is_caught_in_every_input(check):
    for place in range(len(visible(check).given[0])):

        def edits(*arguments, place=place):
            found = RIGHT[check][0](*(argument.clone() for argument in arguments))
            arguments[place].copy_(arguments[place] == 0)
            return found

        for seed in (0, 1):
            with pytest.raises(AssertionError, match="changes one of its inputs in place"):
                check(edits, seed=seed)


def test_visible_messages_are_those_in_the_notebooks(capsys):
    cells = [
        cell
        for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if "checks.check_" in "".join(cell["source"])
    ]
    stored = {"".join(output["text"]) for cell in cells for output in cell["outputs"]}
    for check, answers in RIGHT.items():
        check(answers[0])
        assert capsys.readouterr().out in stored, check.__name__


class TestAnAnswerIsUsedAfterwards:
    def test_if_it_passed(self, capsys):
        def mine(original, edited):
            return (edited - original) / (1 - original)

        assert checks.accepted(mine, otherwise=rewrite_score) is rewrite_score
        assert "rewrite_score" in capsys.readouterr().out
        checks.check_rewrite_score(mine)
        capsys.readouterr()
        assert checks.accepted(mine, otherwise=rewrite_score) is mine
        assert capsys.readouterr().out == ""

    def test_not_if_it_failed(self):
        def wrong(original, edited):
            return edited - original

        with pytest.raises(AssertionError):
            checks.check_rewrite_score(wrong)
        assert checks.accepted(wrong, otherwise=rewrite_score) is rewrite_score

    def test_also_where_a_check_asks_more_than_one_question(self):
        checks.check_last_subject_token(subject_token)
        assert checks.accepted(subject_token, otherwise=rewrite_score) is subject_token
