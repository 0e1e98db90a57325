"""Greedy answers by the fast path: prompts in one packed pass, then a token of every answer at a time.

In come token ids of rendered prompts and a `Decoder`, refreshed for the adapter or for the base. Out come the answers
of `generate.greedy`, which hands over to this where a model has a decoder. A step reads the weights once whatever the
number of answers, and takes about twenty launches a layer: on a GPU they are recorded and replayed.

Dimensions: T tokens of all prompts, B prompts of a batch, C places of a cache, G key-value heads, N query heads of
each, D head_dim; R rows of a pass (B filled up to ROW_MULTIPLE).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from tunesmith.data.batch import IGNORE_INDEX, Batch
from tunesmith.kernels.backend import ROW_MULTIPLE
from tunesmith.kernels.rms_norm import rms_norm_project
from tunesmith.models.decoder import OFF, Decoder, Layer
from tunesmith.models.replay import Recording

CACHE_PLACES = 32_768  # of all prompts of a batch: 4 GB of keys and values of an 8B model


def batches_of(prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> list[list[int]]:
    """Which prompts run together, longest first."""
    waiting = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    found: list[list[int]] = []
    while waiting:
        places = len(prompts[waiting[0]]) + max_new_tokens
        count = min(ROW_MULTIPLE, max(1, CACHE_PLACES // places))
        batch, waiting = waiting[:count], waiting[count:]
        found.append(batch)
    return found


@torch.no_grad()
def greedy_batch(
    decoder: Decoder, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, end_ids: Collection[int]
) -> list[list[int]]:
    """The answers of at most ROW_MULTIPLE prompts, none of them empty."""
    state = _Decoding(decoder, prompts, places=max(map(len, prompts)) + max_new_tokens)
    answers: list[list[int]] = [[] for _ in prompts]
    open_answers = set(range(len(prompts)))
    logits_BV = state.read()
    while True:
        chosen_B = logits_BV.argmax(-1)
        tokens = chosen_B.tolist()
        open_answers = {row for row in open_answers if tokens[row] not in end_ids}
        for row in open_answers:
            answers[row].append(tokens[row])
        if not open_answers or len(answers[min(open_answers)]) == max_new_tokens:
            return answers
        logits_BV = state.step(chosen_B)


class _Decoding:
    """Keys and values of the prompts and of what was answered so far."""

    def __init__(self, decoder: Decoder, prompts: Sequence[Sequence[int]], *, places: int) -> None:
        self._decoder, self._prompts = decoder, prompts
        shape = (len(prompts), decoder.kv_heads, places, decoder.head_dim)
        like = decoder.embedding_VD
        self._caches = [(like.new_zeros(shape), like.new_zeros(shape)) for _ in decoder.layers]
        self._lengths_B = torch.tensor([len(prompt) for prompt in prompts], device=decoder.device)
        self._rows_B = torch.arange(len(prompts), device=decoder.device)
        self._places_C = torch.arange(places, device=decoder.device)
        self._tokens_B = torch.zeros_like(self._rows_B)
        self._recording: Recording | None = None
        self._is_first = True
        # without dropout no kernel looks at them
        self._positions_R = torch.zeros(ROW_MULTIPLE, dtype=torch.int32, device=decoder.device)

    def read(self) -> Tensor:
        """Logits (B, V) after the prompts."""
        decoder = self._decoder
        inputs = decoder.inputs(_packed(self._prompts))
        lengths = [len(prompt) for prompt in self._prompts]
        real = sum(lengths)
        document_T = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)).to(decoder.device)
        place_T = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])).to(decoder.device)
        h_TD, delta_TD = decoder.embedding_VD[inputs.tokens_T], None
        last = len(decoder.layers) - 1
        for number, (layer, (keys, values)) in enumerate(zip(decoder.layers, self._caches, strict=True)):
            h_TD, delta_TD, saved = decoder.forward(layer, h_TD, delta_TD, inputs, OFF, is_last=number == last)
            k_TGD, v_TGD = saved[5], saved[6]
            keys[document_T, :, place_T] = k_TGD[:real]
            values[document_T, :, place_T] = v_TGD[:real]
            del saved
        normed = rms_norm_project(h_TD, delta_TD, decoder.norm_D, None, eps=decoder.eps, width=h_TD.shape[1])
        return normed.wide_TL[inputs.labelled_N[: len(lengths)]] @ decoder.head_VD.t()

    def step(self, tokens_B: Tensor) -> Tensor:
        """Logits (B, V) after one token more of each answer; the next step writes over them."""
        self._tokens_B.copy_(tokens_B)
        is_first, self._is_first = self._is_first, False  # which loads kernels, and that cannot be recorded
        if self._decoder.device.type == "cuda" and not is_first and self._decoder.replays.fault is None:
            try:
                self._recording = self._recording or Recording(
                    self._step, stream=torch.cuda.Stream(self._decoder.device)
                )
                return self._recording.replay()
            except RuntimeError as error:
                self._decoder.replays.fail(error)
        return self._step()

    def _step(self) -> Tensor:
        decoder, count = self._decoder, len(self._tokens_B)
        tokens_R = torch.nn.functional.pad(self._tokens_B, (0, ROW_MULTIPLE - count))
        lengths_R = torch.nn.functional.pad(self._lengths_B, (0, ROW_MULTIPLE - count))
        angles_RE = lengths_R.float()[:, None] * decoder.frequencies_E
        angles = angles_RE.cos() * decoder.angle_scale, angles_RE.sin() * decoder.angle_scale
        h_RD, delta_RD = decoder.embedding_VD[tokens_R], None
        for layer, (keys, values) in zip(decoder.layers, self._caches, strict=True):
            projection = layer.qkv.projection(OFF, self._positions_R)
            first = rms_norm_project(
                h_RD, delta_RD, layer.first_norm, projection, eps=decoder.eps, width=layer.qkv.width
            )
            qkv = layer.qkv.product(first.wide_TL)
            kv = qkv[:, decoder.q_size :]
            q, k = decoder.rotated(layer, qkv[:, : decoder.q_size], kv, angles, angles)
            head = (count, decoder.kv_heads, decoder.head_dim)
            keys[self._rows_B, :, self._lengths_B] = k[:count].reshape(head)
            values[self._rows_B, :, self._lengths_B] = kv[:count, decoder.kv_size :].reshape(head)
            out_RX = torch.zeros(ROW_MULTIPLE, decoder.q_size, dtype=h_RD.dtype, device=h_RD.device)
            out_RX[:count] = self._attended(layer, q[:count], keys, values)
            second, _, _, _, delta_RD = decoder.after_attention(layer, first.h_TK, out_RX, OFF, self._positions_R)
            h_RD = second.h_TK
        self._lengths_B.add_(1)
        normed = rms_norm_project(h_RD, delta_RD, decoder.norm_D, None, eps=decoder.eps, width=h_RD.shape[1])
        return normed.wide_TL[:count] @ decoder.head_VD.t()

    def _attended(self, layer: Layer, q_BX: Tensor, keys_BGCD: Tensor, values_BGCD: Tensor) -> Tensor:
        """(B, G N D): each answer's newest token looks at what is in its cache."""
        decoder = self._decoder
        q_BGND = q_BX.reshape(len(q_BX), decoder.kv_heads, -1, decoder.head_dim)
        distance_BC = self._lengths_B[:, None] - self._places_C[None, :]
        seen_BC = distance_BC >= 0
        if layer.window is not None:
            seen_BC &= distance_BC < layer.window
        scores = (q_BGND @ keys_BGCD.transpose(2, 3)).float() * decoder.scale
        weights = scores.masked_fill(~seen_BC[:, None, None, :], float("-inf")).softmax(-1)
        return (weights.to(q_BX.dtype) @ values_BGCD).reshape(len(q_BX), -1)


def _packed(prompts: Sequence[Sequence[int]]) -> Batch:
    """The prompts laid end to end; the last token of each carries a label, so that the head sees it."""
    lengths = [len(prompt) for prompt in prompts]
    boundaries = np.append(0, np.cumsum(lengths)).astype(np.int32)
    labels = np.full(int(boundaries[-1]), IGNORE_INDEX)
    labels[boundaries[1:] - 1] = 0
    return Batch(
        tokens_T=np.concatenate([np.asarray(prompt, np.int64) for prompt in prompts]),
        labels_T=labels,
        positions_T=np.concatenate([np.arange(length) for length in lengths]),
        boundaries=boundaries,
        rows=np.arange(len(prompts)),
        offset_in_step=0,
        num_learned=len(prompts),
    )
