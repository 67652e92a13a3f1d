"""Which models at hand pick a label of multiple choice, and what does it in the one that does.

    python -m tools.evidence.choices            measure what is missing, then print all
    python -m tools.evidence.choices --print    only print it

The packaged model; two toys of our own that were trained for nothing else (`tools.choices.train`);
and the model that SUBSPACE_ILLUSION_MODEL names, where there is one.
"""

from helpers.models import PACKAGED, load_model, model_slug
from tools.choices.__main__ import page
from tools.choices.measure import measure
from tools.choices.train import PICKERS, RUNS, SHOTS
from tools.evidence.store import Evidence, command

FOUR, N, TOYS = "ABCD", 48, 96  # prompts for each number: of a language model, of the toy


def run(evidence: Evidence) -> None:
    """Everything that is missing."""
    for name in RUNS:
        if evidence.missing(f"toy, {name}"):
            toy = load_model(str(PICKERS / name), device="cpu")
            evidence.put(measure(toy, TOYS, FOUR, SHOTS), f"toy, {name}")
    if evidence.missing(PACKAGED):
        evidence.put(measure(load_model(PACKAGED, device="cpu"), N, FOUR, 4), PACKAGED)
    if model_slug() != PACKAGED and evidence.missing(model_slug()):
        evidence.put(measure(load_model(), N, FOUR, 4), model_slug())


def show(evidence: Evidence) -> None:
    """What the command `python -m tools.choices` shows."""
    for name, found in evidence.items():
        print(page(found, name))


if __name__ == "__main__":
    command("choices", __doc__, run, show)
