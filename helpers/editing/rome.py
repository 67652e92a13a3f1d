"""ROME edits (Meng et al. 2022), many facts at once: where to write is given, what is searched.

A fact is a prompt with a subject, and a target: the token the model should say next. At one layer,
the input of the down projection at the last token of the subject is the *key* `k`. The edit should
add a *shift* to the MLP's output there, which is found by gradient descent, and disturb other
inputs as little as it can. All facts go side by side, and none influences another.

Deviations from the authors' code: prefixes are running text instead of the model's own samples,
fewer, and one stands before the subject whose continuation should stay; a search ends when the
target is likely, not when the whole loss is small, because the weight decay alone can keep it up.
The shift is written by way of the hidden activation, by the shortest change of it that does so, for
some architectures (Gemma) have a norm between the down projection and the hook of its output.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from helpers.editing.edits import PerFact, RankOneEdit, dot, down_projection, least_read
from helpers.editing.moments import SecondMoment
from helpers.models import Model, require
from helpers.patching import CachedPairs
from helpers.patching.sites import check_vocabulary
from helpers.tasks import Pairs, encode, passages

At: TypeAlias = tuple[Int[Tensor, "pos"], int]  # a prompt as tokens, and where its subject ends
PLAIN, PREFIXED, ESSENCE = "plain", "prefixed", "essence"  # the roles of prompts


@dataclass(frozen=True)
class RomeSettings:
    """How a shift is searched: by default more gently than ROME does it in GPT-2 XL.

    ROME takes 20 steps at a rate of 0.5 and ends at 95 %. Smaller steps find a shorter shift that
    does as much: see `python -m tools.evidence.rome --print`.
    """

    steps: int = 25  # how often the loss is computed, at most
    learning_rate: float = 0.25  # of Adam: numbers of the shift move by about as much per step
    kl_weight: float = 0.0625  # of the change of what follows the subject alone
    weight_decay: float = 0.5  # times |shift| / |output|^2, with the output at the plain prompt
    clamp: float = 4.0  # the shift may be at most this many times as long as that output
    stop_below: float = 0.1  # mean of -log p(target) at which a fact is done: 90 %

    def __post_init__(self) -> None:
        require.whole("steps", self.steps, least=1)
        for name in ("learning_rate", "clamp"):
            require.positive(name, getattr(self, name))
        for name in ("kl_weight", "weight_decay", "stop_below"):
            require.positive(name, getattr(self, name), zero=True)


@dataclass(frozen=True, eq=False)
class Shifts:
    """What the MLP's output should be moved by at the subject's last token; what it came to."""

    shift: Float[Tensor, "facts d_model"]
    loss: PerFact
    probability: PerFact
    steps: Int[Tensor, "facts"]


def rome_pairs(
    model: Model,
    templates: Sequence[str],
    subjects: Sequence[str],
    targets: Sequence[int],
    *,
    prefixes: int = 2,
    prefix_length: int = 8,
    seed: int = 0,
) -> Pairs:
    """The prompts a ROME edit looks at, to be run with `cache_pairs` or `cache_sites`.

    Per fact: the prompt as it is (`plain`), the prompt after each prefix (`prefixed`), and the
    subject alone after a prefix (`essence`). A prefix is a piece of running text and a line break,
    longer for some facts than for others, so that all subjects end at one place: only prompts of
    one shape are rerun together. For the same reason, choose facts whose plain prompts have few.

    Sources are the bases themselves: nothing is interchanged. Columns `fact` and `role` of the
    table say what each row is for; the target is the counterfactual, the answer any other token.

    For each fact there is a template, a prompt with `{}` or `{subject}` for its subject, and a
    target, the token it should be continued with. `prefix_length` counts the tokens of the shortest
    prefix.

    Raises ValueError: not one entry for each fact, a template without one place for the subject, a
    target that is no token, or what follows the subject changes its last token.
    """
    if not len(templates) == len(subjects) == len(targets) > 0:
        raise ValueError("one template, one subject and one target is needed for each fact")
    check_vocabulary(model, torch.tensor([require.whole("a target", x) for x in targets]))
    require.whole("prefixes", prefixes, least=0)
    require.whole("prefix_length", prefix_length, least=0)
    plain = [_at_subject(model, *words) for words in zip(templates, subjects, strict=True)]
    essence = [_at_subject(model, "{}", subject) for subject in subjects]
    longest = max(place for _, place in [*plain, *essence]) + prefix_length
    before = _prefixer(model, prefixes, longest, seed)
    rows = [(*at, fact, PLAIN) for fact, at in enumerate(plain)]
    for fact, at in enumerate(plain):
        rows += [(*before(number, at), fact, PREFIXED) for number in range(prefixes)]
    rows += [(*before(0, at), fact, ESSENCE) for fact, at in enumerate(essence)]
    tokens, places, facts, roles = zip(*rows, strict=True)
    target, place = torch.tensor([int(targets[fact]) for fact in facts]), torch.tensor(places)
    return Pairs(
        base_tokens=tokens, source_tokens=tokens,
        answer=(target + 1) % model.cfg.d_vocab, counterfactual=target,
        position=place, source_position=place,
        table=pd.DataFrame({"fact": facts, "role": roles}),
    )  # fmt: skip


def find_shifts(cached: CachedPairs, settings: RomeSettings | None = None) -> Shifts:
    """The shift of the MLP's output, per fact, that makes the model say the target.

    Gradient descent (Adam, from zero) on the mean over prompts of `-log p(target)`, plus
    `kl_weight` times `KL(after || before)` of what follows the subject alone, plus the weight
    decay. A fact is left as it is once the first part is below `stop_below`. A ValueError unless
    the pairs are of `rome_pairs`, cached at an `mlp_hidden` site.
    """
    settings = settings or RomeSettings()
    search = _Search(cached, settings)
    shift = torch.zeros(search.facts, search.weight.shape[1], device=cached.base.device)
    shift.requires_grad_()
    adam = torch.optim.Adam([shift], lr=settings.learning_rate)
    loss, nll = torch.zeros(2, search.facts, device=shift.device)
    steps = torch.zeros(search.facts, dtype=torch.long, device=shift.device)
    active = torch.ones(search.facts, dtype=torch.bool, device=shift.device)
    for step in range(settings.steps):
        new_loss, new_nll = search.losses(shift, active)
        with torch.no_grad():
            loss[active], nll[active] = new_loss[active], new_nll[active]
            steps += active
            active &= nll >= settings.stop_below
        if step + 1 == settings.steps or not active.any():
            break
        adam.zero_grad()
        new_loss[active].sum().backward()
        before = shift.detach().clone()
        adam.step()
        with torch.no_grad():
            limit = settings.clamp * search.scale / shift.norm(dim=-1)
            shift.copy_(torch.where(active[:, None], shift * limit.clamp(max=1)[:, None], before))
    return Shifts(shift.detach() @ search.lift @ search.weight, loss, (-nll).exp(), steps)


def rome_edit(
    cached: CachedPairs,
    second_moment: SecondMoment,
    settings: RomeSettings | None = None,
    *,
    shift: Float[Tensor, "facts d_model"] | None = None,
) -> RankOneEdit:
    """A ROME edit per fact, at the layer of `cached`; errors as for `find_shifts` and `least_read`.

    It reads along `C^-1 k`, with `k` the mean of the keys over prompts, scaled so that it reads 1
    at the plain prompt; there the edited MLP writes exactly what it wrote before plus the shift,
    which is searched unless it is given.
    """
    if shift is None:
        shift = find_shifts(cached, settings).shift
    role, fact = _columns(cached)
    plain = cached.base[role[PLAIN]]
    keys = torch.zeros_like(plain)
    use = role[PLAIN] | role[PREFIXED]
    keys.index_add_(0, fact[use], cached.base[use])
    read = least_read(keys, second_moment)  # the length of the key does not matter here
    return RankOneEdit(cached.site.layer, read / dot(read, plain), shift)


class _Search:
    """What the loss of a shift needs, computed once."""

    def __init__(self, cached: CachedPairs, settings: RomeSettings) -> None:
        if cached.site.kind != "mlp_hidden":
            raise ValueError(f"cache the prompts at an mlp_hidden site, not at {cached.site}")
        self.cached, self.settings = cached, settings
        self.role, self.fact = _columns(cached)
        self.facts = int(self.fact.max()) + 1
        self.target = cached.pairs.counterfactual.to(cached.base.device)
        self.weight = down_projection(cached.model, cached.site.layer)
        self.lift = torch.linalg.pinv(self.weight)
        bias = getattr(cached.model.blocks[cached.site.layer].mlp, "b_out", None)
        output = cached.base[self.role[PLAIN]] @ self.weight + (0 if bias is None else bias)
        self.scale = output.norm(dim=-1)
        essence = self.role[ESSENCE].nonzero()[:, 0]
        with torch.no_grad():
            before = cached.patched_logits(cached.base[essence], essence)
        self.before = torch.zeros(self.facts, before.shape[-1], device=before.device)
        self.before[self.fact[essence]] = before.log_softmax(-1)

    def losses(
        self, shift: Float[Tensor, "facts d_model"], active: Bool[Tensor, "facts"]
    ) -> tuple[PerFact, PerFact]:
        """The loss of each active fact (zero for others), and its part that is about the target."""
        rows = active[self.fact].nonzero()[:, 0]
        fact = self.fact[rows]
        hidden = self.cached.base[rows] + (shift @ self.lift)[fact]
        logp = self.cached.patched_logits(hidden, rows).log_softmax(-1)
        is_essence = self.role[ESSENCE][rows]
        surprise = -logp.gather(-1, self.target[rows][:, None])[:, 0]
        after = logp[is_essence]
        kl = (after.exp() * (after - self.before[fact[is_essence]])).sum(-1)
        asked = ~is_essence
        count = torch.bincount(fact[asked], minlength=self.facts).clamp(min=1)
        nll = shift.new_zeros(self.facts).index_add(0, fact[asked], surprise[asked]) / count
        drift = shift.new_zeros(self.facts).index_add(0, fact[is_essence], kl)
        written = shift @ self.lift @ self.weight  # centred weights cannot write all of a shift
        size = (written.square().sum(-1) + 1e-20).sqrt()  # the norm has no gradient at zero
        decay = size / self.scale.square()
        loss = nll + self.settings.kl_weight * drift + self.settings.weight_decay * decay
        return loss, nll


def _columns(cached: CachedPairs) -> tuple[dict[str, Tensor], Int[Tensor, "rows"]]:
    """Which rows have each role, and the fact of each row."""
    table, device = cached.pairs.table, cached.base.device
    if not {"fact", "role"} <= set(table):
        raise ValueError("these pairs were not made by rome_pairs")
    fact = torch.tensor(table["fact"].to_numpy(), device=device)
    names = (PLAIN, PREFIXED, ESSENCE)
    return {n: torch.tensor((table["role"] == n).to_numpy(), device=device) for n in names}, fact


def _prefixer(model: Model, n: int, longest: int, seed: int) -> Callable[[int, At], At]:
    """Puts running text before a prompt, so much that its subject ends at one place."""
    line_break = _ids(model, "\n")
    start = len(encode(model, "\n")) - len(line_break)  # BOS, or nothing
    texts = passages(model, n, length=longest + 2, seed=seed) if n else []

    def prefixed(number: int, at: At) -> At:
        if not len(texts):
            return at
        tokens, place = at
        prefix = texts[number, start : start + longest - place]
        pieces = [tokens[:start], prefix, line_break, tokens[start:]]
        return torch.cat(pieces), longest + len(line_break)

    return prefixed


def _at_subject(model: Model, template: str, subject: str) -> At:
    """The prompt as tokens, and the place of the subject's last one."""
    if not isinstance(subject, str) or not subject.strip():
        raise ValueError(f"a subject must be a text, not {subject!r}")
    parts = re.split(r"\{(?:subject)?\}", template)
    if len(parts) != 2:
        raise ValueError(f"a template needs one {{}} for the subject: {template!r}")
    tokens, tail = encode(model, parts[0] + subject + parts[1]), _ids(model, parts[1])
    end = len(tokens) - len(tail)
    if tokens[end:].tolist() != tail.tolist():
        raise ValueError(f"in {template!r} {subject!r} shares a token with what follows")
    return tokens, end - 1


def _ids(model: Model, text: str) -> Int[Tensor, "pos"]:
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.long)
