"""Whether numba has compiled the kernels on this machine before, and a word to users if not.

Numba keeps the machine code of a kernel in files beside the source, or where NUMBA_CACHE_DIR says.
The first use of the environments fills these files, which takes about half a minute.
"""

import sys
from pathlib import Path
from typing import Any

from plan_envs.instances import hash_rows


def in_disk_cache(kernel: Any = hash_rows) -> bool:
    """Whether numba keeps machine code of a kernel that every use of an instance set compiles."""
    source = Path(kernel.py_func.__code__.co_filename).stem
    index_files = f"{source}.{kernel.py_func.__qualname__}-*.nbi"
    return any(Path(kernel.stats.cache_path).glob(index_files))


def announce_compilation() -> None:
    """Say on stderr that the first use takes half a minute, on a machine where it is the first."""
    if not in_disk_cache():
        print("compiling the environments' kernels, once on this machine...", file=sys.stderr)
