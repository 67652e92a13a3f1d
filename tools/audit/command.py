"""Judge directions, subspaces, steering vectors and SAE features from files.

    python -m tools.audit --site mlp_hidden.21 --direction v.npy --pairs ioi [--out FOLDER]

One direction gives audit.json, audit.md, audit.html and audit.png; several give one table,
audits.csv, audits.json and audits.html. Exit status: 0 if the audit was done, 1 if the model cannot
be loaded, 2 for bad options or files, 130 after an interrupt.
"""

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import matplotlib

from helpers.audit import Audit, Intervention, Subspace, audit_each
from helpers.models import Model, ModelError, load_model, model_slug
from helpers.patching import Site, cache_pairs
from helpers.tasks import Pairs, agreement, facts, ioi
from tools.audit import provenance, table
from tools.audit.changes import Steering
from tools.audit.features import NAMES as AUTOENCODERS
from tools.audit.features import read_features
from tools.audit.report import save
from tools.audit.sites import parse_site
from tools.audit.submissions import read_submission
from tools.audit.vectors import READERS, files_in, read_directions
from tools.pair_files import read_pairs, read_table
from tools.places import check_writable

TASKS = ("ioi", "number", "gender", "facts")  # pairs that need no file
ONE = ("audit.json", "audit.md", "audit.html", "audit.png")
PREVIEWED = 3  # pairs


class Job(NamedTuple):
    """Something to audit, and where."""

    name: str
    site: Site
    what: Intervention
    files: tuple[Path, ...]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; bad usage ends the program with exit status 2."""
    about = "Judge directions, subspaces, steering vectors and SAE features."
    parser = argparse.ArgumentParser("python -m tools.audit", description=about)
    add = parser.add_argument
    add("--model", help="name, hub id or folder (default: the packaged model)")
    add("--site", help="such as mlp_hidden.21, resid_post.21 or head_output.23.1; names of "
        "TransformerLens and transformers do, too")  # fmt: skip
    add("--pairs", required=True, metavar="|".join((*TASKS, "FILE.csv")),
        help="a file has the columns base, source, answer, counterfactual")  # fmt: skip
    _add_subjects(parser.add_argument_group("what is judged"))
    _add_prompts(parser.add_argument_group("prompts"))
    add("--out", type=Path, default=Path("audit"), metavar="FOLDER", help="(default: audit; if "
        "it holds an audit already, audit-2)")  # fmt: skip
    add("--seed", type=at_least(0), default=0, help="(default: 0)")
    add("--device", help="cpu, cuda, cuda:1, mps (default: CUDA if there is one)")
    add("--batch-size", type=at_least(1), default=64, help="less needs less memory (default: 64)")
    options = parser.parse_args(arguments)
    try:
        options.site = None if options.site is None else parse_site(options.site)
    except ValueError as error:
        parser.error(f"argument --site: {error}")
    if wrong := _does_not_fit(options):
        parser.error(wrong)
    options.split_matters = options.pairs in TASKS
    return options


def _add_subjects(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--direction", nargs="+", metavar="FILE", help=f"{', '.join(READERS)}, several, or a "
        "folder of them: [d], or [d, k] for a subspace")  # fmt: skip
    add("--key", help="which tensor of a file, such as W_dec")
    add("--row", metavar="ROWS", help="5, 3:9, 1,4 or all: rows of a matrix, each a direction; of "
        "an autoencoder, its features")  # fmt: skip
    add("--column", metavar="COLUMNS", help="the same for columns")
    add("--layer", type=int, help="which of [layer, d] or [pos, layer, d] in the file")
    add("--pos", type=int, help="which of [pos, layer, d] in the file, -1 for the last")
    add("--add", type=float, metavar="TIMES", help="a steering vector: what is added, times this")
    add("--sae", metavar="FILE", help="a sparse autoencoder (SAELens, Gemma Scope), with --row")
    add("--clamp", type=float, metavar="VALUE", help="with --sae: set the features to a value")
    add("--submission", metavar="FOLDER", help="of the causal-variable track of the Mechanistic "
        "Interpretability Benchmark")  # fmt: skip
    add("--block-output", action="store_true", help="with --submission: units of the residual "
        "stream are what leaves their block")  # fmt: skip


def _add_prompts(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--n", type=at_least(1), default=200, help="pairs, without a file (default: 200)")
    add("--split", choices=("train", "test"), default="test", help="without a file (default: test)")
    add("--chat", action="store_true", help="put prompts into the model's chat template")
    add("--answers", choices=("auto", "space", "plain"), default="auto", help="whether answers "
        "begin with a space (default: as each prompt asks for)")  # fmt: skip
    add("--preview", action="store_true", help="show tokens, patched token and margins of the "
        "first pairs, and stop")  # fmt: skip


def _does_not_fit(options: argparse.Namespace) -> str:
    """Why these options do not go together; empty if they do."""
    given = [name for name in ("direction", "sae", "submission") if getattr(options, name)]
    if len(given) != 1 and not options.preview:
        return "give one of --direction, --sae and --submission"
    if options.site is None and not options.submission:
        return "the following arguments are required: --site"
    if options.site is not None and options.submission:
        return "a submission says its sites itself: leave out --site"
    if options.sae and options.row is None:
        return "--sae needs --row: which of its features?"
    if options.clamp is not None and not options.sae:
        return "--clamp sets a feature of an autoencoder: give --sae"
    if options.add is not None and not (options.direction and 0 < abs(options.add) < float("inf")):
        return "--add needs --direction, and a finite number that is not 0"
    if (options.chat or options.answers != "auto") and options.pairs in TASKS:
        return f"--chat and --answers are for pairs from a file, not for {options.pairs}"
    return ""


def read_jobs(options: argparse.Namespace) -> list[Job]:
    """What is to be audited; a ValueError says what is wrong with which file."""
    site = options.site
    if options.submission:
        folder = Path(options.submission)
        units = read_submission(folder, block_output=options.block_output)
        ends = ("_featurizer", "_inverse_featurizer")
        return [
            Job(
                unit.name, unit.site, unit.subspace, tuple(folder / f"{unit.name}{e}" for e in ends)
            )
            for unit in units
        ]
    if options.sae:
        path = Path(options.sae)
        inside = [path / name for name in AUTOENCODERS if (path / name).is_file()]
        features = read_features(path, options.row, options.clamp)
        return [Job(name, site, f, tuple(inside[:1] or [path])) for name, f in features.items()]
    chosen = {name: getattr(options, name) for name in ("key", "row", "column", "layer", "pos")}
    found = []
    for path in files_in(options.direction or []):
        for name, direction in read_directions(path, **chosen).items():
            try:
                what = (
                    Subspace(direction) if options.add is None else Steering(direction, options.add)
                )
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
            found.append(Job(name, site, what, (path,)))
    return found


def load_pairs(model: Model, options: argparse.Namespace) -> Pairs:
    """The pairs that the options ask for; a ValueError if they cannot be had for this model."""
    task, n, seed = options.pairs, options.n, options.seed
    if task == "ioi":
        return ioi.make_pairs(model, n, split=options.split, seed=seed)
    if task in ("number", "gender"):
        return agreement.make_pairs(model, task, n, split=options.split, seed=seed)
    if task == "facts":
        known = facts.known_facts(model, batch_size=options.batch_size)
        return facts.make_pairs(model, known, n, seed=seed)
    space = {"auto": None, "space": True, "plain": False}[options.answers]
    return read_pairs(model, task, chat=options.chat, space=space)


def preview(model: Model, pairs: Pairs, site: Site) -> str:
    """The first pairs as the model reads them, with the answers that are measured and margins."""
    some = pairs[:PREVIEWED]
    margins = cache_pairs(model, some, site).clean_logit_difference.tolist()
    lines = []
    for number, (pair, margin) in enumerate(
        zip(provenance.examples(model, some), margins, strict=True), start=1
    ):
        for side, at, verb in (
            ("base", "position", "patched"),
            ("source", "source_position", "read"),
        ):
            tokens = [repr(token)[1:-1] for token in pair[side]]
            lines.append(f"{number} {side:6} {'|'.join(tokens)}")
            lines.append(f"  {verb} token: {pair[side][pair[at]]!r}, number {pair[at]} from 0")
        answers = f"{pair['answer']!r} against {pair['counterfactual']!r}"
        lines.append(f"  measured: {answers}; after the base prompt {margin:+.2f} nats\n")
    return "\n".join(lines)


def run(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Read, load, measure and save; the files are checked before the model is loaded."""
    jobs = read_jobs(options)
    if options.pairs not in TASKS:
        read_table(options.pairs)
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"{options.out} is not a folder: choose another one for --out")
    check_writable(options.out)
    name = model_slug(options.model)
    print(f"loading {name}", flush=True)
    model = load_model(options.model, options.device)
    print("preparing the pairs", flush=True)
    pairs = load_pairs(model, options)
    if options.preview:
        print(f"\n{preview(model, pairs, options.site or jobs[0].site)}")
        return
    found = measure(model, jobs, pairs, options, name)
    files = list(dict.fromkeys(path for job in jobs for path in job.files))
    files += [] if options.split_matters else [Path(options.pairs)]
    known = provenance.of_run(model, options, files, pairs, arguments)
    for label, one in found.items():
        found[label] = dataclasses.replace(one, provenance=known)
    report(found, options.out)


def measure(
    model: Model, jobs: Sequence[Job], pairs: Pairs, options: argparse.Namespace, name: str
) -> dict[str, Audit]:
    """The audit of each job, by name; those at one site share their prompts."""
    found: dict[str, Audit] = {}
    for site, group in groupby(labelled(jobs).items(), key=lambda one: one[1].site):
        here = dict(group)
        count = "" if len(jobs) == 1 else f" {len(here)} at"
        print(f"measuring{count} {site} on {len(pairs)} pairs", flush=True)
        sizes = {"seed": options.seed, "batch_size": options.batch_size}
        each = [job.what for job in here.values()]
        audits = audit_each(model, site, each, pairs, name=name, **sizes)
        found |= zip(here, audits, strict=True)
    return found


def labelled(jobs: Sequence[Job]) -> dict[str, Job]:
    """The jobs by name; a name that is taken gets a number."""
    found: dict[str, Job] = {}
    for job in jobs:
        found[job.name if job.name not in found else f"{job.name} ({len(found) + 1})"] = job
    return found


def report(audits: dict[str, Audit], out: Path) -> None:
    """Write the files and say what they hold; what is there already is not written over."""
    folder = provenance.unused(out, ONE if len(audits) == 1 else table.NAMES)
    if len(audits) == 1:
        (one,) = audits.values()
        saved = save(one, folder)
        print(f"\n{one.summary}\n")
    else:
        entries = [table.entry_of(label, one) for label, one in audits.items()]
        saved = table.save(entries, next(iter(audits.values())).provenance, folder)
        width = max(map(len, audits))
        for label, one in audits.items():
            print(f"{label:{width}}  {one.effect.fldd.value:7.1%}  {one.verdict}")
    taken = "" if folder == out else f" ({out} holds an audit already)"
    print(f"Results are in {folder}{taken}\n  {', '.join(path.name for path in saved)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m tools.audit`; returns its exit status."""
    options = parse(arguments)
    matplotlib.use("agg")  # the figure goes into a file: no window is needed
    try:
        run(options, sys.argv[1:] if arguments is None else arguments)
    except (ModelError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, ModelError) else 2
    except OSError as error:
        where = "make room there, or choose another folder with --out"
        print(f"error: {options.out} cannot be written: {error}: {where}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted; nothing was written.", file=sys.stderr)
        return 130
    return 0


def at_least(least: int) -> Callable[[str], int]:
    """Reads a whole number from `least` on."""

    def read(text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text) or int(text) < least:
            wanted = f"whole number from {least} to {10**9 - 1}"
            raise argparse.ArgumentTypeError(f"{text!r} is no {wanted}")
        return int(text)

    return read
