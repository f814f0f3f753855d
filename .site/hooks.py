"""What `mkdocs build` does besides building: take the pages from where they are, and write the API reference.

Notebooks are read from nbs/ and figures/ as they are committed, with their outputs; nothing is executed or imported.
"""

import ast
import html
import json
import os
import re
import shutil
import tempfile
import textwrap
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
STAGE = Path(tempfile.mkdtemp(prefix="classimpression-site-"))
PAGES = {"README.md": "results.md", "figures/README.md": "findings.md"}  # Markdown that is a page of the site
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|#|mailto:)([^)\s]+)\)")


def title_of(notebook: dict) -> str:
    return next(
        line[2:].strip()
        for c in notebook["cells"]
        for line in "".join(c["source"]).splitlines()
        if line.startswith("# ")
    )


def mathml(text: str) -> str:
    "Formulas as MathML, which browsers draw without a script; code stays as it is."

    def one(latex, display):
        try:
            return convert(
                html.unescape(latex).strip().replace(r"\lVert", r"\|").replace(r"\rVert", r"\|"), display=display
            )
        except Exception as e:
            raise SystemExit(f"a formula cannot be converted ({e}): {latex}") from e

    parts = re.split(r"(```.*?```|`[^`\n]*`)", text, flags=re.S)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"\$\$(.+?)\$\$", lambda m: "\n\n" + one(m[1], "block") + "\n\n", parts[i], flags=re.S)
        parts[i] = re.sub(r"(?<![\\$\w])\$([^$\n]+?)\$(?![\w$])", lambda m: one(m[1], "inline"), parts[i])
    return "".join(parts)


def prepared(path: Path) -> dict:
    "A notebook as a page: without hidden cells, directives and widget models; formulas as MathML; links to pages."
    nb = json.loads(path.read_text())
    cells = []
    for cell in nb["cells"]:
        source = "".join(cell["source"])
        if re.match(r"\s*#\|\s*(hide|default_exp)", source):
            continue
        if cell["cell_type"] == "markdown":
            source = LINK.sub(
                lambda m: f"{m[1]}[{m[2]}]({there})" if (there := page_link(m[3], path)) else m[2], source
            )
            source = re.sub(
                r"^#+ .*$", lambda m: m[0].replace("`", ""), source, flags=re.M
            )  # or the menu's anchors differ from the page's
            source = mathml(source)
        else:
            source = re.sub(r"^#\| ?\w+.*\n", "", source, flags=re.M)
            for out in cell.get("outputs", []):
                out.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
        cells.append(cell | {"source": source.splitlines(keepends=True)})
    return nb | {"cells": cells, "metadata": nb["metadata"] | {"title": title_of(nb)}}


def page_link(target: str, source: Path) -> str | None:
    "Where the site has what a notebook links to; None if it has not."
    path, _, anchor = target.partition("#")
    there = (source.parent / path).resolve()
    if not there.is_relative_to(ROOT):
        return None
    if there.parent == ROOT / "nbs" / "experiments":  # the executed one, as reported
        there = next(
            (f for f in (ROOT / "figures" / f"{there.stem}_blood.ipynb", ROOT / "figures" / there.name) if f.exists()),
            there,
        )
    on_the_site = (
        there.suffix == ".ipynb"
        and there.parent.name != "experiments"
        or there.is_relative_to(ROOT / "figures")
        or there in (ROOT / "README.md", ROOT / "LICENSE")
    )
    if not (on_the_site and there.is_file()):
        return None

    def on_site(p: Path) -> Path:
        return p.relative_to(ROOT / "nbs") if p.is_relative_to(ROOT / "nbs") else p.relative_to(ROOT)

    page = Path(PAGES[p]).with_suffix(".html") if (p := there.relative_to(ROOT).as_posix()) in PAGES else on_site(there)
    relative = os.path.relpath(page, on_site(source).parent)
    return re.sub(r"\.ipynb$", ".html", relative) + (f"#{anchor}" if anchor else "")


def api_page(module: Path) -> str:
    "Signatures with their docments, and docstrings, read from the source text."
    source = module.read_text()
    lines, tree = source.splitlines(), ast.parse(source)
    made_by = re.search(r"File to edit: \.\./nbs/(\S+)\.ipynb", source)

    def header(node) -> str:
        first = node.body[0]
        start = (node.decorator_list[0].lineno if node.decorator_list else node.lineno) - 1
        text = "\n".join(lines[start : first.lineno - 1 if first.lineno > node.lineno else node.lineno])
        if first.lineno == node.lineno:
            text = text[: first.col_offset].rstrip() if start == node.lineno - 1 else text
        fields = (
            [n for n in node.body if isinstance(n, ast.AnnAssign)] if isinstance(node, ast.ClassDef) else []
        )  # of a dataclass, with their comments
        return textwrap.dedent(
            "\n".join([text, *lines[fields[0].lineno - 1 : fields[-1].end_lineno]]) if fields else text
        )

    def entry(node, level: str) -> list[str]:
        doc = ast.get_docstring(node)
        out = [f"{level} {node.name}", "", "```python", header(node), "```", ""]
        return out + ([html.escape(doc, quote=False), ""] if doc else [])

    out = [f"# {module.stem}", "", ast.get_docstring(tree) or "", ""]
    if made_by:
        out += [f"Explained with examples in the notebook [{made_by[1]}](../{made_by[1]}.ipynb).", ""]
    for node in tree.body:
        if getattr(node, "name", "_").startswith("_"):
            continue
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            out += entry(node, "##")
        if isinstance(node, ast.ClassDef):
            for m in node.body:
                if isinstance(m, ast.FunctionDef) and (m.name == "__init__" or not m.name.startswith("_")):
                    out += entry(m, "###")
    return "\n".join(out)


def api_index(modules: list[Path]) -> str:
    "Every module with the first line of its docstring, in the order of the notebooks."
    rows = []
    for m in modules:
        source = m.read_text()
        made_by = re.search(r"File to edit: \.\./nbs/(\S+)\.ipynb", source)
        doc = html.escape((ast.get_docstring(ast.parse(source)) or "").partition("\n")[0], quote=False)
        rows.append(
            (
                made_by[1] if made_by else "",
                f"| [{m.stem}]({m.stem}.md) | {doc} | "
                + (f"[{made_by[1]}](../{made_by[1]}.ipynb)" if made_by else "")
                + " |",
            )
        )
    return "\n".join(
        [
            "# API reference",
            "",
            "| module | what it is for | notebook |",
            "| --- | --- | --- |",
            *(row for _, row in sorted(rows)),
        ]
    )


def markdown_page(path: Path, known: set[str]) -> str:
    "A README, with links to pages of the site; what has no page is named without a link."

    def link(m):
        there = os.path.relpath(path.parent / m[3], ROOT)
        target = PAGES.get(there, there.removeprefix("nbs/"))
        return f"{m[1]}[{m[2]}]({target})" if target in known else m[2]

    return LINK.sub(link, path.read_text())


@event_priority(100)
def on_files(files, config):
    for path in sorted(
        [
            *(ROOT / "nbs").glob("*.ipynb"),
            *(ROOT / "nbs" / "tutorials").glob("*.ipynb"),
            *(ROOT / "figures").rglob("*.ipynb"),
        ]
    ):
        where = path.relative_to(ROOT / "nbs" if path.is_relative_to(ROOT / "nbs") else ROOT)
        (STAGE / where).parent.mkdir(parents=True, exist_ok=True)
        (STAGE / where).write_text(json.dumps(prepared(path)))
        files.append(File(where.as_posix(), str(STAGE), config.site_dir, config.use_directory_urls))
    for path in sorted([*(ROOT / "figures").rglob("*.*"), ROOT / "LICENSE"]):
        if path.suffix not in (".ipynb", ".md", ".svg") and path.is_file():
            files.append(File(path.relative_to(ROOT).as_posix(), str(ROOT), config.site_dir, config.use_directory_urls))
    for module in sorted((ROOT / "classimpression").glob("[a-z]*.py")):
        files.append(File.generated(config, f"api/{module.stem}.md", content=api_page(module)))
    files.append(
        File.generated(config, "api/index.md", content=api_index(sorted((ROOT / "classimpression").glob("[a-z]*.py"))))
    )
    known = {f.src_uri for f in files} | set(PAGES.values())
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=markdown_page(ROOT / source, known)))
    files.append(File.generated(config, "changes.md", content=(ROOT / "CHANGELOG.md").read_text()))
    return files


def on_config(config):
    "The menu, from what is there."

    def entries(pattern, folder="nbs"):
        found = [(p, json.loads(p.read_text())) for p in sorted((ROOT / folder).glob(pattern))]
        if pattern.startswith("tutorials/"):
            path = (ROOT / "nbs" / "index.ipynb").read_text()
            found.sort(key=lambda f: path.find(f[0].name) % len(path))  # in the order of the tour
        titles = [title_of(nb) for _, nb in found]

        def title(p, nb):
            return title_of(nb) + (
                f", {p.stem.rpartition('_')[2]}" if titles.count(title_of(nb)) > 1 else ""
            )  # of two scenarios

        return [
            {title(p, nb): (p.relative_to(ROOT / "nbs") if folder == "nbs" else p.relative_to(ROOT)).as_posix()}
            for p, nb in found
        ]

    config.nav = [
        {"Tour": "index.ipynb"},
        {"Tutorials": entries("tutorials/*.ipynb")},
        {
            "Results": [
                {"Results": "results.md"},
                {"Results, in words": "findings.md"},
                {"Experiments": entries("*.ipynb", "figures")},
                {"Reproducibility": "reproducibility.ipynb"},
            ]
        },
        {"The library": entries("[0-9]*.ipynb")},
        {
            "API reference": ["api/index.md"]
            + [f"api/{m.stem}.md" for m in sorted((ROOT / "classimpression").glob("[a-z]*.py"))]
        },
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


def on_post_page(output, page, config):
    "No page asks another machine for anything; links between notebooks lead to pages."
    output = re.sub(r'<script[^>]*\bsrc="https?://[^"]*"[^>]*>\s*</script>', "", output)
    output = re.sub(
        r'<link[^>]*\bhref="https?://[^"]*"[^>]*rel="(?:preconnect|stylesheet)"[^>]*>|<link[^>]*rel="(?:preconnect|stylesheet)"[^>]*\bhref="https?://[^"]*"[^>]*>',
        "",
        output,
    )
    return output


def on_post_build(config):
    shutil.rmtree(STAGE, ignore_errors=True)
