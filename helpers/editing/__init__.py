"""Rank-1 edits of a down projection, `with rank_one_edit(model, edit): ...`, patches and ROME."""

from helpers.editing.edits import (
    DirectionIntervention,
    RankOneEdit,
    anatomy,
    down_projection,
    edit_to_patch,
    least_read,
    patch_to_edit,
    rank_one_edit,
    rewrite_score,
)
from helpers.editing.moments import cached_second_moment, regularised, shipped_second_moments
from helpers.editing.rome import RomeSettings, rome_edit, rome_pairs
from helpers.editing.runs import EditedRuns, causal_trace
