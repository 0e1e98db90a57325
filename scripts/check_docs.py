"""Checks the documentation against the code; `make check` runs it. Prints every fault and exits with 1 if there is one.

- `docs/guide/cli.md` is what the commands say of themselves, and the dataset codes what the reader says
- relative links and their anchors lead somewhere
- commands in code blocks name commands and options that exist
- each code that an error, finding or notice carries in `src/` stands in `docs/guide/troubleshooting.md`, and no other
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from make_guide import CLI_PAGE, TROUBLESHOOTING, cli_page, with_dataset_codes

from tunesmith.cli.app import COMMANDS, app
from tunesmith.client.connection import PROJECT_VARIABLE, TOKEN_VARIABLE, URL_VARIABLE
from tunesmith.data.findings import ERRORS, WARNINGS
from tunesmith.errors import FAMILIES
from tunesmith.jobs.home import HOME_VARIABLE
from tunesmith.jobs.launcher import ALLOCATOR_VARIABLES, KEPT_VARIABLES, SET_VARIABLES
from tunesmith.storage.s3_store import AWS_VARIABLES

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"(?:NO|[A-Z][A-Z0-9]{2,})(_[A-Z0-9]+)*")
CODE_ROW = re.compile(r"^\| `([A-Z0-9_]+)` \|", re.MULTILINE)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Calls that carry a code in their first or `code=` argument; codes of one word are told from other words by them.
CARRIERS = frozenset({*FAMILIES, "Notice", "NoticeEvent", "Finding", "notice", "warn", "add"})
# Texts that look like a code and are none, beside the variables of a worker's environment.
NOT_CODES = (
    KEPT_VARIABLES
    | SET_VARIABLES.keys()
    | set(ALLOCATOR_VARIABLES)
    | AWS_VARIABLES
    | {
        HOME_VARIABLE,
        URL_VARIABLE,
        TOKEN_VARIABLE,
        PROJECT_VARIABLE,
        "CUDA_VISIBLE_DEVICES",
        "TRITON_INTERPRET",
        "CUDA_DEVICE_ORDER",
        "PCI_BUS_ID",
        "TOKEN_ID",
        "HUB_ID",
        "CAUSAL_LM",
        "LEARNED_BIT",
    }
)


def pages() -> list[Path]:
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def stale_faults() -> Iterator[str]:
    if not CLI_PAGE.exists() or CLI_PAGE.read_text(encoding="utf-8") != cli_page():
        yield "docs/guide/cli.md is not up to date: run `python scripts/make_guide.py`"
    text = TROUBLESHOOTING.read_text(encoding="utf-8")
    if with_dataset_codes(text) != text:
        yield "docs/guide/troubleshooting.md is not up to date: run `python scripts/make_guide.py`"


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def anchors(path: Path) -> set[str]:
    """The anchors that a Markdown page's headings get."""
    headings = re.findall(r"^#{1,6} +(.+?)\s*$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def link_faults() -> Iterator[str]:
    for page in pages():
        for target in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
            if re.match(r"[a-z]+:", target):
                continue
            path_text, _, anchor = target.partition("#")
            path = (page.parent / path_text).resolve() if path_text else page
            where = f"{page.relative_to(ROOT)}: the link {target}"
            if not path.exists():
                yield f"{where} leads nowhere"
            elif anchor and path.suffix == ".md" and anchor not in anchors(path):
                yield f"{where} names no heading of {path.relative_to(ROOT)}"


def known_options(root: Any) -> dict[str, set[str]]:
    """Command (`job resume`) -> its options."""
    known: dict[str, set[str]] = {}
    for name in COMMANDS:
        command = root.get_command(None, name)
        children = getattr(command, "commands", {})
        for words, each in [(f"{name} {child}", children[child]) for child in children] or [(name, command)]:
            known[words] = {
                "--help",
                *(option for parameter in each.params for option in (*parameter.opts, *parameter.secondary_opts)),
            }
    return known


def command_faults() -> Iterator[str]:
    known = known_options(typer.main.get_command(app))
    for page in pages():
        for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
            if language not in ("sh", "bash", "console"):
                continue
            for line in block.replace("\\\n", " ").splitlines():
                words = line.removeprefix("$ ").split()
                if not words or words[0] != "tunesmith" or len(words) < 2 or words[1].startswith("--"):
                    continue
                name = words[1] if words[1] in known else " ".join(words[1:3])
                where = f"{page.relative_to(ROOT)}: `{line.strip()}`"
                if name not in known:
                    yield f"{where} names no command"
                    continue
                for word in words:
                    if word.startswith("--") and word.partition("=")[0] not in known[name]:
                        yield f"{where}: {word} is no option of {name}"


def codes_in_source() -> dict[str, str]:
    """Code -> the first place that carries it."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and _is_code(node.value):
                found.setdefault(node.value, f"{path.relative_to(ROOT)}:{node.lineno}")
            if not isinstance(node, ast.Call):
                continue
            callee = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            candidates = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            if callee in CARRIERS:
                candidates += node.args[:2]
            for value in candidates:
                for text in constants(value):
                    if CODE.fullmatch(text):
                        found.setdefault(text, f"{path.relative_to(ROOT)}:{node.lineno}")
    return found


def _is_code(value: Any) -> bool:
    return isinstance(value, str) and "_" in value and value not in NOT_CODES and CODE.fullmatch(value) is not None


def constants(node: ast.expr) -> Iterator[str]:
    """The texts that an expression may be: a literal, or either side of a conditional."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from constants(node.body)
        yield from constants(node.orelse)


def code_faults() -> Iterator[str]:
    in_source = codes_in_source() | dict.fromkeys((*ERRORS, *WARNINGS), "src/tunesmith/data/findings.py")
    described = CODE_ROW.findall(TROUBLESHOOTING.read_text(encoding="utf-8"))
    for code, place in sorted(in_source.items()):
        if code not in described:
            yield f"docs/guide/troubleshooting.md does not describe {code} ({place})"
    for code in sorted(set(described) - set(in_source)):
        yield f"docs/guide/troubleshooting.md describes {code}, which nothing in src carries"
    for code in sorted({code for code in described if described.count(code) > 1}):
        yield f"docs/guide/troubleshooting.md describes {code} twice"


def main() -> int:
    faults = [*stale_faults(), *link_faults(), *command_faults(), *code_faults()]
    for fault in faults:
        print(fault)
    print(f"docs: {len(faults)} faults" if faults else "docs: all is well")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
