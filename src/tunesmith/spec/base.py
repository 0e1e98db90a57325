"""The base of everything that crosses a boundary: frozen, and closed to unknown fields."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """A frozen pydantic model; unknown fields are refused; non-finite floats are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def as_json(self) -> dict[str, Any]:
        """JSON-ready dict with every field, in declaration order."""
        return self.model_dump(mode="json")
