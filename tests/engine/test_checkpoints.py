# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import torch


def _old_checkpoint(path):
    """What nerfstudio's scheduler leaves: a NumPy float among tensors and numbers."""
    torch.save({"schedulers": {"means": {"_last_lr": [np.float64(1.5e-4)]}}}, path)


def test_p08_old_checkpoint_needs_the_cure(tmp_path):
    """Without the plugin torch refuses the file: the day this fails, the cure can go."""
    _old_checkpoint(tmp_path / "old.ckpt")
    code = "import sys, torch; torch.load(sys.argv[1])"
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "old.ckpt")], capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "weights_only" in result.stderr


def test_p08_old_checkpoint_loads(tmp_path):
    from ps4pro_nerfstudio.engine.checkpoints import allow_numpy_scalars

    allow_numpy_scalars()
    _old_checkpoint(tmp_path / "old.ckpt")
    loaded = torch.load(tmp_path / "old.ckpt", weights_only=True)
    assert loaded["schedulers"]["means"]["_last_lr"] == [1.5e-4]


def test_p08_name_of_the_other_numpy_major_loads(tmp_path):
    """NumPy 1 writes numpy.core.multiarray.scalar, NumPy 2 numpy._core.multiarray.scalar."""
    from ps4pro_nerfstudio.engine.checkpoints import allow_numpy_scalars

    allow_numpy_scalars()
    _old_checkpoint(tmp_path / "old.ckpt")
    content = (tmp_path / "old.ckpt").read_bytes()
    names = [b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n"]
    here, other = names if names[0] in content else reversed(names)
    assert here in content

    # The pickle lies in a zip archive whose entries are length-checked: rewrite it as a zip.
    import zipfile

    with (
        zipfile.ZipFile(tmp_path / "old.ckpt") as old,
        zipfile.ZipFile(tmp_path / "other.ckpt", "w") as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(here, other))
    loaded = torch.load(tmp_path / "other.ckpt", weights_only=True)
    assert loaded["schedulers"]["means"]["_last_lr"] == [1.5e-4]


class _Malicious:
    def __reduce__(self):
        return (print, ("executed",))


def test_other_pickles_stay_refused(tmp_path):
    from ps4pro_nerfstudio.engine.checkpoints import allow_numpy_scalars

    allow_numpy_scalars()
    torch.save({"x": _Malicious()}, tmp_path / "bad.ckpt")
    try:
        torch.load(tmp_path / "bad.ckpt", weights_only=True)
    except pickle.UnpicklingError:
        return
    raise AssertionError("a pickle that calls a function was loaded")
