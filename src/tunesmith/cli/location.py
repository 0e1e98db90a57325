"""`tunesmith location list | show | uses | add | edit | check | scan | browse | delete`: declared places."""

from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.connected import (
    DescriptionOption,
    JsonOption,
    LimitOption,
    SearchOption,
    complete_location,
    connected,
    given,
    noun,
    tell_fields,
    tell_table,
    tell_uses,
)
from tunesmith.cli.output import Output

app = noun("Places of datasets and results that an administrator declared.")
Location = Annotated[str, typer.Argument(metavar="LOCATION", help="Its name.", autocompletion=complete_location)]


@app.command("list")
def list_(search: SearchOption = None, limit: LimitOption = None, json_wanted: JsonOption = False) -> int:
    """List the declared locations."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        locations = client.locations.list(search=search, limit=limit)
    if not json_wanted:
        rows = [(each.name, each.uri, each.description) for each in locations]
        tell_table(
            output, ("name", "uri", "description"), rows, none="None declared; results go to the server's own folder."
        )
    output.result({"locations": [each.as_json() for each in locations]})
    return 0


@app.command()
def show(location: Location, json_wanted: JsonOption = False) -> int:
    """Show a location."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        view = client.locations.get(location)
    if not json_wanted:
        tell_fields(output, view.as_json())
    output.result(view.as_json())
    return 0


@app.command()
def uses(location: Location, json_wanted: JsonOption = False) -> int:
    """List what uses it now, and so forbids deleting it."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        found = client.locations.uses(location)
    if not json_wanted:
        tell_uses(output, found)
    output.result({"location": location, **found.as_json()})
    return 0


EndpointOption = Annotated[
    str | None, typer.Option("--endpoint-url", help="Of an S3-compatible store that is not AWS.")
]
RegionOption = Annotated[str | None, typer.Option("--region", help="Of the bucket.")]
CredentialsOption = Annotated[
    str | None,
    typer.Option("--credentials", help="Where they stand: env:PREFIX, profile:NAME or file:PATH; never a secret."),
]


@app.command()
def add(
    location: Annotated[str, typer.Argument(metavar="LOCATION", help="A name for it.")],
    uri: Annotated[str, typer.Argument(metavar="URI", help="file:///folder or s3://bucket/prefix.")],
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    credentials: CredentialsOption = None,
    description: DescriptionOption = None,
    json_wanted: JsonOption = False,
) -> int:
    """Declare a location, so that users may choose it by its name."""
    from tunesmith.cli.checked import checked
    from tunesmith.spec.catalog import NewLocation

    output = Output(json_wanted=json_wanted)
    new = checked(
        NewLocation, name=location, uri=uri, endpoint_url=endpoint_url, region=region, credentials=credentials,
        description=description,
    )  # fmt: skip
    with connected() as client:
        view = client.locations.add(new)
    output.say(f"Location {view.name}: {view.uri}. Next: tunesmith location check {view.name}")
    output.result(view.as_json())
    return 0


@app.command()
def edit(
    location: Location,
    uri: Annotated[str | None, typer.Option("--uri", help="Another place, while nothing uses the location.")] = None,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    credentials: CredentialsOption = None,
    description: DescriptionOption = None,
    json_wanted: JsonOption = False,
) -> int:
    """Change a location; what is not named stays as it is, and an empty text takes a value away."""
    from tunesmith.cli.checked import checked
    from tunesmith.spec.catalog import LocationChange

    output = Output(json_wanted=json_wanted)
    wanted = given(
        uri=uri, endpoint_url=endpoint_url, region=region, credentials=credentials, description=description
    )  # fmt: skip
    with connected() as client:
        view = client.locations.edit(location, checked(LocationChange, **wanted))
    if not json_wanted:
        tell_fields(output, view.as_json())
        output.say(f"Next: tunesmith location check {view.name}")
    output.result(view.as_json())
    return 0


@app.command()
def check(location: Location, json_wanted: JsonOption = False) -> int:
    """Check that it answers, can be written and keeps versions, as before a job. Exit code 4 where it does not."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        found = client.locations.check(location)
    if not json_wanted:
        tell_fields(output, found)
        output.say("It can be used.")
    output.result(found)
    return 0


@app.command()
def scan(location: Location, json_wanted: JsonOption = False) -> int:
    """Find the models that lie in a location: folders with config.json and safetensors. Nothing is registered."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        found = client.locations.scan(location)
    if not json_wanted:
        rows = [
            (each.path or ".", each.bytes, each.architecture or each.fault,
             each.labels[0].label.value if each.labels else None, each.registered_as)
            for each in found.models
        ]  # fmt: skip
        tell_table(output, ("path", "bytes", "architecture", "label", "registered as"), rows, none="No models there.")
        if found.is_cut:
            output.warn("There are more or deeper folders than one scan looks at; declare a location further down.")
        if any(each.registered_as is None and each.path for each in found.models):
            output.say(f"Next: tunesmith model register NAME {location}:PATH")
    output.result(found.as_json())
    return 0


@app.command()
def browse(
    location: Location,
    path: Annotated[str, typer.Argument(metavar="PATH", help="Within it; default: its top.")] = "",
    limit: LimitOption = None,
    json_wanted: JsonOption = False,
) -> int:
    """List what lies in a location."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        entries = client.locations.browse(location, path, limit=limit)
    if not json_wanted:
        rows = [(each.get("size"), each.get("modified_at"), each.get("path")) for each in entries]
        tell_table(output, ("bytes", "modified", "path"), rows, none="Nothing lies there.")
    output.result({"location": location, "path": path, "entries": entries})
    return 0


@app.command()
def delete(location: Location, json_wanted: JsonOption = False) -> int:
    """Forget a location; what lies there stays. Refused while a job or a dataset uses it."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        client.locations.delete(location)
    output.say(f"The location {location} is declared no more; its contents are as they were.")
    output.result({"deleted": location})
    return 0
