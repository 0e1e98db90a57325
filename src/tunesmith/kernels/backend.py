"""Where an operation runs: Triton on a GPU, the plain reference elsewhere. Each kernel file holds both.

Triton comes with torch's CUDA build; without it the reference runs on a GPU too, slowly. `forced` chooses
otherwise, for tests. What every kernel shares stands here: the hash of the dropout masks, how a launch is shaped, and
how launches are foreseen, so that their kernels are compiled before they are due.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache, partial
from inspect import signature
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

triton: Any = None
tl: Any = None
if torch.version.cuda is not None or os.environ.get("TRITON_INTERPRET") == "1":  # else of no use, and slow to import
    with suppress(ImportError):
        import triton
        import triton.language as tl

HAS_TRITON = triton is not None
_IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_FORCED: ContextVar[Literal["reference", "kernels"] | None] = ContextVar("forced", default=None)
# Token counts are padded to it: no kernel needs a mask over rows, and products come in few sizes (each new one is
# looked up by cuBLAS, and its kernel loaded, once).
ROW_MULTIPLE = 128
MINIMUM_RANK = 16  # the smallest side of a matrix unit's tile; adapters of a lower rank are padded with zeros


def jit(function: Any = None, **options: Any) -> Any:
    """`triton.jit`, which looks at TRITON_INTERPRET when a kernel is defined; without Triton the function as it is."""
    if function is None:
        return lambda given: jit(given, **options)
    return triton.jit(function, **options) if HAS_TRITON else function


class Foreseen(NamedTuple):
    """A launch that was asked for and not made. arguments and options as they were given, tensors among them."""

    kernel: Kernel
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def signature(self) -> tuple[Any, ...]:
        """What compiled code depends on: dtypes, constants, and of numbers whether they are 1 or multiples of 16."""
        kinds: list[Any] = []
        for index, part in enumerate(self.arguments):
            if isinstance(part, Tensor):
                kinds.append(part.dtype)
            elif isinstance(part, int) and index not in self.kernel.not_specialized:
                kinds.append((part == 1, part % 16 == 0))
        return self.kernel, tuple(kinds), tuple(sorted(self.options.items()))

    def compile(self) -> None:
        kinds = [part.dtype if isinstance(part, Tensor) else part for part in self.arguments]
        compiled = self.kernel.function.warmup(*kinds, grid=self.grid, **self.options)
        # Triton has a C compiler build what launches it, half a second, and loads it: when first asked for `run`
        _ = compiled.run


class Kernel:
    """What the host launches, as `kernel[grid](...)`. Inside of `foreseeing` a launch is noted, and not made."""

    def __init__(self, function: Any, *, not_specialized: frozenset[int] = frozenset()) -> None:
        self.function = function
        self.not_specialized = not_specialized  # places of arguments whose values the code does not depend on

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        foreseen = _FORESEEN.get()
        return self.function[grid] if foreseen is None else partial(self._note, foreseen, grid)

    def _note(self, foreseen: list[Foreseen], grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        foreseen.append(Foreseen(self, grid, arguments, options))


def kernel(function: Any = None, **options: Any) -> Any:
    """`jit` for what the host launches; functions that kernels call are `jit` ones."""
    if function is None:
        return lambda given: kernel(given, **options)
    plain = options.get("do_not_specialize", ())
    places = frozenset(place for place, name in enumerate(signature(function).parameters) if name in plain)
    return Kernel(jit(function, **options), not_specialized=places)


_FORESEEN: ContextVar[list[Foreseen] | None] = ContextVar("foreseen", default=None)


@contextmanager
def foreseeing() -> Iterator[list[Foreseen]]:
    """Operations inside take the kernels' way and run none: tensors may be on the meta device."""
    foreseen: list[Foreseen] = []
    tokens = _FORESEEN.set(foreseen), _FORCED.set("kernels")
    try:
        yield foreseen
    finally:
        _FORESEEN.reset(tokens[0])
        _FORCED.reset(tokens[1])


def compile_foreseen(foreseen: Sequence[Foreseen], *, device: torch.device, threads: int) -> None:
    """Compile each kernel that the launches need, side by side: most of it runs outside of Python's lock.

    One that cannot be compiled is passed by: its launch will tell why.
    """

    index = torch.cuda.current_device() if device.index is None else device.index

    def compile_one(one: Foreseen) -> None:
        torch.cuda.set_device(index)  # a new thread takes the first
        with suppress(Exception):
            one.compile()

    distinct = {one.signature: one for one in foreseen}
    # what takes longest first: roughly, the kernels with the most arguments
    in_order = sorted(distinct.values(), key=lambda one: -len(one.arguments))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(compile_one, in_order))


class Launch(NamedTuple):
    """Rows and columns of a tile, warps of a program, depth of its pipeline, and the registers a thread may have."""

    rows: int
    columns: int
    warps: int
    stages: int
    registers: int | None = None  # fewer than the compiler would take let more programs run side by side

    def options(self) -> dict[str, int | None]:
        if _IS_INTERPRETED:
            return {}
        return {"num_warps": self.warps, "num_stages": self.stages, "maxnreg": self.registers}


def runs_triton(tensor: Tensor) -> bool:
    forced = _FORCED.get()
    if not HAS_TRITON or forced == "reference":
        return False
    return forced == "kernels" or (tensor.is_cuda and triton_fault(tensor.device) is None)


@contextmanager
def forced(what: Literal["reference", "kernels"]) -> Iterator[None]:
    """For tests: the plain reference on any device, or kernels on CPU tensors in Triton's interpreter.

    The interpreter needs TRITON_INTERPRET=1 before the first import of this package.
    """
    if what == "kernels" and not HAS_TRITON:
        raise RuntimeError("triton is not installed")
    token = _FORCED.set(what)
    try:
        yield
    finally:
        _FORCED.reset(token)


def fitting(launch: Launch, *, columns: int) -> Launch:
    """The launch with a tile width that divides `columns`."""
    width = launch.columns
    while columns % width:
        width //= 2
    if width < MINIMUM_RANK:
        raise ValueError(f"{columns} columns are no multiple of {MINIMUM_RANK}")
    return launch._replace(columns=width)


def padded_rank(rank: int) -> int:
    """The power of two, at least MINIMUM_RANK, that holds `rank`."""
    return max(MINIMUM_RANK, 1 << (rank - 1).bit_length())


@kernel
def _count(out_ptr):
    tl.store(out_ptr + tl.arange(0, 16), tl.arange(0, 16))


def triton_fault(device: torch.device) -> str | None:
    """Why kernels do not run on the device, in the words of what failed; None where a small one does.

    Triton builds its launcher with the machine's C compiler and its code with CUDA's assembler: either may be missing.
    Asked by several threads at once, one finds out and the others wait.
    """
    with _ASKING:
        return _triton_fault(device)


_ASKING = threading.Lock()


@cache
def _triton_fault(device: torch.device) -> str | None:
    out_S = torch.empty(16, dtype=torch.int32, device=device)
    try:
        _count[(1,)](out_S)
        found = out_S.tolist()
    except Exception as error:  # noqa: BLE001  # whatever a compiler, an assembler or a driver raises
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None if found == list(range(16)) else f"a kernel gave {found[:4]}... where 0, 1, 2, 3... was due"


@jit
def odd_keys(values):
    """`dropout._keys_32` in a kernel."""
    h = values.to(tl.uint32) * 0x9E3779B1
    h = (h ^ (h >> 16)) * 0x7FEB352D
    h = (h ^ (h >> 15)) * 0x846CA68B
    return (h ^ (h >> 16)) | 1


if _IS_INTERPRETED:  # which knows no assembler

    @jit
    def sigmoid(x):
        return 1.0 / (1.0 + tl.exp(-x))

    @jit
    def pinned(values, like):
        return values

    @jit
    def made_once(values):
        return values

else:

    @jit
    def made_once(values):
        """The values (float32), computed in one layout and moved where another is wanted. Costs no instruction.

        Without it the compiler may compute them from the start for each layout.
        """
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=f,f", [values], dtype=tl.float32, is_pure=False, pack=1)

    @jit
    def sigmoid(x):
        """1 / (1 + exp(-x)) to about 2^-22 in four instructions; denormal values, which cost seven more, are 0."""
        return tl.inline_asm_elementwise(
            "{ .reg .f32 t;"
            " mul.ftz.f32 t, $1, 0fBFB8AA3B;"  # -log2 e
            " ex2.approx.ftz.f32 t, t;"
            " add.ftz.f32 t, t, 0f3F800000;"  # 1
            " rcp.approx.ftz.f32 $0, t; }",
            "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip

    @jit
    def pinned(values, like):
        """The values (32 bits each), held by the threads that hold `like` (float32, same shape). Costs no instruction.

        Without it the compiler makes the values twice, once for each of two ways in which they are used.
        """
        if values.dtype == tl.float32:
            return tl.inline_asm_elementwise(
                "mov.b32 $0, $1;", "=f,f,f", [values, like], dtype=tl.float32, is_pure=True, pack=1
            )
        else:
            return tl.inline_asm_elementwise(
                "mov.b32 $0, $1;", "=r,r,f", [values, like], dtype=values.dtype, is_pure=True, pack=1
            )


@jit
def site_hash(row_keys, column_keys):
    """One hash an element; `dropout.site_mask` says how it decides."""
    h = row_keys[:, None] * column_keys[None, :]
    return (h ^ (h >> 16)) * 0x7FEB352D
