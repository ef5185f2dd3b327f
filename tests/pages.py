"""HTML pages as tests read them."""

import html.parser

VOID = {"meta", "link", "br", "img", "input"}


class Document(html.parser.HTMLParser):
    """Parses a page strictly: tags must nest. Collects attributes and text."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.elements, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += f" {data}"

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.elements if name == tag]

    def urls(self) -> list[str]:
        return [a[k] for _, a in self.elements for k in ("src", "href", "poster") if k in a]
