"""The kernel that reads stored rows: compiled once by Numba, and free of Python's lock while it runs.

What a lookup costs is waiting for memory, as a row is a cache line or two in a random place. So the kernel asks for the
memory of a group of lookups, and while it is on its way makes float32 values of the group before, eight at a time. The
eight are written as LLVM vector instructions, as LLVM's own vectoriser leaves such short loops alone.

A row in memory is its values as stored, then its scale: float16 for 8 bits, a byte for 4 and 2. The operations on
floats are those of `quantise.py` in their order, so the rows are the same bit for bit.

Shape letters: n lookups, F columns of ids that take turns, T tables, N blocks of all tables, D the model's width.
"""

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from narrowcast.components.train.plan import SCALE_BYTES

BLOCK = np.dtype(
    [
        ("start", np.int64),  # its first id
        ("buckets", np.int64),  # rows that its ids share, 0 where each has its own
        ("place", np.int64),  # bytes before its first row
        ("row_bytes", np.int64),
        ("bits", np.int64),
        ("offset", np.float32),  # what a stored integer is more than its multiple of the scale
        ("width", np.int64),  # values of a row; 0 for rows of zeros, which are not stored
        ("columns", np.int64),  # where its columns begin in the list of columns, or `PREFIX`
    ]
)
"""What the kernel knows of a block of rows."""
PREFIX = -1
LINE = 64
"""Bytes of a cache line."""
LANES = 8
"""Values made at a time; so the memory after the last row must have room for as many more."""
AHEAD = 32
"""Lookups of a group; 16 is slower, 64 is so for rows of 32 values."""
PART = 1024
"""Lookups that a thread takes at a time, so that one which is held up leaves more to the others."""
SHARED = 16384
"""Lookups that are worth more than one thread."""
ZEROS, NOTHING = -1, -2
"""In place of a block: rows that are all zero, and those that are not the kernel's to write."""
ARRAYS = ("ids_n", "table_F", "first_T", "kept_T", "blocks_N", "columns", "scales", "memory", "rows_nD")
CALL = np.dtype([(name, np.int64) for name in ("taken", "num_lookups", "num_columns", "width", *ARRAYS)])
"""What the kernel is told: how many lookups its threads have taken, sizes, and the addresses of arrays."""
SIGNATURE = types.void(types.int64)
"""The kernel's, of a call's address."""
at = np.uintp


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """Tables in one piece of memory. `first_T` has each table's first block and, last, the number of blocks; `kept_T`
    their kept rows; `columns` those of the blocks that keep no prefix; `scales` the value of every byte scale.
    `equal_bits` as `compiled` has them."""

    first_T: NDArray[np.int64]
    kept_T: NDArray[np.int64]
    blocks_N: np.ndarray
    columns: NDArray[np.int64]
    scales: NDArray[np.float32]
    memory: NDArray[np.uint8]
    equal_bits: int


def gather(stored: Stored, ids_n: Tensor, table_F: NDArray[np.int64], rows_nD: Tensor) -> None:
    """Write the row of every id (n, int32) into `rows_nD` (float32, contiguous), on as many threads as torch has.

    Lookup j is of table `table_F[j % F]`, and left out where that is negative. Ids beyond a table's kept rows read row
    0, negative ones are padding and give zeros.
    """
    assert ids_n.dtype == torch.int32
    assert ids_n.is_contiguous()
    assert rows_nD.is_contiguous()
    of = (stored.first_T, stored.kept_T, stored.blocks_N, stored.columns, stored.scales, stored.memory)
    arrays = (ids_n.numpy(), table_F, *of, rows_nD.numpy())
    num_lookups, width = rows_nD.shape
    call = np.array((0, num_lookups, len(table_F), width, *(array.ctypes.data for array in arrays)), CALL)
    kernel = compiled(stored.equal_bits, width if stored.equal_bits else 0)
    threads = torch.get_num_threads() if num_lookups >= SHARED else 1
    if threads > 1 and parallel and os.getpid() == PROCESS:
        parallel(kernel.address, call.ctypes.data, threads, 0)
    else:
        kernel.ctypes(call.ctypes.data)


def openmp() -> Callable[[int, int, int, int], None] | None:
    """`GOMP_parallel(function, argument, threads, flags)` of the OpenMP library that torch has loaded, GNU's or LLVM's:
    calls a C function on so many threads at once. They are those that torch's own operators use, so that between such
    they need no waking. None where there is no such library."""
    if not hasattr(ctypes.CDLL(None), "GOMP_parallel"):
        return None
    function = ctypes.CDLL(None).GOMP_parallel
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    function.restype = None
    return function


parallel = openmp()
PROCESS = os.getpid()
"""A process forked from this one lacks its threads, and OpenMP would wait for them."""


@cache
def compiled(bits: int, width: int) -> Any:
    """The kernel, a C function of a `CALL`'s address, for tables of which each is one block of rows of their own with
    `width` values, a multiple of eight, of `bits`; with (0, 0) for any tables.

    Compiling it takes seconds where Numba has not kept it on disk, or cannot, as in a read-only container.
    """
    try:
        return numba.cfunc(SIGNATURE, cache=True)(_kernel(bits, width))
    except RuntimeError:
        return numba.cfunc(SIGNATURE)(_kernel(bits, width))


def _kernel(equal_bits: int, equal_width: int) -> Callable[..., None]:
    """What is to be compiled."""
    equal_bytes = equal_bits * equal_width // 8 + SCALE_BYTES[equal_bits] if equal_bits else 0

    def gather_parts(call_at: Any) -> None:
        """Lookups of `gather`'s, a part after the other until all are taken."""
        call = _array(call_at, CALL)[0]
        low = _take_part(call_at)
        while low < call.num_lookups:
            _gather_part(call, low, min(low + PART, call.num_lookups), equal_bits, equal_width, equal_bytes)
            low = _take_part(call_at)

    return gather_parts


@numba.njit(forceinline=True)
def _gather_part(call: Any, low: int, high: int, equal_bits: int, equal_width: int, equal_bytes: int) -> None:
    """Lookups `low` to `high`, in groups: one is asked for, then the one before it is written.

    Inlined where `equal_bits` and the two after it are constants, it keeps only what equal tables need. It is one
    function, and takes addresses once, as handing on an array or asking it for its address counts references, which
    costs more than a row's arithmetic. Positions are `at(...)`, unsigned: signed ones are checked for theirs.
    """
    are_equal = equal_bits > 0
    num_columns, width = call.num_columns, equal_width if are_equal else call.width
    memory_at, rows_at = call.memory, call.rows_nD
    ids_n, table_F = _array(call.ids_n, np.int32), _array(call.table_F, np.int64)
    first_T, kept_T = _array(call.first_T, np.int64), _array(call.kept_T, np.int64)
    blocks_N, columns = _array(call.blocks_N, BLOCK), _array(call.columns, np.int64)
    scales, rows_nD = _array(call.scales, np.float32), numba.carray(_pointer(rows_at), (high, width), np.float32)
    chosen, places = np.empty(2 * AHEAD, np.int64), np.empty(2 * AHEAD, np.int64)
    eight = np.empty(LANES, np.float32)
    eight_at = eight.ctypes.data
    column, asked = low % num_columns, 0
    for group in range(low, high + AHEAD, AHEAD):
        for j in range(group, min(group + AHEAD, high)):
            slot = at(asked + j - group)
            table, row = np.int64(table_F[at(column)]), np.int64(ids_n[at(j)])
            column = 0 if column + 1 == num_columns else column + 1
            if table < 0 or row < 0:
                chosen[slot] = NOTHING if table < 0 else ZEROS
                continue
            if row >= kept_T[at(table)]:
                row = np.int64(0)
            k = table
            if not are_equal:
                k, end = first_T[at(table)], first_T[at(table + 1)]
                while k + 1 < end and blocks_N[at(k + 1)].start <= row:
                    k += 1
            block = blocks_N[at(k)]
            row_bytes = equal_bytes if are_equal else block.row_bytes
            if not are_equal:
                row -= block.start
                if block.buckets:
                    row = np.int64(at(row) % at(block.buckets))
            place = memory_at + block.place + row * row_bytes
            chosen[slot], places[slot] = k if are_equal or block.width else ZEROS, place
            _prefetch(place)
            _prefetch(place + row_bytes - 1)
            if row_bytes > LINE:
                for line in range(place + LINE, place + row_bytes - 1, LINE):
                    _prefetch(line)
        asked = AHEAD - asked
        for j in range(max(group - AHEAD, low), min(group, high)):
            slot = at(asked + j - group + AHEAD)
            k, place = chosen[slot], places[slot]
            if k == NOTHING:
                continue
            if k == ZEROS:
                rows_nD[at(j)] = 0.0
                continue
            block = blocks_N[at(k)]
            bits, row_bytes = (equal_bits, equal_bytes) if are_equal else (block.bits, block.row_bytes)
            scale = np.float32(1.0)
            if bits == 8:
                scale = _half(place + row_bytes - 2)
            elif bits < 8:
                scale = scales[at(_byte(place + row_bytes - 1))]
            is_prefix = are_equal or block.columns == PREFIX
            num_eights = width // LANES if are_equal else block.width // LANES if is_prefix else 0
            for i in range(num_eights):  # the bytes of eight values are as many as the bits of one
                _expand(bits, place + bits * i, block.offset, scale, rows_at + 4 * (j * width + LANES * i))
            if LANES * num_eights == width:
                continue
            rows_nD[at(j), LANES * num_eights :] = 0.0
            for c in range(LANES * num_eights, block.width):
                if c % LANES == 0:
                    _expand(bits, place + bits * (c // LANES), block.offset, scale, eight_at)
                rows_nD[at(j), at(c if is_prefix else columns[at(block.columns + c)])] = eight[at(c % LANES)]


@numba.njit
def _array(address: Any, dtype: Any) -> Any:
    """The array at an address; as positions are not checked, any length will do."""
    return numba.carray(_pointer(address), 1, dtype)


@numba.njit
def _expand(bits: Any, source: Any, offset: Any, scale: Any, target: Any) -> None:
    """Eight values stored at address `source` to float32 at address `target`."""
    if bits == 8:
        _expand_8(source, offset, scale, target)
    elif bits == 4:
        _expand_4(source, offset, scale, target)
    elif bits == 2:
        _expand_2(source, offset, scale, target)
    elif bits == 16:
        _expand_16(source, offset, scale, target)
    else:
        _expand_32(source, offset, scale, target)


Emit = Callable[..., Any]
"""Puts instructions into a function that is being built, `(builder, *values) -> value`."""
_I8, _I16, _I32, _I64, _FLOAT = *(ir.IntType(bits) for bits in (8, 16, 32, 64)), ir.FloatType()


def _reading(result: Any, emit: Emit) -> Any:
    """A function of the kernel that takes an address."""

    def typing(context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            value = emit(builder, *values)
            return context.get_dummy_value() if result == types.void else value

        return result(types.int64), generate

    return intrinsic(typing)


def _expansion(emit: Emit) -> Any:
    """A function of the kernel (source, offset, scale, target) that stores a vector at the target's address."""

    def typing(context: Any, source: Any, offset: Any, scale: Any, target: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            vector = emit(builder, *values[:3])
            builder.store(vector, builder.inttoptr(values[3], vector.type.as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(types.int64, types.float32, types.float32, types.int64), generate

    return intrinsic(typing)


def _integers(bits: int) -> Emit:
    """Emits eight stored integers of `bits` each as `(n - offset) scale`."""

    def emit(builder: Any, source: Any, offset: Any, scale: Any) -> Any:
        if bits == 8:
            integers = _load(builder, source, ir.VectorType(_I8, LANES))
        else:
            together = _splat(builder, _widened(builder, _load(builder, source, ir.IntType(LANES * bits))))
            shifts = ir.Constant(together.type, [bits * i for i in range(LANES)])
            integers = builder.and_(builder.lshr(together, shifts), _constant(_I32, 2**bits - 1))
        multiples = builder.fsub(builder.uitofp(integers, ir.VectorType(_FLOAT, LANES)), _splat(builder, offset))
        return builder.fmul(multiples, _splat(builder, scale))

    return emit


def _widened(builder: Any, value: Any) -> Any:
    return value if value.type == _I32 else builder.zext(value, _I32)


def _halves(builder: Any, source: Any, offset: Any, scale: Any) -> Any:
    """Emits eight float16 values as float32."""
    return _float_of_half(builder, _load(builder, source, ir.VectorType(_I16, LANES)))


def _floats(builder: Any, source: Any, offset: Any, scale: Any) -> Any:
    return _load(builder, source, ir.VectorType(_FLOAT, LANES))


def _first_half(builder: Any, source: Any) -> Any:
    halves = _splat(builder, _load(builder, source, _I16))
    return builder.extract_element(_float_of_half(builder, halves), _I32(0))


def _float_of_half(builder: Any, halves: Any) -> Any:
    """Float16 bits to float32, exactly; needs neither the processor's own conversion nor its subnormal numbers."""
    bits = builder.zext(halves, ir.VectorType(_I32, LANES))
    shifted = builder.shl(builder.and_(bits, _constant(_I32, 0x7FFF)), _constant(_I32, 13))
    normal = builder.bitcast(builder.add(shifted, _constant(_I32, 112 << 23)), ir.VectorType(_FLOAT, LANES))
    mantissa = builder.uitofp(builder.and_(bits, _constant(_I32, 0x3FF)), normal.type)
    subnormal = builder.fmul(mantissa, _constant(_FLOAT, 2.0**-24))
    has_exponent = builder.icmp_unsigned("!=", builder.and_(bits, _constant(_I32, 0x7C00)), _constant(_I32, 0))
    magnitude = builder.bitcast(builder.select(has_exponent, normal, subnormal), bits.type)
    sign = builder.shl(builder.and_(bits, _constant(_I32, 0x8000)), _constant(_I32, 16))
    return builder.bitcast(builder.or_(magnitude, sign), normal.type)


def _ask_for_line(builder: Any, address: Any) -> None:
    """Emits LLVM's prefetch of the cache line at `address`: to be read (0), kept near (3), data (1)."""
    name, pointer = "llvm.prefetch.p0", _I8.as_pointer()
    function = builder.module.globals.get(name) or ir.Function(
        builder.module, ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32]), name
    )
    builder.call(function, [builder.inttoptr(address, pointer), _I32(0), _I32(3), _I32(1)])


def _load(builder: Any, address: Any, kind: Any) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)


def _constant(kind: Any, value: float) -> Any:
    """A vector of one value eight times."""
    return ir.Constant(ir.VectorType(kind, LANES), [value] * LANES)


def _splat(builder: Any, value: Any) -> Any:
    """A computed value eight times."""
    undefined = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    return builder.shuffle_vector(builder.insert_element(undefined, value, _I32(0)), undefined, _constant(_I32, 0))


_expand_2, _expand_4, _expand_8 = (_expansion(_integers(bits)) for bits in (2, 4, 8))
_expand_16, _expand_32 = _expansion(_halves), _expansion(_floats)


def _taken(builder: Any, address: Any) -> Any:
    """Emits the addition of a part to the integer at `address`, in one step whatever other threads do; what it was."""
    return builder.atomic_rmw("add", builder.inttoptr(address, _I64.as_pointer()), _I64(PART), "monotonic")


_half = _reading(types.float32, _first_half)
_byte = _reading(types.uint8, lambda builder, address: _load(builder, address, _I8))
_prefetch = _reading(types.void, _ask_for_line)
_take_part = _reading(types.int64, _taken)
_pointer = _reading(types.voidptr, lambda builder, address: builder.inttoptr(address, _I8.as_pointer()))
