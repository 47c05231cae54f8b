"""Holds memory of a real GPU by the driver alone: no CUDA toolkit, no package.

    cuda_holder.py MIB [--ignore-term] [-- PROGRAM ARGUMENT...]

Allocates MIB on the first visible GPU, says so, and stays until it is ended. With a program it runs that one as its
child, and ends when the child does: a simulated engine gets real memory that way.
"""

import ctypes
import signal
import subprocess
import sys


def check(what, code):
    if code != 0:
        print(f"{what} failed with {code}", flush=True)
        sys.exit(1)


own = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
program = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []
mib = int(own[0])

cuda = ctypes.CDLL("libcuda.so.1")
device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
check("cuInit", cuda.cuInit(0))
check("cuDeviceGet", cuda.cuDeviceGet(ctypes.byref(device), 0))
check("cuCtxCreate", cuda.cuCtxCreate_v2(ctypes.byref(context), 0, device))
check("cuMemAlloc", cuda.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(mib * 1024 * 1024)))

if "--ignore-term" in own:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(f"holding {mib} MiB", flush=True)

if not program:
    while True:
        signal.pause()
child = subprocess.Popen(program)
if "--ignore-term" not in own:
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
sys.exit(child.wait())
