"""Every module can be imported where the system has no fcntl, no resource, and no signals of POSIX alone."""

from __future__ import annotations

from pathlib import Path

from launch import run_python

ROOT = Path(__file__).parents[2]

IMPORT_EVERYTHING = """
import importlib, importlib.abc, importlib.machinery, os, signal, sys, types
import torch, huggingface_hub, filelock  # these have their own replacements

class Stub(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {}) if name[0].isupper() else lambda function: function  # a class, or a decorator

class Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    # libraries that take ten seconds to import and are not tested here
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("diffusers", "datasets", "torch_fidelity"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
    def create_module(self, spec):
        return Stub(spec.name)
    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Stubs())
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None  # importing it raises ImportError
for module, name in [
    (os, "sched_getaffinity"), (os, "pread"), (os, "getuid"), (os, "fork"),
    (signal, "SIGUSR1"), (signal, "SIGHUP"), (signal, "pause"),
]:
    delattr(module, name)
failed = []
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception as error:
        failed.append(f"{name}: {type(error).__name__}: {error}")
sys.exit("\\n".join(failed) or 0)
"""


def modules() -> list[str]:
    """Every module of mpdit, except `__main__`."""
    paths = [path.relative_to(ROOT) for root in ("mpdit_core", "mpdit_cli") for path in (ROOT / root).rglob("*.py")]
    names = {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths}
    return sorted(name for name in names if not name.endswith("__main__"))


def test_every_module_imports_where_the_system_offers_less():
    done = run_python("-c", IMPORT_EVERYTHING, *modules())
    assert done.code == 0, done.err
