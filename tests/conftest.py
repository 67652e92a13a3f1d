"""Small random models with a real tokenizer, built offline in well under a second each.

Fixtures: `tiny_model` (a factory), `any_model` (runs a test once per architecture) and `smollm`
(the packaged model). The whole session shares them: a test that changes weights or leaves hooks
behind makes its own, with `from conftest import build_tiny_model`.
"""

import helpers  # noqa: F401 - before torch: it says how the threads of torch wait

# isort: split
import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformer_lens import TransformerBridge

from helpers.models.load import load_model, process_weights
from tools import schedule

# Without a deadline: a busy machine takes its time over an example, and that is no failure.
settings.register_profile("short", deadline=None, max_examples=60)
settings.register_profile("long", deadline=None, max_examples=500)  # `make test-long`
settings.load_profile("short")

# Files that take half a minute and more, in seconds: where several processes share the tests, these
# start first, so that none has to wait for one of them in the end.
SECONDS = {"test_architectures.py": 60, "test_families.py": 30}

# One token each, with and without a leading space. Extend freely: the models read its length.
NAMES = "Mary John Tom James Dan Sarah Emma Anna Paul Mark Kate Laura Jack Alice Peter Lucy".split()
OBJECTS = "book drink ring ball letter key gift apple camera map coin flower".split()
PLACES = "store park school garden office house station museum library beach".split()
FACTS = "Paris France Rome Italy Madrid Spain Berlin Germany Tokyo Japan Europe Asia".split()
OTHER = (
    "Then When While After and or went to the a an gave give handed passed of in at on is was are "
    "for friends had lot fun working decided it said that The capital country city language people "
    "speak located called one two three next day afternoon together with some from by her him . , "
    ": ; ? ! ' -"
).split()
WORDS = tuple(dict.fromkeys(NAMES + OBJECTS + PLACES + FACTS + OTHER))

SPECIAL = ("<unk>", "<|endoftext|>", "<bos>")
SIZE = {"hidden_size": 48, "num_attention_heads": 4, "max_position_embeddings": 64}
# Far larger than in training, so that one patched activation visibly moves the logits.
INITIALIZER_RANGE = 0.3

# Threads cost such small models far more than they bring, above all beside another busy process.
torch.set_num_threads(1)

# TransformerLens reads the tokenizer folder again while it wraps a model, so the folders stay.
_folder = tempfile.TemporaryDirectory(prefix="tiny-tokenizers-")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a process that shares the tests with others: whole files, the longest first."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: -seconds(item.path))


def seconds(path: Path) -> int:
    """About how long the tests in a file take, or the cells of a lesson."""
    if path.suffix == ".ipynb":
        return schedule.SECONDS.get(path.name[:2], schedule.UNKNOWN)
    return SECONDS.get(path.name, 0)


@functools.cache
def build_tokenizer(
    words: Sequence[str] = WORDS, bos: bool = True
) -> transformers.PreTrainedTokenizerBase:
    """A word-level tokenizer that treats spaces as GPT-2 does: " Mary" and "Mary" are two tokens.

    With `bos` it puts `<bos>` before every text, as Llama's does. Without, it has no such token and
    adds nothing, as Qwen's does.
    """
    pieces = [*SPECIAL, *words, *(f"Ġ{word}" for word in words)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"unk_token": "<unk>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    if bos:
        special["bos_token"] = "<bos>"
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
        )
    folder = tempfile.mkdtemp(dir=_folder.name)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(
        folder
    )
    return transformers.AutoTokenizer.from_pretrained(folder)


def gpt2_config(**common) -> transformers.PretrainedConfig:
    """LayerNorm, learned positions, biases everywhere, tied embeddings."""
    return transformers.GPT2Config(**{"num_hidden_layers": 4, **SIZE, **common})


def neox_config(**common) -> transformers.PretrainedConfig:
    """LayerNorm, rotary positions, attention and MLP in parallel."""
    own = {"num_hidden_layers": 3, "intermediate_size": 160, "rotary_pct": 0.5}
    return transformers.GPTNeoXConfig(**{**SIZE, **own, **common})


def llama_config(**common) -> transformers.PretrainedConfig:
    """RMSNorm, rotary positions, gated MLP, two query heads per key-value head."""
    own = {"num_hidden_layers": 3, "intermediate_size": 96, "num_key_value_heads": 2}
    return transformers.LlamaConfig(**{**SIZE, **own, **common})


def qwen2_config(**common) -> transformers.PretrainedConfig:
    """As Llama, with biases on queries, keys and values, tied embeddings, one key-value head."""
    own = {"num_hidden_layers": 3, "intermediate_size": 96, "num_key_value_heads": 1}
    return transformers.Qwen2Config(**{**SIZE, **own, "tie_word_embeddings": True, **common})


def gemma3_config(**common) -> transformers.PretrainedConfig:
    """Norms also after each sublayer, scaled embeddings, attention windows of 6 tokens."""
    sliding, full = "sliding_attention", "full_attention"
    own = {"intermediate_size": 96, "num_key_value_heads": 2, "head_dim": 12}
    own |= {"query_pre_attn_scalar": 12, "sliding_window": 6, "num_hidden_layers": 4}
    config = {**SIZE, **own, **common}
    pattern = [sliding, sliding, full] * config["num_hidden_layers"]
    config["layer_types"] = pattern[: config["num_hidden_layers"]]
    return transformers.Gemma3TextConfig(**config)


ARCHITECTURES = {
    "gpt2": (transformers.GPT2LMHeadModel, gpt2_config),
    "gpt_neox": (transformers.GPTNeoXForCausalLM, neox_config),
    "llama": (transformers.LlamaForCausalLM, llama_config),
    "qwen2": (transformers.Qwen2ForCausalLM, qwen2_config),
    "gemma3": (transformers.Gemma3ForCausalLM, gemma3_config),
}


def build_hf_model(
    architecture: str, vocab_size: int, seed: int = 0, **settings
) -> torch.nn.Module:
    """A random transformers model in eval mode; norms and biases are random as well.

    `settings` replace those of the architecture's configuration.
    """
    model_class, make_config = ARCHITECTURES[architecture]
    common = dict(
        vocab_size=vocab_size,
        architectures=[model_class.__name__],  # TransformerLens chooses its adapter by this
        initializer_range=INITIALIZER_RANGE,
        bos_token_id=SPECIAL.index("<bos>"),
        eos_token_id=SPECIAL.index("<|endoftext|>"),
        pad_token_id=SPECIAL.index("<|endoftext|>"),
    )
    config = make_config(**common | settings)
    with torch.random.fork_rng():  # the caller's random numbers stay as they were
        torch.manual_seed(seed)
        model = model_class(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def build_tiny_model(
    architecture: str,
    *,
    bos: bool = True,
    words: Sequence[str] = WORDS,
    seed: int = 0,
    processed: bool = True,
) -> TransformerBridge:
    """A new tiny model in the state `load_model` promises: float32, eval mode, weights frozen.

    Args:
        architecture: One of `ARCHITECTURES`.
        bos: Whether the tokenizer puts `<bos>` before every text.
        words: The vocabulary, as plain words.
        seed: Seed of the random weights.
        processed: Whether the weights are processed as `load_model` does.
    """
    tokenizer = build_tokenizer(tuple(words), bos)
    hf_model = build_hf_model(architecture, len(tokenizer), seed)
    model = TransformerBridge.boot_transformers(
        f"tiny-{architecture}", hf_model=hf_model, tokenizer=tokenizer, device="cpu"
    )
    if processed:
        process_weights(model)
    return model.eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def usual_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes that lessons are tested with are no matter of these tests."""
    monkeypatch.delenv("SUBSPACE_ILLUSION_SIZES", raising=False)


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., TransformerBridge]:
    """`tiny_model(architecture, bos=True, ...)`: one shared model per set of arguments."""
    return functools.cache(build_tiny_model)


@pytest.fixture(scope="session", params=ARCHITECTURES)
def any_model(request, tiny_model) -> TransformerBridge:
    """Each tiny architecture in turn."""
    return tiny_model(request.param)


@pytest.fixture(scope="session")
def smollm() -> TransformerBridge:
    """The packaged model, from the user's cache; the first run downloads and converts it."""
    return load_model("smollm2-135m", device="cpu")
