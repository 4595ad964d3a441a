"""What `import taskpgm` offers."""

import importlib
import subprocess
import sys
from types import ModuleType

import pytest

import taskpgm


def test_every_public_name_is_what_it_says_whatever_was_imported_before():
    pytest.importorskip("torch")
    for module in set(taskpgm._HOME.values()):
        importlib.import_module(f"taskpgm.{module}")
    for name in taskpgm.__all__:
        found = getattr(taskpgm, name)
        assert isinstance(found, ModuleType) == (name == "plot"), name
        assert found.__name__.split(".")[-1] == name
    assert set(taskpgm.__all__) <= set(dir(taskpgm))


def test_importing_loads_neither_torch_nor_scipy():
    code = "import sys, taskpgm; print([m for m in ('torch', 'scipy', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
