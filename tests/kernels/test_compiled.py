"""Kernels compiled for a GPU where there is none: what the interpreter, which reads no types, lets pass.

A process without the interpreter compiles what a step and an evaluation launch, on either path, down to machine code
for Hopper.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.conftest import MakeModel, make_model
from tunesmith.kernels import backend
from tunesmith.models.inspect import inspect_model

__all__ = ["make_model"]
pytestmark = [
    pytest.mark.slow,  # a second a kernel
    pytest.mark.skipif(not backend.HAS_TRITON, reason="triton is not installed"),
]

COMPILE = """
import json, sys
from concurrent.futures import ThreadPoolExecutor

import torch

torch.version.cuda = "13.0"  # what tells that Triton is of use

from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tunesmith.models.ahead import foreseen_launches, foreseen_of_modules
from tunesmith.spec.models import ModelFacts
from tunesmith.spec.training import TrainingSettings

POINTERS = {
    torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32", torch.int64: "*i64", torch.bool: "*i1"
}

def build(one):
    function = one.kernel.function
    signature, constants, attributes = {}, {}, {}
    options = dict(one.options)
    chosen = {name: options.pop(name) for name in ("num_warps", "num_stages", "maxnreg") if name in options}
    given = {parameter.name: value for parameter, value in zip(function.params, one.arguments)} | options
    for place, parameter in enumerate(function.params):
        value = given[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[(place,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
            if place not in one.kernel.not_specialized:
                attributes[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
    made = compile(
        ASTSource(function, signature, constants, attributes), target=GPUTarget("cuda", 90, 32),
        options={name: value for name, value in chosen.items() if value is not None},
    )
    comparisons = [line.split("arith.cmpi ")[1].split(",")[0] for line in made.asm["ttir"].splitlines()
                   if "arith.cmpi " in line and "xi32>" in line]
    return {"kernel": function.fn.__module__.rpartition(".")[2] + "." + function.fn.__name__,
            "threshold": options.get("THRESHOLD"), "bytes": len(made.asm["cubin"]), "comparisons": comparisons}

facts = ModelFacts.model_validate_json(sys.argv[1])
settings = TrainingSettings(lora_rank=32, lora_dropout=0.05)
launches = foreseen_launches(facts, settings)
for precision in ("bf16", "float32"):
    launches += foreseen_of_modules(facts, settings.model_copy(update={"precision": precision}))
distinct = {one.signature: one for one in launches}
with ThreadPoolExecutor(2) as pool:
    print(json.dumps(list(pool.map(build, distinct.values()))))
"""
MASKED = ("lora._forward", "lora._backward", "swiglu._forward", "swiglu._backward", "dropout._masked")


def test_all_kernels_of_a_step_compile_for_hopper(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model("llama", hidden_size=256, num_attention_heads=4, num_key_value_heads=2, head_dim=64)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, inspect_model(folder, "test/model").model_dump_json()],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    kernels = json.loads(done.stdout)
    assert len(kernels) > 25 and all(kernel["bytes"] > 1000 for kernel in kernels)
    assert {kernel["kernel"] for kernel in kernels} >= {*MASKED, "varlen_attention._backward_keys"}
    for kernel in kernels:
        # a hash is compared as an unsigned number: as a signed one, half of the values would be dropped
        if kernel["kernel"] in MASKED and kernel["threshold"]:
            assert "uge" in kernel["comparisons"] and "sge" not in kernel["comparisons"], kernel
