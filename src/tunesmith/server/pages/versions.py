"""Model versions: the list, a version with its metrics, verdict, lineage and files, and what may be done with it."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from typing import Annotated, Any, Literal
from urllib.parse import quote

import orjson
from fastapi import Query
from pydantic import Field
from starlette.responses import Response

from tunesmith.errors import TunesmithError, Unknown, UsageFault
from tunesmith.server.api import models
from tunesmith.server.api import versions as routes
from tunesmith.server.api.jobs import read_view
from tunesmith.server.auth import may
from tunesmith.server.feed import read_page as read_event_page
from tunesmith.server.guard import OWN_USER
from tunesmith.server.pages import words
from tunesmith.server.pages.jobs import metrics_panel, new_key, overview
from tunesmith.server.pages.models import read_tags
from tunesmith.server.pages.page import View, action, done, is_part, page, query_text, redirect, seen
from tunesmith.server.pages.pictures import interval_picture, lineage_picture
from tunesmith.server.prefix import prefix_of
from tunesmith.server.service import ADDRESS_NAME, Call, CallNow
from tunesmith.spec.api import CURSOR_CHARACTERS, DeleteQuery, JobView, SearchQuery, TaggedQuery, VersionQuery
from tunesmith.spec.base import Spec
from tunesmith.spec.catalog import NewVersion, NounChange, VersionDetail, VersionState, VersionView
from tunesmith.spec.faults import checked
from tunesmith.spec.metrics import NoticeEvent
from tunesmith.spec.names import VersionSetName

SHOWN_SETS = 6
ALL = {"limit": 200}
SCORES = ("loss", "token_accuracy", "completion_accuracy")  # of SplitMetrics
SCORE_FIELDS = tuple(f"{split}_{name}" for split in ("training", "validation") for name in SCORES)
COMPARABLE = 50  # other versions of the set that a page offers for comparison
SHOWN_NOTICES = 30
# the panel draws the one; the other was told before the start, when it could be acted on
TOLD_ELSEWHERE = frozenset({"OVERFITTING", "LOG_RECOMMENDED"})
FORM_SETTINGS = ("lora_rank", "lora_alpha", "lora_dropout", "adapter", "target_modules", "render")


class VersionListQuery(Spec):
    """The list's own form; a field that was left empty is absent."""

    search: str = Field("", max_length=200)
    state: VersionState | Literal[""] = ""
    set: VersionSetName | Literal[""] = ""
    after: str | None = Field(None, max_length=CURSOR_CHARACTERS)


def version_list(call: CallNow, query: Annotated[VersionListQuery, Query()]) -> View:
    asked = {"search": query.search.strip(), "state": query.state, "set": query.set, "after": query.after}
    found = routes.list_versions(call, VersionQuery.model_validate({k: v for k, v in asked.items() if v}))
    is_whole = not any(asked.values())
    sets = routes.list_version_sets(call, SearchQuery.model_validate({"limit": SHOWN_SETS})) if is_whole else None
    context = {
        "versions": found.versions,
        "next": found.next,
        "query": query,
        "states": list(VersionState),
        "kept": query_text(search=query.search, state=query.state, set=query.set),
        "sets": sets.version_sets if sets is not None else [],
        "has_more_sets": sets is not None and sets.next is not None,
        "is_filtered": not is_whole,
    }
    return View(template="versions/table.html" if is_part(call.request) else "versions/list.html", context=context)


def version_page(call: CallNow, version: str) -> View:
    detail = routes.show_version(call, version)
    graph = routes.show_lineage(call, detail.version.model_version)
    siblings = VersionQuery.model_validate({"set": detail.version.version_set, "limit": COMPARABLE})
    others = routes.list_versions(call, siblings).versions
    context = {
        "detail": detail,
        "others": [each for each in others if each.model_version != detail.version.model_version],
        "set": routes.show_version_set(call, detail.version.version_set),
        "graph": graph,
        "lineage": lineage_picture(graph),
        "interval": interval_picture(detail.verdict),
        "settings": settings_of(detail),
        "num_bytes": sum(file.size for file in detail.files),
        "code": client_code(call, detail),
        **_panel(call, detail),
        "notices": notices_of(call, detail.version),
    }
    return View(template="versions/show.html", context=context)


def live_parts(call: CallNow, version: str) -> View | Response:
    """What changes while its job trains; `job.js` asks for it as the job's events come, htmx now and then."""
    detail = routes.show_version(call, version)
    if detail.version.state is not VersionState.CREATING:
        return Response(headers={"HX-Refresh": "true"})  # everything changes
    return View(template="versions/live.html", context=_panel(call, detail))


def _panel(call: Call, detail: VersionDetail) -> dict[str, Any]:
    """The metrics panel; of a version in progress as its job tells it by its events, with how far it is."""
    version = detail.version
    if version.state is VersionState.CREATING and version.job_id is not None and may(call.principal, "job.read"):
        with suppress(Unknown):
            address = f"/versions/{quote(version.model_version, safe=':')}/live"
            return overview(call, version.job_id, parts_address=address) | {"is_live": True}
    return metrics_panel(detail.metrics, of=version.model_version) | {
        "job": _job(call, version), "samples": detail.samples, "is_final": True, "is_live": False,
    }  # fmt: skip


def _job(call: Call, version: VersionView) -> JobView | None:
    """Of a version that failed: why."""
    if version.job_id is None or version.state is not VersionState.FAILED or not may(call.principal, "job.read"):
        return None
    try:
        return read_view(call, version.job_id)
    except Unknown:
        return None


def notices_of(call: Call, version: VersionView) -> list[NoticeEvent]:
    """What the run said, each thing once."""
    if version.job_id is None:
        return []
    events = read_event_page(call.database, version.job_id, after=0, limit=SHOWN_NOTICES, kinds={"notice"})
    found = [NoticeEvent.model_validate_json(event.body) for event in events]
    return list({(each.code, each.message): each for each in found if each.code not in TOLD_ELSEWHERE}.values())


def settings_of(detail: VersionDetail) -> list[tuple[str, Any]]:
    """Of one that was trained elsewhere the adapter's form alone: the rest is not known."""
    if detail.lineage is None:
        return []
    if detail.lineage.registration is not None:
        return [(name.replace("_", " "), getattr(detail.lineage.settings, name)) for name in FORM_SETTINGS]
    return [(name.replace("_", " "), value) for name, value in detail.lineage.settings.as_json().items()]


def own_url(call: Call) -> str:
    """As a program reaches this server: not through the proxy that a browser came by."""
    if prefix_of(call.request) or OWN_USER in call.request.scope:
        return orjson.loads((call.state.home.root / ADDRESS_NAME).read_bytes())["url"]
    return f"{call.request.url.scheme}://{call.request.headers.get('host', '127.0.0.1:8440')}"


def client_code(call: Call, detail: VersionDetail) -> dict[str, str]:
    """The same question from Python, a shell and our command line, to copy."""
    url = f"{own_url(call)}/v1"
    name = detail.version.model_version
    is_plain = is_plain_text(detail)
    prompt = detail.samples[0].prompt if detail.samples else words.CODE_PROMPT
    prompt = prompt if len(prompt) <= 200 and prompt.isprintable() else words.CODE_PROMPT
    asked = f"prompt={prompt!r}" if is_plain else f'messages=[{{"role": "user", "content": {prompt!r}}}]'
    kind, said = ("completions", "text") if is_plain else ("chat.completions", "message.content")
    body = (
        f'"prompt": "{words.CODE_PROMPT}"'
        if is_plain
        else f'"messages": [{{"role": "user", "content": "{words.CODE_PROMPT}"}}]'
    )
    return {
        words.CODE_KINDS["python"]: f"""from openai import OpenAI

client = OpenAI(base_url="{url}", api_key=TOKEN)  # a token of this server
answer = client.{kind}.create(
    model="{name}",
    {asked},
    temperature=0,
    max_tokens=256,
)
print(answer.choices[0].{said})""",
        words.CODE_KINDS["curl"]: f"""curl {url}/{kind.replace(".", "/")} \\
  -H "Authorization: Bearer $TUNESMITH_TOKEN" -H "Content-Type: application/json" \\
  -d '{{"model": "{name}", {body}, "max_tokens": 256}}'""",
        words.CODE_KINDS["command"]: f"tunesmith chat {name}",
    }


def is_plain_text(detail: VersionDetail) -> bool:
    """Trained without a chat template: it completes and does not chat."""
    return detail.lineage is not None and detail.lineage.settings.render == "plain"


# ---- an adapter that was trained elsewhere


class RegisterQuery(Spec):
    """What a link to the form may fill in."""

    version_set: str = Field("", max_length=64)
    base: str = Field("", max_length=200)


def register_page(call: CallNow, query: Annotated[RegisterQuery, Query()]) -> View:
    return _register_form(call, query.as_json())


def _register_form(call: Call, values: dict[str, str], *, error: TunesmithError | None = None) -> View:
    every, tagged = SearchQuery.model_validate(ALL), TaggedQuery.model_validate(ALL)
    context = {
        "values": defaultdict(str, {"key": new_key()} | values),  # a template asks for any field
        "bases": [each.name for each in seen(call, "model.read", lambda: models.list_models(call, tagged).models)],
        "sets": seen(call, "version.read", lambda: routes.list_version_sets(call, every).version_sets),
        "is_local": call.principal.is_local,
        "error": error,
    }
    return View(template="versions/register.html", context=context, status=200 if error is None else 422)


def register(call: CallNow) -> View | Response:
    values = call.form.texts()
    given = {name: text for name, text in values.items() if name not in ("csrf", "key", "tags", *SCORE_FIELDS)}
    try:
        wanted = {**given, "tags": read_tags(values.get("tags", "")), "metrics": _scores(values)}
        answer = routes.register_version(call, checked(NewVersion, wanted), values.get("key"))
    except TunesmithError as error:
        return _register_form(call, values, error=error)
    return redirect(f"/versions/{orjson.loads(answer.body)['version']['model_version']}")


def _scores(values: dict[str, str]) -> dict[str, Any] | None:
    """What its training measured at its end, as one epoch. Raises UsageFault for a score that is missing."""
    epoch: dict[str, Any] = {
        split: {name: text.replace(",", ".") for name in SCORES if (text := values.get(f"{split}_{name}"))}
        for split in ("training", "validation")
    }
    if not any(epoch.values()):
        return None
    for split, told in epoch.items():
        missing = [name for name in SCORES if name not in told]
        if missing and (told or split == "training"):
            raise UsageFault(
                "INVALID_FIELD", f"The scores on {split} rows lack {' and '.join(missing).replace('_', ' ')}.",
                field=f"{split}_{missing[0]}", hint="Tell all three of a line; those on training rows, or none at all.",
            )  # fmt: skip
    return {"epochs": [{"epoch": 1, **epoch, "validation": epoch["validation"] or None}], "best_epoch": 1}


# ---- talking to it


class TryQuery(Spec):
    beside: str = Field("", max_length=300, description="The model on the other side; default: the base.")


def try_page(call: CallNow, version: str, query: Annotated[TryQuery, Query()]) -> View:
    detail = routes.show_version(call, version)
    siblings = VersionQuery.model_validate({
        "set": detail.version.version_set, "state": VersionState.ACTIVE, "limit": COMPARABLE,
    })  # fmt: skip
    others = [
        each.model_version
        for each in routes.list_versions(call, siblings).versions
        if each.model_version != detail.version.model_version
    ]
    context = {
        "detail": detail,
        "beside": query.beside or detail.version.base_name,
        "choices": [detail.version.base_name, *others],
        "is_plain": is_plain_text(detail),
        "prompts": [sample.prompt for sample in detail.samples],
        "code": client_code(call, detail),
    }
    return View(template="versions/try.html", context=context)


# ---- changing it


def edit_version(call: CallNow, version: str) -> Response:
    change = checked(NounChange, {"description": call.form.text("description") or "", **_name(call)})
    routes.change_version(call, version, change)
    return done(call, f"/versions/{version}")


def _name(call: Call) -> dict[str, str]:
    name = call.form.text("name")
    return {"name": name} if name is not None else {}


def delete_page(call: CallNow, version: str) -> View:
    """Asks, and says what will go and what keeps it."""
    detail = routes.show_version(call, version)
    context = {"detail": detail, "num_bytes": sum(file.size for file in detail.files)}
    return View(template="versions/delete.html", context=context)


def delete_version(call: CallNow, version: str) -> Response:
    routes.delete_version(call, version, DeleteQuery(bytes=call.form.text("bytes") == "yes"))
    return done(call, "/versions")


VERSION = "/versions/{version}"
ROUTES = [
    page("/versions", version_list, permission="version.read", summary="Model versions"),
    page("/versions/register", register_page, permission="version.register", summary="Register an adapter"),
    action("/versions/register", register, permission="version.register", summary="Register an adapter"),
    page(VERSION, version_page, permission="version.read", summary="A model version"),
    page(f"{VERSION}/live", live_parts, permission="version.read", summary="What changes while it is made"),
    page(f"{VERSION}/try", try_page, permission="model.use", summary="Talk to it"),
    page(f"{VERSION}/delete", delete_page, permission="version.delete", summary="Before it is deleted"),
    action(f"{VERSION}/edit", edit_version, permission="version.change", summary="Change a model version"),
    action(f"{VERSION}/delete", delete_version, permission="version.delete", summary="Delete a model version"),
]
