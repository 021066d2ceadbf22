"""Names that `import unimetric` offers without loading torch."""

import subprocess
import sys

import pytest

import unimetric
from unimetric.errors import UserError


@pytest.mark.parametrize(
    "use",
    [
        "unimetric.evaluation.evaluate",
        "unimetric.Embedder.encode",
        "assert_torch_free(); unimetric.UserError; dir(unimetric); assert_torch_free()",
    ],
)
def test_one_import_is_enough(use):
    """In a process of its own: here the submodules have long been imported."""
    code = "import sys, unimetric\ndef assert_torch_free():\n    assert 'torch' not in sys.modules\n" + use
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names():
    assert unimetric.UserError is UserError
    assert set(unimetric.__all__) <= set(dir(unimetric))
    with pytest.raises(AttributeError, match="no attribute 'evaluations'"):
        _ = unimetric.evaluations
