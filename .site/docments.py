"Docments for the API pages: the comment behind a parameter, a field or `->` becomes its description."

import ast

import griffe


def comments_of(lines: list[str], first: int, last: int) -> dict[int, str]:
    "Comments behind code, by line number; the lines count from 1."
    found = {}
    for number in range(first, last + 1):
        code, mark, text = lines[number - 1].partition("  # ")
        if mark and code.strip():
            found[number] = text.strip().replace("[", r"\[")  # shapes are no links
    return found


def plain(node: ast.AST | None) -> str | None:
    return None if node is None else ast.unparse(node).strip("'\"")


def described(obj: griffe.Object, *sections: griffe.DocstringSection) -> None:
    "Put sections behind those that the docstring has."
    if obj.docstring:
        obj.docstring.parsed = [*obj.docstring.parsed, *sections]


def table(rows: list[tuple]) -> griffe.DocstringSectionParameters:
    "Rows of name, annotation, default and comment."
    items = [
        griffe.DocstringParameter(name, annotation=plain(kind), value=plain(value), description=text)
        for name, kind, value, text in rows
    ]
    return griffe.DocstringSectionParameters(items)


class Docments(griffe.Extension):
    def on_function_instance(self, *, node, func, **_):
        if not func.docstring or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return
        said = comments_of(func.lines_collection[func.filepath], node.lineno, node.body[0].lineno - 1)
        a = node.args
        places = [*a.posonlyargs, *a.args]
        defaults = dict(zip([p.arg for p in places][len(places) - len(a.defaults) :], a.defaults, strict=True))
        defaults |= {p.arg: d for p, d in zip(a.kwonlyargs, a.kw_defaults, strict=True) if d is not None}
        everything = [*places, *([a.vararg] if a.vararg else []), *a.kwonlyargs, *([a.kwarg] if a.kwarg else [])]
        rows = [
            (p.arg, p.annotation, defaults.get(p.arg), said.get(p.end_lineno, ""))
            for p in everything
            if p.arg not in ("self", "cls")
        ]
        sections = [table(rows)] if any(text for *_, text in rows) else []
        if node.returns is not None and node.returns.end_lineno in said:
            back = griffe.DocstringReturn(
                name="", annotation=plain(node.returns), description=said[node.returns.end_lineno]
            )
            sections.append(griffe.DocstringSectionReturns([back]))
        described(func, *sections)

    def on_class_instance(self, *, node, cls, **_):
        if not cls.docstring or not isinstance(node, ast.ClassDef):
            return
        said = comments_of(cls.lines_collection[cls.filepath], node.lineno, node.end_lineno)
        fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
        rows = [(n.target.id, n.annotation, n.value, said.get(n.end_lineno, "")) for n in fields]
        if any(text for *_, text in rows):
            described(cls, table(rows))
