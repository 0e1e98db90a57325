"""Peers of `bench_gpu.py`, each in a process of its own: `python -m benchmarks.peers_gpu PEER REQUEST_JSON`.

    compiled    our own strong baseline: PEFT, each layer compiled, packed rows, fused head on learned tokens
    trl         TRL's SFTTrainer: packing, Liger's layers and fused head
    axolotl     Axolotl's LoRA kernels with Liger's layers and cut-cross-entropy, in the packed loop
    unsloth     Unsloth's SFTTrainer: packing

All get the same rows (`tunesmith/train/workload.py`), the same tokens a step, LoRA r=32, alpha=16, dropout=0.05 on all
linear modules, adapter in float32, bf16 base of the same random weights. Their packages are no dependency of ours:
where they lie, PEERS_SITES says (a folder with `site-x` for Axolotl and `site-u` for Unsloth beside what is installed).
Prints one line `RESULT ` with tokens_per_second, losses and memory.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import traceback
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tunesmith.data.batch import Batch
from tunesmith.spec.bench import SHAPES, BenchRequest
from tunesmith.train.bench import LEARNING_RATE, ROWS, SHOWN_STEPS, WARM_UP_STEPS
from tunesmith.train.workload import MadeUpRows, steps_of

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# transformers and TRL ask for the flash-attn package before they pack. A stand-in over the same kernels inside torch.
FLASH_ATTN_STAND_IN = """
import torch
__version__ = "2.8.3"

class _Varlen(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, cq, ck, mq, mk, scale, causal):
        o, lse, rng, unused, _ = torch.ops.aten._flash_attention_forward(
            q, k, v, cq, ck, mq, mk, 0.0, causal, False, scale=scale)
        ctx.save_for_backward(q, k, v, o, lse, rng, unused, cq, ck)
        ctx.a = (mq, mk, scale, causal)
        return o

    @staticmethod
    def backward(ctx, do):
        q, k, v, o, lse, rng, unused, cq, ck = ctx.saved_tensors
        mq, mk, scale, causal = ctx.a
        dq, dk, dv = torch.ops.aten._flash_attention_backward(
            do.contiguous(), q, k, v, o, lse, cq, ck, mq, mk, 0.0, causal, rng, unused, scale=scale)
        return dq, dk, dv, None, None, None, None, None, None

def flash_attn_varlen_func(q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None,
                           dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
                           alibi_slopes=None, deterministic=False, return_attn_probs=False, block_table=None):
    return _Varlen.apply(q, k, v, cu_seqlens_q.int(), cu_seqlens_k.int(), int(max_seqlen_q), int(max_seqlen_k),
                         softmax_scale, causal)

def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
                    alibi_slopes=None, deterministic=False, return_attn_probs=False):
    return torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=causal, scale=softmax_scale,
        enable_gqa=q.shape[2] != k.shape[2]).transpose(1, 2)

def flash_attn_with_kvcache(*a, **k):
    raise NotImplementedError
"""


def put_flash_attn_stand_in(folder: Path) -> None:
    """Write the stand-in as an installed package and put it on the import path, before transformers looks."""
    package, described = folder / "flash_attn", folder / "flash_attn-2.8.3.dist-info"
    package.mkdir(parents=True, exist_ok=True)
    described.mkdir(exist_ok=True)
    (package / "__init__.py").write_text(FLASH_ATTN_STAND_IN)
    refuse = "def {}(*a, **k):\n    raise NotImplementedError\n"
    (package / "bert_padding.py").write_text(refuse.format("pad_input") + refuse.format("unpad_input"))
    (package / "flash_attn_interface.py").write_text(
        "from . import flash_attn_func, flash_attn_varlen_func\nflash_attn_gpu = None\n"
    )
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: flash-attn\nVersion: 2.8.3\n")
    (described / "top_level.txt").write_text("flash_attn\n")
    (described / "RECORD").write_text("flash_attn/__init__.py,,\n")
    sys.path.insert(0, str(folder))


class Meter:
    """Real tokens a second from the end of the fourth step on."""

    def __init__(self, request: BenchRequest) -> None:
        self._request = request
        self.losses: list[float | None] = []
        self._tokens, self._started, self._seconds = 0, 0.0, 0.0
        self._first = time.perf_counter()
        self.first_step_seconds = 0.0

    def end_step(self, tokens: int, loss: float | None) -> bool:
        """Waits for the device, as our own step does when it reads its loss; True when enough was measured."""
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.losses.append(loss)
        step = len(self.losses)
        if step == 1:
            self.first_step_seconds = now - self._first
        if step == WARM_UP_STEPS:
            self._started = now
        elif step > WARM_UP_STEPS:
            self._tokens += tokens
            self._seconds = now - self._started
        is_enough = step >= WARM_UP_STEPS + 2 and self._seconds >= self._request.seconds
        return is_enough or step >= self._request.maximum_steps

    def tell(self, **more: Any) -> None:
        result = {
            "tokens_per_second": self._tokens / self._seconds,
            "steps": len(self.losses),
            "seconds": self._seconds,
            "first_step_seconds": self.first_step_seconds,
            "losses": {step: self.losses[step - 1] for step in SHOWN_STEPS if step <= len(self.losses)},
            "peak_memory_bytes": torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else 0,
            **more,
        }
        print("RESULT " + json.dumps(result), flush=True)


def rows_of(request: BenchRequest) -> MadeUpRows:
    assert request.shape is not None
    return MadeUpRows(
        request.workload, count=ROWS[request.workload], vocabulary_size=SHAPES[request.shape].vocabulary_size,
        longest=request.row_tokens, seed=request.seed,
    )  # fmt: skip


def random_model(request: BenchRequest, attention: str) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    assert request.shape is not None
    shape = SHAPES[request.shape]
    config = LlamaConfig(
        hidden_size=shape.hidden_size, intermediate_size=shape.intermediate_size, num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_attention_heads, num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim, vocab_size=shape.vocabulary_size, tie_word_embeddings=shape.tied_embeddings,
        max_position_embeddings=131072, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        attn_implementation=attention,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with DEVICE:
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.config.use_cache = False
    return model


def with_peft(model: Any, request: BenchRequest) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(request.seed)
    config = LoraConfig(
        r=request.lora_rank, lora_alpha=request.lora_alpha, lora_dropout=request.lora_dropout,
        target_modules=list(TARGETS), bias="none", task_type="CAUSAL_LM",
    )  # fmt: skip
    wrapped = get_peft_model(model, config)
    wrapped.train()
    return wrapped


# ---- the packed loop: `compiled` and `axolotl`


class _Varlen(torch.autograd.Function):
    """torch's own flash kernel over packed documents; the compiler takes it as it is."""

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, edges: Any, longest: int, scale: float) -> Any:
        out, lse, random, unused, _ = torch.ops.aten._flash_attention_forward(
            q, k, v, edges, edges, longest, longest, 0.0, True, False, scale=scale
        )
        ctx.save_for_backward(q, k, v, out, lse, random, unused, edges)
        ctx.longest, ctx.scale = longest, scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        q, k, v, out, lse, random, unused, edges = ctx.saved_tensors
        g_q, g_k, g_v = torch.ops.aten._flash_attention_backward(
            gradients[0].contiguous(), q, k, v, out, lse, edges, edges, ctx.longest, ctx.longest, 0.0, True, random,
            unused, scale=ctx.scale,
        )  # fmt: skip
        return g_q, g_k, g_v, None, None, None


def _packed_attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any = None, scaling: Any = None,
    dropout: float = 0.0, **options: Any,
) -> tuple[Any, None]:  # fmt: skip
    edges = options["edges"]
    if query.is_cuda:
        q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        return _Varlen.apply(q, k, v, edges, options["longest"], scaling)[None], None
    document = torch.bucketize(torch.arange(query.shape[2]), edges[1:].long(), right=True)
    mask = (document[:, None] == document[None]).tril()[None, None]
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True
    )
    return out.transpose(1, 2).contiguous(), None


def fixed_size(batch: Batch, *, tokens: int, documents: int, longest: int) -> dict[str, Any]:
    """Tensors of one size for all batches, so that one compilation serves: filled up with documents of nobody."""
    ids, positions, edges = list(batch.tokens_T), list(batch.positions_T), list(batch.boundaries)
    while len(ids) < tokens:
        length = min(tokens - len(ids), longest)
        ids += [0] * length
        positions += range(length)
        edges.append(len(ids))
    edges += [tokens] * (documents - len(edges))
    places = np.flatnonzero(batch.labels_T != -100)

    def tensor(values: Any, dtype: torch.dtype = torch.long) -> torch.Tensor:
        made = torch.tensor(np.asarray(values), dtype=dtype)
        return made.pin_memory() if DEVICE.type == "cuda" else made

    return {
        "ids": tensor(ids)[None], "positions": tensor(positions)[None], "edges": tensor(edges, torch.int32),
        "places": tensor(places), "labels": tensor(batch.labels_T[places]), "real": len(batch.tokens_T),
    }  # fmt: skip


def head_loss(hidden: Any, weight: Any, labels: Any, kind: str) -> Any:
    if kind == "cut-cross-entropy":
        from cut_cross_entropy import linear_cross_entropy

        return linear_cross_entropy(hidden, weight, labels, reduction="sum")
    if kind == "liger":
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

        out = LigerFusedLinearCrossEntropyFunction.apply(hidden, weight, labels, None, None, -100, 0.0, 0.0, "sum")
        return out[0] if isinstance(out, tuple) else out
    logits = nn.functional.linear(hidden, weight).float()
    return nn.functional.cross_entropy(logits, labels, reduction="sum")


def packed_loop(request: BenchRequest, *, peer: str) -> None:
    from transformers import AttentionInterface

    AttentionInterface.register("bench_packed", _packed_attention)
    on_gpu = DEVICE.type == "cuda"
    if peer == "axolotl" and on_gpu:
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama(
            rope=True, rms_norm=True, swiglu=False, cross_entropy=False, fused_linear_cross_entropy=False
        )
    model = with_peft(random_model(request, "bench_packed"), request)
    body, head = model.get_base_model().model, model.get_base_model().lm_head.weight
    kind = "plain" if not on_gpu else "cut-cross-entropy" if peer == "axolotl" else "liger"
    if peer == "axolotl":
        _use_axolotl_kernels(model)
    else:
        torch._dynamo.config.recompile_limit = 64
        for layer in body.layers:
            layer.compile(dynamic=False) if on_gpu else layer.compile(backend="aot_eager")
    plans = steps_of(
        rows_of(request), row_tokens=request.row_tokens, rows_per_forward=request.rows_per_forward,
        forwards_per_step=request.forwards_per_step, most=request.maximum_steps, seed=request.seed,
    )  # fmt: skip
    every = [batch for step in plans for batch in step]
    tokens = request.row_tokens * request.rows_per_forward
    longest = max(int(np.diff(batch.boundaries).max()) for batch in every)
    documents = max(len(batch.boundaries) for batch in every) + tokens // longest + 2
    steps = [
        [fixed_size(batch, tokens=tokens, documents=documents, longest=longest) for batch in step] for step in plans
    ]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=on_gpu)
    meter = Meter(request)
    done = False
    while not done:
        step = steps[len(meter.losses) % len(steps)]
        learned = sum(len(batch["labels"]) for batch in step)
        total: Any = 0.0
        for batch in step:
            moved = {name: value.to(DEVICE, non_blocking=True) for name, value in batch.items() if name != "real"}
            with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
                hidden = body(
                    input_ids=moved["ids"], position_ids=moved["positions"], use_cache=False, edges=moved["edges"],
                    longest=longest,
                )[0][0]  # fmt: skip
                loss = head_loss(hidden[moved["places"]].to(head.dtype), head, moved["labels"], kind) / learned
            loss.backward()
            total = total + loss.detach()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done = meter.end_step(sum(batch["real"] for batch in step), float(total))
    meter.tell()


def _use_axolotl_kernels(model: Any) -> None:
    """Axolotl's LoRA autograd functions on every layer, the way its kernel options switch them on."""
    from axolotl.kernels.lora import apply_lora_mlp_swiglu, apply_lora_o, apply_lora_qkv
    from transformers import AttentionInterface
    from transformers.models.llama import modeling_llama

    def forward(
        self: Any, hidden_states: Any, position_embeddings: Any = None, attention_mask: Any = None,
        past_key_values: Any = None, **options: Any,
    ) -> Any:  # fmt: skip
        form = (*hidden_states.shape[:-1], -1, self.head_dim)
        q, k, v = (part.view(form).transpose(1, 2) for part in apply_lora_qkv(self, hidden_states))
        q, k = modeling_llama.apply_rotary_pos_emb(q, k, *position_embeddings)
        attend = AttentionInterface()[self.config._attn_implementation]
        out, weights = attend(self, q, k, v, attention_mask, scaling=self.scaling, dropout=0.0, **options)
        return apply_lora_o(self, out.reshape(*hidden_states.shape[:-1], -1)), weights

    for layer in model.get_base_model().model.layers:
        layer.mlp.forward = types.MethodType(apply_lora_mlp_swiglu, layer.mlp)
        layer.self_attn.forward = types.MethodType(forward, layer.self_attn)


# ---- SFTTrainer: `trl` and `unsloth`


def trainer_loop(request: BenchRequest, *, peer: str, folder: Path) -> None:
    put_flash_attn_stand_in(folder / "stand-in")
    tokenizer = save_tokenizer(folder, request)
    if peer == "unsloth":
        from unsloth import FastLanguageModel  # before transformers: it changes what it finds

        random_model(request, "sdpa").save_pretrained(folder, max_shard_size="5GB")
        torch.cuda.empty_cache()
        model, tokenizer = FastLanguageModel.from_pretrained(
            str(folder), max_seq_length=request.row_tokens, dtype=torch.bfloat16, load_in_4bit=False,
            local_files_only=True, use_gradient_checkpointing=False,
        )  # fmt: skip
        model = FastLanguageModel.get_peft_model(
            model, r=request.lora_rank, target_modules=list(TARGETS), lora_alpha=request.lora_alpha,
            lora_dropout=request.lora_dropout, bias="none", use_gradient_checkpointing=False,
            random_state=request.seed, max_seq_length=request.row_tokens,
        )  # fmt: skip
    else:
        model = with_peft(random_model(request, "flash_attention_2"), request)
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    rows = rows_of(request)
    examples = [rows[index] for index in range(len(rows))]
    dataset = Dataset.from_dict(
        {
            "input_ids": [example.tokens.tolist() for example in examples],
            "labels": [np.where(example.learned, example.tokens, -100).tolist() for example in examples],
        }
    )
    meter = Meter(request)
    seen = [0]

    class Count(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> Any:
            control.should_training_stop = meter.end_step(seen[0], None) or control.should_training_stop
            seen[0] = 0
            return control

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **options: Any) -> None:
            if logs and "loss" in logs and meter.losses:
                meter.losses[-1] = float(logs["loss"])

    config = SFTConfig(
        output_dir=str(folder / "out"), packing=True, max_length=request.row_tokens,
        per_device_train_batch_size=request.rows_per_forward,
        gradient_accumulation_steps=request.forwards_per_step, max_steps=request.maximum_steps,
        learning_rate=LEARNING_RATE, weight_decay=0.0, lr_scheduler_type="constant", warmup_steps=0,
        max_grad_norm=1.0, bf16=True, gradient_checkpointing=False, logging_steps=1, save_strategy="no",
        report_to="none", seed=request.seed, dataset_num_proc=1, optim="adamw_torch_fused", disable_tqdm=True,
        use_liger_kernel=peer == "trl",
    )  # fmt: skip
    trainer = SFTTrainer(
        model=model, args=config, train_dataset=dataset, processing_class=tokenizer, callbacks=[Count()]
    )
    step = trainer.training_step

    def counted(module: Any, inputs: Any, *more: Any, **options: Any) -> Any:
        mask = inputs.get("attention_mask")
        is_padded = mask is not None and mask.dim() == 2
        seen[0] += int(mask.sum()) if is_padded else inputs["input_ids"].numel()
        return step(module, inputs, *more, **options)

    trainer.training_step = counted
    trainer.train()
    meter.tell()


def save_tokenizer(folder: Path, request: BenchRequest) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    assert request.shape is not None
    size = min(4000, SHAPES[request.shape].vocabulary_size)
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3} | {f"w{index}": index for index in range(4, size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        model_max_length=131072,
    )  # fmt: skip
    fast.save_pretrained(folder)
    return fast


def main(arguments: list[str]) -> int:
    peer, request = arguments[0], BenchRequest.model_validate_json(arguments[1])
    try:
        if peer in ("compiled", "axolotl"):
            packed_loop(request, peer=peer)
        else:
            with tempfile.TemporaryDirectory(prefix="tunesmith-peer-") as folder:
                trainer_loop(request, peer=peer, folder=Path(folder))
    except Exception as error:
        traceback.print_exc()
        print("ERROR " + json.dumps({"code": type(error).__name__, "message": str(error)[:400]}), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
