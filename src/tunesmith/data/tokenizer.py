"""A model folder's tokenizer, in the three ways a row needs it.

In: the tokenizer files of a model folder. Out: a `TextTokenizer` with two encoders: one for the template's own text
(control tokens are recognised) and one for content (control tokens are plain text). The ids equal those of
transformers' AutoTokenizer, without importing transformers or torch where `tokenizer.json` allows it: their import
takes seconds, and this runs before every plan. It knows nothing of templates' meaning or of rows.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, cast

from tokenizers import Tokenizer

from tunesmith.errors import InputRefused

MAX_TEMPLATE_CHARACTERS = 200_000
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
# Of these only the keys below touch tokens; the rest of them may change without new tokens.
SIDE_FILES = {
    "config.json": ("model_type", "eos_token_id", "tokenizer_class"),
    "generation_config.json": ("eos_token_id",),
}
_AGAIN = "Copy or download the tokenizer files again."
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
VERBATIM = "TokenizersBackend"
# model_type -> the class that transformers registers for it; other model types go through AutoTokenizer.
REGISTERED_CLASSES: dict[str, str | None] = {
    "llama": None,
    "smollm3": None,
    "mistral": VERBATIM,
    "mixtral": VERBATIM,
    "phi3": VERBATIM,
    "granite": VERBATIM,
    "olmo2": VERBATIM,
    "qwen2": "Qwen2Tokenizer",
    "qwen2_moe": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "qwen3_moe": "Qwen2Tokenizer",
    "gemma": "GemmaTokenizer",
    "gemma2": "GemmaTokenizer",
    "gemma3": "GemmaTokenizer",
    "gemma3_text": "GemmaTokenizer",
    "gpt2": "GPT2Tokenizer",
    "phi": "GPT2Tokenizer",
}
WRONGLY_DECLARED = frozenset({"phi3", "qwen2"})  # the registered class wins over tokenizer_config.json
# The special tokens that a class has where the files name none.
CLASS_TOKENS: dict[str, dict[str, str]] = {
    "LlamaTokenizer": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    "GPT2Tokenizer": dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>"),
    "Qwen2Tokenizer": dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>"),
    "GemmaTokenizer": {
        "unk_token": "<unk>",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    },
}
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Added tokens that some tokenizers ship without the `special` flag (Phi-3's </s>), and that still end or frame turns.
CONTROL_LIKE = re.compile(
    r"</?s>|<(unk|pad|mask|bos|eos|cls|sep)>|<\|.*\|>|<｜.*｜>|\[/?[A-Z_]+\]|<(start|end)_of_turn>"
)


# A tokenizer.json document, the named special tokens, and whether the tokenizer puts BOS before a text by itself.
Json = dict[str, Any]
Prefix = Literal["none", "first", "always", "kept"]
_Document = tuple[Json, dict[str, str], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTokenizer:
    """Encoders and special tokens of one model folder. Ids are Python ints; decode is the tokenizer's own.

    template: recognises control tokens, as the tokenizer itself does. bare_template: without the space that
    sentencepiece-like tokenizers put before a text. content: bare too, and control tokens' text is plain text.
    prefix: when the tokenizer puts that space: `none` never; `first` before a text; `always` also behind each control
    token; but neither if the text begins with a space; `kept` as `always`, before a leading space too.
    """

    folder: Path
    template: Tokenizer
    bare_template: Tokenizer
    content: Tokenizer
    prefix: Prefix
    named: dict[str, str]
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    stop_ids: tuple[int, ...]
    added_ids: frozenset[int]
    control_ids: frozenset[int]
    control_texts: tuple[str, ...]
    size: int
    adds_bos_itself: bool
    chat_template: str | None
    digest: str

    def encode_contents(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, control tokens being plain text and no space put before it. Uses all threads."""
        return [encoding.ids for encoding in self.content.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_template(self, text: str, *, is_start: bool) -> list[int]:
        """Ids of template text. Within a row (not `is_start`) no artificial space is put before it."""
        if not text:
            return []
        whole = self.template.encode(text, add_special_tokens=False)
        if is_start or self.prefix == "none":
            return whole.ids
        for index, token in enumerate(whole.ids):
            if token in self.added_ids:
                head = text[: whole.offsets[index][0]]
                return (
                    self.bare_template.encode(head, add_special_tokens=False).ids + whole.ids[index:]
                    if head
                    else whole.ids
                )
        return self.bare_template.encode(text, add_special_tokens=False).ids

    def takes_prefix(self, text: str) -> bool:
        """Whether the tokenizer would put its space before `text` at the start of a text."""
        if self.prefix == "none" or not text:
            return False
        return self.prefix == "kept" or text[0] not in " ▁"

    def decode(self, ids: Sequence[int]) -> str:
        """The tokenizer's own text of `ids`, control tokens shown."""
        return self.template.decode(ids, skip_special_tokens=False)

    def token_text(self, token_id: int) -> str:
        return self.template.id_to_token(token_id) or f"<{token_id}>"


def load_tokenizer(folder: Path) -> TextTokenizer:
    """The tokenizer of a model folder. Raises InputRefused (TOKENIZER_*) if there is none or it cannot be read."""
    folder = Path(folder)
    config = _json_file(folder / "tokenizer_config.json")
    side = {name: _json_file(folder / name) for name in SIDE_FILES}
    document, named, adds_bos = _load_document(folder, config, side["config.json"])
    template = _build(document, folder)
    ids = {name: template.token_to_id(text) for name, text in named.items()}
    stop_ids = _stop_ids(ids.get("eos_token"), side["generation_config.json"], side["config.json"])
    control = _control_tokens(document, named=named, stop_ids=stop_ids)
    bare, prefix = _without_prefix(document)
    content = _build(_content_document(bare, control=control), folder)
    content.encode_special_tokens = True
    _require_content_is_text(content, control, unknown_id=_unknown_id(document))
    return TextTokenizer(
        folder=folder,
        template=template,
        content=content,
        bare_template=template if prefix == "none" else _build(bare, folder),
        prefix=prefix,
        named=named,
        bos_id=ids.get("bos_token"),
        eos_id=ids.get("eos_token"),
        pad_id=ids.get("pad_token"),
        stop_ids=stop_ids,
        added_ids=frozenset(token["id"] for token in document["added_tokens"]),
        control_ids=frozenset(control.values()),
        control_texts=tuple(control),
        size=template.get_vocab_size(with_added_tokens=True),
        adds_bos_itself=adds_bos,
        chat_template=_chat_template(folder, config),
        digest=_digest(folder, side),
    )


def _object(value: Any) -> Json:
    """`value` if it is a JSON object, else an empty one."""
    return cast("Json", value) if isinstance(value, dict) else {}


def _json_file(path: Path) -> Json:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputRefused(
            "TOKENIZER_UNREADABLE", f"{path.name} is not JSON: {error}.", field=path.name, hint=_AGAIN
        ) from error
    if not isinstance(value, dict):
        raise InputRefused("TOKENIZER_UNREADABLE", f"{path.name} holds no JSON object.", field=path.name, hint=_AGAIN)
    return cast("Json", value)


def _build(document: Json, folder: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(json.dumps(document))
    except Exception as error:
        raise InputRefused(
            "TOKENIZER_UNREADABLE",
            f"tokenizer.json of {folder.name} cannot be loaded: {error}.",
            field="tokenizer.json",
            hint=_AGAIN,
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _token_text(value: Any) -> str | None:
    text = _object(value).get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _load_document(folder: Path, config: Json, model_config: Json) -> _Document:
    if (folder / "tokenizer.json").is_file():
        followed = _from_tokenizer_json(folder, config, model_config)
        return followed if followed is not None else _from_transformers(folder, is_bare=False)
    if not (folder / "tokenizer.model").is_file() and not (folder / "vocab.json").is_file():
        raise InputRefused(
            "TOKENIZER_MISSING",
            f"{folder.name} has neither tokenizer.json nor tokenizer.model.",
            field="tokenizer.json",
            hint="Copy the tokenizer files of the model into its folder.",
        )
    return _from_transformers(folder, is_bare=not config and not model_config)


def _from_tokenizer_json(folder: Path, config: Json, model_config: Json) -> _Document | None:
    """tokenizer.json as transformers would load it, or None where only transformers itself can tell.

    transformers rebuilds some tokenizers from their vocabulary with rules of the class (a Llama tokenizer.json loses
    its normalizer). The classes of the families we claim are followed here; tests compare the ids with AutoTokenizer's.
    """
    document = _json_file(folder / "tokenizer.json")
    if not isinstance(_object(document.get("model")).get("vocab"), (dict, list)):
        raise InputRefused(
            "TOKENIZER_UNREADABLE",
            "tokenizer.json has no model with a vocabulary.",
            field="tokenizer.json",
            hint=_AGAIN,
        )
    kind = _tokenizer_class(config, model_config, document)
    if kind is None or "auto_map" in config:
        return None
    in_file: list[Json] = list(document.get("added_tokens") or [])
    if kind == "LlamaTokenizer":
        document = _as_llama(document, config)
    elif kind != VERBATIM and not _is_canonical(kind, document):
        return None
    listed = config.get("added_tokens_decoder")
    added = {token["id"]: token for token in in_file}
    added |= {int(number): {"id": int(number)} | _object(token) for number, token in _object(listed).items()}
    document["added_tokens"] = [added[number] for number in sorted(added)]
    named = dict(CLASS_TOKENS.get(kind, {}))
    special_map = {} if isinstance(listed, dict) else _json_file(folder / "special_tokens_map.json")
    for name in NAMED_TOKENS:
        text = _token_text(special_map.get(name, config.get(name)))
        if text is not None:
            named[name] = text
        elif name in config:
            named.pop(name, None)
    _add_missing(document, [*named.values(), *_extra_tokens(config, special_map)])
    post_processor = json.dumps(document.get("post_processor"))
    adds_bos = "bos_token" in named and json.dumps(named["bos_token"]) in post_processor
    return document, named, adds_bos


def _tokenizer_class(config: Json, model_config: Json, document: Json) -> str | None:
    """Which class transformers' AutoTokenizer (5.17-5.23) takes: VERBATIM, one we follow, or None for any other."""
    named = config.get("tokenizer_class") or model_config.get("tokenizer_class")
    declared = str(named).removesuffix("Fast") if named else None
    model_type = model_config.get("model_type")
    if model_type is not None and model_type not in REGISTERED_CLASSES:
        return None
    registered = REGISTERED_CLASSES.get(str(model_type))
    if declared == "LlamaTokenizer" and '"ByteLevel"' in json.dumps(
        [document.get("pre_tokenizer"), document.get("decoder")]
    ):
        return VERBATIM
    chosen = declared or registered or VERBATIM
    if declared is not None and registered is not None and declared != registered:
        chosen = registered if registered == VERBATIM or model_type in WRONGLY_DECLARED else declared
    if chosen in (VERBATIM, "PreTrainedTokenizer", "PythonBackend"):
        return VERBATIM
    return chosen if chosen in CLASS_TOKENS else None


def _as_llama(document: Json, config: Json) -> Json:
    """What transformers' LlamaTokenizer makes of a file: its own Metaspace rule in place of the normalizer."""
    add_prefix = config.get("add_prefix_space")
    add_prefix = True if add_prefix is None else bool(add_prefix)
    scheme = "never" if not add_prefix else "always" if config.get("legacy", False) else "first"
    decoders: list[Json] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if add_prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    model = document["model"] | {"fuse_unk": True, "byte_fallback": True, "dropout": None, "unk_token": None}
    return document | {
        "model": model,
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False},
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


def _is_canonical(kind: str, document: Json) -> bool:
    """Whether the file already says what the class would make of it."""
    rules = {name: document.get(name) for name in ("normalizer", "pre_tokenizer")}
    if document["model"].get("dropout") is not None or document["model"].get("ignore_merges"):
        return False
    before = _object(rules["pre_tokenizer"])
    if kind == "GPT2Tokenizer":
        return rules["normalizer"] is None and _is_byte_level(before, use_regex=True)
    if kind == "Qwen2Tokenizer":
        steps = [_object(step) for step in cast("list[Any]", before.get("pretokenizers") or [])]
        return (
            rules["normalizer"] == {"type": "NFC"}
            and len(steps) == 2
            and _object(steps[0].get("pattern")).get("Regex") == QWEN2_PATTERN
            and steps[0].get("behavior") == "Isolated"
            and _is_byte_level(steps[1], use_regex=False)
        )
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    return rules == {"normalizer": spaces, "pre_tokenizer": split} and bool(document["model"].get("byte_fallback"))


def _is_byte_level(step: Json, *, use_regex: bool) -> bool:
    is_same = bool(step.get("use_regex", True)) == use_regex
    return step.get("type") == "ByteLevel" and not step.get("add_prefix_space") and is_same


def _extra_tokens(*configs: Json) -> list[str]:
    found: list[str] = []
    for config in configs:
        value: Any = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
        tokens = list(cast("Json", value).values()) if isinstance(value, dict) else cast("list[Any]", value)
        found += [text for token in tokens if (text := _token_text(token)) is not None]
    return found


def _add_missing(document: Json, texts: Iterable[str]) -> None:
    """Named special tokens that the file does not list get a place, as transformers gives them one."""
    vocabulary: Any = document["model"]["vocab"]
    if isinstance(vocabulary, dict):
        ids = cast("dict[str, int]", vocabulary)
    else:
        ids = {entry[0]: number for number, entry in enumerate(vocabulary)}
    known = {token["content"] for token in document["added_tokens"]}
    following = max([*ids.values(), *(token["id"] for token in document["added_tokens"]), -1]) + 1
    for text in dict.fromkeys(texts):
        if text in known:
            continue
        number = ids.get(text, following)
        following += number == following
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        document["added_tokens"].append({"id": number, "content": text, "special": True} | flags)
    document["added_tokens"] = sorted(document["added_tokens"], key=itemgetter("id"))


def _from_transformers(folder: Path, *, is_bare: bool) -> _Document:
    """The conversion by transformers itself, for bare sentencepiece models and classes that are not followed here."""
    # Local import: transformers (and, for AutoTokenizer, torch) takes seconds, and most folders do not need it.
    if is_bare:
        from transformers.tokenization_utils_tokenizers import TokenizersBackend as Loader
    else:
        from transformers import AutoTokenizer as Loader

    try:
        loader = cast("Any", Loader)
        converted = loader.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        document = json.loads(converted.backend_tokenizer.to_str())
    except Exception as error:
        raise InputRefused(
            "TOKENIZER_UNREADABLE",
            f"The tokenizer of {folder.name} cannot be loaded: {str(error)[:500]}",
            field="model",
            hint=_AGAIN,
        ) from error
    named = {name: str(text) for name in NAMED_TOKENS if (text := getattr(converted, name, None))}
    return document, named, bool(getattr(converted, "add_bos_token", False))


def _stop_ids(eos_id: int | None, *configs: Json) -> tuple[int, ...]:
    """Every id at which a server of this folder stops, the tokenizer's own end token first."""
    found: list[int] = [] if eos_id is None else [eos_id]
    for config in configs:
        value = config.get("eos_token_id")
        found += [value] if isinstance(value, int) else value if isinstance(value, list) else []
    return tuple(dict.fromkeys(found))


def _control_tokens(document: Json, *, named: dict[str, str], stop_ids: Iterable[int]) -> dict[str, int]:
    """Added tokens that content may never become: special ones, named ones, stop tokens and those that look so.

    The other added tokens (runs of spaces, <think>, <table>) are text by the tokenizer's own word, and stay text.
    """
    names = set(named.values())
    stops = set(stop_ids)
    return {
        token["content"]: token["id"]
        for token in document["added_tokens"]
        if token["special"]
        or token["content"] in names
        or token["id"] in stops
        or CONTROL_LIKE.fullmatch(token["content"])
    }


def _content_document(document: Json, *, control: dict[str, int]) -> Json:
    """The same tokenizer with every control token flagged special: `encode_special_tokens` makes those plain text."""
    changed = dict(document)
    changed["added_tokens"] = [token | {"special": token["content"] in control} for token in document["added_tokens"]]
    model = document["model"]
    if model.get("type") == "Unigram":  # its lattice would find a control piece in user text, sentencepiece does not
        unknown = model.get("unk_id")
        blocked = set(control.values()) - {unknown}
        vocabulary = [
            [piece, -1e6 if index in blocked else score] for index, (piece, score) in enumerate(model["vocab"])
        ]
        changed["model"] = model | {"vocab": vocabulary}
    return changed


def _unknown_id(document: Json) -> int | None:
    """The id that text outside the vocabulary gets; content may hold it."""
    model = document["model"]
    if "unk_id" in model:
        return model["unk_id"]
    vocabulary: Any = model["vocab"]
    return cast("Json", vocabulary).get(model.get("unk_token")) if isinstance(vocabulary, dict) else None


def _require_content_is_text(content: Tokenizer, control: dict[str, int], *, unknown_id: int | None) -> None:
    for text, token_id in control.items():
        if token_id != unknown_id and token_id in content.encode(text, add_special_tokens=False).ids:
            raise InputRefused(
                "TOKENIZER_UNSAFE",
                f"This tokenizer turns the typed text {text!r} into its control token {token_id}.",
                hint="Use a model whose tokenizer keeps control tokens apart from text.",
            )


def _without_prefix(document: Json) -> tuple[Json, Prefix]:
    """The document without an artificial first space, and when it had one."""
    found: list[Prefix] = []

    def strip(part: Any) -> Any:
        if part is None:
            return None
        kind = part.get("type")
        if kind == "Sequence":
            name = "normalizers" if "normalizers" in part else "pretokenizers"
            return part | {name: [kept for inner in part[name] if (kept := strip(inner)) is not None]}
        if kind == "Prepend":
            found.append("kept")
            return None
        if kind == "Metaspace" and part.get("prepend_scheme", "always") != "never":
            found.append("first" if part.get("prepend_scheme") == "first" else "always")
            return part | {"prepend_scheme": "never"}
        if kind == "ByteLevel" and part.get("add_prefix_space"):
            found.append("always")
            return part | {"add_prefix_space": False}
        return part

    changed = document | {name: strip(document.get(name)) for name in ("normalizer", "pre_tokenizer")}
    return changed, found[0] if found else "none"


def _chat_template(folder: Path, config: Json) -> str | None:
    """The model's own template: chat_template.jinja, else tokenizer_config.json (of several the `default`)."""
    file = folder / "chat_template.jinja"
    template: Any = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
    if isinstance(template, list):
        entries = [_object(entry) for entry in cast("list[Any]", template)]
        template = next((entry.get("template") for entry in entries if entry.get("name") == "default"), None)
    if not isinstance(template, str) or not template:
        return None
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise InputRefused(
            "TEMPLATE_TOO_LARGE",
            f"The chat template has {len(template):,} characters; the limit is {MAX_TEMPLATE_CHARACTERS:,}.",
        )
    return template


def _digest(folder: Path, side: dict[str, Json]) -> str:
    """SHA-256 over every byte of the folder that can touch tokens."""
    digest = hashlib.sha256()
    for name in TOKENIZER_FILES:
        path = folder / name
        if path.is_file():
            content = path.read_bytes()
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
    kept = {name: {key: value.get(key) for key in SIDE_FILES[name]} for name, value in side.items()}
    digest.update(json.dumps(kept, sort_keys=True).encode())
    return digest.hexdigest()
