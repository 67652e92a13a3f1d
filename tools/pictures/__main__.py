"""Train the painters of lesson 15 and the reader of their pictures.

    python -m tools.pictures [--out FOLDER] [seed0 ...]      two to four minutes each on two cores

What is there is not trained again. Writes NAME.safetensors in half precision, reader.safetensors
and training.json with every recipe, its curve and the seconds of processor time.
"""

import argparse
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save

from helpers.output.files import write
from helpers.pictures import render, signs
from helpers.pictures.painter import PAINTERS
from helpers.pictures.reader import agreement
from tools.pictures.train import RECIPES, train, train_reader

READ = 3000  # renderings that the reader is judged on


def save_half(module: object, file: Path) -> None:
    """The weights in half precision."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write(file, save({name: x.half().contiguous() for name, x in module.state_dict().items()}))


def show(name: str, row: dict) -> None:
    """A line of progress."""
    print(name, " ".join(f"{key} {value:.3g}" for key, value in row.items()), flush=True)


def make_reader(out: Path) -> dict:
    """The reader and how well it reads words that it has never seen."""
    reader = train_reader()
    save_half(reader, out / "reader.safetensors")
    asked = signs(READ, "test", seed=1)
    seen = agreement(reader.read(render(asked, seed=1)), asked)
    return {key: share.mean().item() for key, share in seen.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser("python -m tools.pictures", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--out", type=Path, default=PAINTERS, help="the folder for all")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in RECIPES]
    if unknown:
        parser.error(f"no painter {unknown}: choose from {list(RECIPES)}")
    record = options.out / "training.json"
    done = json.loads(record.read_text("utf-8")) if record.exists() else {}
    for name in ("reader", *(options.names or RECIPES)):
        if name in done:
            continue
        if name == "reader":
            done[name] = make_reader(options.out)
            show(name, done[name])
        else:
            painter, curve = train(RECIPES[name], tell=functools.partial(show, name))
            save_half(painter, options.out / f"{name}.safetensors")
            done[name] = {
                "shape": RECIPES[name].shape, "recipe": RECIPES[name]._asdict(), "curve": curve
            }  # fmt: skip
        write(record, json.dumps(done, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
