"""Every module can be imported where the modules of Unix are missing, as on Windows."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import builtins, importlib, pkgutil, sys

UNIX = ("fcntl", "grp", "pwd", "resource", "syslog", "termios")
real = builtins.__import__

def guarded(name, globals=None, locals=None, fromlist=(), level=0):
    # Other packages look at the platform first.
    if name.split(".")[0] in UNIX and (globals or {}).get("__name__", "").startswith("unimetric"):
        raise ModuleNotFoundError(f"{name} does not exist on Windows")
    return real(name, globals, locals, fromlist, level)

builtins.__import__ = guarded

import unimetric

count = 0
for module in pkgutil.walk_packages(unimetric.__path__, "unimetric."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
        count += 1
print(count)
"""


def test_no_module_of_unix_is_imported() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout.split()[-1]) > 200
