"""What our HTML pages have in common: one file each, without any request to elsewhere."""

import base64
import datetime
import hashlib
import html
import importlib.resources
import os
import pathlib
import string
from collections.abc import Iterable, Sequence

from diffusion_policy.common.errors import DiffusionPolicyError


def resource(module: str, name: str) -> str:
    """The text of a file that lies in a package."""
    return importlib.resources.files(module).joinpath(name).read_text("utf-8")


def render_page(
    title: str,
    subtitle: str,
    body: str,
    js: str,
    module: str,
    extra_css: str = "",
    served: bool = False,
) -> str:
    """The whole page.

    Args:
        title: Heading.
        subtitle: The line below it.
        body: HTML of the sections.
        js: The script, run when the page stands.
        module: ``python -m`` this writes such pages; named in the footer.
        extra_css: Rules besides those of ``report.css``.
        served: The page comes from a server of ours, which its script may ask for news.
    """
    written = datetime.datetime.now().strftime("%Y-%m-%d %H:%M")
    made = f"Written on {written} by <code>python -m {module}</code>."
    page = string.Template(resource("diffusion_policy.report", "report.html")).substitute(
        policy=content_policy(js, served),
        title=html.escape(title),
        subtitle=html.escape(subtitle),
        css=resource("diffusion_policy.report", "report.css") + extra_css,
        js=js,
        body=body,
        footer="" if served else f"{made} This page needs no network.",
    )
    return encodable(page)


def encodable(text: str) -> str:
    """The text without the halves of characters that JSON can have, and file names of other
    encodings: they are written out.
    """
    return text.encode(errors="backslashreplace").decode()


def content_policy(js: str, served: bool = False) -> str:
    """What a browser lets a page do: run this one script, show what is in the page, no more.

    Args:
        js: The script.
        served: It may also ask the server that the page came from.
    """
    script = base64.b64encode(hashlib.sha256(js.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{script}'; style-src 'unsafe-inline'; "
        "media-src data:; img-src data:; base-uri 'none'; form-action 'none'"
        + ("; connect-src 'self'" if served else "")
    )


def write_page(output: pathlib.Path, page: str) -> None:
    """Write a page, all or nothing; one that is there is replaced.

    Raises:
        DiffusionPolicyError: If it cannot be written.
    """
    temporary = output.with_name(output.name + ".partial")
    try:
        # The folder may be somebody else's, who could have put a link there.
        temporary.unlink(missing_ok=True)
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(page)
        os.replace(temporary, output)
    except OSError as e:
        raise DiffusionPolicyError(
            f"Cannot write the report {output}: {e.strerror}; choose another place with -o."
        ) from e


def tile(label: str, value: str, note: str, style: str = "") -> str:
    """A headline number."""
    return (
        f'<div class="tile {style}"><span>{html.escape(label)}</span>'
        f"<b>{html.escape(value)}</b><small>{html.escape(note)}</small></div>"
    )


def section(title: str, content: str, note: str = "", extra: str = "") -> str:
    """A section with its heading; ``content`` and ``extra`` are HTML."""
    note = f" <small>{html.escape(note)}</small>" if note else ""
    return f"<section><h2>{html.escape(title)}{note}{extra}</h2>{content}</section>"


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], sortable: bool = True, style: str = ""
) -> str:
    """A table in a box that scrolls.

    Args:
        header: Headings, as text.
        rows: Cells, as HTML: their content, or all of ``<td ...>...``.
        sortable: A click on a heading sorts by its column.
        style: CSS classes of the box.
    """
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>" + "".join(c if c.startswith("<td") else f"<td>{c}</td>" for c in row) + "</tr>"
        for row in rows
    )
    sorts = ' class="sortable"' if sortable else ""
    return (
        f'<div class="scroll {style}"><table{sorts}>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def number_cell(value: float | None, text: str | None = None, note: str = "") -> str:
    """A cell that sorts by ``value``; nothing known sorts below everything.

    Args:
        value: The number.
        text: HTML to be shown for it. Default: three decimals.
        note: Shown when the pointer rests on it.
    """
    if value is None:
        return '<td data-value="-Infinity">–</td>'
    title = f' title="{html.escape(note)}"' if note else ""
    return f'<td data-value="{value!r}"{title}>{f"{value:.3f}" if text is None else text}</td>'
