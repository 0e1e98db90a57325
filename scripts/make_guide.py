"""Writes what the guide repeats of the code: `cli.md` from the commands, the dataset codes in `troubleshooting.md`.

python scripts/make_guide.py

`scripts/check_docs.py` checks that both are up to date.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from tunesmith.cli.app import COMMANDS, app
from tunesmith.data import findings

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "guide"
CLI_PAGE = GUIDE / "cli.md"
TROUBLESHOOTING = GUIDE / "troubleshooting.md"
BEGIN, END = "<!-- dataset codes: made by scripts/make_guide.py -->\n", "<!-- end of dataset codes -->\n"
WIDTH = 100
HEAD = """\
# The command line

Made from the commands by `python scripts/make_guide.py`; do not edit.

Every command takes `--json`: progress and notices then go to standard error, and the last line of standard output is
one JSON object, the result or `{"error": {"code", "message", "field", "hint"}}`.

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | a fault of ours |
| 2 | usage: an option or argument is wrong |
| 3 | input refused: data, configuration or model |
| 4 | this machine cannot: GPU, memory, disk, network, or a feature that is not built yet |
| 5 | the job failed, or its model is not usable |
| 6 | not permitted |
| 130 | interrupted; the job can be resumed |

[Troubleshooting](troubleshooting.md) has every error code with its way out. `tunesmith --install-completion` sets up
the completion of your shell.
"""


def help_text(command: Any, path: str) -> str:
    """A command's help as a terminal of 100 columns shows it."""
    context = command.make_context(
        path, [], resilient_parsing=True, terminal_width=WIDTH, max_content_width=WIDTH, help_option_names=["--help"]
    )
    return str(command.get_help(context))


def cli_page() -> str:
    """The whole of `cli.md`."""
    root = typer.main.get_command(app)
    parts = [HEAD]
    for name in COMMANDS:
        command: Any = root.get_command(None, name)  # type: ignore[attr-defined]  # a group has it
        children: dict[str, Any] = getattr(command, "commands", {})
        for words, each in [(f"{name} {child}", children[child]) for child in children] or [(name, command)]:
            parts.append(f"\n## tunesmith {words}\n\n```text\n{help_text(each, f'tunesmith {words}')}\n```\n")
    return "".join(parts)


def with_dataset_codes(text: str) -> str:
    """`troubleshooting.md` with its section of dataset codes made anew from the reader's own tables."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = [BEGIN]
    for title, codes in (
        ("The file as a whole", findings.FILE_ERRORS),
        ("A line", findings.LINE_ERRORS),
        ("A row", findings.ROW_ERRORS),
        ("Warnings; the rows are used", findings.WARNINGS),
    ):
        made.append(f"\n### {title}\n\n| code | what it means | the way out |\n| --- | --- | --- |\n")
        made += [
            f"| `{code}` | {_cell(meaning.meaning)} | {_cell(meaning.way_out)} |\n" for code, meaning in codes.items()
        ]
    return before + "".join(made) + "\n" + END + after


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    CLI_PAGE.write_text(cli_page(), encoding="utf-8")
    TROUBLESHOOTING.write_text(with_dataset_codes(TROUBLESHOOTING.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {CLI_PAGE} and {TROUBLESHOOTING}")
