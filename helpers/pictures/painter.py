"""A small painter: a diffusion transformer that takes text in by cross-attention, and only so.

    x_t = (1 - t) picture + t noise        what it is shown, from noise (t = 1) to the picture
    painter(x_t, t, text)                  the picture that it expects behind it

A block is self-attention between strips of the picture, cross-attention to the prompt, and an MLP.
Time enters by scales and shifts (adaLN-single, as in PixArt), text nowhere but in the
cross-attention's keys and values. `Injection` puts those of another prompt there.
"""

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention

from helpers.models import require
from helpers.output import files
from helpers.pictures.drawing import HEIGHT, IDS, MOST_TOKENS, VOCABULARY, WIDTH, Pictures, tokenize

PAINTERS = files.ROOT / "data" / "painters"
STRIP = 4  # pixels: a strip has the picture's whole height
STEPS, SHIFT = 12, 2.0  # of sampling; above 1: more of the steps at much noise
TIME, FASTEST, TEXT_WIDTH, TEXT_LAYERS = 64, 20.0, 64, 2
PARTS = 6  # scale, shift and gate of self-attention and of the MLP


class Text(NamedTuple):
    """What the text encoder makes of prompts, and which tokens are words."""

    states: Float[Tensor, "prompts tokens text"]
    real: Bool[Tensor, "prompts tokens"]


@dataclass(frozen=True)
class Injection:
    """The keys and values of another prompt, for the layers, heads and tokens that are chosen.

    A source of one prompt serves all pictures, else there is one for each.
    """

    source: Text
    where: Bool[Tensor, "layers heads tokens"]


class Cross(nn.Module):
    """Cross-attention: strips ask, the prompt answers."""

    def __init__(self, width: int, heads: int, blind: bool) -> None:
        super().__init__()
        self.heads, self.blind = heads, blind
        self.queries, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.keys, self.values = (nn.Linear(TEXT_WIDTH, width) for _ in range(2))

    def forward(
        self,
        x: Float[Tensor, "pictures strips d"],
        text: Text,
        source: Text | None = None,
        where: Bool[Tensor, "heads tokens"] | None = None,
    ) -> Float[Tensor, "pictures strips d"]:
        """What the strips take from the prompt: nothing in a blind layer."""
        if self.blind:
            return torch.zeros_like(x)
        q, k, v = _split(
            self.heads, self.queries(x), self.keys(text.states), self.values(text.states)
        )
        real = text.real[:, None].expand(-1, self.heads, -1)
        if where is not None and where.any():
            other = _split(self.heads, self.keys(source.states), self.values(source.states))
            k, v = (
                torch.where(where[..., None], new, old)
                for new, old in zip(other, (k, v), strict=True)
            )
            real = torch.where(where, source.real[:, None], real)
        return self.out(_join(scaled_dot_product_attention(q, k, v, real[:, :, None])))


class Block(nn.Module):
    """Self-attention, cross-attention, MLP; each adds what it finds."""

    def __init__(self, width: int, heads: int, blind: bool) -> None:
        super().__init__()
        self.heads = heads
        self.attend, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.cross = Cross(width, heads, blind)
        self.mlp = nn.Sequential(
            nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width)
        )
        gates = torch.tensor([0.0, 0, 1, 0, 0, 1])  # open from the start
        self.time = nn.Parameter(gates[:, None].repeat(1, width))

    def forward(
        self,
        x: Float[Tensor, "pictures strips d"],
        time: Float[Tensor, "pictures parts d"],
        *text: object,
    ) -> Float[Tensor, "pictures strips d"]:
        """The strips after this block; `text` is what `Cross` takes."""
        scale, shift, gate, mlp_scale, mlp_shift, mlp_gate = (
            (time + self.time).unsqueeze(2).unbind(1)
        )
        q, k, v = _split(self.heads, *self.attend(_norm(x) * (1 + scale) + shift).chunk(3, -1))
        x = x + gate * self.mix(_join(scaled_dot_product_attention(q, k, v)))
        x = x + self.cross(_norm(x), *text)
        return x + mlp_gate * self.mlp(_norm(x) * (1 + mlp_scale) + mlp_shift)


class Painter(nn.Module):
    """The whole: text encoder, blocks, and the strips that come out."""

    def __init__(
        self, layers: int = 6, width: int = 96, heads: int = 4, blind: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.width, self.heads, self.strips = width, heads, WIDTH // STRIP
        self.words = nn.Embedding(len(VOCABULARY), TEXT_WIDTH)
        self.places = nn.Parameter(torch.randn(2 * MOST_TOKENS, TEXT_WIDTH))
        layer = nn.TransformerEncoderLayer(
            TEXT_WIDTH, 4, 3 * TEXT_WIDTH, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, TEXT_LAYERS, nn.LayerNorm(TEXT_WIDTH), enable_nested_tensor=False
        )
        pixels = 3 * HEIGHT * STRIP
        self.into, self.out = nn.Linear(pixels, width), nn.Linear(width, pixels)
        self.position = nn.Parameter(torch.randn(self.strips, width))  # smaller: letters mix
        self.clock = nn.Sequential(
            nn.Linear(TIME, width), nn.SiLU(), nn.Linear(width, PARTS * width)
        )
        self.blocks = nn.ModuleList(Block(width, heads, n in blind) for n in range(layers))

    def encode(self, prompts: Sequence[str]) -> Text:
        """The prompts as the blocks read them. Errors are those of `tokenize`."""
        tokens = tokenize(prompts)
        x = self.words(tokens.ids) + self.places[_from_quote(tokens.ids)]
        return Text(self.encoder(x, src_key_padding_mask=~tokens.real), tokens.real)

    def forward(
        self,
        noisy: Pictures,
        t: float | Float[Tensor, "pictures"],
        text: Text,
        injection: Injection | None = None,
    ) -> Pictures:
        """The pictures that are expected behind noisy ones, at a time from 0 to 1."""
        t = torch.as_tensor(t, dtype=noisy.dtype).expand(len(noisy))
        time = self.clock(_waves(t)).reshape(-1, PARTS, self.width)
        x = self.into(_strips(noisy)) + self.position
        for n, block in enumerate(self.blocks):
            other = () if injection is None else (injection.source, injection.where[n])
            x = block(x, time, text, *other)
        return _picture(self.out(_norm(x)))

    def where(
        self,
        layers: Iterable[int] | None = None,
        heads: Iterable[int] | None = None,
        tokens: Iterable[int] | None = None,
    ) -> Bool[Tensor, "layers heads tokens"]:
        """The mask of an injection; what is not named is all. Raises ValueError: no such layer."""
        layer = _chosen("layers", layers, len(self.blocks))
        head = _chosen("heads", heads, self.heads)
        return layer[:, None, None] & head[:, None] & _chosen("tokens", tokens, MOST_TOKENS)


@torch.no_grad()
def sample(
    painter: Painter,
    text: Text,
    noise: Pictures,
    *,
    injection: Injection | None = None,
    when: Iterable[int] | None = None,
    steps: int = STEPS,
) -> Pictures:
    """Pictures out of noise, by Euler steps along the straight path to what is expected.

    An injection holds in the steps `when`, counted from the first, at most noise; by default in
    all. Raises ValueError: no step, or `when` beyond them.
    """
    even = torch.linspace(1, 0, require.whole("steps", steps, least=1) + 1)
    times = (SHIFT * even / (1 + (SHIFT - 1) * even)).tolist()
    now = _chosen("steps", when, steps)
    x = noise
    for n, (t, after) in enumerate(itertools.pairwise(times)):
        picture = painter(x, t, text, injection if now[n] else None)
        x = picture + after / t * (x - picture)
    return x


def noise(n: int, *, seed: int = 0) -> Pictures:
    """What sampling starts from, the same for a base and its source."""
    generator = torch.Generator().manual_seed(require.whole("seed", seed, least=0))
    size = (require.whole("n", n, least=1), 3, HEIGHT, WIDTH)
    return torch.randn(size, generator=generator)


def load_painter(name: str = "seed0", folder: Path = PAINTERS) -> Painter:
    """A painter that we trained (`python -m tools.pictures`), frozen; a ValueError if unknown."""
    file = folder / f"{name}.safetensors"
    if not file.exists():
        known = sorted({path.stem for path in folder.glob("*.safetensors")} - {"reader"})
        raise ValueError(f"no painter {name!r}: there are {known}")
    shape = json.loads((folder / "training.json").read_text("utf-8"))[name]["shape"]
    painter = Painter(**shape)
    painter.load_state_dict({key: value.float() for key, value in load_file(file).items()})
    return painter.eval().requires_grad_(False)


def _chosen(name: str, chosen: Iterable[int] | None, size: int) -> Bool[Tensor, "size"]:
    """Which of so many are chosen; all of them if none are named."""
    chosen = list(range(size) if chosen is None else chosen)
    if not all(0 <= require.whole(name, n) < size for n in chosen):
        raise ValueError(f"{name} are counted from 0 to {size - 1}, not {chosen}")
    mask = torch.zeros(size, dtype=torch.bool)
    mask[chosen] = True
    return mask


def _from_quote(ids: Int[Tensor, "prompts tokens"]) -> Int[Tensor, "prompts tokens"]:
    """Places counted from the opening quote, so that a letter's is the same in every wording."""
    opening = (ids == IDS['"']).int().argmax(1, keepdim=True)
    return torch.arange(MOST_TOKENS) - opening + MOST_TOKENS


def _norm(x: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:])


def _split(heads: int, *parts: Tensor) -> list[Tensor]:
    return [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts]


def _join(z: Tensor) -> Tensor:
    return z.transpose(1, 2).flatten(2)


def _strips(pictures: Pictures) -> Float[Tensor, "pictures strips pixels"]:
    return pictures.unflatten(3, (-1, STRIP)).permute(0, 3, 1, 2, 4).flatten(2)


def _picture(strips: Float[Tensor, "pictures strips pixels"]) -> Pictures:
    return strips.unflatten(2, (3, HEIGHT, STRIP)).permute(0, 2, 3, 1, 4).flatten(3)


def _waves(t: Float[Tensor, "pictures"]) -> Float[Tensor, "pictures waves"]:
    """Sines and cosines of the time, at rates from 1 to `FASTEST`."""
    angles = t[:, None] * FASTEST ** torch.linspace(0, 1, TIME // 2)
    return torch.cat([angles.sin(), angles.cos()], 1)
