# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
import threading

import numba
import pytest
import torch

from ps4pro_nerfstudio.splatting.cpu import jit
from ps4pro_nerfstudio.splatting.cpu.threads import kernel_threads


def test_results_have_the_same_bits_for_any_number_of_threads(scene, rendered):
    s = scene(3000, 120, 90, cameras=2, sh_bases=16)
    results = []
    started = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with kernel_threads() as count:
            assert count == min(threads, started)
        results.append(rendered(s, sh_degree=3, render_mode="RGB+ED", absgrad=True))
    (render, alphas, gradients, info), other = results
    assert torch.equal(render, other[0])
    assert torch.equal(alphas, other[1])
    for name, gradient in gradients.items():
        assert torch.equal(gradient, other[2][name]), name
    for name in ("isect_ids", "flatten_ids", "isect_offsets", "radii", "conics"):
        assert torch.equal(info[name], other[3][name])
    assert torch.equal(info["means2d"].absgrad, other[3]["means2d"].absgrad)


def test_two_python_threads_at_once_give_the_same_bits(scene, rendered):
    scenes = [scene(400, 60, 40, seed=seed, sh_bases=4) for seed in (0, 1)]
    expected = [rendered(s, sh_degree=1) for s in scenes]
    failures = []

    def work(index):
        try:
            for _ in range(15):
                render, _, gradients, _ = rendered(scenes[index], sh_degree=1)
                assert torch.equal(render, expected[index][0])
                for name, gradient in gradients.items():
                    assert torch.equal(gradient, expected[index][2][name])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_one_thread_works_while_another_holds_the_lock_waits():
    entered = threading.Event()
    with kernel_threads():
        thread = threading.Thread(target=lambda: [kernel_threads().__enter__(), entered.set()])
        thread.start()
        assert not entered.wait(0.1)
        with kernel_threads():  # the holder may enter again
            pass
    assert entered.wait(5)
    thread.join()


def run_fresh(code: str, **environment: str) -> str:
    """Standard output of a fresh interpreter."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_starting_the_threads_leaves_torchs_number_alone():
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from ps4pro_nerfstudio.splatting.cpu import jit\n"
        "jit.announce_compilation = lambda: None\n"
        "from ps4pro_nerfstudio.splatting.cpu.threads import kernel_threads\n"
        "with kernel_threads() as count: print(count, torch.get_num_threads())"
    )
    assert run_fresh(code).split() == ["1", "1"]


def test_cache_folder_follows_the_users_and_is_no_other_packages(tmp_path):
    code = (
        "import numba; before = numba.config.CACHE_DIR\n"
        "from ps4pro_nerfstudio.splatting.cpu import jit, binning\n"
        "assert numba.config.CACHE_DIR == before\n"
        "print(jit.cache_directory(), binning.build_lists._cache.cache_path, sep='\\n')"
    )
    folder, used = run_fresh(code, NUMBA_CACHE_DIR=str(tmp_path)).split()
    assert folder == str(tmp_path / "ps4pro-nerfstudio" / jit._source_key())
    assert used.startswith(folder)
    environment = {"NUMBA_CACHE_DIR": "", "PS4PRO_CACHE": str(tmp_path)}
    folder, _ = run_fresh(code, **environment).split()
    assert folder.startswith(str(tmp_path / "numba"))


def test_read_only_home_falls_back_with_one_line(monkeypatch, tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(blocked))
    jit.cache_directory.cache_clear()
    try:
        folder = jit.cache_directory()
    finally:
        jit.cache_directory.cache_clear()
    assert folder.is_dir()
    assert blocked not in folder.parents
    assert "cannot write" in capsys.readouterr().out


@pytest.mark.parametrize("warm", [False, True])
def test_compilation_is_announced_only_when_the_cache_is_cold(monkeypatch, tmp_path, capsys, warm):
    monkeypatch.setattr(jit, "cache_directory", lambda: tmp_path)
    if warm:
        (tmp_path / "cpu_0").mkdir()
        (tmp_path / "cpu_0" / "kernel.nbi").touch()
    jit.announce_compilation.cache_clear()
    jit.announce_compilation()
    jit.announce_compilation()
    assert capsys.readouterr().out.count("compiling CPU kernels once") == (0 if warm else 1)
