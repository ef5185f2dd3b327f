"""A report as named parts, of which a page is made, or only those that a page lacks are sent."""

import hashlib
from dataclasses import dataclass

from diffusion_policy.report.shell import encodable, render_page, resource


@dataclass
class Page:
    """Heading, line below it, and the HTML of the sections by name; empty ones do not appear.

    Names are plain words of ours. ``versions`` has a word for each section, which changes with it.
    """

    title: str
    subtitle: str
    parts: dict[str, str]

    def __post_init__(self) -> None:
        self.title, self.subtitle = encodable(self.title), encodable(self.subtitle)
        self.parts = {name: encodable(part) for name, part in self.parts.items() if part}
        self.versions = {
            name: hashlib.blake2b(part.encode(), digest_size=8).hexdigest()
            for name, part in self.parts.items()
        }

    def render(self) -> str:
        """The page as one file."""
        return self._render(resource("diffusion_policy.report", "report.js"), served=False)

    def render_served(self) -> str:
        """The page as a server has it, with the script that keeps it up to date."""
        scripts = ("report.js", "live.js")
        js = "\n".join(resource("diffusion_policy.report", name) for name in scripts)
        return self._render(js, served=True)

    def _render(self, js: str, served: bool) -> str:
        body = "\n".join(
            f'<div data-part="{name}" data-version="{self.versions[name]}">{part}</div>'
            for name, part in self.parts.items()
        )
        return render_page(
            title=self.title,
            subtitle=self.subtitle,
            body=body,
            js=js,
            module="diffusion_policy.report",
            served=served,
        )
