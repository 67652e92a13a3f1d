"""What all checks do: compare, name the mistake, say that it passed."""

import torch
from torch import Tensor


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
