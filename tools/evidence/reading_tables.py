"""The tables of `tools.evidence.reading`, and what its claims measured."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.claims.report import every_claim, judge
from helpers.patching.metrics import Estimate, mean
from tools.pages import markdown_table

JUDGED = ("person_country", "company_country", "food_country", "country_language")
READERS, MENTIONED = 3, 6  # the most a digit can be
MIDDLE, LATE = tuple(range(4, 21, 2)), tuple(range(20, 30, 2))
Found = Mapping[str, Mapping]  # of one relation


def values(
    found: Found, rows: Mapping[str, str], layer: int, most: int = READERS, half: str = "test"
) -> Float[Tensor, "subjects"]:
    """Of each subject of a half the share of readers, percent."""
    row, start = rows[str(layer)], found["n"]["train"]
    part = row[start:] if half == "test" else row[:start]
    return 100 * torch.tensor([float(digit) for digit in part]) / most


def best(found: Found, rows: Mapping[str, str], among: Sequence[int] = MIDDLE) -> int:
    """The layer where most train subjects are right."""
    return max(among, key=lambda layer: values(found, rows, layer, half="train").mean().item())


def most_silent(found: Found) -> int:
    """The layer where, on train subjects, swaps do most that readings do not tell."""

    def gap(layer: int) -> float:
        flip = values(found, found["flip"], layer, 1, "train").mean()
        return (flip - values(found, found["read"], layer, half="train").mean()).item()

    return max(map(int, found["flip"]), key=gap)


def pooled(evidence: Mapping, of: Callable[[Found], Tensor]) -> Estimate:
    """The mean over the test subjects of the relations that are judged, with its interval."""
    return mean(torch.cat([of(evidence[name]) for name in JUDGED]))


def above_embedding(found: Found) -> Tensor:
    """Held MLPs: the best middle layer less layer 0."""
    rows = found["held"]
    return values(found, rows, best(found, rows)) - values(found, rows, 0)


def above_other(found: Found, layers: Sequence[int]) -> Tensor:
    """Read right, less what another subject's state would give."""
    each = [
        values(found, found["read"], layer) - values(found, found["other"], layer)
        for layer in layers
    ]
    return torch.stack(each).mean(0)


def chosen(found: Found, rows: Mapping[str, str], most: int = READERS) -> Tensor:
    """Another measure at the layer that plain reading chooses."""
    return values(found, rows, best(found, found["read"]), most)


def divergence(evidence: Mapping, of: Callable[[Found], Sequence[Mapping]]) -> float:
    """Mean divergence at the chosen layers over relations' test subjects and prompts, nats."""
    total = count = 0.0
    for found in (evidence[name] for name in JUDGED):
        layer, n = str(best(found, found["read"])), found["n"]["test"]
        for rows in of(found):
            total, count = total + n * rows[layer][0], count + n
    return total / count


def failed(evidence: Mapping) -> dict[str, float]:
    """Wrong readings of late layers: what they name, percent."""
    rows = [evidence[name]["said"][str(layer)] for name in JUDGED for layer in LATE]
    counts = {key: sum(row[key] for row in rows) for key in ("leaked", "foreign", "wrong")}
    total = sum(counts.values())
    return {"value": 100 * counts["leaked"] / total, "foreign": 50 * counts["foreign"] / total}


def ends(of: Estimate) -> dict[str, float]:
    return of._asdict()


def measured(evidence: Mapping) -> dict[str, dict[str, float]]:
    """What each claim's rule asks for."""
    held = pooled(evidence, above_embedding)
    each = {name: mean(above_embedding(evidence[name])) for name in JUDGED}
    relations = sum(of.value >= 30 and of.low > 0 for of in each.values())
    late = pooled(evidence, lambda found: above_other(found, LATE))
    middle = pooled(evidence, lambda found: above_other(found, [best(found, found["read"])]))
    flip = pooled(evidence, lambda f: values(f, f["flip"], most_silent(f), 1))
    silent = pooled(evidence, lambda f: values(f, f["read"], most_silent(f)))
    mention = pooled(evidence, lambda f: chosen(f, f["mention"]["read"], MENTIONED))
    known = pooled(evidence, lambda f: chosen(f, f["claims"]["false: known"]))
    claimed = pooled(evidence, lambda f: chosen(f, f["claims"]["false: claimed"]))
    kl = divergence(evidence, lambda f: [f["mention"][f"prompt {n}"]["kl"] for n in range(2)])
    asked = divergence(evidence, lambda f: [f["kl"]])
    return {
        "K1": ends(held) | {"relations": relations},
        "K2": ends(late) | {"middle": middle.value},
        "K3": ends(flip) | {"read": silent.value},
        "K4": ends(mention) | {"kl": kl, "asked": asked},
        "K5": ends(known) | {"claimed": claimed.value},
        "K6": failed(evidence),
    }


# --------------------------------------------------------------------------------- the tables


def share(found: Found, rows: Mapping[str, str], layer: int, most: int = READERS) -> str:
    if str(layer) not in rows:
        return ""
    return f"{values(found, rows, layer, most).mean() / 100:.2f}"


def by_layer(found: Found) -> str:
    """Shares of test subjects (mean over readers), and divergences in nats, by layer."""
    mention, rows = found["mention"], []
    names = ["layer", *"read unmoved other random mean held".split(), "into 0"]
    names += ["flip", "same top", "KL"]
    names += ["mention", "its KL", "its top"]
    for layer in map(int, found["read"]):
        row = [str(layer), *(share(found, found[key], layer) for key in names[1:8])]
        row += [share(found, found[key], layer, 1) for key in ("flip", "same top")]
        row += [f"{found['kl'][str(layer)][0]:.2f}"]
        if str(layer) in mention["read"]:
            two = [mention[f"prompt {n}"] for n in range(2)]
            row += [share(found, mention["read"], layer, MENTIONED)]
            row += [" ".join(f"{of['kl'][str(layer)][0]:.3f}" for of in two)]
            row += [" ".join(share(found, of["same top"], layer, 1) for of in two)]
        rows.append(row + [""] * (len(names) - len(row)))
    return markdown_table(names, rows)


def what_is_said(found: Found) -> str:
    """Counts of readings of test subjects by what they name; then of those above one half."""
    kinds, rows = ("right", "leaked", "foreign", "wrong"), []
    for layer, of in found["said"].items():
        edges = found["edges"][layer]
        row = [layer, *(str(of[kind]) for kind in kinds), " ".join(map(str, of["places"]))]
        row += [str(edges[kind]) for kind in (*kinds, "silent")]
        rows.append([*row, f"{found['mass'][layer]:.2f}"])
    drawn = [f"{kind}, p > .5" for kind in kinds]
    return markdown_table(["layer", *kinds, "places", *drawn, "silent", "mass"], rows)


def verification(found: Found) -> str:
    """Shares known and claimed, and AUC of the claimed object's log-probability, by layer."""
    rows = []
    for name, most in {"claims": READERS, "sum": 1, "sum into 0": 1}.items():
        of = found[name]
        for layer, auc in of["auc"].items():
            parts = ("true: claimed", "false: known", "false: claimed")
            each = [share(found, of[part], int(layer), most) for part in parts]
            rows.append([name, layer, *each, f"{auc:.2f}"])
    return markdown_table(["state", "layer", "true", "false: known", "false: claimed", "AUC"], rows)


def show(evidence: Mapping) -> None:
    """The tables of each relation that is there, as Markdown, and the verdicts."""
    for name, found in evidence.items():
        if name == "rules" or "sum into 0" not in found:
            continue
        print(f"\n## {name}: {found['n']}\n\n" + by_layer(found))
        print(f"\nunpatched {share(found, found['unpatched'], 0)}, order {found['order']}")
        print("\n" + what_is_said(found) + "\n\n" + verification(found))
        print(
            f"\nchosen: read {best(found, found['read'])}, held {best(found, found['held'])},",
            end=" ",
        )
        print(f"silent {most_silent(found)}; mentions' mass {found['mention']['n']}")
        for layer, told in found["texts"].items():
            print(f"{layer:9}", *(" ".join(text.split()) for text in told), sep=" | ")
    if all("sum into 0" in evidence.get(name, {}) for name in JUDGED):
        for claim, of in measured(evidence).items():
            numbers = ", ".join(f"{key} {number:.3g}" for key, number in of.items())
            print(f"{claim} {judge(every_claim()[claim]['rule'], of)}: {numbers}")
