"""What a busy machine costs: training steps beside another process, by how threads wait.

    python -m benchmarks.busy         two minutes on two otherwise idle cores

OpenMP's threads meet after every piece of work. If nothing is set they spin while they wait for
the last one; with OMP_WAIT_POLICY=PASSIVE they sleep; as the helpers set it they spin for a moment,
then sleep. Writes `results/busy.md`.
"""

import itertools
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from helpers import WAITING
from helpers.directions.search import answer_logit_difference, find_direction
from helpers.models.load import load_model
from helpers.output import files
from helpers.patching.caching import cache_pairs
from helpers.patching.sites import Site
from helpers.tasks.ioi import make_pairs
from tools import pages

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "benchmarks" / "results" / "busy.md"
SITE, PAIRS, EPOCHS = Site(21, "mlp_hidden"), 50, 8  # one step per epoch
REPEATS = 5
THREADS, NEIGHBOURS = (1, 2), (0, 1)
POLICIES = {"nothing set": {}, "sleep": {"OMP_WAIT_POLICY": "PASSIVE"}, "as here": WAITING}
# With torch first: the helpers would set the policy before it reads it.
WORKER = "import torch; from benchmarks import busy; print(busy.seconds_of_training())"


def seconds_of_training() -> float:
    """The median time of eight steps, in seconds, after a first run that is not counted."""
    model = load_model(device="cpu")
    train = cache_pairs(model, make_pairs(model, PAIRS, split="train", seed=0), SITE)
    fitting = dict(loss=answer_logit_difference, epochs=EPOCHS, batch_size=PAIRS, progress=False)
    times = []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        find_direction(train, **fitting)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def measure(policy: str, threads: int, neighbours: int) -> float:
    """The same in a fresh process, beside so many others that keep a core busy each."""
    environment = {name: text for name, text in os.environ.items() if name not in WAITING}
    environment |= {"OMP_NUM_THREADS": str(threads), **POLICIES[policy]}
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(neighbours)]
    try:
        command = [sys.executable, "-c", WORKER]
        done = subprocess.run(
            command, check=True, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )
    finally:
        for process in busy:
            process.kill()
            process.wait()
    return float(done.stdout.splitlines()[-1])


def markdown(seconds: dict[tuple[str, int, int], float]) -> str:
    """A row for each way to wait and number of threads, a column for each number of neighbours."""
    rows = [
        [policy, str(threads), *(f"{seconds[policy, threads, n]:.1f} s" for n in NEIGHBOURS)]
        for policy, threads in itertools.product(POLICIES, THREADS)
    ]
    head = ["threads wait", "threads", "otherwise idle", "beside one busy process"]
    return "\n\n".join(
        [
            "# Beside a busy process",
            f"{EPOCHS} steps of training one direction at {SITE} on {PAIRS} IOI pairs, medians of "
            f"{REPEATS} runs, on {os.cpu_count()} cores. Made by `python -m benchmarks.busy`.",
            pages.markdown_table(head, rows) + "\n",
        ]
    )


def main() -> None:
    """Measure every case and write the table."""
    cases = itertools.product(POLICIES, THREADS, NEIGHBOURS)
    files.write(TABLE, markdown({case: measure(*case) for case in cases}))
    print(TABLE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
