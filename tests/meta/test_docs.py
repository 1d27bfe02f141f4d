"""README, docs, examples and CHANGELOG say what is true: their code runs, their commands exist, their tables are complete.

To bring docs/cli.md up to date with `--help`: python -m tests.meta.test_docs
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE, OutputChecker
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import shardyfusion
from shardyfusion import errors
from shardyfusion.cli.app import shardy
from tests.meta.test_layers import LAYERS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "shardyfusion"
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
PROGRAMS = sorted([*(ROOT / "examples").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")])
BUCKET = "my-bucket"
"""The bucket of the pages: wherever a page that runs names it, it gets an empty one."""

NOT_RUN = {"export AWS_PROFILE=analytics": "needs a profile of the reader's own"}
"""Shell commands that no test can run or check, and why."""

FENCE = re.compile(r"^```(\w*)(?: +([^\n]*))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HELP = re.compile(r"(?<=<!-- help: begin -->\n).*(?=<!-- help: end -->)", re.DOTALL)
TABLE = re.compile(r"^<!-- (fields|names): ([\w.]+) -->\n\n((?:\|.*\n)+)", re.MULTILINE)
PAIR = re.compile(r"`([\w.]+)` \(`([\w/]+\.py)`\)")


def page_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. `why_not` is the reason given after `no-run:`, None where there is no such mark."""

    language: str
    text: str
    line: int
    why_not: str | None


def blocks(path: Path) -> Iterator[Block]:
    page = path.read_text()
    for match in FENCE.finditer(page):
        language, info, text = match.groups()
        marked = (info or "").startswith("no-run:")
        why_not = (info or "").removeprefix("no-run:").strip() if marked else None
        yield Block(language, text, page[: match.start()].count("\n") + 2, why_not)


# -- code and commands -------------------------------------------------------------------------------------------------


def same_text(shown: str, actual: str) -> bool:
    return OutputChecker().check_output(shown.strip() + "\n", actual.strip() + "\n", ELLIPSIS | NORMALIZE_WHITESPACE)


def run_python(block: Block, path: Path, namespace: dict[str, Any]) -> None:
    """Run a block; what a line prints must be what the comment on it, or alone on the next line, shows."""
    lines = path.read_text().splitlines()

    def checked_print(*values: object) -> None:
        line = sys._getframe(1).f_lineno
        code, comment, shown = lines[line - 1].partition("  # ")
        if not comment and lines[line].lstrip().startswith("# "):
            comment, shown = "#", lines[line].lstrip()[2:]
        printed = " ".join(map(str, values))
        assert comment, f"{page_name(path)}:{line}: {code.strip()} does not show what it prints, {printed!r}"
        assert same_text(shown, printed), f"{page_name(path)}:{line} prints {printed!r}"

    namespace["print"] = checked_print
    exec(compile("\n" * (block.line - 1) + block.text, str(path), "exec"), namespace)


def run_shell(command: str) -> str | None:
    """Run a `shardy` command and return its output; check any other command as far as that is possible."""
    words = shlex.split(command, comments=True)
    match words:
        case ["shardy", *arguments]:
            result = CliRunner().invoke(shardy, arguments, prog_name="shardy", terminal_width=80)
            assert result.exit_code in (0, 1), result.output
            return result.output
        case ["make", target]:
            assert target in re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        case ["pip", "install", requirement]:
            name, *wanted = re.split(r"[\[\],]", requirement.rstrip("]"))
            assert name in (".", "shardyfusion")
            assert set(wanted) <= extras(), f"no such extras: {wanted}"
        case ["python", program, *arguments]:
            source = (ROOT / program).read_text()
            assert all(f'"{flag}"' in source for flag in arguments if flag.startswith("--"))
        case _:
            assert NOT_RUN.get(command), f"{command!r} is neither checked nor listed in NOT_RUN"
    return None


def extras() -> set[str]:
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def run_console(block: Block) -> None:
    """`$ command` lines, each followed by what it prints; `...` stands for anything."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        actual = run_shell(command)
        assert actual is not None
        assert not shown or same_text(shown, actual), f"{command} prints:\n{actual}"


@pytest.fixture
def fresh_bucket(request: pytest.FixtureRequest) -> Callable[[], None]:
    def make() -> None:
        client = request.getfixturevalue("s3_client")
        client.create_bucket(Bucket=BUCKET)
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
            for found in page.get("Contents", []):
                client.delete_object(Bucket=BUCKET, Key=found["Key"])

    return make


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_the_code_and_the_commands_of_a_page_work(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_bucket: Callable[[], None]
) -> None:
    """In order, in one namespace and one empty directory."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "page"}
    runnable = [block for block in blocks(path) if block.language in ("python", "console", "bash")]
    if any(f"s3://{BUCKET}" in block.text for block in runnable if block.why_not is None):
        fresh_bucket()
    for block in runnable:
        if block.why_not is not None:
            assert len(block.why_not) > 10, f"{page_name(path)}:{block.line} does not say why it is not run"
        elif block.language == "python":
            run_python(block, path, namespace)
        elif block.language == "console":
            run_console(block)
        else:
            for command in filter(None, (line.partition("#")[0].strip() for line in block.text.splitlines())):
                run_shell(command)


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_commands_inside_sentences_and_tables_exist(path: Path) -> None:
    for command in re.findall(r"`((?:make|pip install) [^`\n]+)`", path.read_text()):
        run_shell(command)


def test_the_readme_names_every_extra() -> None:
    assert set(re.findall(r"'\.\[([\w-]+)\]'", (ROOT / "README.md").read_text())) == extras()


def test_every_exception_to_the_rule_is_used() -> None:
    assert all(any(command in path.read_text() for path in PAGES) for command in NOT_RUN)


def imported_names(code: str) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "shardyfusion":
            yield from ((node.module or "", alias.name) for alias in node.names)


@pytest.mark.parametrize("path", [*PAGES, *PROGRAMS], ids=page_name)
def test_imported_names_exist(path: Path) -> None:
    """Those of blocks that are not run, and of sentences, too."""
    text = path.read_text()
    codes = [text] if path.suffix == ".py" else [block.text for block in blocks(path) if block.language == "python"]
    codes += [] if path.suffix == ".py" else re.findall(r"`(from shardyfusion[^`\n]*)`", text)
    for code in codes:
        for module, name in imported_names(code):
            assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"


# -- tables ------------------------------------------------------------------------------------------------------------


def public_object(dotted: str) -> Any:
    module, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(module), name)


def parameters(target: Any) -> dict[str, Any]:
    """What can be passed, with its default; `...` stands for what is required."""
    if not dataclasses.is_dataclass(target):
        signature = inspect.signature(target).parameters
        return {name: ... if p.default is p.empty else p.default for name, p in signature.items()}
    found: dict[str, Any] = {}
    for field in dataclasses.fields(target):
        made = None if field.default_factory is dataclasses.MISSING else field.default_factory()
        found[field.name] = (... if made is None else made) if field.default is dataclasses.MISSING else field.default
    return found


def attributes(target: Any) -> set[str]:
    """What can be read: fields and properties, or the keys of a TypedDict."""
    properties = {name for name, value in inspect.getmembers(target) if isinstance(value, property)}
    return set(inspect.get_annotations(target)) | properties


TABLES = [(path, *found) for path in PAGES for found in TABLE.findall(path.read_text())]


@pytest.mark.parametrize(("path", "kind", "name", "table"), TABLES, ids=[found[2] for found in TABLES])
def test_tables_of_options_are_complete_and_their_defaults_right(path: Path, kind: str, name: str, table: str) -> None:
    rows = [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    if kind == "names":
        assert {row[0] for row in rows} == attributes(public_object(name))
        return
    public = {public_name: getattr(shardyfusion, public_name) for public_name in shardyfusion.__all__}
    stated = {row[0]: ... if row[1] == "required" else eval(row[1], dict(public)) for row in rows}
    assert stated == parameters(public_object(name))


def test_every_configuration_object_has_a_table() -> None:
    tabled = {name.rpartition(".")[2] for _, _, name, _ in TABLES}
    configured = {
        name
        for name in shardyfusion.__all__
        if dataclasses.is_dataclass(getattr(shardyfusion, name)) and not re.search("Credential", name)
    }
    assert configured | {"ShardedReader", "S3ConnectionOptions", "BuildResult", "WriteSeconds"} <= tabled


def error_classes() -> dict[str, type[errors.ShardyfusionError]]:
    return {name: value for name, value in vars(errors).items() if name.endswith("Error")}


def test_the_tree_of_errors_is_the_real_one() -> None:
    page = (DOCS / "errors.md").read_text()
    parents: dict[str, str] = {}
    open_classes: list[str] = []
    for line in next(block.text for block in blocks(DOCS / "errors.md") if block.language == "text").splitlines():
        found = re.match(r"([ │├└─]*)(\w+Error)", line)
        assert found, line
        depth = len(found[1]) // 4
        open_classes[depth:] = [found[2]]
        parents[found[2]] = open_classes[depth - 1] if depth else "Exception"
    assert parents == {name: value.__bases__[0].__name__ for name, value in error_classes().items()}
    for name, retryable in re.findall(r"^\| `(\w+Error)` \| (yes|no) \|", page, re.MULTILINE):
        assert error_classes()[name].retryable == (retryable == "yes"), name
        del parents[name]
    assert not parents, f"no advice on {', '.join(parents)}"


# -- the architecture page ---------------------------------------------------------------------------------------------


def defined_names(path: Path) -> set[str]:
    """Top-level names of a module, and `Class.member`."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{member.name}" for member in node.body if isinstance(member, ast.FunctionDef)}
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_places_in_the_code_exist(path: Path) -> None:
    """Every `symbol` (`file.py`) of a page."""
    pairs = PAIR.findall(path.read_text())
    assert [pair for pair in pairs if pair[0] not in defined_names(PACKAGE / pair[1])] == []
    assert path.name != "architecture.md" or len(pairs) >= 20


def test_the_layers_on_the_architecture_page_are_those_that_are_enforced() -> None:
    page = (DOCS / "architecture.md").read_text()
    rows = re.findall(r"^\| \d \| \w+ \| (.*?) \|", page, re.MULTILINE)
    assert [set(re.findall(r"`(\w+)`", row)) for row in reversed(rows)] == LAYERS


def test_the_tree_on_the_architecture_page_is_complete() -> None:
    tree = next(block.text for block in blocks(DOCS / "architecture.md") if "shardyfusion/\n" in block.text)
    shown = set(re.findall(r"^  (\w+(?:\.py|/))", tree, re.MULTILINE))
    assert shown == {
        path.name if path.is_file() else f"{path.name}/"
        for path in PACKAGE.iterdir()
        if path.name not in ("__init__.py", "__pycache__", "py.typed")
    }


# -- the rest ----------------------------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """Headings as GitHub links to them."""
    text = FENCE.sub("", path.read_text())
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_relative_links_resolve(path: Path) -> None:
    text = FENCE.sub("", path.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_the_index_leads_to_every_page() -> None:
    linked = re.findall(r"\]\(([^)\s#]+)", (DOCS / "index.md").read_text())
    assert {DOCS / target for target in linked} >= set(DOCS.rglob("*.md")) - {DOCS / "index.md"}


@pytest.mark.parametrize("path", [*PAGES, *PROGRAMS], ids=page_name)
def test_no_path_of_somebodys_machine(path: Path) -> None:
    assert re.findall(r"/(?:work|root|home|Users|tmp)\b/?\S*", path.read_text()) == []


def help_texts() -> str:
    """What `shardy` and each of its commands print for `--help`."""
    shown: list[str] = []
    for command in ("", *sorted(shardy.commands)):
        arguments = [*command.split(), "--help"]
        result = CliRunner().invoke(shardy, arguments, prog_name="shardy", terminal_width=80)
        title = f"shardy {command}".strip()
        shown.append(f"### {title}\n\n```text\n{result.output.rstrip()}\n```\n")
    return "\n" + "\n".join(shown) + "\n"


def test_the_page_on_the_command_line_is_what_help_says() -> None:
    """To bring it up to date: python -m tests.meta.test_docs"""
    (shown,) = HELP.findall((DOCS / "cli.md").read_text())
    assert shown == help_texts()


if __name__ == "__main__":
    cli_page = DOCS / "cli.md"
    cli_page.write_text(HELP.sub(lambda _: help_texts(), cli_page.read_text()))
