"""Sites by the names that people have: ours, TransformerLens's, Hugging Face's.

parse_site("mlp_hidden.21"), parse_site("blocks.21.hook_resid_post"), parse_site("model.layers.21")
"""

import difflib
import re

from helpers.audit.diagnostics import ONLY_READ
from helpers.patching import Site
from helpers.patching.sites import HOOKS, OF_ONE_HEAD

# TransformerLens 4 has these names besides those of `HOOKS`.
ALIASES = {
    "hook_in": "resid_pre",
    "hook_out": "resid_post",
    "ln2.hook_in": "resid_mid",
    "attn.hook_out": "attn_out",
    "mlp.hook_out": "mlp_out",
    "mlp.out.hook_in": "mlp_hidden",
    "attn.o.hook_in": "head_output",
}
# What a module of `transformers` hands on, by the end of its name; and modules whose input is meant
# as often as their output, so that neither may be guessed.
MODULES = {
    "": "resid_post",
    "mlp": "mlp_out",
    "self_attn": "attn_out",
    "attn": "attn_out",
    "attention": "attn_out",
    "self_attention": "attn_out",
}
EITHER = {
    r"mlp\.(down_proj|c_proj|dense_4h_to_h|fc2|fc_out|w2)": ("mlp_hidden.{0}", "mlp_out.{0}"),
    r"\w*att\w*\.(o_proj|c_proj|dense|out_proj)": ("head_output.{0}.HEAD", "attn_out.{0}"),
    r"(input_layernorm|ln_1)": ("resid_pre.{0}", "none of ours: it is read, not written"),
    r"(post_attention_layernorm|ln_2)": ("resid_mid.{0}", "mlp_in.{0}"),
}
BLOCK = r"(?:\w+\.)*(?:layers|h|blocks)\.([0-9]{1,9})(?:\.(.+))?"


def parse_site(text: str) -> Site:
    """The site that a name means; `.HEAD` ends the name of a head's.

    Raises ValueError: no such name, with what was probably meant, or one that means two things.
    """
    text = text.strip()
    if (block := re.fullmatch(r"blocks\.([0-9]{1,9})\.(.+)", text)) and "hook_" in text:
        return _by_hook(text, *block.groups())
    if block := re.fullmatch(BLOCK, text):
        return _by_module(text, *block.groups())
    kind, *numbers = text.split(".")
    if kind not in HOOKS:
        kinds = [name for name in HOOKS if name not in ONLY_READ]
        close = difflib.get_close_matches(kind, kinds, n=3, cutoff=0.4)
        meant = f"do you mean {' or '.join(close)}? Choose one" if close else "choose one"
        other = "or a name such as blocks.21.hook_resid_post or model.layers.21"
        raise ValueError(f"unknown kind of site {kind!r} in {text!r}: {meant} of {kinds}, {other}")
    return _made(kind, numbers, text)


def _by_hook(text: str, layer: str, hook: str) -> Site:
    """The site of a hook of TransformerLens, `blocks.23.attn.hook_z.1` with its head."""
    hook, head = re.fullmatch(r"(.*?)(?:\.([0-9]{1,9}))?", hook).groups()
    known = {name: kind for kind, name in HOOKS.items()} | ALIASES
    if hook not in known:
        close = difflib.get_close_matches(hook, known, n=3, cutoff=0)
        names = ", ".join(f"blocks.{layer}.{name}" for name in close)
        raise ValueError(f"{text!r} is no site of an audit: the nearest are {names}")
    return _made(known[hook], [layer, *([head] if head else [])], text)


def _by_module(text: str, layer: str, module: str | None) -> Site:
    """The site that a module of `transformers` hands on."""
    for pattern, (one, other) in EITHER.items():
        if re.fullmatch(pattern, module or ""):
            either = f"{one.format(layer)} is its input, {other.format(layer)} its output"
            raise ValueError(f"{text!r} may mean two things: {either}. Choose one")
    if (module or "") not in MODULES:
        names = ", ".join(f"{kind}.{layer}" for kind in HOOKS if kind not in OF_ONE_HEAD)
        raise ValueError(f"{text!r} is no site of an audit: choose one of {names}")
    return _made(MODULES[module or ""], [layer], text)


def _made(kind: str, numbers: list[str], text: str) -> Site:
    of_head = kind in OF_ONE_HEAD
    whole = all(re.fullmatch("[0-9]{1,9}", number) for number in numbers)
    if not whole or len(numbers) != 1 + of_head:
        wanted = f"{kind}.LAYER.HEAD" if of_head else f"{kind}.LAYER"
        raise ValueError(f"{text!r:.80} must have the form {wanted}, with numbers from 0")
    layer, head = (*map(int, numbers), None)[:2]
    return Site(layer, kind, head=head)
