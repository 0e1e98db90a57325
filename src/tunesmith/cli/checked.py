"""From options to a spec of the catalog, with every fault in our words (UsageFault, exit code 2)."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError

from tunesmith.errors import UsageFault
from tunesmith.spec.base import Spec

Model = TypeVar("Model", bound=Spec)


def checked(model: type[Model], **fields: Any) -> Model:
    """`model` of the fields that are given; those that are None keep their defaults. Raises UsageFault."""
    try:
        return model.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        told = [
            f"{'.'.join(str(place) for place in fault['loc'])}: {fault['msg'].removeprefix('Value error, ')}"
            for fault in error.errors()
        ]
        first = str(error.errors()[0]["loc"][0])
        raise UsageFault(
            "BAD_OPTION", ". ".join(told) + ".", field=first, hint="See this command's --help for what is allowed."
        ) from None
