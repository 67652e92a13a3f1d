"""What all checks do: draw data, call the answer, compare, name the mistake, say that it passed.

@exercise("twice its input")
def check_double(draw):
    x = draw.normal(draw.size(4))
    return (x,), 2 * x, {"that is the square": x**2}
"""

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
Mistakes: TypeAlias = dict[str, Tensor | Callable[[object], bool]]  # wrong results, by message
NOTHING = "your function returns nothing: end it with `return`"
Answer = TypeVar("Answer", bound=Callable)
_accepted: "weakref.WeakSet[Callable]" = weakref.WeakSet()


class Draw:
    """The data of one check: of the visible sizes for seed 0, of larger ones for any other seed."""

    def __init__(self, seed: int) -> None:
        self.visible = seed == 0
        self._generator = torch.Generator().manual_seed(seed)

    def size(self, visible: int) -> int:
        """The visible size for seed 0, else one that is larger by one, two or three."""
        return visible if self.visible else visible + int(self.integers(1, 3))

    def number(self, visible: float, low: float, high: float) -> float:
        """The visible number for seed 0, else one between `low` and `high`."""
        return visible if self.visible else float(self.uniform(low, high))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=self._generator)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Whole numbers from `low` to `high`, both included."""
        return torch.randint(low, high + 1, shape, generator=self._generator)

    def order(self, n: int) -> Tensor:
        """The numbers below `n` in a random order."""
        return torch.randperm(n, generator=self._generator)

    def answers(self, answer: Callable, questions: Sequence[tuple]) -> list:
        """The answers to these questions, each something; hidden ones come in another order."""
        order = range(len(questions)) if self.visible else self.order(len(questions)).tolist()
        found = {place: answer(*questions[place]) for place in order}
        require(all(x is not None for x in found.values()), NOTHING)
        return [found[place] for place in range(len(questions))]

    def shuffled(self, *parts: Tensor) -> Tensor:
        """The parts one after the other, and then in a random order."""
        joined = torch.cat(parts)
        return joined[self.order(len(joined))]

    def two_places(self, pairs: int, keys: int) -> tuple[Tensor, Tensor]:
        """Two different places per pair: the earlier one comes first in every other pair only. No
        two pairs have the same earlier place; there must be more keys than pairs.
        """
        earlier = self.order(keys - 1)[:pairs]
        later = earlier + 1 + (self.uniform(0, 1, pairs) * (keys - 1 - earlier)).long()
        swap = torch.arange(pairs) % 2 == 1
        return torch.where(swap, later, earlier), torch.where(swap, earlier, later)


def exercise(praise: str, name: str | None = None, *, either_sign: bool = False) -> Callable:
    """A check out of a function that draws one question and knows the likely wrong results.

    It returns the arguments, the right answer (a tensor, or the parts of a direction), the mistakes
    by message and, if `praise` has gaps, what to put there. Messages call the answer `name`, or
    else what follows `check_`. `either_sign`: the right answer's negative is as good.
    """

    def decorate(question: Callable[[Draw], tuple]) -> Callable:
        what = name or question.__name__.removeprefix("check_")

        @functools.wraps(question, assigned=("__module__", "__name__", "__qualname__", "__doc__"))
        def check(answer: Callable, *, seed: int = 0) -> None:
            arguments, right, mistakes, *shown = question(Draw(seed))
            compare = compare_parts if isinstance(right, tuple) else name_mistake
            found = call(what, answer, *arguments)
            right = -right if either_sign and close(found, -right) else right
            compare(found, right, mistakes, what)
            passed(f"{what}: {praise.format(*shown)}", answer)

        del check.__wrapped__  # the signature of the check is its own
        return check

    return decorate


def call(name: str, answer: Callable, *arguments: Tensor) -> object:
    """What the answer returns for copies of the arguments, which it must not change."""
    copies = [argument.clone() for argument in arguments]
    found = answer(*copies)
    unchanged = all(map(torch.equal, copies, arguments))
    require(unchanged, f"{name} changes one of its inputs in place: make a new tensor")
    return found


def unit(x: Tensor) -> Tensor:
    """Each vector `[... d]` at length 1."""
    return x / x.norm(dim=-1, keepdim=True)


def passed(what: str, answer: object = None) -> None:
    """Say so, and remember a function that later cells may use, see `accepted`."""
    print(f"PASS  {what}")
    if callable(answer):
        _accepted.add(answer)


def accepted(answer: Answer, otherwise: Answer) -> Answer:
    """For the cells after an exercise: the answer if it passed its check, or else the package's."""
    if answer in _accepted:
        return answer
    print(f"Not checked yet, or not right: what follows uses {otherwise.__name__} of the package.")
    return otherwise


def require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def close(found: object, expected: Tensor) -> bool:
    """Equal up to rounding, with anything that is not a tensor of that shape counted as unequal."""
    require(found is not None, NOTHING)
    tensor = _tensor(found)
    if tensor is None or tensor.shape != expected.shape:
        return False
    return torch.allclose(tensor.to(expected.dtype), expected, rtol=1e-4, atol=1e-5)


def _tensor(found: object) -> Tensor | None:
    try:
        return torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError):
        return None


def _kind(found: object) -> str:
    """One number, a tensor of which shape, or what else it is."""
    if (tensor := _tensor(found)) is None:
        return f"a {type(found).__name__}"
    return f"a tensor of shape {tuple(tensor.shape)}" if tensor.ndim else "one number"


def name_mistake(found: object, expected: Tensor, mistakes: Mistakes, what: str) -> None:
    """Pass a right answer; otherwise raise the first listed mistake that gives this result."""
    if not close(found, expected):
        for message, wrong in mistakes.items():
            made = wrong(found) if callable(wrong) else close(found, wrong)
            require(not made, f"{what}: {message}")
        right, wrong = _kind(expected), _kind(found)
        shown = (expected.tolist(), found) if right == wrong else (right, wrong)
        raise AssertionError("{}: expected {}, got {}".format(what, *shown))


def compare_parts(found: object, right: tuple, mistakes: Mistakes, what: str) -> None:
    """Pass the two parts of a direction, `(row, null)`; `mistakes` are further ones of the row."""
    pair = isinstance(found, tuple | list | Tensor) and len(found) == 2
    require(pair, f"{what} returns a pair: (row, null)")
    row, null = right
    rescaled = "the {} part is rescaled to length 1: leave it as it is"
    general = {"row and null are swapped": null, rescaled.format("row"): unit(row)}
    name_mistake(found[0], row, general | mistakes, "row part")
    name_mistake(found[1], null, {rescaled.format("null"): unit(null)}, "null part")
