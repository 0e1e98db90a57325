"""How much of the service one principal may take up, and how much it does."""

from __future__ import annotations

from pydantic import Field

from tunesmith.spec.base import Spec

EVERYBODY = "*"  # whose quotas hold for who has none of his own
MOST = 1 << 50


class Quotas(Spec):
    """The limits of a principal. Zero forbids."""

    queued_jobs: int = Field(1000, ge=0, le=MOST, description="Unfinished jobs at a time, waiting or running.")
    versions: int = Field(100_000, ge=0, le=MOST, description="Model versions that were not deleted.")
    datasets: int = Field(10_000, ge=0, le=MOST, description="Registered datasets.")
    uploaded_bytes: int = Field(1 << 38, ge=0, le=MOST, description="Bytes of its uploaded datasets together.")
    log_bytes: int = Field(
        1 << 26, ge=1 << 16, le=MOST, description="Of what the workers of one job wrote, the newest so many are kept."
    )


class QuotaChange(Spec):
    """What is absent stays as it is."""

    queued_jobs: int | None = Field(None, ge=0, le=MOST)
    versions: int | None = Field(None, ge=0, le=MOST)
    datasets: int | None = Field(None, ge=0, le=MOST)
    uploaded_bytes: int | None = Field(None, ge=0, le=MOST)
    log_bytes: int | None = Field(None, ge=1 << 16, le=MOST)


class Usage(Spec):
    queued_jobs: int = 0
    versions: int = 0
    datasets: int = 0
    uploaded_bytes: int = 0


class QuotaView(Spec):
    """The quotas that hold for a principal, and what it uses."""

    principal: str = Field(
        description="A token's name, as in `submitted_by`; `*`: everybody without quotas of his own."
    )
    limits: Quotas
    own: list[str] = Field(description="Which of the limits were set for this principal.")
    used: Usage
