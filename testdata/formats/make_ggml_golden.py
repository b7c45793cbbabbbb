"""Writes ggml_golden.bin: random blocks of every ggml type and the fp32 values that the PyPI package `gguf` decodes.

Types that `gguf` does not decode come from ggml's own C library, given as argument (libggml-base.so).
Layout, little endian: for each type u32 number, u32 blocks, u32 block bytes, u32 block elements, blocks, fp32 values.
"""
import ctypes
import struct
import sys

import gguf
import numpy as np

BLOCKS = 3
C_ONLY = {"q8_1": (9, 32, 36), "q8_K": (15, 256, 292), "q1_0": (41, 128, 18), "q2_0": (42, 64, 18)}

rng = np.random.default_rng(20)
out = open(sys.argv[2], "wb")
lib = ctypes.CDLL(sys.argv[1])


def random_blocks(bytes_each):
    return rng.integers(0, 256, (BLOCKS, bytes_each), dtype=np.uint8)


def emit(number, elements, raw, values):
    out.write(struct.pack("<IIII", number, BLOCKS, raw.shape[1], elements))
    out.write(raw.tobytes())
    out.write(np.ascontiguousarray(values, dtype="<f4").tobytes())


for kind in gguf.GGMLQuantizationType:
    if kind.name.lower() in [n.lower() for n in C_ONLY] or kind.name[0] == "I" and kind.name[1].isdigit():
        continue
    if kind.name in ("F32", "F64"):
        continue
    elements, bytes_each = gguf.GGML_QUANT_SIZES[kind]
    if elements == 1:
        bytes_each, elements = bytes_each * 64, 64
    raw = random_blocks(bytes_each)
    with np.errstate(all="ignore"):
        emit(int(kind), elements, raw, gguf.dequantize(raw, kind))

for name, (number, elements, bytes_each) in C_ONLY.items():
    raw = random_blocks(bytes_each)
    values = np.zeros((BLOCKS, elements), np.float32)
    if name == "q8_1":  # ggml has no decoder for it; x = d q
        values = raw[:, :2].copy().view(np.float16).astype(np.float32) * raw[:, 4:].copy().view(np.int8)
    else:
        getattr(lib, "dequantize_row_" + name)(
            raw.ctypes.data_as(ctypes.c_void_p), values.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(values.size))
    emit(number, elements, raw, values)
