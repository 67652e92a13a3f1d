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
