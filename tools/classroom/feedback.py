"""The page that a student gets back: points and messages, then their own lines."""

from collections.abc import Sequence
from html import escape

from helpers.output.pages import html_page, html_table
from tools.classroom.gradebook import Row

MAX_PAGE = 60_000  # bytes
FRAME = 15_000  # of them: the table, the headings, the notes
IN_TABLE = 120  # characters of a message
COMPLETION = (
    "Checks show completion: they compare what your code gives back, for the data of the lesson "
    "and for other data. They do not show that you can explain it."
)


def _html(text: str, room: int) -> str:
    """A text as HTML of at most so many bytes."""
    html, cut = escape(text), len(text)
    while len(html.encode("utf-8", "replace")) > room:
        cut = cut * 9 // 10
        html = f"{escape(text[:cut])} ..."
    return html


def page(student: str, lesson: str, rows: Sequence[Row], notes: Sequence[str]) -> str:
    """The feedback on a lesson as one HTML page of at most 60 KB that needs no other file.

    Args:
        student: Whose it is.
        lesson: The lesson's number.
        rows: Its exercises.
        notes: What was mended.
    """
    room = (MAX_PAGE - FRAME) // (2 * len(rows))  # of one answer, and of its message
    got, most = sum(row.points for row in rows), sum(row.max_points for row in rows)
    table = []
    for row in rows:
        short = " ".join(row.message.split())
        short = short if len(short) <= IN_TABLE else f"{short[:IN_TABLE]} ..."
        table.append([row.title, f"{row.points:g} of {row.max_points}", short])
    body = [f"<p>{_html(student, 500)}: <strong>{got:g} of {most} points</strong></p>"]
    body += ["<ul>", *(f"<li>{_html(note, 500)}</li>" for note in notes), "</ul>"] if notes else []
    body += [html_table("Exercises", ["exercise", "points", "message"], table)]
    body += [f"<p>{COMPLETION}</p>"]
    for row in rows:
        lines = enumerate(row.answer.rstrip().split("\n"), start=1)
        source = "\n".join(f"{number:3}  {line}" for number, line in lines)
        body += [f"<h2>{escape(row.title)}</h2>", f"<p>{_html(row.message, room)}</p>"]
        body += [f'<pre class="scroll" tabindex="0">{_html(source, room)}</pre>']
    return html_page(f"Lesson {lesson}", "\n".join(body))
