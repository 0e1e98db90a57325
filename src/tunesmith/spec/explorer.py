"""The model explorer: cards of every base model that is here or known, their labels, and what may be asked for.

A label is computed and says why it is there; the rules are one function. Fine-tuned versions are counted by the caller.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from tunesmith.spec.base import Spec
from tunesmith.spec.catalog import DEFAULT_PAGE, MAXIMUM_PAGE, VersionView
from tunesmith.spec.datasets import PreviewPiece
from tunesmith.spec.families import FAMILIES
from tunesmith.spec.known_models import FactSource, Kind, KnownModel
from tunesmith.spec.models import ModelFacts, ModelSizes
from tunesmith.spec.plan import MemoryFit

TASK = "text-generation"  # of every causal language model; the hub's own name for it

# Fewer bits in which this release keeps a frozen base while it trains: `--base-precision` refuses what is not here.
# The label Supports Quantisation is a fact of the weights, and tells which of the two it is
# (docs/decisions/0013-quantisation-is-a-fact-of-the-weights.md).
QUANTISED_PRECISIONS: tuple[str, ...] = ()
# Blocks of 64 values with a float32 scale each, as NF4 has them: 4.5 bits a value.
QUANTISED_BLOCK = 64
QUANTISED_BITS = 4 + 32 / QUANTISED_BLOCK

# What stands in the way of an architecture that is in no row of `families.py`, where more than its name is known.
MISSING_PARTS = {
    "gemma3": "image layers: the model takes pictures beside text",
    "mllama": "image layers: the model takes pictures beside text",
    "llama4": "mixture-of-experts layers, and image layers",
    "mistral3": "image layers: the model takes pictures beside text",
}
EXPERTS_MISSING = "mixture-of-experts layers: adapters on their stacked matrices"


class Label(StrEnum):
    """In the order in which a card shows them."""

    READY_TO_FINE_TUNE = "Ready to Fine Tune"
    NOT_YET = "Not yet"
    READY_TO_DEPLOY = "Ready to Deploy"
    READY_TO_REGISTER = "Ready to Register"
    FINE_TUNED = "Fine-tuned"
    SUPPORTS_QUANTISATION = "Supports Quantisation"


class LabelView(Spec):
    label: Label
    reason: str = Field(description="Why this model has it, in a sentence.")


def missing_part(model_type: str, *, has_experts: bool) -> str | None:
    """What fine-tuning such a model lacks in this release; None: nothing."""
    if has_experts:
        return EXPERTS_MISSING
    if model_type in FAMILIES:
        return None
    return MISSING_PARTS.get(model_type, f"the architecture {model_type}")


class QuantisedSize(Spec):
    """What a model's weights would take with every linear module in 4 bits, and all else as it is."""

    weight_bytes: int
    quantised_bytes: int
    modules: int = Field(description="Linear modules: attention and feed-forward, without the head.")


def quantised_size(sizes: ModelSizes, weight_bytes: int) -> QuantisedSize | None:
    """None where a row of some linear module is no whole number of blocks, or nothing would be saved."""
    linear = sum(module.in_features * module.out_features for module in sizes.linear_modules)
    if any(module.in_features % QUANTISED_BLOCK for module in sizes.linear_modules) or not linear:
        return None
    others = weight_bytes * (sizes.parameters - linear) // sizes.parameters
    quantised = others + int(linear * QUANTISED_BITS / 8)
    if quantised >= weight_bytes:
        return None
    return QuantisedSize(weight_bytes=weight_bytes, quantised_bytes=quantised, modules=len(sizes.linear_modules))


def labels_of(
    model_type: str,
    architecture: str,
    *,
    has_experts: bool,
    is_here: bool,
    versions: int,
    quantised: QuantisedSize | None = None,
) -> list[LabelView]:
    """versions: fine-tuned ones of this model that are ACTIVE here. quantised: where its linear modules are known."""
    found: list[LabelView] = []
    missing = missing_part(model_type, has_experts=has_experts)
    if missing is None:
        where = "" if is_here else " Its weights are not here yet: download them first."
        reason = f"Tunesmith trains {architecture}; its tests compare it with transformers and PEFT.{where}"
        found.append(LabelView(label=Label.READY_TO_FINE_TUNE, reason=reason))
    else:
        found.append(LabelView(label=Label.NOT_YET, reason=f"Fine-tuning it lacks {missing}."))
    if is_here and missing is None:
        reason = "Its weights are here, and the service answers with it: in the chat, and under /v1."
        found.append(LabelView(label=Label.READY_TO_DEPLOY, reason=reason))
    if not is_here:
        reason = "It is known, and its weights are not here: download it, or register a folder that holds it."
        found.append(LabelView(label=Label.READY_TO_REGISTER, reason=reason))
    if versions:
        reason = f"{versions} fine-tuned {'version of it is' if versions == 1 else 'versions of it are'} here."
        found.append(LabelView(label=Label.FINE_TUNED, reason=reason))
    if missing is None and quantised is not None:
        found.append(LabelView(label=Label.SUPPORTS_QUANTISATION, reason=_quantised_reason(quantised)))
    return found


def _quantised_reason(size: QuantisedSize) -> str:
    here = (
        f"--base-precision {' or '.join(QUANTISED_PRECISIONS)} trains over a base that is kept so."
        if QUANTISED_PRECISIONS
        else "Fine-tuning over a base in 4 bits is not offered yet."
    )
    return (
        f"Its weights could be kept in 4 bits: about {_bytes(size.quantised_bytes)} in place of "
        f"{_bytes(size.weight_bytes)}, since each row of its {size.modules:,} linear modules is a whole number of "
        f"blocks of {QUANTISED_BLOCK} values. {here}"
    )


def _bytes(count: int) -> str:
    """In steps of a thousand, as the hub and disks tell sizes."""
    unit, word = next((each for each in ((10**9, "GB"), (10**6, "MB")) if count >= each[0]), (1000, "kB"))
    return f"{count / unit:.3g} {word}" if count < 999 * unit else f"{count / unit:,.0f} {word}"


class ModelCard(Spec):
    """One base model as the explorer shows it. Sizes of a model that is here are measured, others derived."""

    name: str
    title: str
    hub_id: str | None = Field(description="On the Hugging Face Hub, where that is known.")
    family: str | None = None
    publisher: str | None = None
    kind: Kind | None = None
    task: str = TASK
    model_type: str | None
    architecture: str | None
    parameters: int | None
    weight_bytes: int | None
    quantised_bytes: int | None = Field(
        None, description="Of the same weights with every linear module in 4 bits; null where that cannot be."
    )
    is_size_measured: bool = Field(description="Of the files that are here; else derived from parameters and dtype.")
    dtype: str | None
    context_length: int | None
    licence: str | None
    is_gated: bool = Field(False, description="The hub gives it only to accounts that accepted its terms.")
    revision: str | None = Field(description="The commit on the hub: of the files here, or of what is known.")
    is_here: bool
    is_bundled: bool
    description: str
    tags: dict[str, str]
    labels: list[LabelView]
    versions: int = Field(description="Fine-tuned versions that are ACTIVE here.")
    created_at: str | None = Field(description="When it was registered here.")

    def has(self, label: Label) -> bool:
        return any(each.label is label for each in self.labels)


class NamedSource(Spec):
    """Where facts of a known model come from."""

    facts: str = Field(description="`sizes`, `revision` or `licence`.")
    source: FactSource


class ModelDetail(Spec):
    """All that the page of one model shows."""

    card: ModelCard
    known: KnownModel | None
    sources: list[NamedSource]
    facts: ModelFacts | None = Field(description="Of the inspection; null where the weights are not here.")
    path: str | None
    licence_note: str
    memory: list[MemoryFit] = Field(description="What fine-tuning needs on each device, at several row lengths.")
    memory_note: str | None = Field(description="Why there is no estimate, where there is none.")
    tuned: list[VersionView] = Field(description="The newest fine-tuned versions, in any state but deleted.")


class TemplatePreview(Spec):
    """A short conversation as the model reads it, in pieces that fine-tuning would learn or only read."""

    has_template: bool
    pieces: list[PreviewPiece]


class FoundModel(Spec):
    """A folder with config.json and safetensors, as a scan found it: not inspected, not registered by that."""

    path: str = Field(description="Below the location; empty: its top.")
    bytes: int = Field(description="Of its safetensors.")
    model_type: str | None
    architecture: str | None
    labels: list[LabelView] = Field(description="Whether it can be fine-tuned, by its architecture.")
    fault: str | None = Field(description="Why its config tells nothing.")
    registered_as: str | None = Field(description="Its name in the catalog, where it has one.")


class ScannedLocation(Spec):
    models: list[FoundModel]
    is_cut: bool = Field(description="There are more or deeper folders than one scan looks at.")


class Sort(StrEnum):
    """Orders of the cards; those that are equal go by name."""

    RELEVANCE = "relevance"
    NAME = "name"
    SMALLEST = "smallest"
    LARGEST = "largest"
    CONTEXT = "context"
    NEWEST = "newest"


class ExplorerQuery(Spec):
    search: str | None = Field(None, max_length=200, description="Words that names, publishers or tags hold.")
    label: Label | None = None
    family: str | None = Field(None, max_length=60)
    publisher: str | None = Field(None, max_length=60)
    kind: Kind | None = None
    task: str | None = Field(None, max_length=60)
    licence: str | None = Field(None, max_length=60)
    tag: str | None = Field(None, min_length=1, max_length=330, description="`key` or `key=value`.")
    here: bool | None = Field(None, description="Only models whose weights are here, or only others.")
    minimum_parameters: int | None = Field(None, ge=0, le=1 << 50)
    maximum_parameters: int | None = Field(None, ge=0, le=1 << 50)
    sort: Sort = Sort.RELEVANCE
    after: str | None = Field(None, min_length=1, max_length=400, description="The `next` of the page before.")
    limit: int = Field(DEFAULT_PAGE, ge=1, le=MAXIMUM_PAGE)


class Choices(Spec):
    """What the filters may be set to, each with the number of cards that have it, whatever else is asked for."""

    labels: dict[str, int]
    families: dict[str, int]
    publishers: dict[str, int]
    kinds: dict[str, int]
    licences: dict[str, int]


class ExplorerPage(Spec):
    cards: list[ModelCard]
    total: int = Field(description="Cards that match, on all pages.")
    choices: Choices
    next: str | None
