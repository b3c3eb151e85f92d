"""The documentation: its Python examples run, and its links lead somewhere.

A page's ```python blocks run in order in one namespace, each page in a process and a directory of
its own. Blocks of any other language are not run.
"""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
# benchmarks/README.md shows parts of a benchmark, which tests/test_benchmarks.py runs as one.
PAGES_WITH_EXAMPLES = [page for page in PAGES if page.parent.name != "benchmarks"]
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[^`\n]*)\n(?P<body>.*?)^ *```[ \t]*$", re.M | re.S
)
LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)|^\[[^\]]+\]:\s*(\S+)", re.M)
SECONDS = 120


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix() if page.is_relative_to(ROOT) else page.name


def examples(text: str) -> str:
    """A page's Python blocks as one program whose lines have the page's own numbers."""
    program = [""] * (text.count("\n") + 1)
    for block in FENCE.finditer(text):
        if block["language"].strip() != "python":
            continue
        first = text.count("\n", 0, block.start("body"))
        body = textwrap.dedent(block["body"]).splitlines()
        program[first : first + len(body)] = body
    return "\n".join(program)


def failure_of_examples(page: Path, folder: Path) -> str | None:
    """Runs a page's examples in `folder`; None, or what failed, with page and line."""
    program = examples(page.read_text(encoding="utf-8"))
    script = folder / "examples.py"
    script.write_text(
        f"source = {program!r}\n"
        f"exec(compile(source, {name_of(page)!r}, 'exec'), {{'__name__': '__main__'}})\n",
        encoding="utf-8",
    )
    search_path = [str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]
    try:
        done = subprocess.run(
            [sys.executable, str(script)],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, search_path))},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"{name_of(page)}: the examples take more than {SECONDS} s"
    if done.returncode == 0:
        return None
    lines = re.findall(rf'File "{re.escape(name_of(page))}", line (\d+)', done.stderr)
    number = int(lines[0]) if lines else 0
    return (
        f"{name_of(page)}:{number}: {program.splitlines()[number - 1].strip() if number else ''}\n"
        f"{done.stderr}"
    )


def without_code(text: str) -> str:
    """A page without its code, where brackets mean something else."""
    return re.sub(r"`[^`\n]*`", "``", FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """Names of a page's headings, as GitHub makes them: lower case, hyphens, no punctuation."""
    headings = re.findall(r"^#+ +(.+?) *$", FENCE.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Relative links of a page that lead to no file, or to no heading of one."""
    broken = []
    for match in LINK.finditer(without_code(page.read_text(encoding="utf-8"))):
        link = match[1] or match[2]
        if re.match(r"[a-z][a-z+.-]*:", link):
            continue
        target, _, anchor = link.partition("#")
        file = page.parent / target if target else page
        if not file.exists():
            broken.append(f"{name_of(page)}: {link} does not exist")
        elif (
            anchor
            and file.suffix == ".md"
            and anchor not in anchors(file.read_text(encoding="utf-8"))
        ):
            broken.append(f"{name_of(page)}: {link} names no heading")
    return broken


@pytest.mark.parametrize("page", PAGES_WITH_EXAMPLES, ids=name_of)
def test_examples_run(page: Path, tmp_path: Path) -> None:
    """Every Python block of the page runs, after those before it."""
    if not examples(page.read_text(encoding="utf-8")).strip():
        pytest.skip("the page has no Python examples")
    failure = failure_of_examples(page, tmp_path)
    assert failure is None, failure


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links name files that exist and headings that they have."""
    assert not broken_links(page), "\n".join(broken_links(page))


def test_failing_example_is_named(tmp_path: Path) -> None:
    """Blocks share a namespace, other languages are left alone, and a failure has page and line."""
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n\n```python\nvalue = 2\n```\n\n```sh\nexit 1\n```\n\n"
        "- In a list:\n\n  ```python\n  assert value == 2\n  assert value == 3\n  ```\n"
    )
    failure = failure_of_examples(page, tmp_path)
    assert failure is not None and failure.startswith("page.md:15: assert value == 3\n")
    page.write_text(page.read_text().replace("value == 3", "value + 1 == 3"))
    assert failure_of_examples(page, tmp_path) is None


def test_broken_link_is_named(tmp_path: Path) -> None:
    """A missing file and a missing heading; code, web addresses and good links pass."""
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# A heading, with `code`\n")
    page.write_text(
        "# Here\n[a](other.md) [b](other.md#a-heading-with-code) [c](#here) [d](https://x.org/y)\n"
        "`[not](a-link)` [e](missing.md) [f](other.md#nothing)\n\n[g]: gone/\n"
    )
    assert broken_links(page) == [
        "page.md: missing.md does not exist",
        "page.md: other.md#nothing names no heading",
        "page.md: gone/ does not exist",
    ]
