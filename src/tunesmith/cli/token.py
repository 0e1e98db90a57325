"""`tunesmith token list | create | revoke`: who may use the service."""

from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.connected import JsonOption, LimitOption, complete_token, connected, noun, tell_table
from tunesmith.cli.output import Output

app = noun("Tokens of the service's users.")
Token = Annotated[str, typer.Argument(metavar="TOKEN_ID", help="Its id, not its text.", autocompletion=complete_token)]


@app.command("list")
def list_(limit: LimitOption = None, json_wanted: JsonOption = False) -> int:
    """List the tokens; their texts are kept nowhere."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        tokens = client.tokens.list(limit=limit)
    if not json_wanted:
        rows = [
            (
                each.token_id,
                each.state,
                each.role.value,
                each.policies,
                each.created_at[:19],
                each.expires_at,
                each.name,
            )
            for each in tokens
        ]
        tell_table(output, ("id", "state", "role", "policies", "created", "expires", "name"), rows, none="No tokens.")
    output.result({"tokens": [each.as_json() for each in tokens]})
    return 0


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose it is, or what for.")],
    role: Annotated[str, typer.Option("--role", help="admin: may do everything; user: what policies allow.")] = "user",
    days: Annotated[int | None, typer.Option("--days", help="Days until it expires; default: never.")] = None,
    json_wanted: JsonOption = False,
) -> int:
    """Make a token. Its text is shown this once."""
    from tunesmith.cli.checked import checked
    from tunesmith.spec.catalog import NewToken

    output = Output(json_wanted=json_wanted)
    with connected() as client:
        made = client.tokens.create(checked(NewToken, name=name, role=role, days=days))
    if not json_wanted:
        output.say(f"The token of {name} (role {role}), shown this once; its user sets TUNESMITH_TOKEN to it:")
        output.say(str(made["token"]))
    output.result(made)
    return 0


@app.command()
def revoke(token: Token, json_wanted: JsonOption = False) -> int:
    """Revoke a token: it opens nothing from now on."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        client.tokens.revoke(token)
    output.say(f"Revoked the token {token}.")
    output.result({"revoked": token})
    return 0
