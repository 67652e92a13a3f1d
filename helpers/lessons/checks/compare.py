"""What all checks do: draw data, call the answer, compare, name the mistake, say that it passed."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()


class Draw:
    """The data of one check: of the visible sizes for seed 0, of other sizes for any other seed.

    Hidden sizes are larger than the visible ones, so that no slice of the visible size fits them.
    """

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
        """The answers to these questions, in their order.

        Hidden ones are asked in another order, so that it is of no use to count the calls.
        """
        order = range(len(questions)) if self.visible else self.order(len(questions)).tolist()
        found = {place: answer(*questions[place]) for place in order}
        return [found[place] for place in range(len(questions))]

    def shuffled(self, *parts: Tensor) -> Tensor:
        """The parts one after the other, and then in a random order."""
        joined = torch.cat(parts)
        return joined[self.order(len(joined))]

    def two_places(self, pairs: int, keys: int) -> tuple[Tensor, Tensor]:
        """Two different places per pair: the earlier one comes first in every other pair only.

        No two pairs have the same earlier place; there must be more keys than pairs.
        """
        earlier = self.order(keys - 1)[:pairs]
        later = earlier + 1 + (self.uniform(0, 1, pairs) * (keys - 1 - earlier)).long()
        swap = torch.arange(pairs) % 2 == 1
        return torch.where(swap, later, earlier), torch.where(swap, earlier, later)


def call(name: str, answer: Callable, *arguments: Tensor) -> object:
    """What the answer returns for copies of the arguments.

    Raises:
        AssertionError: The answer changed one of them.
    """
    copies = [argument.clone() for argument in arguments]
    found = answer(*copies)
    unchanged = all(map(torch.equal, copies, arguments))
    require(unchanged, f"{name} changes one of its inputs in place: make a new tensor")
    return found


def passed(name: str) -> None:
    print(f"PASS  {name}")


def require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def close(found: object, expected: Tensor, atol: float = 1e-5) -> bool:
    """Equal up to rounding, with anything that is not a tensor of that shape counted as unequal."""
    require(found is not None, "your function returns nothing: end it with `return`")
    if not isinstance(found, Tensor):
        found = torch.as_tensor(found)
    if found.shape != expected.shape:
        return False
    return torch.allclose(found.to(expected.dtype), expected, rtol=1e-4, atol=atol)


def name_mistake(found: Tensor, expected: Tensor, mistakes: dict[str, Tensor], what: str) -> None:
    """Passes a right answer; otherwise raises with the listed mistake that gives this result."""
    if close(found, expected):
        return
    for message, wrong in mistakes.items():
        require(not close(found, wrong), f"{what}: {message}")
    require(False, f"{what}: expected {expected.tolist()}, got {found}")
