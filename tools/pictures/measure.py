"""Which layers of a painter read the text: what is injected, and what is then read."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from helpers.patching import metrics
from helpers.pictures import Injection, Painter, Sign, agreement, load_reader, noise, sample
from helpers.pictures.drawing import Pictures
from helpers.pictures.painter import STEPS, Text

EARLY = 0.999  # the time of a single call: next to nothing but noise


class Task(NamedTuple):
    """A painter, what base and source ask for, and the noise that both start from."""

    painter: Painter
    base: Sequence[Sign]
    source: Sequence[Sign]
    noise: Pictures

    @classmethod
    def of(cls, painter: Painter, pairs: tuple[list[Sign], list[Sign]], seed: int = 0) -> "Task":
        """With noise of its own for each pair."""
        return cls(painter, *pairs, noise(len(pairs[0]), seed=seed))

    def text(self, signs: Sequence[Sign]) -> Text:
        """What the text encoder makes of their prompts."""
        with torch.no_grad():
            return self.painter.encode([sign.prompt for sign in signs])

    def paint(
        self,
        layers: Iterable[int],
        source: Sequence[Sign] | None = None,
        when: Iterable[int] | None = None,
        heads: Iterable[int] | None = None,
    ) -> Pictures:
        """The base's run with the source's text (or another's) in these layers, steps, heads."""
        layers = list(layers)
        other = self.text(self.source if source is None else source)
        injection = Injection(other, self.painter.where(layers, heads)) if layers else None
        return sample(
            self.painter, self.text(self.base), self.noise, injection=injection, when=when
        )

    def told(self, pictures: Pictures, plain: Pictures) -> dict[str, list[float]]:
        """What is read: as the source asks, as the base does, and how far from the plain run."""
        seen, rows = load_reader().read(pictures), {}
        for whose, signs in (("source", self.source), ("base", self.base)):
            for name, values in agreement(seen, signs).items():
                rows[f"{name} of {whose}"] = list(metrics.mean(values))
        rows["distance"] = list(metrics.mean((pictures - plain).square().mean((1, 2, 3))))
        return rows


def sweep(task: Task) -> dict[str, dict]:
    """No layer, each alone, all but each, all."""
    every = range(len(task.painter.blocks))
    plain = task.paint([])
    sets = {"none": [], "all": list(every)}
    sets |= {f"only {n}": [n] for n in every}
    sets |= {f"all but {n}": [m for m in every if m != n] for n in every}
    return {name: task.told(task.paint(layers), plain) for name, layers in sets.items()}


def best_layer(task: Task) -> int:
    """The layer that alone makes most letters follow the source."""
    found = sweep(task)
    every = range(len(task.painter.blocks))
    return max(every, key=lambda n: found[f"only {n}"]["letters of source"][0])


def controls(task: Task, best: int) -> dict[str, dict]:
    """Text and style apart, pairs of other layers, and the heads of the best layer."""
    every = range(len(task.painter.blocks))
    rest, plain = [n for n in every if n != best], task.paint([])
    pairs = list(zip(task.base, task.source, strict=True))
    parts = {
        "same text, other style": [b._replace(color=s.color, thing=s.thing) for b, s in pairs],
        "same style, other text": [b._replace(word=s.word) for b, s in pairs],
    }
    found = {}
    for name, source in parts.items():
        for where, layers in {"best": [best], "others": rest, "all": list(every)}.items():
            found[f"{name}, {where}"] = task.told(task.paint(layers, source), plain)
    found |= {
        f"{one} and {two}": task.told(task.paint([one, two]), plain)
        for one in rest for two in rest if one < two
    }  # fmt: skip
    for head in range(task.painter.heads):
        found[f"head {head}"] = task.told(task.paint([best], heads=[head]), plain)
    return found


def windows(task: Task, best: int) -> dict[str, dict]:
    """The best layer's injection from a step on, and up to it."""
    plain = task.paint([])
    cuts = range(2, STEPS, 2)
    found = {f"from {n}": task.told(task.paint([best], when=range(n, STEPS)), plain) for n in cuts}
    return found | {
        f"before {n}": task.told(task.paint([best], when=range(n)), plain) for n in cuts
    }


# ------------------------------------------------------------------------- a single call


def sites(painter: Painter) -> dict[str, list[nn.Module]]:
    """Modules whose outputs can be patched, by what they are."""
    blocks = list(painter.blocks)
    return {
        "cross-attention": [block.cross for block in blocks],
        "MLP": [block.mlp for block in blocks],
        "stream": blocks,
    }


@contextmanager
def replaced(modules: Mapping[nn.Module, Tensor]) -> Iterator[None]:
    """While it holds, these modules put out what they are given."""
    hooks = [
        module.register_forward_hook(lambda *_, value=value: value)
        for module, value in modules.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def outputs(painter: Painter, modules: Sequence[nn.Module], *call: object) -> list[Tensor]:
    """What the modules put out in one call."""
    kept: dict[nn.Module, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda m, _, value: kept.__setitem__(m, value))
        for module in modules
    ]
    try:
        painter(*call)
    finally:
        for hook in hooks:
            hook.remove()
    return [kept[module] for module in modules]


def share(new: Pictures, old: Pictures, other: Pictures) -> Float[Tensor, ""]:
    """How much of the change from old to other there is in new, along that change."""
    change = other - old
    return ((new - old) * change).sum() / change.square().sum()


@torch.no_grad()
def carrying(task: Task) -> dict[str, list[float]]:
    """The share of one call's change that each output carries, layer by layer."""
    painter, base, source = task.painter, task.text(task.base), task.text(task.source)
    old, other = (painter(task.noise, EARLY, text) for text in (base, source))
    every = range(len(painter.blocks))
    mask = {n: Injection(source, painter.where([n])) for n in every}
    found = {
        "keys and values": [
            share(painter(task.noise, EARLY, base, mask[n]), old, other).item() for n in every
        ]
    }
    for name, modules in sites(painter).items():
        kept, found[name] = outputs(painter, modules, task.noise, EARLY, source), []
        for module, value in zip(modules, kept, strict=True):
            with replaced({module: value}):
                new = painter(task.noise, EARLY, base)
            found[name].append(share(new, old, other).item())
    return found
