"""From options to a spec of the catalog, with every fault in our words (UsageFault, exit code 2)."""

from __future__ import annotations

from typing import Any, TypeVar

from tunesmith.errors import UsageFault
from tunesmith.spec import faults
from tunesmith.spec.base import Spec

Model = TypeVar("Model", bound=Spec)


def checked(model: type[Model], **fields: Any) -> Model:
    """`model` of the fields that are given; those that are None keep their defaults. Raises UsageFault."""
    try:
        return faults.checked(model, {name: value for name, value in fields.items() if value is not None})
    except UsageFault as error:
        raise UsageFault(
            "BAD_OPTION", error.message, field=error.field, hint="See this command's --help for what is allowed."
        ) from None
