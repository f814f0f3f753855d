"The site builds offline with one command and without warnings, and none of its links is dead."

import importlib.util
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / ".mkdocs.yml").exists(), reason=".mkdocs.yml is not beside the tests"),
    pytest.mark.skipif(
        not all(
            map(importlib.util.find_spec, ("mkdocs", "mkdocs_jupyter", "mkdocstrings", "material", "latex2mathml"))
        ),
        reason="needs the extra `site`",
    ),
]


class Links(HTMLParser):
    "What a page points to, and the anchors that it has."

    def __init__(self, text):
        super().__init__()
        self.targets, self.loads, self.anchors = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.anchors |= {a[k] for k in ("id", "name") if a.get(k)}
        if tag == "a" and a.get("href"):
            self.targets.append(a["href"])
        if tag in ("img", "script", "source", "iframe") and a.get("src"):
            self.loads.append(a["src"])
        if tag == "link" and a.get("href") and a.get("rel") != "canonical":
            self.loads.append(a["href"])


@pytest.mark.xdist_group("site")
def test_site(site):
    pages = {p: Links(p.read_text()) for p in site.rglob("*.html") if p.name != "404.html"}
    names = {p.relative_to(site).as_posix() for p in pages}
    wanted = ["index", "tour", "results", "tables", "changes", "07_synthesis", "methods/index", "methods/08_census"]
    wanted += ["tutorials/own_data", "figures/main_table/blood", "api/index", "api/synthesis", "api/methods/census"]
    assert {f"{name}.html" for name in wanted} <= names
    dead, outside = [], []
    for page, links in pages.items():
        outside += [
            (page.name, u) for u in links.loads if urlsplit(u).scheme in ("http", "https") or u.startswith("//")
        ]
        for u in links.targets + links.loads:
            parts = urlsplit(u)
            if parts.scheme or u.startswith("//") or not (parts.path or parts.fragment):
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                dead.append((page.relative_to(site).as_posix(), u))
            elif (
                parts.fragment
                and target in pages
                and not parts.fragment.startswith("__")
                and unquote(parts.fragment) not in pages[target].anchors
            ):
                dead.append((page.relative_to(site).as_posix(), u))
    assert not outside, f"pages that load from other machines: {sorted(set(outside))[:10]}"
    assert not dead, f"{len(dead)} dead links: {sorted(set(dead))[:20]}"
    text = (site / "api/synthesis.html").read_text()
    assert "steps of Adam" in re.sub("<[^>]+>", "", text) and "Class impressions of all old classes" in text, (
        "the API reference has signatures, docments and docstrings"
    )
    assert "<math" in (site / "tour.html").read_text() and "data:image/png" in (site / "tour.html").read_text()
    assert "#| export" not in (site / "07_synthesis.html").read_text()


def words(page: Path) -> str:
    return re.sub(r"\s+", " ", re.sub("<[^>]+>", "", page.read_text()))


@pytest.mark.xdist_group("site")
def test_home_and_menu(site):
    home = (site / "index.html").read_text()
    assert (
        "pip install -c constraints.txt" in words(site / "index.html")
        and "github.com/classimpression" in home
        and 'id="__palette_1"' in home
    )
    assert "md-footer__link--next" in home and "md-footer__link--prev" in (site / "tour.html").read_text()
    assert 'data-md-component="source"' not in home, "the theme would ask the repository's host for stars"
    menu = words(site / "figures" / "main_table" / "blood.html")  # a page shows the part of the menu that it stands in
    rooms = ("Tour", "Tutorials", "Main table, organa", "The method", "Methods", "Studies", "API reference")
    assert all(name in menu for name in rooms)
    assert menu.index("Main table, blood") < menu.index("Benchmark"), "the main table comes first"
    assert "Everything that Class Impression is compared with" in words(site / "methods" / "index.html")


@pytest.mark.xdist_group("site")
def test_the_rooms_are_drawn(site):
    page = (site / "contributing.html").read_text()
    (picture,) = re.findall(r'<svg[^>]*role="img".*?</svg>', page, re.S)
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    boxes, arrows = re.findall(r'^ +\w+\["(.*?)"\]$', contributing, re.M), contributing.count(" --> ")
    assert picture.count("<line") == arrows >= 9 and len(boxes) >= 9
    assert all(f">{b}</text>" in picture for b in boxes) and "flowchart BT" not in page


@pytest.mark.xdist_group("site")
def test_search_index_is_small(site):
    index = (site / "search" / "search_index.json").read_text()
    assert "total_variation" in index and "Ask the network" in index, "the API and prose can be searched"
    found = {d["location"] for d in json.loads(index)["docs"]}
    headings = re.findall(r'<h[23][^>]* id="([^"]+)"', (site / "07_synthesis.html").read_text())
    assert {f"07_synthesis.html#{h}" for h in headings} <= found and len(headings) > 5, "prose after code is searched"
    assert len(index) < 1_600_000
    assert "import torch.nn.functional" not in index, "code and what it wrote are not searched"
