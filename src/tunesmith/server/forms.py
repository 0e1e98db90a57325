"""A page's form, read strictly: urlencoded, in UTF-8, with a limit on the number of fields.

In: the bytes of a body whose size was capped. Out: `Form`. Raises UsageFault.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from tunesmith.errors import UsageFault

MAXIMUM_FIELDS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """Field -> its values in order. A field that was left empty is as good as absent."""

    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    def text(self, name: str) -> str | None:
        """The one value. Raises UsageFault where it stands twice."""
        found = self.values.get(name, ())
        if len(found) > 1:
            raise UsageFault("INVALID_FIELD", f"{name[:60]} stands twice.", field=name[:60], hint="Name it once.")
        return found[0] if found else None

    def texts(self) -> dict[str, str]:
        return {name: value for name in self.values if (value := self.text(name)) is not None}


def read_form(body: bytes) -> Form:
    try:
        pairs = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, encoding="utf-8", errors="strict",
            max_num_fields=MAXIMUM_FIELDS,
        )  # fmt: skip
    except UnicodeDecodeError as error:
        raise UsageFault("BAD_FORM", "The form is not UTF-8.", hint="Reload the page and try again.") from error
    except ValueError as error:
        raise UsageFault("BAD_FORM", f"The form has more than {MAXIMUM_FIELDS} fields.") from error
    values: dict[str, tuple[str, ...]] = {}
    for name, value in pairs:
        if "\0" in value or "\0" in name:
            raise UsageFault("INVALID_FIELD", f"{name[:60]!a} holds a NUL character.", field=name[:60])
        if value.strip():
            # browsers send line breaks as CRLF
            values[name] = (*values.get(name, ()), value.replace("\r\n", "\n"))
    return Form(values=values)
