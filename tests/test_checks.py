"""Every exercise check accepts several right answers and names the listed wrong ones."""

import pytest
import torch

from helpers import checks

T = "Then, {} and {} went home. {} thanked"


def in_place(base, source, v):
    base += ((source - base) @ v)[:, None] * v / (v @ v)
    return base


def half_pi(a):
    return 1 + 4 * torch.sin(2 * a)


def row_null(v, W):
    q = torch.linalg.qr(W)[0]
    return v @ q @ q.T, v - v @ q @ q.T


def by_svd(v, W):
    u = torch.linalg.svd(W, full_matrices=False)[0]
    return u @ (u.T @ v), v - u @ (u.T @ v)


def by_pinv(v, W):
    row = v @ W @ torch.linalg.pinv(W)
    return row, v - row


def whole_space(v, W):
    u = torch.linalg.svd(W)[0]
    return v @ u @ u.T, v - v @ u @ u.T


def sense_in_place(b, s, r, w):
    b += ((s - b) @ r)[:, None] * w
    return b


def unit(x):
    return x / x.norm()


def illusion(d, W, r):
    return unit(unit(row_null(d, W)[1]) + unit(r @ torch.linalg.pinv(W)))


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


def minimal(h, C):
    solved = torch.linalg.solve(C, h)
    return solved / (solved @ h)


def added_in_place(W, b, a):
    W += torch.outer(b, a)
    return W


def differences(x, four):
    a, b, c, e = (x[four[:, k]] for k in range(4))
    return a - b, c - e


def pinv_write(d, W):
    return d @ torch.linalg.pinv(W)


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
    return lambda **given: all(kept for name, kept in rules(**given).items() if name != rule)


def one_by_one(one, whole, random, row, null_share):
    if not -0.1 <= whole.value <= 0.1 or one.value < 0.2:
        return False
    if any(one.low <= other for other in (0, whole.high, random.high)):
        return False
    return 2 * row.value <= one.value and null_share.low > 0.5


def beyond(value, natural):
    low, high = natural.aminmax()
    return torch.relu(torch.maximum(value - high, low - value)) / (high - low)


def won(opened, natural):
    return opened[:, None] > natural, opened[:, None] == natural


RIGHT = {
    checks.check_patch_direction: [
        lambda b, s, v: b + ((s - b) @ v)[:, None] * v / (v @ v),
        lambda b, s, v: b + (s - b) @ torch.outer(v, v) / v.norm() ** 2,
        lambda b, s, v: torch.stack(
            [x + (y - x).dot(v) / v.dot(v) * v for x, y in zip(b, s, strict=True)]
        ),
    ],
    checks.check_predicted_output: [half_pi, lambda a: 1 + 8 * a.sin() * a.cos()],
    checks.check_split: [
        lambda v, w: (w * (v @ w) / (w @ w), v - w * (v @ w) / (w @ w)),
        lambda v, w: (torch.outer(w, w) @ v / (w @ w), v - torch.outer(w, w) @ v / (w @ w)),
    ],
    checks.check_my_illusion: [
        torch.tensor([0.9659258, 0.2588190, 0.0]),
        torch.tensor([0.2588190, 0.9659258, 0.0]),
        torch.tensor([-0.9659258, -0.2588190, 0.0]),
    ],
    checks.check_make_pair: [lambda io, s: (T.format(io, s, s), T.format(s, io, s), io, s)],
    checks.check_fldd: [
        lambda c, p: 1 - p.mean() / c.mean(),
        lambda c, p: (c - p).sum() / c.sum(),
        lambda c, p: float(1 - p.mean() / c.mean()),
    ],
    checks.check_name_preference: [
        lambda p, i, s: (p[torch.arange(4), :, i] - p[torch.arange(4), :, s]).mean(0),
        lambda p, i, s: torch.stack([p[n, :, i[n]] - p[n, :, s[n]] for n in range(4)]).mean(0),
    ],
    checks.check_row_null: [row_null, by_svd, by_pinv],
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
    checks.check_build_illusion: [
        illusion,
        lambda d, W, r: unit(
            unit(row_null(d, W)[1]) + unit(torch.linalg.lstsq(W.T, r[:, None]).solution[:, 0])
        ),
    ],
    checks.check_mean_difference: [
        lambda x, a: unit(x[a].mean(0) - x[~a].mean(0)),
        lambda x, a: torch.nn.functional.normalize(x[a].mean(0) - x[~a].mean(0), dim=0),
    ],
    checks.check_first_minus_second: [
        by_place,
        lambda s, i, j: torch.where(i < j, 1, -1) * (s[torch.arange(4), i] - s[torch.arange(4), j]),
        lambda s, i, j: torch.stack(
            [s[n, min(i[n], j[n])] - s[n, max(i[n], j[n])] for n in range(4)]
        ),
    ],
    checks.check_seen_by: [seen, seen_by_pinv],
    checks.check_through_one_head: [
        lambda x, b, s, W: x + (s - b) @ W,
        lambda x, b, s, W: x - b @ W + s @ W,
    ],
    checks.check_last_subject_token: [
        subject_token,
        lambda o, stop, n: n + max(t for t, (a, b) in enumerate(o) if a <= stop - 1),
        lambda o, stop, n: [b >= stop for _, b in o].index(True) + n,
    ],
    checks.check_start: [
        lambda b, s, g: rows(rows(s - b) - rows(g)),
        lambda b, s, g: torch.nn.functional.normalize(
            torch.nn.functional.normalize(s - b, dim=-1) - torch.nn.functional.normalize(g, dim=-1),
            dim=-1,
        ),
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
    ],
    checks.check_rewrite_score: [
        lambda p, q: (q - p) / (1 - p),
        lambda p, q: 1 - (1 - q) / (1 - p),
    ],
    checks.check_inner_products: [
        lambda x, four: torch.linalg.vecdot(*differences(x, four)),
        lambda x, four: torch.einsum("nd,nd->n", *differences(x, four)),
        lambda x, four: torch.stack([(x[a] - x[b]) @ (x[c] - x[e]) for a, b, c, e in four]),
    ],
    checks.check_smallest_hidden: [
        pinv_write,
        lambda d, W: W @ torch.linalg.solve(W.T @ W, d),
        lambda d, W: torch.linalg.lstsq(W.T, d[:, None], driver="gelsd").solution[:, 0],
    ],
    checks.check_is_illusion: [
        lambda **given: all(rules(**given).values()),
        one_by_one,
        lambda **given: torch.tensor(list(rules(**given).values())).all(),
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
}

WRONG = [
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
    (checks.check_patch_direction, lambda b, s, v: b.mean(), "expected"),
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
        lambda p, i, s: (p[torch.arange(4), :, s] - p[torch.arange(4), :, i]).mean(0),
        "swapped",
    ),
    (
        checks.check_name_preference,
        lambda p, i, s: p[torch.arange(4), :, i] - p[torch.arange(4), :, s],
        "one number per head",
    ),
    (
        checks.check_name_preference,
        lambda p, i, s: (p[:, :, i[0]] - p[:, :, s[0]]).mean(0),
        "of the first one",
    ),
    (checks.check_name_preference, lambda p, i, s: p[torch.arange(4), :, i].mean(0), "only the"),
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
        checks.check_build_illusion,
        lambda d, W, r: unit(row_null(d, W)[1] + r @ torch.linalg.pinv(W)),
        "their own units",
    ),
    (checks.check_build_illusion, lambda d, W, r: 2**0.5 * illusion(d, W, r), "not a unit vector"),
    (
        checks.check_build_illusion,
        lambda d, W, r: unit(unit(d) + unit(r @ torch.linalg.pinv(W))),
        "the whole difference",
    ),
    (
        checks.check_build_illusion,
        lambda d, W, r: unit(unit(row_null(d, W)[0]) + unit(r @ torch.linalg.pinv(W))),
        "does",
    ),
    (
        checks.check_build_illusion,
        lambda d, W, r: unit(unit(row_null(d, W)[1]) + unit(W @ r)),
        "pseudo-inverse",
    ),
    (
        checks.check_build_illusion,
        lambda d, W, r: unit(unit(row_null(d, W)[1]) - unit(r @ torch.linalg.pinv(W))),
        "turned round",
    ),
    (checks.check_build_illusion, lambda d, W, r: unit(row_null(d, W)[1]), "sensor alone"),
    (
        checks.check_build_illusion,
        lambda d, W, r: unit(r @ torch.linalg.pinv(W)),
        "actuator alone",
    ),
    (
        checks.check_mean_difference,
        lambda x, a: unit(x[~a].mean(0) - x[a].mean(0)),
        "from ABB to BAB",
    ),
    (checks.check_mean_difference, lambda x, a: x[a].mean(0) - x[~a].mean(0), "length 1"),
    (checks.check_mean_difference, lambda x, a: unit(x[a].sum(0) - x[~a].sum(0)), "sums"),
    (checks.check_mean_difference, lambda x, a: x[a].mean(0) - x.mean(0), "mean of all"),
    (
        checks.check_first_minus_second,
        lambda s, i, j: s[torch.arange(4), i] - s[torch.arange(4), j],
        "by role",
    ),
    (checks.check_first_minus_second, lambda s, i, j: -by_place(s, i, j), "turned round"),
    (checks.check_first_minus_second, lambda s, i, j: by_place(s, i, j).mean(), "per pair"),
    (
        checks.check_first_minus_second,
        lambda s, i, j: s[torch.arange(4), torch.minimum(i, j)],
        "subtract the second",
    ),
    (checks.check_first_minus_second, lambda s, i, j: s[:, 2] - s[:, 4], "first pair for all"),
    (checks.check_seen_by, lambda v, W, g: seen(v, W, torch.ones(9)), "gain of the norm"),
    (checks.check_seen_by, lambda v, W, g: seen(v, W, 1 / g), "divide by the gain"),
    (checks.check_seen_by, lambda v, W, g: v - seen(v, W, g), "do NOT see"),
    (checks.check_seen_by, lambda v, W, g: seen(v, W[:1], g), "first head"),
    (
        checks.check_seen_by,
        lambda v, W, g: v @ (g[:, None] * torch.cat(list(W), 1)),
        "queries",
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
    (checks.check_start, lambda b, s, g: rows(rows(s - b) + rows(g)), "rise"),
    (checks.check_start, lambda b, s, g: rows(rows(b - s) - rows(g)), "wrong way"),
    (checks.check_start, lambda b, s, g: rows(s - b - g), "before you mix"),
    (checks.check_start, lambda b, s, g: rows(s - b) - rows(g), "again"),
    (checks.check_start, lambda b, s, g: unit(unit(s - b) - unit(g)), "own length"),
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
    (checks.check_inner_products, lambda x, four: None, "returns nothing"),
    (checks.check_inner_products, lambda x, four: torch.zeros(3), "expected"),
    (checks.check_smallest_hidden, lambda d, W: W @ d, "use the pseudo-inverse"),
    (checks.check_smallest_hidden, lambda d, W: pinv_write(d / d.norm(), W), "keep the length"),
    (checks.check_smallest_hidden, lambda d, W: unit(pinv_write(d, W)), "do not normalise"),
    (
        checks.check_smallest_hidden,
        lambda d, W: torch.cat([torch.linalg.solve(W[:3].T, d), torch.zeros(4)]),
        "a shorter one does, too",
    ),
    (
        checks.check_smallest_hidden,
        lambda d, W: pinv_write(d, W) + row_null(torch.ones(7), W)[1],
        "a shorter one does, too",
    ),
    (checks.check_smallest_hidden, lambda d, W: pinv_write(d, W)[None], "expected"),
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
    (checks.check_is_illusion, lambda **given: True, "effect of its own"),
    (checks.check_is_illusion, lambda **given: None, "passes all four"),
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
]


@pytest.mark.parametrize(
    "check, answer", [(check, answer) for check, answers in RIGHT.items() for answer in answers]
)
def test_right_answers_pass(check, answer, capsys):
    check(answer)
    assert capsys.readouterr().out.startswith("PASS")


@pytest.mark.parametrize("check, answer, mistake", WRONG)
def test_wrong_answers_are_named(check, answer, mistake):
    with pytest.raises(AssertionError, match=mistake):
        check(answer)
