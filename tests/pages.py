"""HTML pages as tests read them."""

from html.parser import HTMLParser

HOSTILE = "<script>alert('x')</script><img src=\"http://evil.example/a.png\" onerror=x> $\\frac{ &amp; \ud800"
VOID = {"meta", "img", "br", "wbr"}


class Page(HTMLParser):
    """Every tag with its attributes and all visible text; fails on tags that do not close in order."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def sources(self):
        return [attributes["src"] for _, attributes in self.tags if "src" in attributes]

    def has(self, text):
        return text in " ".join("".join(self.text).split())
