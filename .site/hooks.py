"""What `mkdocs build` does besides building: take the pages from where they are, and make the menu.

Notebooks are read from nbs/ and figures/ as they are committed, with their outputs; nothing is executed or imported.
"""

import ast
import hashlib
import html
import json
import os
import re
import shutil
import tempfile
from functools import cache
from pathlib import Path

from jinja2 import FileSystemBytecodeCache
from latex2mathml.converter import convert
from mkdocs.plugins import CombinedEvent, event_priority
from mkdocs.structure.files import File
from nbconvert.exporters import html as nbconvert_html
from nbconvert.exporters.templateexporter import TemplateExporter

ROOT = Path(__file__).parent.parent
NBS, FIGURES, PACKAGE = ROOT / "nbs", ROOT / "figures", ROOT / "classimpression"
STAGE = Path(tempfile.mkdtemp(prefix="classimpression-site-"))
# Markdown that is a page of the site; README is its home, so the tour, index.ipynb, gets a name of its own.
MARKDOWN = {
    "README.md": "index.md",
    "figures/README.md": "results.md",
    "figures/tables.md": "tables.md",
    "CHANGELOG.md": "changes.md",
}
MARKDOWN |= {"CONTRIBUTING.md": "contributing.md"}
PAGES = {"nbs/index.ipynb": "tour.ipynb"} | MARKDOWN
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|#|mailto:)([^)\s]+)\)")
ROOMS = ["methods", "pretrained", "runs", "report", "studies", "echo", "adapters", "core"]  # in the order of the menu


def read_notebook(path: Path) -> dict:
    return json.loads(path.read_text())


def title_of(path: Path) -> str:
    cells = read_notebook(path)["cells"]
    return next(line[2:].strip() for c in cells for line in "".join(c["source"]).splitlines() if line.startswith("# "))


def reported(pattern: str) -> list[Path]:
    "Files of figures/; not those that somebody's run of a small profile left there."
    own = {"first", "smoke", "quick", "paper", ".executing"}
    found = FIGURES.rglob(pattern)
    return [p for p in found if not own & set(p.relative_to(FIGURES).parts) and p.name != "report.html"]


@cache
def notebooks() -> list[Path]:
    "All that become pages: nbs/ without the experiments, which are shown as executed in figures/."
    found = [*NBS.rglob("*.ipynb"), *reported("*.ipynb")]
    return sorted(p for p in found if not {"experiments", ".ipynb_checkpoints", ".executing"} & set(p.parts))


def page_of(path: Path) -> str:
    "Where the site has a file of the repository, as a source name."
    name = path.relative_to(ROOT).as_posix()
    return PAGES.get(name, name.removeprefix("nbs/"))


def mathml(text: str) -> str:
    "Formulas as MathML, which browsers draw without a script; code stays as it is."

    def one(latex, display):
        latex = html.unescape(latex).strip().replace(r"\lVert", r"\|").replace(r"\rVert", r"\|")
        try:
            return convert(latex, display=display)
        except Exception as e:
            raise SystemExit(f"a formula cannot be converted ({e}): {latex}") from e

    parts = re.split(r"(```.*?```|`[^`\n]*`)", text, flags=re.S)
    for i in range(0, len(parts), 2):
        boxed = lambda m: f'\n\n<div class="formula">{one(m[1], "block")}</div>\n\n'  # it scrolls by itself
        parts[i] = re.sub(r"\$\$(.+?)\$\$", boxed, parts[i], flags=re.S)
        parts[i] = re.sub(r"(?<![\\$\w])\$([^$\n]+?)\$(?![\w$])", lambda m: one(m[1], "inline"), parts[i])
    return "".join(parts)


def floors(arrows: list[tuple[str, str]], names: list[str]) -> dict[str, tuple[int, float]]:
    "Floor of each box, one above the highest that it rests on, and its place across, from 0 to 1."
    below = {n: [b for a, b in arrows if a == n] for n in names}
    level = {}
    for n in names:  # what a room rests on is named before it
        level[n] = 1 + max((level[b] for b in below[n]), default=-1)
    found = {}
    for n in names:
        beside = [m for m in names if level[m] == level[n]]
        alone = sum(found[b][1] for b in below[n]) / max(len(below[n]), 1) if below[n] else 0.5
        found[n] = level[n], alone if len(beside) == 1 else 0.22 + 0.56 * beside.index(n) / (len(beside) - 1)
    return found


def drawn(mermaid: str) -> str:
    "A flow chart from the bottom up as a picture that needs no script: boxes with a title, arrows between them."
    titles = dict(re.findall(r'^ +(\w+)\["(.*?)"\]$', mermaid, re.M))
    arrows = re.findall(r"^ +(\w+) --> (\w+)$", mermaid, re.M)
    where, wide, high, step = floors(arrows, list(titles)), 360, 30, 56
    top = max(level for level, _ in where.values())
    x, y = (lambda n: wide * where[n][1]), (lambda n: 20 + step * (top - where[n][0]))
    half = {n: 12 + 3.7 * len(t) for n, t in titles.items()}
    parts = [
        f'<line x1="{x(a):.0f}" y1="{y(a) + high / 2:.0f}" x2="{x(b):.0f}" y2="{y(b) - high / 2 - 3:.0f}" '
        'stroke="currentColor" marker-end="url(#rests)"/>'
        for a, b in arrows
    ]
    for n, t in titles.items():
        box = f'x="{x(n) - half[n]:.0f}" y="{y(n) - high / 2:.0f}" width="{2 * half[n]:.0f}" height="{high}"'
        parts.append(f'<rect {box} rx="4" fill="none" stroke="currentColor"/>')
        parts.append(f'<text x="{x(n):.0f}" y="{y(n) + 4.5:.1f}" text-anchor="middle">{html.escape(t)}</text>')
    head = (
        '<defs><marker id="rests" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="currentColor"/></marker></defs>'
    )
    look = 'style="width: 100%; max-width: 26rem; font-size: 13px; fill: currentColor"'
    said = "; ".join(f"{titles[a]} uses {titles[b]}" for a, b in arrows)
    size = f'viewBox="0 0 {wide} {step * top + 40}" role="img" aria-label="{html.escape(said)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {look}>{head}{"".join(parts)}</svg>'


def with_pictures(text: str) -> str:
    "Flow charts in Mermaid, which GitHub draws, as pictures; the site has no script for them."
    return re.sub(r"```mermaid\n(.*?)\n```", lambda m: drawn(m[1]), text, flags=re.S)


def executed(path: Path) -> Path:
    "The executed notebook of an experiment, as reported, in place of its source."
    if path.parent != NBS / "experiments":
        return path
    here = FIGURES / path.stem
    return next((f for f in (here / "blood.ipynb", *sorted(here.glob("*.ipynb"))) if f.exists()), path)


def link_from(source: Path, target: str, config, endings: str = "html") -> str | None:
    "Where a link of a page leads on the site; to the repository for what the site has not; None for what nobody has."
    path, _, anchor = target.partition("#")
    there = executed((source.parent / path).resolve())
    if not there.is_relative_to(ROOT) or not there.exists():
        return None
    name, anchor = there.relative_to(ROOT).as_posix(), f"#{anchor}" if anchor else ""
    served = there in notebooks() or name in MARKDOWN or name == "LICENSE"
    if not served and not (there.is_relative_to(FIGURES) and there.is_file() and there.suffix not in (".md", ".svg")):
        return f"{config.repo_url}/blob/main/{name}{anchor}"
    relative = os.path.relpath(page_of(there), os.path.dirname(page_of(source)) or ".")
    return (re.sub(r"\.(ipynb|md)$", ".html", relative) if endings == "html" else relative) + anchor


def linked(text: str, source: Path, config, endings: str = "html") -> str:
    "Markdown whose links lead to pages."

    def one(m):
        there = link_from(source, m[3], config, endings)
        return f"{m[1]}[{m[2]}]({there})" if there else m[2]

    return LINK.sub(one, text)


def prepared(path: Path, config) -> dict:
    "A notebook as a page: without hidden cells, directives and widget models; formulas as MathML; links to pages."
    nb = read_notebook(path)
    cells = []
    for cell in nb["cells"]:
        source = "".join(cell["source"])
        if re.match(r"\s*#\|\s*(hide|default_exp)", source):
            continue
        if cell["cell_type"] == "markdown":
            source = linked(source, path, config)
            headings = re.compile(r"^#+ .*$", re.M)
            source = mathml(headings.sub(lambda m: m[0].replace("`", ""), source))  # or the menu's anchors differ
        else:
            source = re.sub(r"^#\| ?\w+.*\n", "", source, flags=re.M)
            for out in cell.get("outputs", []):
                out.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
        cells.append(cell | {"source": source.splitlines(keepends=True)})
    return nb | {"cells": cells, "metadata": nb["metadata"] | {"title": title_of(path)}}


def docstring(module: Path) -> str:
    return ast.get_docstring(ast.parse(module.read_text())) or ""


def modules(room: str) -> list[tuple[Path, Path]]:
    "Notebooks of a room that export a module, and these modules, in the order of reading; room '' is the top."
    found = []
    for path in sorted((NBS / room).glob("[0-9]*.ipynb")):
        module = PACKAGE / room / f"{path.stem[3:]}.py"
        if module.exists():
            found.append((path, module))
    return found


def dotted(module: Path) -> str:
    return ".".join(module.relative_to(ROOT).with_suffix("").parts)


def api_page(notebook: Path, module: Path) -> str:
    "What mkdocstrings fills: signatures, docments and docstrings of one module."
    here = f"api/{module.relative_to(PACKAGE).with_suffix('').as_posix()}.md"
    there = os.path.relpath(page_of(notebook), os.path.dirname(here))
    heading = [f"# {dotted(module)}", "", f"Explained with examples in the notebook [{title_of(notebook)}]({there})."]
    return "\n".join([*heading, "", f"::: {dotted(module)}", ""])


def table_of(rows: list[tuple[Path, Path]], prefix: str = "") -> list[str]:
    "A table of a room: module, what it is for, notebook."
    lines = ["| module | what it is for | notebook |", "| --- | --- | --- |"]
    for notebook, module in rows:
        api = os.path.relpath(f"api/{module.relative_to(PACKAGE).with_suffix('').as_posix()}.md", prefix or ".")
        first = html.escape(docstring(module).partition("\n")[0], quote=False)
        there = os.path.relpath(page_of(notebook), prefix or ".")
        lines.append(f"| [{module.stem}]({api}) | {first} | [{title_of(notebook).replace('|', '')}]({there}) |")
    return lines


def room_page(room: str) -> str:
    "The first page of a room: what lives there, and its notebooks."
    return "\n".join(
        [
            f"# {room.capitalize()}",
            "",
            docstring(PACKAGE / room / "__init__.py"),
            "",
            *table_of(modules(room), room),
            "",
        ]
    )


def api_index() -> str:
    "Every module, room by room."
    parts = [
        "# API reference",
        "",
        "`import classimpression as ci` offers what most users need; everything else is found in its module.",
        "",
    ]
    for room in ["", *ROOMS]:
        head = (
            docstring(PACKAGE / room / "__init__.py").partition("\n")[0]
            if room
            else "Data, tasks, models, synthesis, losses, training."
        )
        parts += [f"## {room.capitalize() or 'The method'}", "", head, "", *table_of(modules(room), "api"), ""]
    return "\n".join(parts)


@event_priority(100)
def on_files(files, config):
    def add(name, content):
        files.append(File.generated(config, name, content=content))

    for path in notebooks():
        where = STAGE / page_of(path)
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(json.dumps(prepared(path, config)))
        files.append(File(page_of(path), str(STAGE), config.site_dir, config.use_directory_urls))
    for path in sorted([*reported("*.*"), ROOT / "LICENSE"]):
        if path.suffix not in (".ipynb", ".md", ".svg") and path.is_file():
            files.append(File(path.relative_to(ROOT).as_posix(), str(ROOT), config.site_dir, config.use_directory_urls))
    for name, page in MARKDOWN.items():
        if (ROOT / name).exists():
            text = (ROOT / name).read_text().replace(" ± ", "\u00a0±\u00a0")  # a number stays in one line
            add(page, with_pictures(linked(text, ROOT / name, config, "source")))
    for room in ["", *ROOMS]:
        for notebook, module in modules(room):
            add(f"api/{module.relative_to(PACKAGE).with_suffix('').as_posix()}.md", api_page(notebook, module))
        if room:
            add(f"{room}/index.md", room_page(room))
    add("api/index.md", api_index())
    return files


def experiment_pages() -> list[dict]:
    "Executed notebooks, the main table first."
    found = sorted(reported("*.ipynb"), key=lambda p: (p.parent.name != "main_table", p.as_posix()))
    titles = [title_of(p) for p in found]
    several = [titles.count(t) > 1 for t in titles]
    return [{t + (f", {p.stem}" if s else ""): page_of(p)} for p, t, s in zip(found, titles, several, strict=True)]


def tutorial_pages() -> list[dict]:
    "In the order of the tour."
    tour = (NBS / "index.ipynb").read_text()
    found = sorted((NBS / "tutorials").glob("*.ipynb"), key=lambda p: tour.find(p.name) % len(tour))
    return [{title_of(p): page_of(p)} for p in found]


def remember_templates() -> None:
    "nbconvert compiles its templates for every page, a fifth of the whole build: once is enough."
    (STAGE / ".compiled").mkdir(exist_ok=True)
    made, compiled = TemplateExporter._create_environment, FileSystemBytecodeCache(str(STAGE / ".compiled"))

    def remembering(self):
        environment = made(self)
        environment.bytecode_cache = compiled
        return environment

    TemplateExporter._create_environment = remembering


class Unparsed(str):
    "A notebook's page with the attributes that nbconvert adds; to parse it for them took a third of the whole build."

    def __new__(cls, page, features):
        page = re.sub(r"<img(?![^>]* alt=)", '<img alt="No description has been provided for this image"', page)
        reached = r'(<div class="(?:jp-Cell-inputWrapper|[^"]*\bjp-OutputArea-output)\b[^"]*")'
        return super().__new__(cls, re.sub(reached, r'\1 tabindex="0"', page))  # scrolled by keys

    def select(self, what):
        return []


def on_config(config):
    "The menu, from what is there."
    remember_templates()
    nbconvert_html.BeautifulSoup = Unparsed
    results = [{"Results": "results.md"}, *([{"All tables": "tables.md"}] if (FIGURES / "tables.md").exists() else [])]
    api = [
        {
            (room.capitalize() or "The method"): [
                f"api/{m.relative_to(PACKAGE).with_suffix('').as_posix()}.md" for _, m in modules(room)
            ]
        }
        for room in ["", *ROOMS]
    ]
    config.nav = [
        {"Home": "index.md"},
        {"Tour": "tour.ipynb"},
        {"Tutorials": tutorial_pages()},
        {"Results": [*results, {"Experiments": experiment_pages()}]},
        {"The method": [{title_of(n): page_of(n)} for n in sorted(NBS.glob("[0-9]*.ipynb"))]},
        *(
            {
                room.capitalize(): [
                    f"{room}/index.md",
                    *({title_of(n): page_of(n)} for n in sorted((NBS / room).glob("[0-9]*.ipynb"))),
                ]
            }
            for room in ROOMS
        ),
        {"API reference": ["api/index.md", *api]},
        {"Contributing": "contributing.md"},
        {"Changes": "changes.md"},
    ]
    return config


def on_env(env, config, files):
    "The menu's names stay: the builder of notebooks would put a page's heading in their place."

    def named(entry):
        for name, there in entry.items():
            if isinstance(there, str):
                yield there, name
            else:
                yield from (x for e in there if isinstance(e, dict) for x in named(e))

    for there, name in (x for e in config.nav for x in named(e)):
        files.get_file_from_path(there).page.title = name


@event_priority(100)
def _to_search(context, page, config, nav):
    "Prose and the API are searched; code, what it wrote, tables of results and notes on versions are not."
    starts = r'(?=<div (?:id="[^"]*" class="jp-Cell jp-MarkdownCell|class="jp-Cell jp-CodeCell))'
    head, *cells = re.split(starts, page.content)
    code = '<div class="jp-Cell jp-CodeCell'
    prose = [c for c in cells[:-1] if not c.startswith(code) and "by the code of that day" not in c]
    page.shown = page.content
    page.content = "".join([head, *prose, *cells[-1:]])  # the last one is followed by the ends of what holds them all
    if page.file.src_path == "tables.md":
        page.content = re.sub(r"<tbody>.*?</tbody>", "", page.content, flags=re.S)
    if page.file.src_path.startswith("api/"):  # signatures say the names of a table of parameters once more
        page.content = re.sub(r"<pre>.*?</pre>", "", page.content, flags=re.S)


@event_priority(-100)
def _to_show(context, page, config, nav):
    page.content = page.shown


on_page_context = CombinedEvent(_to_search, _to_show)


def on_post_page(output, page, config):
    "No page asks another machine for anything; the style of notebooks is a file, not a part of every page."
    away = r'[^>]*\bhref="https?://[^"]*"'
    rel = r'[^>]*\brel="(?:preconnect|stylesheet)"'
    output = re.sub(r'<script[^>]*\bsrc="https?://[^"]*"[^>]*>\s*</script>', "", output)
    output = re.sub(f"<link(?:{away}{rel}|{rel}{away})[^>]*>", "", output)

    def in_a_file(found):
        if len(found[1]) < 20_000:
            return found[0]
        name = f"assets/{hashlib.md5(found[1].encode()).hexdigest()[:10]}.css"
        (Path(config.site_dir) / "assets").mkdir(parents=True, exist_ok=True)
        (Path(config.site_dir) / name).write_text(found[1])
        return f'<link rel="stylesheet" href="{os.path.relpath(name, os.path.dirname(page.url) or ".")}">'

    return re.sub(r'<style type="text/css">(.*?)</style>', in_a_file, output, flags=re.S)


def on_post_build(config):
    shutil.rmtree(STAGE, ignore_errors=True)
