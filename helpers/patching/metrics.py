"""What a patch did to the answers: three measures, each with an interval over pairs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from helpers.models import require

RESAMPLES = 2000  # of the bootstrap
PerPair: TypeAlias = Float[Tensor, "pairs"]
Hits: TypeAlias = Bool[Tensor, "pairs"]
Labels: TypeAlias = Int[Tensor, "pairs"]  # a token for each pair
Statistic: TypeAlias = Callable[[Float[Tensor, "*draws columns"]], Float[Tensor, "*draws"]]
Logits: TypeAlias = Float[Tensor, "pairs d_vocab"]


class Estimate(NamedTuple):
    """A measured value and the ends of its 95 % interval, in the unit of the value."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        texts = (format(x, spec or ".2f") for x in self)  # no minus zero
        texts = (x.removeprefix("-") if set(x) <= set("-0.%") else x for x in texts)
        return "{} [{}, {}]".format(*texts)


def bootstrap(
    samples: Float[Tensor, "pairs columns"], statistic: Statistic, *, seed: int = 0
) -> Estimate:
    """A statistic of column means with its percentile bootstrap interval over the rows.

    Pairs are drawn with replacement, all columns of a pair together; `statistic` maps column means
    to the quantity of interest, so ratios of means are resampled as ratios of means. A ValueError
    if there are no rows, or NaN.
    """
    if not isinstance(samples, Tensor) or samples.ndim != 2:
        raise ValueError("the samples must be a tensor [pairs columns], a row for every pair")
    _require_some(samples)
    if not torch.isfinite(samples).all():
        raise ValueError("the samples hold NaN or infinity")
    samples = samples.detach().double().cpu()
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(samples), (RESAMPLES, len(samples)), generator=generator)
    means = torch.stack([samples[draw].mean(0) for draw in draws])
    low, high = statistic(means).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return Estimate(statistic(samples.mean(0)).item(), low.item(), high.item())


def mean(values: PerPair, *, seed: int = 0) -> Estimate:
    """The mean over pairs with its bootstrap interval, in the unit of `values`; errors, too."""
    _require_one_per_pair("the values", values)
    return bootstrap(values[:, None], lambda means: means[..., 0], seed=seed)


def logit_difference(logits: Logits, answer: Labels, counterfactual: Labels) -> PerPair:
    """Logit of the base prompt's answer minus logit of the counterfactual one, in nats, per pair.

    The labels are the base prompt's, before and after the patch (section 4.1): a patch that works
    makes this number fall. A ValueError unless each row has two tokens within the logits.
    """
    _require_tokens(logits, answer)
    _require_tokens(logits, counterfactual)
    both = torch.stack([answer.to(logits.device), counterfactual.to(logits.device)], -1)
    of_answer, of_counterfactual = logits.gather(-1, both).unbind(-1)
    return of_answer - of_counterfactual


def fractional_logit_difference_decrease(
    clean: PerPair, patched: PerPair, *, seed: int = 0
) -> Estimate:
    """`1 - mean(patched) / mean(clean)` of logit differences: a ratio of means (section 4.1).

    0: no effect. 1: the margin is gone. Above 1: the answer flips on average. Below 0: the patch
    helped the model. A mean of ratios would explode on pairs whose clean difference is near zero.
    A ValueError if shapes differ, or the model has no clean margin to lose.
    """
    _require_one_per_pair("clean", clean)
    _require_one_per_pair("patched", patched)
    if clean.shape != patched.shape:
        raise ValueError(f"{len(clean)} clean and {len(patched)} patched logit differences")
    margin(clean)
    samples = torch.stack([clean, patched], -1)
    return bootstrap(samples, lambda means: 1 - means[..., 1] / means[..., 0], seed=seed)


def percent_lost(clean: PerPair, patched: PerPair, clamped: PerPair) -> Estimate:
    """How much of a patch's effect a clamp undoes, in percent, from logit differences."""
    samples = torch.stack([clean, patched, clamped], -1)
    return bootstrap(samples, lambda m: 100 * (m[..., 2] - m[..., 1]) / (m[..., 0] - m[..., 1]))


def percent_kept(clean: PerPair, patched: PerPair, part: PerPair) -> Estimate:
    """How much of a patch's effect another patch has, in percent; logit differences `[pairs]`."""
    samples = torch.stack([clean, patched, part], -1)
    return bootstrap(samples, lambda m: 100 * (m[..., 0] - m[..., 2]) / (m[..., 0] - m[..., 1]))


def margin(clean: PerPair) -> float:
    """The mean clean logit difference in nats, of which effects are shares; an error if none."""
    mean = clean.mean().item()
    if mean <= 0:
        reason = "the model does not do this task, so there is no margin a patch could remove"
        raise ValueError(f"the mean clean logit difference is {mean:.3f}: {reason}")
    return mean


def interchange_accuracy(logits: Logits, counterfactual: Labels) -> Estimate:
    """Share of pairs whose top token over the whole vocabulary is the counterfactual answer.

    The interval is the exact binomial one (Clopper-Pearson): a bootstrap of 0 hits out of n would
    claim to be certain. A ValueError unless there is one token per row, and no NaN.
    """
    _require_tokens(logits, counterfactual)
    if logits.isnan().any():
        raise ValueError("the logits hold NaN, which counts as the largest: check the model")
    return share(logits.argmax(-1) == counterfactual.to(logits.device))


def share(hits: Hits) -> Estimate:
    """Share of true values, with the exact binomial interval; a ValueError if there are none."""
    # Here, since the checks import this module and need no model.
    from transformer_lens.utilities.statistics import success_rate_ci

    if not isinstance(hits, Tensor) or hits.dtype != torch.bool or hits.ndim != 1:
        raise ValueError("a share is taken of true and false: pass a tensor [pairs] of bool")
    _require_some(hits)
    ci = success_rate_ci(hits.tolist())
    return Estimate(ci.point_estimate, ci.ci_low, ci.ci_high)


@dataclass(frozen=True)
class Effect:
    """What a patch did: the share of the logit difference it removed, and how often it flipped.

    For each pair its logit difference, in nats, and whether its top token is the counterfactual.
    """

    fldd: Estimate
    interchange_accuracy: Estimate
    logit_difference: PerPair
    flipped: Hits

    @classmethod
    def of(cls, clean: PerPair, patched: PerPair, flipped: Hits) -> "Effect":
        """The effect from what is known of each pair; `clean` and `patched` in nats."""
        fldd = fractional_logit_difference_decrease(clean, patched)
        return cls(fldd, share(flipped), patched, flipped)

    def __str__(self) -> str:
        both = f"FLDD {self.fldd:.1%}, interchange accuracy {self.interchange_accuracy:.1%}"
        return f"{both} ({len(self.logit_difference)} pairs)"


def _require_one_per_pair(name: str, values: Tensor) -> None:
    if not isinstance(values, Tensor) or values.ndim != 1:
        raise ValueError(f"{name} must be a tensor [pairs], one number for each pair")


def _require_some(values: Tensor) -> None:
    if len(values) == 0:
        raise ValueError("nothing to measure: there are no pairs")


def _require_tokens(logits: Tensor, tokens: Tensor) -> None:
    require.floats("the logits", logits, ndim=2)
    require.ids("the tokens", tokens)
    rows, columns = logits.shape
    if len(tokens) != rows:
        raise ValueError(f"one token for each of {rows} rows of logits, not {len(tokens)}")
    if rows and not (0 <= tokens.min() and tokens.max() < columns):
        raise ValueError(f"the tokens must lie between 0 and {columns - 1}, as the logits do")
