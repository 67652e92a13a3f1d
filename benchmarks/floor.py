"""The multiplications and additions that a work cannot do without, for a Llama-like model.

A patch at layer `l` of the last token changes only that token in the layers above; a training step
needs as much again for the gradient, since the weights are fixed. Attention's own products are left
out: at these lengths they are below a hundredth. Work from tokens counts base and source prompts
whole, a little more than it must: nobody needs the first tokens' last block.
"""

from transformers import AutoConfig

from helpers.models.smollm import packaged_folder


def needed(work: str, setting: dict) -> float:
    """Floating-point operations of one call."""
    config = AutoConfig.from_pretrained(packaged_folder())
    d, layers = config.hidden_size, config.num_hidden_layers
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    attention = d * heads * config.head_dim + d * config.num_attention_heads * config.head_dim
    block = 2 * (attention + 3 * d * config.intermediate_size)  # of one token
    down = 2 * d * config.intermediate_size
    vocabulary = 2 * d * config.vocab_size
    above = layers - 1 - setting["layer"]
    one = above * block + (down if "resid" not in work else 0)  # behind the site, without logits
    prompt = setting["tokens"] * block  # of one layer
    remaining = range(layers)  # blocks above each layer, highest layer first
    if work.startswith("evaluate 1000"):
        return setting["many"] * (prompt * (layers + setting["layer"] + 1) + one)
    if work.startswith("evaluate"):
        return setting["pairs"] * (one + vocabulary)
    if work.startswith("step"):
        return 2 * setting["pairs"] * (one + vocabulary)
    if work == "sweep":
        return setting["sweep pairs"] * (2 * prompt * layers + 3 * sum(remaining) * block)
    if work == "positions":
        tokens = range(1, setting["tokens"] + 1)
        return setting["position pairs"] * (
            2 * prompt * layers + sum(remaining) * sum(tokens) * block
        )
    if work == "facts":
        above = layers - 1 - setting["facts layer"]
        return 2 * setting["facts tokens"] * above * block
    raise ValueError(f"no floor is known for {work}")
