"""A sweep, or an audit of many directions, as jobs: here, or on a Dask cluster.

    python -m tools.jobs facts --layers 0:30 --workers 2 --out facts
    python -m tools.jobs prevalence --feature number --scheduler tcp://HOST:8786 --out number
    python -m tools.jobs audit --site mlp_hidden.21 --direction all.npy --row all --pairs ioi \\
        --scheduler tcp://HOST:8786 --out audits

Started again with the same options, only what is missing is run. Exit status: 0 if all was done, 1
if not, 2 for bad options or files, 130 after an interrupt.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import AutoConfig

from helpers.models import ModelError, model_name
from helpers.models.load import SHORT_NAMES, find_source
from helpers.output import files
from tools.audit import command as audit_command
from tools.audit import provenance, table
from tools.audit.vectors import numbers
from tools.jobs import work
from tools.jobs.running import ClusterError, Job, run, versions
from tools.pair_files import read_table
from tools.places import check_writable

at_least = audit_command.at_least
CHOSEN = ("key", "row", "column", "layer", "pos", "add", "clamp", "block_output", "n", "split",
          "chat", "answers", "seed")  # fmt: skip


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; bad usage ends the program with exit status 2.

    `audit` also has the options of `python -m tools.audit`, as `options.of_audit`.
    """
    about = "Run a sweep, or an audit of many directions, as independent jobs."
    parser = argparse.ArgumentParser("python -m tools.jobs", description=about)
    kinds = parser.add_subparsers(dest="kind", required=True)
    facts = kinds.add_parser("facts", help="one direction per pair of facts, layer by layer")
    _add_sweep(facts, n=40)
    facts.add_argument("--steps", type=at_least(1), default=10, help="(default: 10)")
    prevalence = kinds.add_parser("prevalence", help="the illusion at the MLP of every layer")
    _add_sweep(prevalence, n=48)
    prevalence.add_argument("--feature", choices=work.FEATURES, default="order")
    prevalence.add_argument("--epochs", type=at_least(1), default=12, help="(default: 12)")
    audit = kinds.add_parser("audit", help="of many directions, with the options of tools.audit",
                             allow_abbrev=False)  # fmt: skip
    audit.add_argument("--each", type=at_least(1), default=16, help="directions of a job, which "
        "share their prompts (default: 16)")  # fmt: skip
    for each in (facts, prevalence, audit):
        where = each.add_mutually_exclusive_group()
        where.add_argument("--workers", type=at_least(1), default=1, help="processes of this "
            "machine; each holds the model (default: 1)")  # fmt: skip
        where.add_argument("--scheduler", metavar="ADDRESS", help="of Dask: tcp://HOST:8786")
        each.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    options, rest = parser.parse_known_args(arguments)
    if options.kind != "audit":
        return parser.parse_args(arguments)
    options.of_audit = audit_command.parse([*rest, "--out", str(options.out)])
    options.rest = rest
    if options.of_audit.preview or options.of_audit.device:
        audit.error("--preview is of tools.audit; where a worker computes, says its own "
                    "SUBSPACE_ILLUSION_DEVICE")  # fmt: skip
    return options


def _add_sweep(parser: argparse.ArgumentParser, n: int) -> None:
    add = parser.add_argument
    add("--model", help="name, hub id or folder (default: the packaged model)")
    add("--layers", default="all", help="such as 3, 0:12 or 1,4 (default: all)")
    add("--n", type=at_least(2), default=n, help=f"pairs (default: {n})")
    add("--seed", type=at_least(0), default=0, help="(default: 0)")


def named(name: str | None) -> str:
    """The model's name, as a worker in another folder understands it."""
    name = model_name(name)
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() and name not in SHORT_NAMES else name


def of_all(name: str) -> dict[str, Any]:
    """What every job's result depends on: the model, as far as it is here, and the packages."""
    return {"model": provenance.of_model(name), "versions": versions()}


def sweep_jobs(options: argparse.Namespace) -> list[Job]:
    """A job for each layer; a ValueError if there is no such layer."""
    name = named(options.model)
    given = ("n", "seed", "steps", "epochs", "feature")
    about = {key: value for key, value in vars(options).items() if key in given}
    about |= {"kind": options.kind, **of_all(name)}
    what = {"facts": work.facts_at, "prevalence": work.prevalence_at}[options.kind]
    title = getattr(options, "feature", options.kind)
    return [
        Job(f"{title}-layer-{layer:02}", about | {"layer": layer}, what, (name,))
        for layer in numbers(options.layers, layers_of(name), "--layers")
    ]


def layers_of(name: str) -> int:
    """How many layers a model has, by its configuration."""
    source = find_source(name)
    try:
        return AutoConfig.from_pretrained(source).get_text_config().num_hidden_layers
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"the configuration of {name!r} cannot be read: {reason}") from error


def audit_jobs(options: argparse.Namespace) -> list[Job]:
    """A job for every few directions of one site; a ValueError says what is wrong with a file."""
    given, name = options.of_audit, named(options.of_audit.model)
    each, pair_file = audit_command.read_jobs(given), None
    paths = dict.fromkeys(path for one in each for path in one.files)
    if given.pairs not in audit_command.TASKS:
        read_table(given.pairs)
        pair_file = Path(given.pairs).read_bytes()
        paths[Path(given.pairs)] = None
    hashes = [{"name": path.name, "sha256": provenance.sha256(path)} for path in paths]
    about = {key: getattr(given, key) for key in CHOSEN} | {"kind": "audit", **of_all(name)}
    about |= {"pairs": Path(given.pairs).name, "files": hashes}
    jobs: list[Job] = []
    for first, some in chunks(audit_command.labelled(each).items(), options.each):
        labels, parts = zip(*some, strict=True)
        site, what = parts[0].site, [part.what for part in parts]
        own = about | {"site": str(site), "names": list(labels), "first": first}
        jobs.append(
            Job(f"audit-{first:05}", own, work.audit_of, (name, given, site, what, pair_file))
        )
    return jobs


def chunks(labelled: Iterable[tuple[str, Any]], size: int) -> Iterator[tuple[int, list]]:
    """So many in turn that have the same site, with the number of the first."""
    first = 0
    for _, group in groupby(labelled, key=lambda one: one[1].site):
        here = list(group)
        while here:
            some, here = here[:size], here[size:]
            yield first, some
            first += len(some)


def save_table(options: argparse.Namespace, jobs: Sequence[Job]) -> list[Path]:
    """Put what was done into one table; the paths come back."""
    done = [result for job in jobs if (result := job.result(options.out)) is not None]
    if not done:
        return []
    if options.kind == "audit":
        entries = [entry for result in done for entry in result["entries"]]
        line = provenance.command("tools.jobs", ["audit", *options.rest])
        ours = {key: jobs[0].about[key] for key in ("model", "files")}
        return table.save(entries, {"command": line, **ours, **done[0]["provenance"]}, options.out)
    name = "facts" if options.kind == "facts" else f"prevalence-{options.feature}"
    path = options.out / f"{name}.csv"
    rows = pd.DataFrame([row for result in done for row in result])
    files.write(path, rows.to_csv(index=False, lineterminator="\n"))
    return [path]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m tools.jobs`; returns its exit status."""
    options = parse(arguments)
    try:
        check_writable(options.out)
        jobs = audit_jobs(options) if options.kind == "audit" else sweep_jobs(options)
        failed = run(jobs, options.out, workers=options.workers, scheduler=options.scheduler)
        saved = ", ".join(path.name for path in save_table(options, jobs)) or "no table"
    except (ModelError, ClusterError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except OSError as error:
        print(f"error: {options.out} cannot be written: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted; what was finished is kept.", file=sys.stderr)
        return 130
    print(f"{len(jobs) - len(failed)} of {len(jobs)} jobs are done: {options.out} holds {saved}")
    if failed:
        print(f"failed: {', '.join(job.name for job in failed)}", file=sys.stderr)
    return 1 if failed else 0
