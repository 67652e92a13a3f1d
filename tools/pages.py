"""Tables, figures and pages for people: HTML that needs no other file, and Markdown."""

import base64
import io
from html import escape

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

ESCAPED = str.maketrans({"|": r"\|", "\\": r"\\"})  # a bar would end a cell of Markdown
STYLE = """
body { color: #111; background: #fff; font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
img { max-width: 100%; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
caption { font-weight: bold; padding: 0.5rem 0; text-align: left; }
th, td { border: 1px solid #767676; padding: 0.4rem 0.6rem; text-align: left; vertical-align: top; }
thead th { background: #eee; }
.sortable td { white-space: nowrap; }
summary { cursor: pointer; padding: 0.5rem 0; font-weight: bold; }
.verdict { border-left: 0.4rem solid #111; padding-left: 1rem; }
"""


def html_page(title: str, body: str) -> str:
    """A page with this title (plain text) and body (HTML)."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{body}
</main>
</body>
</html>
"""


def png(figure: Figure, *, dpi: int) -> bytes:
    """A figure as the content of an image file; it is closed."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    plt.close(figure)
    return file.getvalue()


def image(png: bytes, words: str) -> str:
    """An image that is part of the page, with its words for readers who cannot see it."""
    data = base64.b64encode(png).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(words)}">'


def folded(summary: str, body: str) -> str:
    """Some HTML that unfolds below its summary (plain text)."""
    return f"<details>\n<summary>{escape(summary)}</summary>\n{body}\n</details>"


def html_table(caption: str, columns: list[str], rows: list[list[str]]) -> str:
    """A table of plain text whose first column names the rows. Where it is too wide it scrolls,
    also by the arrow keys: so it can have the keyboard's focus.
    """
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in rows
    )
    return f"""<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table>
<caption>{escape(caption)}</caption>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table></div>"""


def markdown_table(columns: list[str], rows: list[list[str]]) -> str:
    """A table of plain text; each row is one line, whatever its cells hold."""

    def line(row: list[str]) -> str:
        cells = [" ".join(cell.split()).translate(ESCAPED) for cell in row]
        return f"| {' | '.join(cells)} |"

    return "\n".join(map(line, [columns, ["---"] * len(columns), *rows]))
