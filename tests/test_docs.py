"""The documents are short, agree with each other, and name only what exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import lib_accel

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PYTHON_FILE = re.compile(r"(?<![\w./-])(?:[\w-]+/)*[\w-]+\.py\b")
REFERENCE = re.compile(r"`([\w/]+(?:\.py|/))(?:: ([\w.]+))?`")
"""A folder, a file, or a name in a file: `model/`, `runtime/engine.py: Engine.compute`."""


def documents(root: Path) -> list[Path]:
    return [*root.glob("*.md"), *(root / "docs").rglob("*.md")]


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def prose(path: Path) -> str:
    return FENCE.sub("", text_of(path))


def heading_levels(path: Path) -> list[int]:
    return [len(marks) for marks in re.findall(r"^(#+) ", prose(path), re.MULTILINE)]


def code_blocks(path: Path) -> list[tuple[str, str]]:
    """Return language and code of each block, without comments: these are translated."""
    blocks = FENCE.findall(text_of(path))
    return [(name, re.sub(r"\s*#.*", "", code)) for name, code in blocks]


def section(path: Path, heading: str) -> str:
    found = re.search(rf"^## {heading}.*?(?=^## |\Z)", prose(path), re.MULTILINE | re.DOTALL)
    assert found, f"{path.name} has no section {heading}"
    return found[0]


def table_rows(text: str) -> list[str]:
    """Return the rows of the tables in `text`, without those of their heads."""
    lines = re.findall(r"^\|.*\|$", text, re.MULTILINE)
    return [
        row
        for row, following in zip(lines, [*lines[1:], ""], strict=True)
        if not is_rule(row) and not is_rule(following)
    ]


def is_rule(line: str) -> bool:
    return bool(line) and not line.strip("|- ")


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a document."""
    titles = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(path: Path) -> list[str]:
    """Return the relative links that lead to no file, or to no heading of it."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        name, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = path.parent / name if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(f"{path.name}: {link}")
    return broken


def place_of(name: str, root: Path) -> Path | None:
    places = (root / "lib_accel" / name, root / name)
    return next((place for place in places if place.exists()), None)


def defines(file: Path, dotted: str) -> bool:
    """Return whether a file defines a name: `function`, `Class`, `Class.method`, `CONSTANT`."""
    body: list[ast.stmt] = ast.parse(text_of(file)).body
    for name in dotted.split("."):
        found = [node for node in body if name in names_of(node)]
        if not found:
            return False
        body = getattr(found[0], "body", [])
    return True


def names_of(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def test_the_readmes_are_short(root: Path) -> None:
    for name in ("README.md", "README.zh-CN.md"):
        assert len(text_of(root / name).splitlines()) <= 130, name


def test_the_chinese_readme_has_the_headings_of_the_english_one(root: Path) -> None:
    english, chinese = root / "README.md", root / "README.zh-CN.md"
    assert heading_levels(english) == heading_levels(chinese)
    assert len(table_rows(prose(english))) == len(table_rows(prose(chinese)))


def test_the_chinese_readme_has_the_code_of_the_english_one(root: Path) -> None:
    english = code_blocks(root / "README.md")
    assert english
    assert english == code_blocks(root / "README.zh-CN.md")


def test_the_readmes_list_at_most_ten_troubles(root: Path) -> None:
    for name, heading in (("README.md", "Troubleshooting"), ("README.zh-CN.md", "疑难解答")):
        assert 0 < len(table_rows(section(root / name, heading))) <= 10, name


def test_the_glossary_has_at_most_ten_words(root: Path) -> None:
    assert 0 < len(table_rows(text_of(root / "docs" / "glossary.md"))) <= 10


def test_links_between_documents_lead_somewhere(root: Path) -> None:
    found = [link for path in documents(root) for link in broken_links(path)]
    assert not found, "\n".join(found)


def test_python_files_that_documents_name_exist(root: Path) -> None:
    missing = [
        f"{path.name}: {name}"
        for path in documents(root)
        if path.name != "CHANGELOG.md"  # it tells of files that are gone
        for name in PYTHON_FILE.findall(text_of(path))
        if place_of(name, root) is None
    ]
    assert not missing, "\n".join(missing)


def test_names_in_the_design_exist(root: Path) -> None:
    references = REFERENCE.findall(text_of(root / "docs" / "design.md"))
    assert len(references) > 50
    missing = []
    for name, dotted in references:
        place = place_of(name, root)
        if place is None or (dotted and not defines(place, dotted)):
            missing.append(f"{name} {dotted}")
    assert not missing, "\n".join(missing)


def test_public_names_in_the_documents_exist(root: Path) -> None:
    found = [re.findall(r"\blib_accel\.(\w+)\(", text_of(path)) for path in documents(root)]
    names = {name for each in found for name in each}
    assert "accelerate" in names
    assert names <= {*lib_accel.__all__}


def test_the_design_has_four_walks_of_six_to_twelve_steps(root: Path) -> None:
    for number in range(1, 5):
        walk = section(root / "docs" / "design.md", f"Walk {number}: ")
        assert 6 <= len(re.findall(r"^\d+\. ", walk, re.MULTILINE)) <= 12, walk


def test_every_start_flag_option_and_route_has_a_sentence(root: Path) -> None:
    text = text_of(root / "docs" / "command-line.md")
    flags = re.findall(r'"(--accel-[a-z-]+)"', text_of(root / "preload.py"))
    routes = re.findall(
        r'"(/accel/v1/[^"]*)"', text_of(root / "lib_accel" / "host" / "pages" / "api.py")
    )
    assert len(flags) > 5
    assert len(routes) > 2
    unnamed = [f for f in flags if not re.search(rf"^\| `{f}[ `].*\| \S.* \|$", text, re.MULTILINE)]
    options = set(re.findall(r'"(accel_[a-z_]+)": ', text_of(root / "lib_accel/host/options.py")))
    assert len(options) > 5
    unnamed += [
        o for o in options if not re.search(rf"^\| `{o}` .*\| \S.* \|$", text, re.MULTILINE)
    ]
    unnamed += [r for r in routes if not re.search(rf"`[A-Z]+ {re.escape(r)}` \|", text)]
    assert unnamed == []
