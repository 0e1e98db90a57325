"""`tunesmith serve`: the console and the REST service of this state folder, with its queue, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from tunesmith.cli.output import Output

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command()
def serve(
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen at; 0: any free one.")] = 8440,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Let other machines reach it, in clear text; needs --allowed-host.")
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option("--allowed-host", help="A host name or address that requests may carry; may be repeated."),
    ] = None,
    cpu_jobs: Annotated[
        int,
        typer.Option(
            "--cpu-jobs",
            min=1,
            max=64,
            help="Jobs that train on the CPU at a time, where there is no GPU; several share its cores.",
        ),
    ] = 1,
    stand_by: Annotated[
        bool,
        typer.Option(
            "--stand-by", help="Where another server serves this state folder: wait for its end, then take its place."
        ),
    ] = False,
    json_wanted: Annotated[bool, typer.Option("--json", help="Tell the address as one JSON object.")] = False,
) -> int:
    """Serve the console and the REST API of this state folder, and run its jobs.

    Jobs that run when it ends go on; the next server follows them.
    """
    from tunesmith.jobs.home import open_home
    from tunesmith.server.run import serve as run_server

    output = Output(json_wanted=json_wanted)
    home = open_home(os.environ)

    def tell(url: str, sign_in_url: str) -> None:
        output.say(f"Tunesmith serves at {url}")
        output.say(f"Open the console, signed in (this link works once, for an hour): {sign_in_url}")
        output.say(f"The token is in {home.root / 'token'}; send it as `Authorization: Bearer TOKEN`.")
        output.say("Ctrl-C ends it; jobs that run go on.")
        output.result(
            {"url": url, "sign_in_url": sign_in_url, "pid": os.getpid(), "token_file": str(home.root / "token")}
        )

    def wait(owner: str) -> None:
        output.say(f"The state folder {home.root} is served by {owner}; this one waits to take its place.")

    run_server(
        home, environment=os.environ, host=host, port=port, allow_remote=allow_remote,
        allowed_hosts=allowed_host or (), cpu_jobs=cpu_jobs, tell=tell,
        wait=wait if stand_by else None,
    )  # fmt: skip
    return 0
