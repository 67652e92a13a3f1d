"""Rank-1 edits of a down projection, `with rank_one_edit(model, edit): ...`, patches and ROME."""

from helpers.editing.conversion import (
    DirectionIntervention,
    edit_to_patch,
    extra_variance,
    least_read,
    patch_to_edit,
)
from helpers.editing.edits import (
    RankOneEdit,
    down_projection,
    edits_side_by_side,
    rank_one_edit,
    rewrite_score,
)
from helpers.editing.moments import cached_second_moment, regularised
from helpers.editing.rome import RomeSettings, rome_edit, rome_pairs
