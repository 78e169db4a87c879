"""Describe the target processor, and compile LLVM IR for it."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import Any

from secateur._packages import require_packages
from secateur.runtime.kernels.codegen.emitter import Emitter

__all__ = ["TargetMachine", "compile_function", "compile_module", "emit_assembly", "get_host", "has_amx"]


@dataclass(frozen=True, slots=True)
class TargetMachine:
    """The properties of a processor that affect code generation.

    Attributes:
        triple: LLVM name of the platform.
        cpu: LLVM name of the processor.
        features: Features of the processor in LLVM notation, such as ``"+avx2,+fma"``.

    Examples:
        >>> TargetMachine("x86_64-unknown-linux-gnu", "haswell", "+avx2,+fma").lanes
        8
    """

    triple: str
    cpu: str
    features: str = ""

    @property
    def is_x86(self) -> bool:
        """Whether this is a 64-bit x86 processor."""
        return self.triple.startswith("x86_64")

    @property
    def lanes(self) -> int:
        """Number of floats in the widest vector."""
        if not self.is_x86:
            return 4
        if self.has_feature("avx512f") and self.has_feature("avx512vl"):
            return 16
        return 8 if self.has_feature("avx2") else 4

    @property
    def registers(self) -> int:
        """Number of vector registers."""
        return 16 if self.is_x86 and self.lanes < 16 else 32

    @property
    def has_bfloat16_rounding(self) -> bool:
        """Whether the processor has an instruction that rounds floats to bfloat16."""
        return self.has_feature("avx512bf16") or self.has_feature("bf16")

    def has_feature(self, feature: str) -> bool:
        """Whether the processor has a feature, given by its LLVM name."""
        return f"+{feature}" in self.features.split(",")


ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 158, 0x1023, 18
"""Linux numbers of the system call, of the request for a state component, and of the AMX tile component."""

_lock = threading.RLock()
"""Acquired while LLVM runs and while the process forks. Otherwise, a forked process could inherit inconsistent data of
LLVM, and locks that none of its threads can release."""

_engines: list[Any] = []
"""LLVM engines, which own the compiled code. They are kept until the process exits."""


@cache
def get_host() -> TargetMachine:
    """Return the processor of this machine.

    Raises:
        MissingPackageError: llvmlite is not installed.
    """
    with _lock:
        llvm = _load_llvm()
        features = llvm.get_host_cpu_features().flatten()
        return TargetMachine(llvm.get_process_triple(), llvm.get_host_cpu_name(), features)


@cache
def has_amx() -> bool:
    """Whether this process can use AMX for bfloat16. On Linux, this requests permission with arch_prctl(2)."""
    if not (sys.platform == "linux" and get_host().has_feature("amx-tile") and get_host().has_feature("amx-bf16")):
        return False
    return bool(ctypes.CDLL(None).syscall(ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0)


def compile_function(function: Emitter, name: str, arguments: int) -> Callable[..., None]:
    """Compile a function for this machine. It takes addresses and runs without holding the GIL."""
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)(compile_module(_render(function, get_host()), name))


def compile_module(text: str, name: str) -> int:
    """Compile an LLVM module for this machine, and return the address of one of its functions."""
    with _lock:
        llvm, target = _load_llvm(), get_host()
        machine = _create_machine(target)
        engine = llvm.create_mcjit_compiler(_optimize(text, target, machine), machine)
        engine.finalize_object()
        _engines.append(engine)
        address: int = engine.get_function_address(name)
    return address


def emit_assembly(function: Emitter, target: TargetMachine) -> str:
    """Compile a function to assembly for any processor."""
    with _lock:
        _load_llvm().initialize_all_asmprinters()
        machine = _create_machine(target)
        assembly: str = machine.emit_assembly(_optimize(_render(function, target), target, machine))
        return assembly


def _optimize(text: str, target: TargetMachine, machine: Any) -> Any:
    llvm = _load_llvm()
    module = llvm.parse_assembly(f'target triple = "{target.triple}"\n{text}')
    module.data_layout = str(machine.target_data)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=1)
    options.loop_unrolling = options.loop_vectorization = options.slp_vectorization = False
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    return module


def _render(function: Emitter, target: TargetMachine) -> str:
    return function.render(f'"prefer-vector-width"="{32 * target.lanes}"', has_rounding=target.has_bfloat16_rounding)


def _create_machine(target: TargetMachine) -> Any:
    llvm_target = _load_llvm().Target.from_triple(target.triple)
    return llvm_target.create_target_machine(cpu=target.cpu, features=target.features, opt=3, jit=True)


@cache
def _load_llvm() -> Any:
    require_packages("llvmlite", extra="runtime")
    from llvmlite import binding

    binding.initialize_all_targets()
    binding.initialize_native_asmprinter()
    return binding


def _before_fork() -> None:
    """Wait until no thread uses LLVM, here or elsewhere through llvmlite. Compiling takes at most 0.1 s."""
    _locks_during_fork.enter_context(_lock)
    if (lock := _get_llvmlite_lock()) is not None:
        _locks_during_fork.enter_context(lock)


def _after_fork_in_child() -> None:
    global _lock
    _locks_during_fork.close()
    _lock = threading.RLock()


def _get_llvmlite_lock() -> Any:
    """Return the lock that llvmlite holds during each call, or ``None`` if it is not imported or has no such lock."""
    ffi = sys.modules.get("llvmlite.binding.ffi")
    return getattr(getattr(ffi, "lib", None), "_lock", None)


_locks_during_fork = ExitStack()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_locks_during_fork.close, after_in_child=_after_fork_in_child
    )
