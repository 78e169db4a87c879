"""The processor that code is emitted for, and its compiler."""

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

__all__ = ["Target", "assembly", "compiled", "has_amx", "host", "machine_code"]


@dataclass(frozen=True, slots=True)
class Target:
    """What the generator needs to know of a processor.

    Attributes:
        triple: LLVM's name of the platform.
        cpu: LLVM's name of the processor.
        features: What it can, as LLVM writes it: ``"+avx2,+fma"``.

    Example:
        >>> Target("x86_64-unknown-linux-gnu", "haswell", "+avx2,+fma").lanes
        8
    """

    triple: str
    cpu: str
    features: str = ""

    @property
    def is_x86(self) -> bool:
        """Whether it is a 64-bit Intel or AMD."""
        return self.triple.startswith("x86_64")

    @property
    def lanes(self) -> int:
        """Floats of the widest vector."""
        if not self.is_x86:
            return 4
        return 16 if self.has("avx512f") and self.has("avx512vl") else 8 if self.has("avx2") else 4

    @property
    def registers(self) -> int:
        """Vector registers."""
        return 16 if self.is_x86 and self.lanes < 16 else 32

    @property
    def rounds(self) -> bool:
        """Whether it has an instruction that rounds floats to bfloat16."""
        return self.has("avx512bf16") or self.has("bf16")

    def has(self, feature: str) -> bool:
        """Whether it can what LLVM calls `feature`."""
        return f"+{feature}" in self.features.split(",")


ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 158, 0x1023, 18
"""Linux's numbers of the system call, of the request and of what is asked for."""

_lock = threading.RLock()
"""Held while LLVM works, and while the process forks: a child would find LLVM's data half changed, and wait for locks
that no thread of its own can release."""

_alive: list[Any] = []
"""LLVM's engines, which own the code: they live as long as the process, for so do the functions in the cache."""


@cache
def host() -> Target:
    """The processor at hand.

    Raises:
        MissingPackageError: llvmlite is not installed.
    """
    with _lock:
        binding = _binding()
        features = binding.get_host_cpu_features().flatten()
        return Target(binding.get_process_triple(), binding.get_host_cpu_name(), features)


@cache
def has_amx() -> bool:
    """Whether this process may multiply tiles of bfloat16: AMX, for which Linux wants to be asked (arch_prctl(2))."""
    if not (sys.platform == "linux" and host().has("amx-tile") and host().has("amx-bf16")):
        return False
    return bool(ctypes.CDLL(None).syscall(ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0)


def compiled(function: Emitter, name: str, arguments: int) -> Callable[..., None]:
    """The function as the host's own code, called with addresses and without Python's lock."""
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)(machine_code(_text(function, host()), name))


def machine_code(text: str, name: str) -> int:
    """The address of a function of a module in LLVM's language, as the host's own code."""
    with _lock:
        binding, target = _binding(), host()
        machine = _machine(target)
        engine = binding.create_mcjit_compiler(_optimized(text, target, machine), machine)
        engine.finalize_object()
        _alive.append(engine)
        address: int = engine.get_function_address(name)
    return address


def assembly(function: Emitter, target: Target) -> str:
    """The function in a processor's assembly language, which need not be the host's."""
    with _lock:
        _binding().initialize_all_asmprinters()
        return _assembly(_text(function, target), target)


def _assembly(text: str, target: Target) -> str:
    machine = _machine(target)
    emitted: str = machine.emit_assembly(_optimized(text, target, machine))
    return emitted


def _optimized(text: str, target: Target, machine: Any) -> Any:
    binding = _binding()
    module = binding.parse_assembly(f'target triple = "{target.triple}"\n{text}')
    module.data_layout = str(machine.target_data)
    module.verify()
    options = binding.create_pipeline_tuning_options(speed_level=1)
    options.loop_unrolling = options.loop_vectorization = options.slp_vectorization = False
    passes = binding.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    return module


def _text(function: Emitter, target: Target) -> str:
    return function.text(f'"prefer-vector-width"="{32 * target.lanes}"', rounds=target.rounds)


def _machine(target: Target) -> Any:
    found = _binding().Target.from_triple(target.triple)
    return found.create_target_machine(cpu=target.cpu, features=target.features, opt=3, jit=True)


@cache
def _binding() -> Any:
    require_packages("llvmlite", extra="runtime")
    from llvmlite import binding

    binding.initialize_all_targets()
    binding.initialize_native_asmprinter()
    return binding


def _before_fork() -> None:
    """Wait until no thread works with LLVM, here or elsewhere through llvmlite; a kernel takes it 0.1 s at most."""
    _held_at_fork.enter_context(_lock)
    if (lock := _llvmlite_lock()) is not None:
        _held_at_fork.enter_context(lock)


def _after_fork_in_child() -> None:
    global _lock
    _held_at_fork.close()
    _lock = threading.RLock()


def _llvmlite_lock() -> Any:
    """What llvmlite holds during each of its calls; ``None``: it is not imported, or has none of this name."""
    ffi = sys.modules.get("llvmlite.binding.ffi")
    return getattr(getattr(ffi, "lib", None), "_lock", None)


_held_at_fork = ExitStack()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_held_at_fork.close, after_in_child=_after_fork_in_child)
