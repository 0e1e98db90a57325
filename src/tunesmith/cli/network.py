"""`tunesmith network list | show | uses | add | edit | delete`: the networks of the replicas of a job."""

from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.connected import (
    DescriptionOption,
    JsonOption,
    LimitOption,
    SearchOption,
    complete_network,
    connected,
    given,
    noun,
    tell_fields,
    tell_table,
    tell_uses,
)
from tunesmith.cli.output import Output

app = noun("Networks that the replicas of a job use.")
Network = Annotated[str, typer.Argument(metavar="NETWORK", help="Its name.", autocompletion=complete_network)]


@app.command("list")
def list_(search: SearchOption = None, limit: LimitOption = None, json_wanted: JsonOption = False) -> int:
    """List the networks."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        networks = client.networks.list(search=search, limit=limit)
    if not json_wanted:
        rows = [(each.name, each.cidr, each.interface, each.description) for each in networks]
        tell_table(
            output, ("name", "cidr", "interface", "description"), rows, none="No networks; one machine needs none."
        )
    output.result({"networks": [each.as_json() for each in networks]})
    return 0


@app.command()
def show(network: Network, json_wanted: JsonOption = False) -> int:
    """Show a network."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        view = client.networks.get(network)
    if not json_wanted:
        tell_fields(output, view.as_json())
    output.result(view.as_json())
    return 0


@app.command()
def uses(network: Network, json_wanted: JsonOption = False) -> int:
    """List what uses it now, and so forbids deleting it."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        found = client.networks.uses(network)
    if not json_wanted:
        tell_uses(output, found)
    output.result({"network": network, **found.as_json()})
    return 0


@app.command()
def add(
    network: Annotated[str, typer.Argument(metavar="NETWORK", help="A name for it.")],
    cidr: Annotated[str, typer.Argument(metavar="CIDR", help="The network of the machines, as in 10.0.0.0/24.")],
    interface: Annotated[str | None, typer.Option("--interface", help="Name of the interface, as in eth0.")] = None,
    description: DescriptionOption = None,
    json_wanted: JsonOption = False,
) -> int:
    """Declare a network."""
    from tunesmith.cli.checked import checked
    from tunesmith.spec.catalog import NewNetwork

    output = Output(json_wanted=json_wanted)
    new = checked(NewNetwork, name=network, cidr=cidr, interface=interface, description=description)
    with connected() as client:
        view = client.networks.add(new)
    output.say(f"Network {view.name}: {view.cidr}")
    output.result(view.as_json())
    return 0


@app.command()
def edit(
    network: Network,
    cidr: Annotated[str | None, typer.Option("--cidr", help="The network of the machines, as in 10.0.0.0/24.")] = None,
    interface: Annotated[
        str | None, typer.Option("--interface", help="As in eth0; an empty text takes it away.")
    ] = None,
    description: DescriptionOption = None,
    json_wanted: JsonOption = False,
) -> int:
    """Change a network; what is not named stays as it is."""
    from tunesmith.cli.checked import checked
    from tunesmith.spec.catalog import NetworkChange

    output = Output(json_wanted=json_wanted)
    wanted = given(cidr=cidr, interface=interface, description=description)
    with connected() as client:
        view = client.networks.edit(network, checked(NetworkChange, **wanted))
    if not json_wanted:
        tell_fields(output, view.as_json())
    output.result(view.as_json())
    return 0


@app.command()
def delete(network: Network, json_wanted: JsonOption = False) -> int:
    """Delete a network; refused while a job uses it."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        client.networks.delete(network)
    output.say(f"Deleted the network {network}.")
    output.result({"deleted": network})
    return 0
