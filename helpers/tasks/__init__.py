"""What a model is asked: pairs of a base and a source prompt, with the two answers between them.

`ioi`, `agreement` and `facts` each have a `make_pairs`; `Pairs.from_prompts` takes your own text.
"""

from helpers.tasks.pairs import Pairs
from helpers.tasks.tokens import encode, passages, single_token
