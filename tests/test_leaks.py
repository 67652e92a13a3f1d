"""No later cell of a student's copy holds the answer to an exercise under another name.

An answer's expressions are looked for in the cells behind it: with its own variables standing for
anything, the same thing each time; without means and factors around them. What merely calls a
helper that does the same is no leak. Paraphrases are not found.
"""

import ast
import textwrap

import pytest

from tools.classroom.assignment import lessons_with_exercises
from tools.classroom.submission import plain

SMALLEST = 3  # operations in an expression, so that it is no everyday one
TRANSPARENT = {"mean", "detach", "float", "item"}  # methods that change no formula


class _Simpler(ast.NodeTransformer):
    """An expression without means, conversions and percent."""

    def visit_Call(self, node):
        self.generic_visit(node)
        method = isinstance(node.func, ast.Attribute) and node.func.attr in TRANSPARENT
        return node.func.value if method else node

    def visit_BinOp(self, node):
        self.generic_visit(node)
        percent = isinstance(node.left, ast.Constant) and node.left.value == 100
        return node.right if percent and isinstance(node.op, ast.Mult) else node


def expressions(source):
    """Every expression in a source, made simpler."""
    tree = _Simpler().visit(ast.parse(plain(textwrap.dedent(source))))
    return [node for node in ast.walk(tree) if isinstance(node, ast.expr)]


def operations(node):
    kinds = (ast.BinOp, ast.UnaryOp, ast.Call, ast.Subscript, ast.Attribute, ast.Compare)
    return sum(isinstance(part, kinds) for part in ast.walk(node))


def variables(source):
    """The names that an answer gives to things: arguments and what it assigns."""
    walked = list(ast.walk(ast.parse(source)))
    names = {node.arg for node in walked if isinstance(node, ast.arg)}
    return names | {
        n.id for n in walked if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }


def alike(pattern, found, free, bound):
    """Whether two expressions agree, with a free name for the same anything each time."""
    if isinstance(pattern, ast.Name) and pattern.id in free:
        return bound.setdefault(pattern.id, ast.dump(found)) == ast.dump(found)
    if type(pattern) is not type(found):
        return False
    for name, value in ast.iter_fields(pattern):
        other = getattr(found, name)
        values, others = ([x] if not isinstance(x, list) else x for x in (value, other))
        if name == "ctx":
            continue
        if len(values) != len(others):
            return False
        for one, two in zip(values, others, strict=True):
            same = alike(one, two, free, bound) if isinstance(one, ast.AST) else one == two
            if not same:
                return False
    return True


def leaks(answer, cells):
    """The expressions of an answer that stand in other cells, as (cell, expression)."""
    free, found = variables(answer), []
    formulas = [n for n in expressions(answer) if isinstance(n, ast.BinOp | ast.Compare)]
    wanted = [node for node in formulas if operations(node) >= SMALLEST]
    for cell, source in cells:
        for node in expressions(source):
            if any(alike(pattern, node, free, {}) for pattern in wanted):
                found.append((cell, ast.unparse(node)))
    return found


def later_cells(lesson, exercise):
    """The code behind an exercise's check, but the other exercises."""
    ids = [cell.id for cell in lesson.notebook.cells]
    behind = lesson.notebook.cells[ids.index(exercise.check_cell) + 1 :]
    code = [c for c in behind if c.cell_type == "code" and not c.id.startswith("exercise-")]
    return [(cell.id, cell.source) for cell in code]


@pytest.mark.parametrize(
    "cell, leaks_out",
    [
        ("smooth = 1 + 4 * torch.sin(2 * fine)", True),
        ("smooth = 100 * (1 + 4 * torch.sin(2 * (fine + 1))).mean()", True),
        ("smooth = 1 + 3 * torch.sin(2 * fine)", False),
        ("smooth = predicted(fine)", False),
    ],
)
def test_an_answer_under_another_name_is_found(cell, leaks_out):
    answer = "def predicted_output(a):\n    return 1 + 4 * torch.sin(2 * a)"
    assert bool(leaks(answer, [("cell", cell)])) == leaks_out


def test_names_stand_for_the_same_thing_each_time():
    answer = "def f(a, b, c):\n    return (c.mean() - b.mean()) / (a.mean() - b.mean()) + abs(a)"
    assert leaks(answer, [("x", "100 * ((held - patched) / (clean - patched) + abs(clean))")])
    assert not leaks(answer, [("x", "(held - patched) / (clean - held) + abs(clean)")])


def lessons_with_answers():
    for lesson in lessons_with_exercises():
        for exercise in lesson.exercises:
            yield pytest.param(lesson, exercise, id=f"{lesson.number}-{exercise.name}")


@pytest.mark.parametrize("lesson, exercise", lessons_with_answers())
def test_no_later_cell_holds_the_answer(lesson, exercise):
    cells = {cell.id: cell for cell in lesson.notebook.cells}
    answer = cells[exercise.solution_cell].source
    assert leaks(answer, later_cells(lesson, exercise)) == []
