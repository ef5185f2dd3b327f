"""What our HTML pages have in common: one file each, without any request to elsewhere."""

import datetime
import html
import importlib.resources
import os
import pathlib
import string

from diffusion_policy.common.errors import DiffusionPolicyError


def resource(module: str, name: str) -> str:
    """The text of a file that lies in a package."""
    return importlib.resources.files(module).joinpath(name).read_text("utf-8")


def render_page(
    title: str, subtitle: str, body: str, js: str, module: str, extra_css: str = ""
) -> str:
    """The whole page.

    Args:
        title: Heading.
        subtitle: The line below it.
        body: HTML of the sections.
        js: The script, run when the page stands.
        module: ``python -m`` this writes such pages; named in the footer.
        extra_css: Rules besides those of ``report.css``.
    """
    return string.Template(resource("diffusion_policy.report", "report.html")).substitute(
        title=html.escape(title),
        subtitle=html.escape(subtitle),
        css=resource("diffusion_policy.report", "report.css") + extra_css,
        js=js,
        body=body,
        module=module,
        written=datetime.datetime.now().strftime("%Y-%m-%d %H:%M"),
    )


def write_page(output: pathlib.Path, page: str) -> None:
    """Write a page, all or nothing; one that is there is replaced.

    Raises:
        DiffusionPolicyError: If it cannot be written.
    """
    temporary = output.with_name(output.name + ".partial")
    try:
        temporary.write_text(page, encoding="utf-8")
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
