"""Checks of the exercises: `checks.check_fldd(fldd)` prints a line, or names the likely mistake.

Every check takes a `seed`, by keyword. Seed 0 is the check that the lessons show. Any other seed is
a hidden test: the same question and the same list of mistakes, but other data of larger sizes, so
that an answer with the visible sizes, positions or values typed in fails. The same seed always
draws the same data. An answer that changes one of its inputs in place is wrong, whatever it is.

The cells after an exercise use `checks.accepted(answer, otherwise=...)`: an answer that passed.
"""

from helpers.lessons.checks.compare import accepted as accepted
from helpers.lessons.checks.facts import *  # noqa: F403
from helpers.lessons.checks.ioi import *  # noqa: F403
from helpers.lessons.checks.judging import *  # noqa: F403
from helpers.lessons.checks.part_two import *  # noqa: F403
from helpers.lessons.checks.skipping import *  # noqa: F403
from helpers.lessons.checks.toy import *  # noqa: F403

__all__ = sorted(name for name in dir() if name.startswith("check_"))
