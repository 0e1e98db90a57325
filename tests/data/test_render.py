"""Tokens and completion mask of rows, over real tokenizers, families of templates, and any text."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.families import BUNDLED, CONTROL, FAMILIES, write_folder
from tunesmith.data.render import Renderer, load_renderer
from tunesmith.data.rows import Message, Row, ToolCall
from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import InputRefused
from tunesmith.spec.datasets import RowKind

MISSION_ROWS = (
    {
        "prompt": "Summarize this dialog:\nAmanda: I baked  cookies. Do you want some?\r\nJerry: Sure!\r\nAmanda: I'll "
        "bring you some tomorrow :-)\n---\nSummary:\n",
        "completion": "Amanda baked cookies and will bring some for Jerry tomorrow.",
    },
    {
        "prompt": "Summarize this dialog:\nOlivia: Who are you voting for in this election? \r\nOliver: Liberals as "
        "always.\r\nOlivia: Me too!!\r\nOliver: Great\n---\nSummary:\n",
        "completion": "Olivia and Olivier are voting for liberals in this election. ",
    },
)
# templates without a system turn and with strict turns come last
CONVERSATION = (("user", "Hello you"), ("assistant", "Hi!"), ("user", "And 2 + 2?"), ("assistant", "It is 4."))
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=60)


def row_of(prompt: str, completion: str, line: int = 1) -> Row:
    return Row(
        line=line,
        kind=RowKind.PROMPT_COMPLETION,
        prompt=prompt,
        completion=completion,
        messages=(),
        tools=(),
        content_hash=b"0" * 16,
    )


def messages_row(*messages: Message, tools: tuple[object, ...] = (), line: int = 1) -> Row:
    return Row(
        line=line,
        kind=RowKind.MESSAGES,
        prompt="",
        completion="",
        messages=messages,
        tools=tools,  # type: ignore[arg-type]
        content_hash=b"0" * 16,
    )


def message(role: str, content: str, *, calls: tuple[ToolCall, ...] = (), learned: bool = True) -> Message:
    return Message(role=role, content=content, tool_calls=calls, name=None, tool_call_id=None, learned=learned)


def pieces(renderer: Renderer, row: Row) -> list[tuple[str, bool]]:
    """(decoded text, learned) of each stretch of a row."""
    ids, learned = renderer.render(row)
    borders = [0, *(np.flatnonzero(np.diff(learned)) + 1).tolist(), len(ids)]
    return [
        (renderer.tokenizer.decode(ids[start:end].tolist()), bool(learned[start])) for start, end in pairwise(borders)
    ]


def learned_ids(renderer: Renderer, row: Row) -> list[int]:
    ids, learned = renderer.render(row)
    return ids[learned].tolist()


# -- plain ------------------------------------------------------------------------------------------------------------


def test_plain_row_is_bos_prompt_completion_end_and_nothing_else(plain_folder: Path) -> None:
    renderer = load_renderer(plain_folder, "auto")
    assert renderer.mode == "plain"
    tokenizer = renderer.tokenizer
    prompt, completion = tokenizer.encode_contents(["A prompt. ", " and its end"])
    ids, learned = renderer.render(row_of("A prompt. ", " and its end"))
    assert ids.tolist() == [tokenizer.bos_id, *prompt, *completion, tokenizer.eos_id]
    assert learned.tolist() == [False] * (1 + len(prompt)) + [True] * (len(completion) + 1)


def test_plain_row_without_a_prompt_learns_from_the_start_token_on(plain_folder: Path) -> None:
    renderer = load_renderer(plain_folder, "plain")
    rendered = renderer.render_rows([row_of("", "text")])
    assert rendered.targets.tolist() == [rendered.lengths[0] - 1]


def test_first_token_without_a_start_token_is_no_target(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, kind="bytes", control=CONTROL, template=None)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["bos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    rendered = load_renderer(folder, "plain").render_rows([row_of("", "text"), row_of("p", "text"), row_of("", "x")])
    assert (rendered.lengths - rendered.targets).tolist() == [1, 1, 1]


def test_messages_without_a_template_are_refused_with_their_line(plain_folder: Path) -> None:
    renderer = load_renderer(plain_folder, "plain")
    with pytest.raises(InputRefused) as refused:
        renderer.render_rows([messages_row(message("user", "a"), message("assistant", "b"), line=7)])
    assert refused.value.code == "MESSAGES_NEED_TEMPLATE"
    assert refused.value.field == "line 7"


def test_chat_asked_of_a_model_without_a_template_is_refused(plain_folder: Path) -> None:
    with pytest.raises(InputRefused, match="chat template"):
        load_renderer(plain_folder, "chat")


@pytest.mark.parametrize("row", MISSION_ROWS)
def test_mission_rows_on_gpt2(shared_data: Path, row: dict[str, str]) -> None:
    renderer = load_renderer(shared_data / "tokenizers" / "gpt2", "auto")
    prompt, answer = pieces(renderer, row_of(row["prompt"], row["completion"]))
    assert prompt == ("<|endoftext|>" + row["prompt"], False)
    assert answer == (row["completion"] + "<|endoftext|>", True)


def test_mission_row_on_gpt2_token_by_token(shared_data: Path) -> None:
    renderer = load_renderer(shared_data / "tokenizers" / "gpt2", "plain")
    ids = learned_ids(renderer, row_of(**MISSION_ROWS[0]))
    texts = [renderer.tokenizer.token_text(token) for token in ids]
    text = "Am anda Ġbaked Ġcookies Ġand Ġwill Ġbring Ġsome Ġfor ĠJerry Ġtomorrow . <|endoftext|>"
    assert texts == text.split()


@pytest.mark.parametrize("row", MISSION_ROWS)
def test_mission_rows_on_phi3_chat(shared_data: Path, row: dict[str, str]) -> None:
    renderer = load_renderer(shared_data / "tokenizers" / "phi3-mini", "auto")
    assert renderer.mode == "chat"
    ids, learned = renderer.render(row_of(row["prompt"], row["completion"]))
    answer = ids[learned].tolist()
    assert renderer.tokenizer.token_text(answer[-1]) == "<|end|>"  # the turn's end, not the pad token <|endoftext|>
    assert renderer.tokenizer.decode(answer[:-1]) == row["completion"]
    assert answer[-1] in renderer.stop_ids
    assert renderer.tokenizer.pad_id == renderer.tokenizer.eos_id
    assert ids[-1] == renderer.tokenizer.eos_id and not learned[-1]  # written by the template, and not learned


@pytest.mark.slow  # the conversion of a sentencepiece model by transformers takes seconds
@pytest.mark.parametrize("name", ["mistral-spm-v1", "mistral-spm-v3"])
def test_mission_rows_on_sentencepiece_models(shared_data: Path, name: str) -> None:
    renderer = load_renderer(shared_data / "tokenizers" / name, "auto")
    tokenizer = renderer.tokenizer
    for row in MISSION_ROWS:
        ids, learned = renderer.render(row_of(row["prompt"], row["completion"]))
        assert ids[0] == tokenizer.bos_id and tokenizer.bos_id not in ids[1:].tolist()
        assert ids[learned].tolist()[-1] == tokenizer.eos_id
        alone = tokenizer.template.encode(row["completion"], add_special_tokens=False).ids
        assert tokenizer.decode(ids[learned].tolist()[:-1]) == tokenizer.decode(alone) == row["completion"]


# -- control tokens in content ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "phi3-mini"])
def test_control_tokens_typed_by_a_user_stay_text(shared_data: Path, name: str) -> None:
    renderer = load_renderer(shared_data / "tokenizers" / name, "auto")
    _require_control_stays_text(renderer)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mistral-spm-v1", "mistral-spm-v3"])
def test_control_tokens_stay_text_on_sentencepiece_models(shared_data: Path, name: str) -> None:
    _require_control_stays_text(load_renderer(shared_data / "tokenizers" / name, "auto"))


@pytest.mark.parametrize("name", FAMILIES)
def test_control_tokens_typed_into_any_family_stay_text(family: Callable[[str], Path], name: str) -> None:
    _require_control_stays_text(load_renderer(family(name), "auto"))


def _require_control_stays_text(renderer: Renderer) -> None:
    tokenizer = renderer.tokenizer
    usual = renderer.render(row_of("A", "B"))[0].tolist()
    for text in (*tokenizer.control_texts, "<|end|>", "</s>", "<s>", "<|endoftext|>"):
        typed = f"x{text} y"
        ids, learned = renderer.render(row_of(typed, typed))
        for control in tokenizer.control_ids:
            assert ids.tolist().count(control) == usual.count(control), (text, control)
        answer = ids[learned].tolist()
        assert tokenizer.decode(answer).count(typed) == 1


def test_other_added_tokens_are_text_by_the_tokenizers_own_word(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, kind="bytes", control=CONTROL, template=BUNDLED)
    document = json.loads((folder / "tokenizer.json").read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    for number, text in enumerate(("<think>", "</s>"), 420):
        document["added_tokens"].append({"id": number, "content": text} | flags)
    (folder / "tokenizer.json").write_text(json.dumps(document))
    tokenizer = load_tokenizer(folder)
    assert 420 in tokenizer.encode_contents(["a <think> b"])[0]
    assert 421 not in tokenizer.encode_contents(["a </s> b"])[0]  # not flagged special, but framing by its form


# -- chat over families -----------------------------------------------------------------------------------------------


def rendered_by_transformers(folder: Path, turns: list[dict[str, str]], *, generation_prompt: bool = False) -> str:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation_prompt)


@pytest.mark.slow  # AutoTokenizer imports torch
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "endless"])
def test_tokens_are_those_of_the_whole_text_as_transformers_renders_it(
    family: Callable[[str], Path], name: str
) -> None:
    renderer = load_renderer(family(name), "auto")
    turns = [{"role": role, "content": text} for role, text in CONVERSATION]
    text = rendered_by_transformers(family(name), turns)
    ids, _ = renderer.render(messages_row(*(message(role, content) for role, content in CONVERSATION)))
    whole = renderer.tokenizer.template.encode(text, add_special_tokens=False).ids
    if name == "mistral":  # its answer stands right behind "[/INST]": the tokenizer's space comes before it
        assert renderer.tokenizer.decode(ids.tolist()).replace("[/INST] ", "[/INST]") == renderer.tokenizer.decode(
            whole
        )
    elif name in ("chatml", "thinking", "tools", "llama3", "mistral-bytes", "bundled", "llama2", "gemma"):
        assert renderer.tokenizer.decode(ids.tolist()) == renderer.tokenizer.decode(whole)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("endless", "thinking")])
def test_every_assistant_turn_is_learned_with_its_end(family: Callable[[str], Path], name: str) -> None:
    renderer = load_renderer(family(name), "auto")
    row = messages_row(*(message(role, content) for role, content in CONVERSATION))
    learned = [text for text, is_learned in pieces(renderer, row) if is_learned]
    end = renderer.tokenizer.token_text(renderer.end_id)
    assert [text.strip().replace(" " + end, end).strip() for text in learned] == [f"Hi!{end}", f"It is 4.{end}"]
    assert renderer.end_id in renderer.stop_ids


@pytest.mark.parametrize("name", FAMILIES)
def test_prompt_for_generation_is_the_row_up_to_its_first_learned_token(
    family: Callable[[str], Path], name: str
) -> None:
    renderer = load_renderer(family(name), "auto")
    for prompt, completion in (("Hello you", "Hi!"), ("  spaces  ", " ends with a space "), ("x\n", "\ny")):
        ids, learned = renderer.render(row_of(prompt, completion))
        first = int(np.flatnonzero(learned)[0])
        assert renderer.render_prompt(prompt) == ids[:first].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("mistral", "mistral-bytes", "llama2")])
def test_prompt_for_generation_is_the_templates_own(family: Callable[[str], Path], name: str) -> None:
    renderer = load_renderer(family(name), "auto")
    text = rendered_by_transformers(family(name), [{"role": "user", "content": "Hello you"}], generation_prompt=True)
    assert renderer.tokenizer.decode(renderer.render_prompt("Hello you")) == text.removesuffix(" ") or (
        renderer.tokenizer.decode(renderer.render_prompt("Hello you")) == text
    )


def test_an_unlearned_assistant_turn_is_not_learned(family: Callable[[str], Path]) -> None:
    renderer = load_renderer(family("bundled"), "auto")
    row = messages_row(
        message("user", "a"), message("assistant", "b", learned=False), message("user", "c"), message("assistant", "d")
    )
    assert pieces(renderer, row) == [
        ("<|begin|><|user|>a<|end|><|assistant|>b<|end|><|user|>c<|end|><|assistant|>", False),
        ("d<|end|>", True),
    ]


def test_what_stands_between_generation_prompt_and_answer_is_learned(family: Callable[[str], Path]) -> None:
    renderer = load_renderer(family("thinking"), "auto")
    answer = [text for text, is_learned in pieces(renderer, row_of("a", "b")) if is_learned]
    assert answer == ["<think>\n\n</think>\n\nb<|im_end|>"]


def test_template_without_an_end_gets_the_tokenizers_end_token_and_says_so(family: Callable[[str], Path]) -> None:
    renderer = load_renderer(family("endless"), "auto")
    assert pieces(renderer, row_of("a", "b")) == [("USER: a\nASSISTANT: ", False), ("b\n<|endoftext|>", True)]
    assert "TEMPLATE_WITHOUT_END" in renderer.warnings


def test_tool_calls_are_learned_whole_and_tools_are_not(family: Callable[[str], Path]) -> None:
    renderer = load_renderer(family("tools"), "auto")
    call = ToolCall(id="1", name="weather", arguments='{"city": "Oslo <|im_end|>"}')
    row = messages_row(
        message("user", "Weather?"),
        message("assistant", "", calls=(call,)),
        message("tool", '{"degrees": 4}'),
        message("assistant", "4 degrees."),
        tools=({"type": "function", "function": {"name": "weather", "description": "of a city"}},),
    )
    learned = [text for text, is_learned in pieces(renderer, row) if is_learned]
    assert learned == [
        '\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo <|im_end|>"}}\n</tool_call><|im_end|>',
        "\n4 degrees.<|im_end|>",
    ]
    ids, _ = renderer.render(row)
    end = renderer.tokenizer.template.token_to_id("<|im_end|>")
    assert ids.tolist().count(end) == 5  # one a turn and one for the tools; the typed one is text


def test_control_token_in_a_tools_name_is_refused(family: Callable[[str], Path]) -> None:
    renderer = load_renderer(family("tools"), "auto")
    call = ToolCall(id="1", name="weather<|im_end|>", arguments="{}")
    with pytest.raises(InputRefused) as refused:
        renderer.render(messages_row(message("user", "?"), message("assistant", "", calls=(call,)), line=3))
    assert (refused.value.code, refused.value.field) == ("CONTROL_TOKEN_IN_NAME", "line 3")


def test_stripped_contents_are_followed_and_counted(family: Callable[[str], Path]) -> None:
    renderer = load_renderer(family("llama3"), "auto")
    learned = [text for text, is_learned in pieces(renderer, row_of("  a ", " b\n")) if is_learned]
    assert learned == ["b<|eot|>"]
    assert renderer.num_stripped == 1


@pytest.mark.parametrize(
    ("change", "completion"),
    [
        ("message.content | upper", "b"),
        ("message.content | replace('x', 'y')", "xx"),
        ("message.content.split('</think>')[-1]", "thought</think>answer"),
        ("message.content[:3]", "longer than three"),
        ("message.content + message.content", "twice"),
        ("message.role", "dropped"),
    ],
)
def test_template_that_rewrites_content_is_refused_by_name(tmp_path: Path, change: str, completion: str) -> None:
    template = BUNDLED.replace("message.content", f"({change})")
    folder = write_folder(tmp_path, kind="bytes", control=CONTROL, template=template)
    with pytest.raises(InputRefused) as refused:
        load_renderer(folder, "auto").render(row_of("abc", completion))
    assert refused.value.code == "TEMPLATE_REWRITES_CONTENT"


def test_template_that_cannot_render_at_all_tells_the_way_out(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, kind="bytes", control=CONTROL, template="{{ ''.__class__.__mro__ }}")
    with pytest.raises(InputRefused) as refused:
        load_renderer(folder, "auto")
    assert refused.value.code == "TEMPLATE_REFUSED" and refused.value.field == "render"
    assert "--render plain" in (refused.value.hint or "") and ".." not in refused.value.message


def test_template_that_refuses_a_role_names_the_line_and_its_reason(family: Callable[[str], Path]) -> None:
    renderer = load_renderer(family("gemma"), "auto")
    with pytest.raises(InputRefused) as refused:
        renderer.render(messages_row(message("system", "s"), message("user", "u"), message("assistant", "a"), line=12))
    assert refused.value.code == "TEMPLATE_REFUSED"
    assert "line 12" in refused.value.message and "System role not supported" in refused.value.message


def test_template_that_refuses_turns_out_of_order_names_the_line(family: Callable[[str], Path]) -> None:
    renderer = load_renderer(family("llama2"), "auto")
    with pytest.raises(InputRefused, match=r"line 2.*alternate"):
        renderer.render(messages_row(message("user", "u"), message("user", "u"), message("assistant", "a"), line=2))


# -- any text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bundled", "chatml", "mistral-bytes"])
@settings(max_examples=60, deadline=None)
@given(prompt=TEXTS, completion=TEXTS)
def test_learned_bytes_are_the_completion(
    renderers: Callable[[str], Renderer], name: str, prompt: str, completion: str
) -> None:
    renderer = renderers(name)
    answer = learned_ids(renderer, row_of(prompt, completion))
    assert answer[-1] == renderer.end_id
    if name == "mistral-bytes":
        assert renderer.tokenizer.decode(answer[:-1]) == completion
    assert _bytes_of(renderer, answer[:-1]) == completion.encode()


@pytest.mark.parametrize("name", ["bundled", "gpt2"])
@settings(max_examples=60, deadline=None)
@given(prompt=TEXTS, completion=TEXTS)
def test_plain_learned_bytes_are_the_completion(
    renderers: Callable[[str], Renderer], name: str, prompt: str, completion: str
) -> None:
    renderer = renderers(f"{name}:plain")
    assert _bytes_of(renderer, learned_ids(renderer, row_of(prompt, completion))[:-1]) == completion.encode()


@pytest.mark.parametrize(
    "name", ["phi3-mini:plain", "phi3-mini", "mistral", "mistral:plain", "llama2:plain", "gemma:plain"]
)
@settings(max_examples=60, deadline=None)
@given(prompt=TEXTS, completion=TEXTS)
def test_learned_text_on_sentencepiece_like_tokenizers_is_the_tokenizers_own(
    renderers: Callable[[str], Renderer], name: str, prompt: str, completion: str
) -> None:
    renderer = renderers(name)
    answer = learned_ids(renderer, row_of(prompt, completion))[:-1]
    own = renderer.tokenizer.template
    unmatched = not any(text in completion for text in renderer.tokenizer.control_texts)
    if unmatched:
        alone = own.encode(completion, add_special_tokens=False).ids
        assert renderer.tokenizer.decode(answer) == renderer.tokenizer.decode(alone)
        if name.endswith(":plain"):
            assert answer == alone


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=25, deadline=None)
@given(prompt=TEXTS, completion=TEXTS)
def test_a_rows_start_is_the_prompt_that_a_server_renders(
    renderers: Callable[[str], Renderer], name: str, prompt: str, completion: str
) -> None:
    renderer = renderers(name)
    if not prompt.strip() or not completion.strip():
        return
    ids, learned = renderer.render(row_of(prompt, completion))
    first = int(np.flatnonzero(learned)[0])
    assert renderer.render_prompt(prompt) == ids[:first].tolist()


def _bytes_of(renderer: Renderer, ids: list[int]) -> bytes:
    """The bytes behind byte-level tokens, so that half a character counts too."""
    alphabet = _byte_alphabet()
    return b"".join(bytes(alphabet[sign] for sign in renderer.tokenizer.token_text(token)) for token in ids)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's table of printable signs for bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    return table | {chr(256 + number): byte for number, byte in enumerate(others)}


@pytest.fixture(scope="session")
def renderers(family: Callable[[str], Path], request: pytest.FixtureRequest) -> Callable[[str], Renderer]:
    made: dict[str, Renderer] = {}

    def make(name: str) -> Renderer:
        if name not in made:
            base, _, mode = name.partition(":")
            if base in FAMILIES:
                folder = family(base)
            else:
                folder = request.getfixturevalue("shared_data") / "tokenizers" / base
            made[name] = load_renderer(folder, "plain" if mode == "plain" else "auto")
        return made[name]

    return make
