"""A row becomes tokens and a completion mask; a prompt becomes the tokens a model continues.

In: `Row`s and a `TextTokenizer`. Out: token ids with the learned ones marked, and where a row may be cut. One function
serves training, evaluation, chat and serving. The mask comes from where text was placed, never from a search in it:

1. The template is rendered twice, once with a marker in the place of each content. Cut at the markers, that text is
   the template's own; what stands between is content.
2. The rendering with the real contents must be those pieces put together again. A template that takes white space off
   a content is followed (the content without it is used, and counted); one that changes content otherwise is refused.
3. Contents are encoded each on its own with control tokens as plain text, template text with control tokens, so no
   token ever spans the border, and a user's `<|end|>` stays text.
4. Learned are an assistant's contents, what the template puts between the generation prompt and them, and all up to
   the end token behind them. That end token is a stop token of the result (`stop_ids`).

Some tokenizers (Llama 2, Phi-3) put a space before a text. In plain rows each side gets it. Under a template a content
gets it where the tokenizer would put it had it seen the whole text; one space of the template right before a content
goes with the content, as `▁word` is one token.
"""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.rows import Message, Row
from tunesmith.data.template import ChatTemplate, TemplateRefusesError, plain_json
from tunesmith.data.tokenizer import TextTokenizer, load_tokenizer
from tunesmith.errors import InputRefused
from tunesmith.spec.datasets import RowKind

Mode = Literal["chat", "plain"]
_Place = Literal["space", "prefix", "text"]
LEARNED_BIT = 1 << 31  # of a stored uint32 token; no vocabulary comes near it
MAX_SKELETONS = 4096

__all__ = ["LEARNED_BIT", "Mode", "RenderedRows", "Renderer", "load_renderer", "load_tokenizer", "resolve_mode"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedRows:
    """Rows in stored form: all tokens one after the other, LEARNED_BIT set on the learned ones.

    tokens: uint32. The other arrays have one entry a row: `lengths`, `targets` (learned tokens at positions >= 1),
    `cut_starts` and `cut_lengths` (position and length of the longest content that is not learned).
    """

    tokens: NDArray[np.uint32]
    lengths: NDArray[np.uint32]
    targets: NDArray[np.uint32]
    cut_starts: NDArray[np.uint32]
    cut_lengths: NDArray[np.uint32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A piece made ready: fixed template tokens with their learned stretches, or a place for a content."""

    content: int | None
    ids: array[int] = field(default_factory=lambda: array("I"))
    learned: tuple[tuple[int, int], ...] = ()
    is_learned: bool = False


@dataclass(slots=True)
class _Skeleton:
    """What the template writes around contents: texts[0] content 0 texts[1] content 1 ... texts[-1].

    owners: message of each content (-1: tools). turns: per learned assistant message the first and last content
    (first > last if it has none), and how many characters before the first content it must write itself.
    """

    texts: list[str]
    owners: list[int]
    turns: list[_Turn]
    places: list[_Place] | None = None
    ready: dict[tuple[bool, ...], list[Part]] = field(default_factory=dict[tuple[bool, ...], list[Part]])


@dataclass(frozen=True, slots=True)
class _Turn:
    first: int
    last: int
    written: int


def resolve_mode(render: Literal["auto", "chat", "plain"], *, has_template: bool) -> Mode:
    """auto = chat where the model has a template. Raises InputRefused if chat is asked of a model without one."""
    if render == "chat" and not has_template:
        raise InputRefused(
            "TEMPLATE_MISSING",
            "--render chat needs a chat template and this base model has none.",
            field="render",
            hint="Choose --render plain, or an instruction-tuned base model.",
        )
    if render == "auto":
        return "chat" if has_template else "plain"
    return render


def load_renderer(folder: Path, render: Literal["auto", "chat", "plain"]) -> Renderer:
    tokenizer = load_tokenizer(folder)
    return Renderer(tokenizer, mode=resolve_mode(render, has_template=tokenizer.chat_template is not None))


class Renderer:
    """Renders rows of one model in one mode. Not for several threads at once.

    stop_ids: tokens at which generation stops; end_id: the one that rows end their learned part with.
    num_stripped: rows so far whose content lost white space to the template. warnings: code -> what must be said once.
    """

    def __init__(self, tokenizer: TextTokenizer, *, mode: Mode) -> None:
        self.tokenizer = tokenizer
        self.mode: Mode = mode
        self.num_stripped = 0
        self.warnings: dict[str, str] = {}
        self._nonce = os.urandom(8).hex()
        self._marker = re.compile(rf"TS{self._nonce}([cj]\d+)X")
        self._skeletons: dict[Any, _Skeleton] = {}
        if tokenizer.eos_id is None:
            raise InputRefused(
                "TOKENIZER_WITHOUT_END",
                f"The tokenizer of {tokenizer.folder.name} names no end token, so an answer could never end.",
                hint="Name eos_token in tokenizer_config.json.",
            )
        self.stop_ids: tuple[int, ...] = tokenizer.stop_ids
        self.end_id: int = tokenizer.eos_id
        self._template: ChatTemplate | None = None
        if mode == "chat":
            if tokenizer.chat_template is None:
                raise InputRefused("TEMPLATE_MISSING", "This base model has no chat template.", field="render")
            self._template = ChatTemplate(tokenizer.chat_template, special_tokens=tokenizer.named)
            self._find_turn_end()

    # -- rows ---------------------------------------------------------------------------------------------------

    def render(self, row: Row) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Token ids and learned mask of one row, both of its length."""
        stored = self.render_rows([row]).tokens
        return (stored & (LEARNED_BIT - 1)).astype(np.int64), stored >= LEARNED_BIT

    def render_rows(self, rows: Sequence[Row]) -> RenderedRows:
        """All rows in one go over all threads. Raises InputRefused naming the line of a row that cannot be rendered."""
        texts, plans = self.plan_rows(rows)
        return self.assemble(plans, self.tokenizer.encode_contents(texts))

    def plan_rows(self, rows: Sequence[Row]) -> tuple[list[str], list[list[Part]]]:
        """The first half of `render_rows`: the contents to encode, in order, and each row's parts around them."""
        texts: list[str] = []
        plans: list[list[Part]] = []
        for row in rows:
            contents, skeleton = self._place(row)
            texts += contents
            plans.append(self._ready(skeleton, contents, texts))
        return texts, plans

    def assemble(self, plans: Sequence[Sequence[Part]], encoded: Sequence[list[int]]) -> RenderedRows:
        """The second half: `plans` with the ids of their contents put in."""
        tokens: array[int] = array("I")
        spans: list[tuple[int, int]] = []
        entries: list[tuple[int, int, int, int]] = []
        contents = iter(encoded)  # in the order of the parts
        for parts in plans:
            start = len(tokens)
            learned = cut_start = cut_length = 0
            for part in parts:
                here = len(tokens)
                if part.content is None:
                    tokens.extend(part.ids)
                    for first, last in part.learned:
                        spans.append((here + first, here + last))
                        learned += last - first
                    continue
                ids = next(contents)
                tokens.fromlist(ids)
                if part.is_learned:
                    spans.append((here, here + len(ids)))
                    learned += len(ids)
                elif len(ids) > cut_length:
                    cut_start, cut_length = here - start, len(ids)
            entries.append((len(tokens) - start, learned, cut_start, cut_length))
        stored = np.frombuffer(tokens, np.uint32).copy() if tokens else np.zeros(0, np.uint32)
        for first, last in spans:
            stored[first:last] |= LEARNED_BIT
        columns = np.array(entries, np.uint32).reshape(len(entries), 4)
        lengths, targets = columns[:, 0].copy(), columns[:, 1].copy()
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        targets -= stored[starts] >= LEARNED_BIT  # nothing predicts a row's first token, so it is no target
        return RenderedRows(
            tokens=stored,
            lengths=lengths,
            targets=targets,
            cut_starts=columns[:, 2].copy(),
            cut_lengths=columns[:, 3].copy(),
        )

    # -- prompts ------------------------------------------------------------------------------------------------

    def render_prompt(self, prompt: str | Sequence[Message], *, tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """The tokens before an answer: exactly those that stand before the first learned token in training.

        prompt: the text of a `prompt` column, or the turns of a conversation up to the answer.
        """
        if self._template is None:
            if not isinstance(prompt, str):
                raise _messages_need_template()
            bos = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
            text = f" {prompt}" if self.tokenizer.takes_prefix(prompt) else prompt
            return bos + (self.tokenizer.encode_contents([text])[0] if prompt else [])
        if isinstance(prompt, str):
            conversation = _turns_of_prompt(prompt, None)
        else:
            conversation = [_turn(message) for message in prompt]
        answer: dict[str, Any] = {"role": "assistant", "content": "x"}
        contents, skeleton = self._place_conversation(
            [*conversation, answer], learned=[len(conversation)], tools=tools, line=None, key=None
        )
        parts = self._ready(skeleton, contents, contents)
        encoded = self.tokenizer.encode_contents(contents)
        ids: list[int] = []
        for part in parts:
            if part.content is not None:
                if part.is_learned:
                    break
                ids += encoded[part.content]
            else:
                if part.learned:
                    ids += part.ids[: part.learned[0][0]]
                    break
                ids += part.ids
        return ids

    # -- placement ----------------------------------------------------------------------------------------------

    def _place(self, row: Row) -> tuple[list[str], _Skeleton]:
        """The contents of a row, as the template keeps them, and the skeleton around them."""
        if self._template is None:
            if row.kind is not RowKind.PROMPT_COMPLETION:
                raise _messages_need_template(row.line)
            return self._place_plain(row)
        if row.kind is RowKind.PROMPT_COMPLETION:
            turns = _turns_of_prompt(row.prompt, row.completion)
            key = ("row", bool(row.prompt))
            return self._place_conversation(turns, learned=[len(turns) - 1], tools=(), line=row.line, key=key)
        turns = [_turn(message) for message in row.messages]
        learned = [number for number, message in enumerate(row.messages) if _is_learned(message)]
        is_simple = not row.tools and all(turn.keys() == {"role", "content"} for turn in turns)
        shape = tuple((turn["role"], bool(turn["content"])) for turn in turns)
        key = ("chat", shape, tuple(learned)) if is_simple else None
        return self._place_conversation(turns, learned=learned, tools=row.tools, line=row.line, key=key)

    def _place_plain(self, row: Row) -> tuple[list[str], _Skeleton]:
        contents = [row.prompt, row.completion] if row.prompt else [row.completion]
        key = ("plain", len(contents))
        skeleton = self._skeletons.get(key)
        if skeleton is None:
            skeleton = self._skeletons[key] = _Skeleton(texts=[], owners=list(range(len(contents))), turns=[])
        return contents, skeleton

    def _place_conversation(
        self,
        turns: Sequence[dict[str, Any]],
        *,
        learned: Sequence[int],
        tools: Sequence[Mapping[str, Any]],
        line: int | None,
        key: Any,
    ) -> tuple[list[str], _Skeleton]:
        """Cut the rendering of a conversation into template text and contents (rules 1 and 2 of this module)."""
        try:
            real = self._text(turns, tools=tools, add_generation_prompt=False)
            skeleton = self._skeletons.get(key) if key is not None else None
            if skeleton is None:
                skeleton, contents = self._cut(turns, learned=learned, tools=tools, line=line)
                if key is not None:
                    if len(self._skeletons) >= MAX_SKELETONS:
                        self._skeletons.clear()
                    self._skeletons[key] = skeleton
            else:
                contents = [turns[message]["content"] for message in skeleton.owners]
        except TemplateRefusesError as error:
            raise InputRefused(
                "TEMPLATE_REFUSED",
                f"{_where(line)}the model's chat template refuses these turns: {str(error).rstrip('.')}.",
                field=_field(line),
                hint="Change the roles or their order to what the template takes; rows of prompt and completion can "
                "be rendered without it (--render plain).",
            ) from error
        pieces = [skeleton.texts[0]]
        for content, text in zip(contents, skeleton.texts[1:], strict=True):
            pieces.append(content)
            pieces.append(text)
        if "".join(pieces) != real:
            contents = self._follow(real, contents, skeleton.texts, line=line)
        return contents, skeleton

    def _text(self, turns: Sequence[Any], *, tools: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
        assert self._template is not None
        return self._template.render(turns, tools=list(tools) or None, add_generation_prompt=add_generation_prompt)

    def _cut(
        self,
        turns: Sequence[dict[str, Any]],
        *,
        learned: Sequence[int],
        tools: Sequence[Mapping[str, Any]],
        line: int | None,
    ) -> tuple[_Skeleton, list[str]]:
        marked, placed = self._marked_text(turns, tools=tools, add_generation_prompt=False)
        parts = self._marker.split(marked)
        texts, names = parts[0::2], parts[1::2]
        if len(set(names)) != len(names) or not {f"c{i}" for i, turn in enumerate(turns) if turn["content"]} <= set(
            names
        ):
            raise InputRefused(
                "TEMPLATE_REWRITES_CONTENT",
                f"{_where(line)}the model's chat template drops a turn's content, or writes it twice or changed.",
                field=_field(line),
                hint="Choose --render plain, or change the turns so that the template keeps each of them.",
            )
        contents = [placed[name][1] for name in names]
        owners = [placed[name][0] for name in names]
        self._require_no_control_text(turns, tools, texts, line=line)
        found = [self._turn(turns, index, tools=tools, marked=marked, texts=texts, owners=owners) for index in learned]
        return _Skeleton(texts=texts, owners=owners, turns=found), contents

    def _turn(
        self,
        turns: Sequence[dict[str, Any]],
        index: int,
        *,
        tools: Sequence[Mapping[str, Any]],
        marked: str,
        texts: Sequence[str],
        owners: Sequence[int],
    ) -> _Turn:
        """Where an assistant's turn begins: behind the generation prompt, if the template is true to it."""
        own = [number for number, owner in enumerate(owners) if owner == index]
        if not own:
            raise TemplateRefusesError("an assistant turn leaves no trace in the text")
        prompt, _ = self._marked_text(turns[:index], tools=tools, add_generation_prompt=True)
        match = list(self._marker.finditer(marked))[own[0]]
        if marked.startswith(prompt) and len(prompt) <= match.start():
            return _Turn(own[0], own[-1], match.start() - len(prompt))
        if marked[: match.start()].rstrip() != prompt.rstrip():
            self.warnings["GENERATION_PROMPT_DIFFERS"] = (
                "The chat template's generation prompt is not how it begins an assistant's turn in a conversation. "
                "Training and our own serving use the latter."
            )
        return _Turn(own[0], own[-1], 0)

    def _marked_text(
        self, turns: Sequence[dict[str, Any]], *, tools: Sequence[Mapping[str, Any]], add_generation_prompt: bool
    ) -> tuple[str, dict[str, tuple[int, str]]]:
        """The rendering with markers, and marker name -> (message, real content)."""
        assert self._template is not None
        placed: dict[str, tuple[int, str]] = {}
        marked_turns: list[dict[str, Any]] = []

        def place_json(value: _PlacedObject, text: str) -> str:
            name = f"j{sum(other[0] == 'j' for other in placed)}"  # counted apart: a prefix of turns counts alike
            placed[name] = (value.owner, text)
            return f"TS{self._nonce}{name}X"

        for index, turn in enumerate(turns):
            changed = dict(turn)
            if turn["content"]:
                placed[f"c{index}"] = (index, turn["content"])
                changed["content"] = f"TS{self._nonce}c{index}X"
            if "tool_calls" in turn:
                calls: list[dict[str, Any]] = []
                for call in turn["tool_calls"]:
                    arguments = _PlacedObject(call["function"]["arguments"], index, place_json)
                    calls.append(call | {"function": call["function"] | {"arguments": arguments}})
                changed["tool_calls"] = calls
            marked_turns.append(changed)
        marked_tools = [_PlacedObject(tool, -1, place_json) for tool in tools]
        self._template.to_json = _placing_json
        try:
            text = self._text(marked_turns, tools=marked_tools, add_generation_prompt=add_generation_prompt)
        finally:
            self._template.to_json = plain_json
        return text, placed

    def _follow(self, real: str, contents: Sequence[str], texts: Sequence[str], *, line: int | None) -> list[str]:
        """The contents that the template kept, where it took white space off or wrote them as JSON strings."""
        position = len(texts[0])
        kept: list[str] = []
        is_stripped = False
        is_right = real.startswith(texts[0])
        for number, content in enumerate(contents):
            text_after = texts[number + 1]
            for candidate in _forms(content):
                end = position + len(candidate)
                is_last = number == len(contents) - 1
                fits = real.startswith(candidate, position) and real.startswith(text_after, end)
                if is_right and fits and (not is_last or end + len(text_after) == len(real)):
                    is_stripped = is_stripped or len(candidate) < len(content)
                    kept.append(candidate)
                    position = end + len(text_after)
                    break
            else:
                raise InputRefused(
                    "TEMPLATE_REWRITES_CONTENT",
                    f"{_where(line)}the model's chat template changes the content of a turn (beyond white space at its "
                    "ends), so what is learned cannot be told from what is not.",
                    field=_field(line),
                    hint="Choose --render plain, or take out of the content what the template acts on.",
                )
        self.num_stripped += is_stripped
        return kept

    def _require_no_control_text(
        self,
        turns: Sequence[dict[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        texts: Sequence[str],
        *,
        line: int | None,
    ) -> None:
        """Names and tool leaves that a template writes by itself count as template text: no control token in them."""
        leaves = [leaf for tool in tools for leaf in _leaves(tool)]
        for turn in turns:
            leaves += [leaf for name, value in turn.items() if name != "content" for leaf in _leaves(value)]
        for leaf in leaves:
            if any(control in leaf for control in self.tokenizer.control_texts) and any(leaf in text for text in texts):
                raise InputRefused(
                    "CONTROL_TOKEN_IN_NAME",
                    f"{_where(line)}the text {leaf[:60]!r} of a tool or name holds a control token of this model.",
                    field=_field(line),
                    hint="Take the control token out of it.",
                )

    # -- tokens of the skeleton ---------------------------------------------------------------------------------

    def _ready(self, skeleton: _Skeleton, contents: Sequence[str], texts: list[str]) -> list[Part]:
        """The skeleton's parts for these contents, which are the last of `texts`.

        texts: changed in place; contents get the tokenizer's space put before them where they take it.
        """
        tokenizer = self.tokenizer
        if tokenizer.prefix == "none":
            return skeleton.ready.get(()) or self._made_ready(skeleton, ())
        if skeleton.places is None:
            skeleton.places = self._places(skeleton)
        flags = tuple(
            tokenizer.takes_prefix(content) and (tokenizer.prefix == "kept" or place != "text")
            for content, place in zip(contents, skeleton.places, strict=True)
        )
        for number, flag in enumerate(flags, len(texts) - len(flags)):
            if flag:
                texts[number] = " " + texts[number]
        return skeleton.ready.get(flags) or self._made_ready(skeleton, flags)

    def _made_ready(self, skeleton: _Skeleton, flags: tuple[bool, ...]) -> list[Part]:
        parts = skeleton.ready[flags] = (
            self._compile(skeleton, flags) if skeleton.texts else self._plain_parts(skeleton)
        )
        return parts

    def _places(self, skeleton: _Skeleton) -> list[_Place]:
        """What stands before each content: the template's space, a place where the tokenizer puts its own, or text."""
        if not skeleton.texts:
            return ["prefix"] * len(skeleton.owners)
        places: list[_Place] = []
        for position, text in enumerate(skeleton.texts[:-1]):
            if text.endswith(" "):
                places.append("space")
            elif text:
                ids = self.tokenizer.encode_template(text, is_start=position == 0)
                is_prefixed = self.tokenizer.prefix == "always" and ids[-1] in self.tokenizer.added_ids
                places.append("prefix" if is_prefixed else "text")
            else:
                places.append("prefix" if position == 0 else "text")
        return places

    def _plain_parts(self, skeleton: _Skeleton) -> list[Part]:
        """BOS if the tokenizer has one, prompt, completion, end token, and nothing between."""
        count = len(skeleton.owners)
        parts = [] if self.tokenizer.bos_id is None else [Part(content=None, ids=array("I", [self.tokenizer.bos_id]))]
        parts += [Part(content=index, is_learned=index == count - 1) for index in range(count)]
        return [*parts, Part(content=None, ids=array("I", [self.end_id]), learned=((0, 1),))]

    def _compile(self, skeleton: _Skeleton, folds: tuple[bool, ...]) -> list[Part]:
        count = len(skeleton.owners)
        learned_contents = {index for turn in skeleton.turns for index in range(turn.first, turn.last + 1)}
        starts = {turn.first: turn for turn in skeleton.turns}
        inside = {index for turn in skeleton.turns for index in range(turn.first, turn.last)}
        ends = {turn.last for turn in skeleton.turns}
        parts: list[Part] = []
        for position, text in enumerate(skeleton.texts):
            written = starts[position].written if position in starts else 0
            head, tail = (text[: len(text) - written], text[len(text) - written :]) if written else (text, "")
            if folds and position < count and folds[position]:  # its space goes with the content
                if tail.endswith(" "):
                    tail = tail[:-1]
                elif not written and head.endswith(" "):
                    head = head[:-1]
            head_ids = self.tokenizer.encode_template(head, is_start=position == 0)
            tail_ids = self.tokenizer.encode_template(tail, is_start=position == 0 and not head)
            ids = head_ids + tail_ids
            spans: list[tuple[int, int]] = []
            if position - 1 in inside:
                spans = [(0, len(ids))]
            else:
                if position - 1 in ends:
                    length, head_ids = self._learned_end(head_ids, is_last=position == count)
                    ids = head_ids + tail_ids
                    if length:
                        spans.append((0, length))
                if tail_ids:
                    spans.append((len(head_ids), len(ids)))
            if ids:
                parts.append(Part(content=None, ids=array("I", ids), learned=tuple(spans)))
            if position < count:
                parts.append(Part(content=position, is_learned=position in learned_contents))
        return parts

    def _learned_end(self, ids: list[int], *, is_last: bool) -> tuple[int, list[int]]:
        """How many of the template's tokens behind an answer are learned: all up to the end token."""
        first = next((index for index, token in enumerate(ids) if token in self.tokenizer.control_ids), None)
        if first is not None and ids[first] in self.stop_ids:
            return first + 1, ids
        if is_last and first is None:
            self.warnings["TEMPLATE_WITHOUT_END"] = (
                "The chat template writes no end token behind an answer; the tokenizer's end token "
                f"{self.tokenizer.token_text(self.end_id)} is put there and learned."
            )
            return len(ids) + 1, [*ids, self.end_id]
        self.warnings["TURN_WITHOUT_END"] = (
            "The chat template closes answers inside a conversation with no token at which a server stops; "
            "no end is learned there."
        )
        return 0, ids

    def _find_turn_end(self) -> None:
        """The control token right behind the answer of the simplest conversation stops generation from here on."""
        turns = _turns_of_prompt("x", "x")
        try:
            skeleton, _ = self._cut(turns, learned=[1], tools=(), line=None)
        except TemplateRefusesError as error:
            raise InputRefused(
                "TEMPLATE_REFUSED",
                f"The model's chat template cannot render one user and one assistant turn: {str(error).rstrip('.')}.",
                field="render",
                hint="Mend the model's template, or choose --render plain.",
            ) from error
        ids = self.tokenizer.encode_template(skeleton.texts[-1], is_start=False)
        end = next((token for token in ids if token in self.tokenizer.control_ids), None)
        if end is not None:
            self.end_id = end
            self.stop_ids = tuple(dict.fromkeys((*self.stop_ids, end)))
        head = self.tokenizer.encode_template(skeleton.texts[0], is_start=True)
        if self.tokenizer.adds_bos_itself and self.tokenizer.bos_id not in head:
            self.warnings["TEMPLATE_WITHOUT_BOS"] = (
                "The tokenizer puts a start token before a text but the chat template writes none; "
                "the template is followed, as chat servers do."
            )


class _PlacedObject(dict[str, Any]):
    """Tool arguments or a tool's schema: a dict for the template, one placed content wherever it is written out."""

    def __init__(self, value: Mapping[str, Any], owner: int, place: Any) -> None:
        super().__init__(value)
        self.owner = owner
        self.place = place

    def __str__(self) -> str:
        return self.place(self, str(dict(self)))


def _placing_json(value: Any, *args: Any, **kwargs: Any) -> str:
    """`tojson` while marking: a placed object becomes a marker, wherever in `value` it stands."""
    markers: list[str] = []

    def swap(inner: Any) -> Any:
        if isinstance(inner, _PlacedObject):
            markers.append(inner.place(inner, plain_json(dict(inner), *args, **kwargs)))
            return markers[-1]
        if isinstance(inner, dict):
            return {name: swap(item) for name, item in cast("dict[str, Any]", inner).items()}
        if isinstance(inner, (list, tuple)):
            return [swap(item) for item in cast("list[Any]", inner)]
        return inner

    text = plain_json(swap(value), *args, **kwargs)
    for marker in markers:
        text = text.replace(f'"{marker}"', marker)
    return text


def _forms(content: str) -> list[str]:
    """What a template may make of a content: itself, without white space at its ends, or inside a JSON string."""
    escaped = (json.dumps(content, ensure_ascii=False)[1:-1], json.dumps(content)[1:-1])
    stripped = (content.strip(), content.lstrip(), content.rstrip(), content.strip("\n"), content.lstrip("\n"))
    return list(dict.fromkeys((content, *stripped, content.rstrip("\n"), *escaped)))


def _leaves(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        entries = cast("dict[str, Any]", value).items()
        return [leaf for name, item in entries for leaf in (*_leaves(name), *_leaves(item))]
    if isinstance(value, (list, tuple)):
        return [leaf for item in cast("list[Any]", value) for leaf in _leaves(item)]
    return []


def _turns_of_prompt(prompt: str, completion: str | None) -> list[dict[str, Any]]:
    turns = [{"role": "user", "content": prompt}]
    return turns if completion is None else [*turns, {"role": "assistant", "content": completion}]


def _is_learned(message: Message) -> bool:
    return message.role == "assistant" and message.learned


def _turn(message: Message) -> dict[str, Any]:
    """A message as templates know it; tool arguments as an object, the form that transformers asks for."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "type": "function",
                "id": call.id,
                "function": {"name": call.name, "arguments": json.loads(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def _messages_need_template(line: int | None = None) -> InputRefused:
    return InputRefused(
        "MESSAGES_NEED_TEMPLATE",
        f"{_where(line)}rows of `messages` need the model's chat template, and this run renders plain text.",
        field=_field(line),
        hint="Choose a base model with a chat template and --render chat, or give `prompt` and `completion`.",
    )


def _where(line: int | None) -> str:
    """Before a message; without a row it is the template's own trial turns that failed."""
    return "With two turns of ours, " if line is None else f"line {line}: "


def _field(line: int | None) -> str:
    return "render" if line is None else f"line {line}"
