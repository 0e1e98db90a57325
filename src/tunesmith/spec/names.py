"""How names are spelled: each kind by a pattern for programs and in words for people, told wherever one is refused.

A `Spelling` stands in an annotation: `Name = Annotated[str, NAME]`. The schema shows its pattern; who gives something
else is told what a name may be, and one that would do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from tunesmith.spec.faults import shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """pattern: of the whole text. what: as in "a name". words: what it may be. example: one that is right."""

    pattern: str
    what: str
    words: str
    example: str

    def is_met(self, text: str) -> bool:
        return re.fullmatch(self.pattern, text) is not None

    def check(self, text: str) -> str:
        """The text itself. Raises ValueError in words."""
        if not self.is_met(text):
            raise ValueError(f"{shown(text)} is not {self.what}: {self.words}; {self._way_out(text)}")
        return text

    def _way_out(self, text: str) -> str:
        """What the text could be instead, where joining its words is all that it needs."""
        joined = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")
        for candidate in (joined, joined.lower()):
            if candidate and self.is_met(candidate):
                return f"{candidate!r} would do"
        return f"for example {self.example!r}"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(schema) | {"pattern": f"^{self.pattern}$"}


ROLE_PREFIX = "role:"  # in a policy: all tokens of a role; so no token is called so
LETTERS = "letters, digits and . _ -, a letter or digit first"
NAME = Spelling(
    pattern=r"[a-z0-9][a-z0-9._-]{0,62}", what="a name", words=f"1 to 63 lower-case {LETTERS}", example="team-a"
)
ALIAS = Spelling(  # a letter first: never taken for a number
    pattern=r"[a-z][a-z0-9._-]{0,62}", what="an alias",
    words="1 to 63 lower-case letters, digits and . _ -, a letter first", example="prod",
)  # fmt: skip
VERSION_SET = Spelling(
    pattern=r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", what="the name of a version set", words=f"1 to 64 {LETTERS}",
    example="support-bot",
)  # fmt: skip
MODEL_NAME = Spelling(
    pattern=r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?", what="the name of a model",
    words=f"`name` or `owner/name`, each of 1 to 96 {LETTERS}", example="mistral-7b",
)  # fmt: skip
HUB_ID = Spelling(
    pattern=r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}", what="the id of a model on the hub",
    words=f"`owner/name`, each of 1 to 96 {LETTERS}", example="Qwen/Qwen3-0.6B",
)  # fmt: skip
HUB_OWNER = Spelling(
    pattern=r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}", what="an owner on the hub", words=f"1 to 96 {LETTERS}", example="Qwen"
)
HUB_TASK = Spelling(
    pattern=r"[a-z0-9-]{1,60}", what="a task of the hub", words="1 to 60 lower-case letters, digits and -",
    example="text-generation",
)  # fmt: skip
LICENCE = Spelling(
    pattern=r"[a-z0-9][a-z0-9.+-]{0,40}", what="a licence as the hub names it",
    words="1 to 41 lower-case letters, digits and . + -, a letter or digit first", example="apache-2.0",
)  # fmt: skip
REVISION = Spelling(
    pattern=r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}", what="a commit, branch or tag",
    words="1 to 100 letters, digits and . _ / -, a letter or digit first", example="main",
)  # fmt: skip
FILE_PATTERN = Spelling(
    pattern=r"[^\x00-\x1f\\]{1,200}", what="a pattern of file names",
    words="1 to 200 characters without a backslash or a control character", example="*.json",
)  # fmt: skip
INTERFACE = Spelling(  # Linux: 15 characters
    pattern=r"[A-Za-z0-9][A-Za-z0-9._:-]{0,14}", what="the name of a network interface",
    words="1 to 15 letters, digits and . _ : -, a letter or digit first", example="eth0",
)  # fmt: skip
TAG = Spelling(
    pattern=r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}", what="the key of a tag",
    words="1 to 63 letters, digits and . _ / -, a letter or digit first", example="team",
)  # fmt: skip
EVENT_KINDS = Spelling(
    pattern=r"[a-z]{1,20}(,[a-z]{1,20}){0,19}", what="a list of kinds", words="up to 20 kinds of events with commas",
    example="epoch,state",
)  # fmt: skip
CREDENTIALS = Spelling(
    pattern=r"(env|profile|file):.{1,512}", what="a place of credentials",
    words="env:PREFIX, profile:NAME or file:PATH, never a secret itself", example="env:TEAM_A",
)  # fmt: skip
GRANT = Spelling(
    pattern=r"(read|use|[a-z]{1,30}\.([a-z]{1,30}|\*))", what="what a policy can allow",
    words="a permission as in `job.submit`, all of a noun as in `job.*`, or one of the words `read` and `use`",
    example="use",
)  # fmt: skip

SPELLINGS = (
    NAME, ALIAS, VERSION_SET, MODEL_NAME, HUB_ID, HUB_OWNER, HUB_TASK, LICENCE, REVISION, FILE_PATTERN, INTERFACE, TAG,
    EVENT_KINDS, CREDENTIALS, GRANT,
)  # fmt: skip


def words_of(schema_pattern: str) -> str:
    """What a pattern of a JSON schema means."""
    return next(each.words for each in SPELLINGS if f"^{each.pattern}$" == schema_pattern)


Name = Annotated[str, NAME, Field(description="Lower-case letters, digits and ._-, up to 63.")]
Alias = Annotated[str, ALIAS, Field(description="Lower-case letters, digits and ._-, a letter first.")]
VersionSetName = Annotated[str, VERSION_SET]
ModelName = Annotated[str, MODEL_NAME]
HubId = Annotated[str, HUB_ID, Field(description="As in `Qwen/Qwen3-0.6B`.")]
