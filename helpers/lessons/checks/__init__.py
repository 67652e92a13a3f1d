"""Checks of the exercises: each names the likely mistake.

    checks.check_fldd(fldd)  # an answer

A check prints one line, or raises AssertionError with the likely mistake in its message.

Every check takes a `seed`, by keyword. Seed 0 is the check that the lessons show. Any other seed is
a hidden test: the same question and the same list of mistakes, but other data of larger sizes, so
that an answer with the visible sizes, positions or values typed in fails. The same seed always
draws the same data.

An answer that changes one of its inputs in place is wrong, whatever it returns.
"""

from helpers.lessons.checks.lesson_01 import (
    check_my_illusion,
    check_patch_direction,
    check_predicted_output,
    check_split,
)
from helpers.lessons.checks.lesson_02 import check_fldd, check_make_pair, check_name_preference
from helpers.lessons.checks.lesson_03 import (
    check_build_illusion,
    check_read_write,
    check_row_null,
    check_share_lost,
)
from helpers.lessons.checks.lesson_04 import (
    check_first_minus_second,
    check_mean_difference,
    check_seen_by,
    check_through_one_head,
)
from helpers.lessons.checks.lesson_05 import check_last_subject_token, check_patch_each, check_start
from helpers.lessons.checks.lesson_06 import (
    check_minimal_reader,
    check_rank_one,
    check_rewrite_score,
)
from helpers.lessons.checks.lesson_07 import (
    check_inner_products,
    check_is_illusion,
    check_smallest_hidden,
)
from helpers.lessons.checks.lesson_08 import check_auroc, check_beyond, check_opened
from helpers.lessons.checks.lesson_09 import check_is_fragile, check_largest_share, check_verdict

__all__ = sorted(name for name in dir() if name.startswith("check_"))
