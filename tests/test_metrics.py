"""The three measures against hand-made numbers, and intervals against theory."""

import pytest
import torch

from helpers.patching.metrics import (
    Estimate,
    bootstrap,
    fractional_logit_difference_decrease,
    interchange_accuracy,
    logit_difference,
    mean,
    percent_lost,
)


def test_logit_difference_reads_each_pairs_own_answers():
    logits = torch.tensor([[1.0, 5.0, 2.0], [4.0, 0.0, 9.0]])
    answer, counterfactual = torch.tensor([1, 0]), torch.tensor([2, 1])
    assert logit_difference(logits, answer, counterfactual).tolist() == [3.0, 4.0]


def test_fldd_is_a_ratio_of_means_not_a_mean_of_ratios():
    clean, patched = torch.tensor([4.0, 0.001]), torch.tensor([1.0, 1.0])
    fldd = fractional_logit_difference_decrease(clean, patched)
    assert fldd.value == pytest.approx(1 - 2.0 / 4.001)


@pytest.mark.parametrize("factor, expected", [(1.0, 0.0), (0.0, 1.0), (-0.5, 1.5), (1.2, -0.2)])
def test_fldd_scale(factor, expected):
    clean = torch.tensor([2.0, 3.0, 7.0])
    fldd = fractional_logit_difference_decrease(clean, factor * clean)
    # the same share is lost in every pair, so resampling cannot move it
    assert fldd == pytest.approx((expected, expected, expected))


def test_interval_of_the_mean_matches_the_normal_approximation():
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    estimate = mean(values)
    half_width = 1.96 * values.std().item() / 2000**0.5
    assert estimate.value == pytest.approx(values.mean().item(), abs=1e-6)
    assert estimate.low == pytest.approx(estimate.value - half_width, rel=0.1, abs=3e-3)
    assert estimate.high == pytest.approx(estimate.value + half_width, rel=0.1, abs=3e-3)


def test_intervals_are_reproducible_and_follow_the_seed():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert mean(values, seed=1) == mean(values, seed=1)
    assert mean(values, seed=1) != mean(values, seed=2)


def test_bootstrap_keeps_the_columns_of_a_pair_together():
    x = torch.randn(100, generator=torch.Generator().manual_seed(0))
    zero = bootstrap(torch.stack([x, x], -1), lambda means: means[..., 0] - means[..., 1])
    assert zero == (0, 0, 0)


def test_interchange_accuracy_is_over_the_whole_vocabulary():
    logits = torch.tensor([[0.0, 2.0, 3.0], [9.0, 1.0, 0.0]])  # argmax 2 and 0
    estimate = interchange_accuracy(logits, torch.tensor([1, 0]))  # 1 beats 0, but not 2
    assert estimate.value == 0.5


def test_no_hits_are_not_certainty():
    estimate = interchange_accuracy(torch.eye(100), (torch.arange(100) + 1) % 100)
    assert estimate.value == 0
    assert estimate.high == pytest.approx(1 - 0.025 ** (1 / 100), abs=1e-6)  # closed form for 0/n


def test_estimate_prints_with_its_interval():
    assert f"{Estimate(0.314, 0.29, 0.335):.1%}" == "31.4% [29.0%, 33.5%]"
    assert f"{Estimate(-0.001, -0.02, 0.0):.0%}" == "0% [-2%, 0%]"


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: mean(torch.zeros(0)), "no pairs"),
        (lambda: mean(torch.tensor([1.0, torch.nan])), "NaN"),
        (lambda: interchange_accuracy(torch.zeros(0, 5), torch.zeros(0).long()), "no pairs"),
        (
            lambda: fractional_logit_difference_decrease(-torch.ones(3), torch.ones(3)),
            "does not do this task",
        ),
        (
            lambda: fractional_logit_difference_decrease(torch.ones(3), torch.ones(2)),
            "3 clean and 2 patched",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_percent_lost_is_a_ratio_of_means():
    clean, patched = torch.tensor([4.0, 2.0, 6.0]), torch.tensor([1.0, 1.0, 1.0])
    clamped = torch.tensor([2.0, 1.5, 3.0])
    lost = percent_lost(clean, patched, clamped)
    assert lost.value == pytest.approx(100 * (1 + 0.5 + 2) / (3 + 1 + 5))
    assert percent_lost(clean, patched, clean) == pytest.approx((100, 100, 100))
    assert percent_lost(clean, patched, patched) == pytest.approx((0, 0, 0))
