"""The build of the native ops: what a user sees when it works, fails, is interrupted, or happens twice at once."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import invoke

from torch_utils import custom_ops
from torch_utils.locks import hold
from torch_utils.ops import toolchain
from torch_utils.ops.bias_act import bias_act

# In place of a compiler, which takes ten seconds and more. They are given the arguments of cpp_extension.load.
HEAD = "import json, os, pathlib, sys, time\nfolder = pathlib.Path(json.loads(sys.argv[1])['build_directory'])\n"
BUILDS = HEAD + "time.sleep(0.3); print('compiled'); (folder / 'native_ops.so').write_text(str(os.getpid()))"
FAILS = HEAD + "(folder / 'half.o').write_text('x'); print('bias_act.cpp:1: error: no such thing'); sys.exit(1)"
HANGS = HEAD + (
    "import subprocess\nchild = subprocess.Popen(['sleep', '60'])\n"
    "(folder.parent / 'pids').write_text(f'{os.getpid()} {child.pid}'); time.sleep(60)"
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The cache, empty; nothing is loaded, and the mode is that of a fresh process."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(custom_ops, "_found", {})
    monkeypatch.setattr(custom_ops, "_mode", "ref")
    if shutil.which("c++") is None or shutil.which("ninja", path=toolchain.search_path()) is None:
        pytest.skip("needs a C++ compiler and ninja")
    return tmp_path / "stylegan2-icgan-ops"


@pytest.fixture
def compiler(monkeypatch):
    return lambda script: monkeypatch.setattr(custom_ops, "COMPILE", script)


def is_alive(pid):
    status = Path(f"/proc/{pid}/stat")
    return status.is_file() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def names(folder):
    return sorted(path.name.replace(path.name.split("-")[-1].split(".")[0], "KEY") for path in folder.iterdir())


def test_build_leaves_the_library_and_its_log(folder, compiler, capsys):
    compiler(BUILDS)
    path = custom_ops.build("cpu")
    assert path.is_file()
    assert [item.name for item in path.parent.iterdir()] == ["native_ops.so"]
    assert names(folder) == ["cpu-KEY", "cpu-KEY.log"]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "building native ops for the CPU, once (log: " in said[0]
    assert Path(said[0].partition("log: ")[2].rstrip(")")).read_text() == "compiled\n"
    first = path.read_text()
    assert custom_ops.build("cpu").read_text() == first  # and not built again
    assert capsys.readouterr().err == ""


def test_failing_compiler_is_one_line_with_the_log(folder, compiler):
    compiler(FAILS)
    with pytest.raises(custom_ops.BuildError, match="the build failed after 0 s, see ") as caught:
        custom_ops.build("cpu")
    assert "error: no such thing" in Path(str(caught.value).partition("see ")[2]).read_text()
    assert names(folder) == ["cpu-KEY.failed", "cpu-KEY.log"]


def test_auto_falls_back_once_and_native_fails_loudly(compiler, capsys):
    compiler(FAILS)
    x = torch.tensor([-1.0, 1.0])
    custom_ops.set_mode("auto")
    for _ in range(3):
        assert bias_act(x, act="relu", gain=1).tolist() == [0, 1]
    assert len([line for line in capsys.readouterr().err.splitlines() if "are not used on the CPU" in line]) == 1
    assert custom_ops.prepare(x.device) == "ref"
    with pytest.raises(custom_ops.BuildError, match="the build failed"):
        bias_act(x, act="relu", impl="native")
    custom_ops.set_mode("native")
    with pytest.raises(custom_ops.BuildError, match="the build failed"):
        custom_ops.prepare(x.device)
    compiler(BUILDS)  # what it writes is no library
    with pytest.raises(custom_ops.BuildError, match=r"does not load: .*remove .* to build it again"):
        custom_ops.prepare(x.device)


def test_ref_never_starts_a_compiler(folder, compiler):
    compiler(FAILS)
    assert custom_ops.get_mode() == "ref"  # of whoever merely imports the ops
    assert bias_act(torch.ones(2), act="relu", gain=1).tolist() == [1, 1]
    assert custom_ops.prepare(torch.device("cpu")) == "ref"
    assert not folder.exists()


def test_everything_works_without_a_compiler(monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    custom_ops.set_mode("auto")
    assert bias_act(torch.ones(2), act="relu", gain=1).tolist() == [1, 1]
    said = capsys.readouterr().err
    assert said == (
        "native ops are not used on the CPU: no C++ compiler: no-such-compiler is not on PATH; install one, "
        "or name it in CXX\n"
    )


def test_modes_and_devices_without_native_ops():
    with pytest.raises(ValueError, match="mode: 'fast' is not one of auto, native, ref"):
        custom_ops.set_mode("fast")
    custom_ops.set_mode("auto")
    assert custom_ops.prepare(torch.device("mps")) == "ref"
    custom_ops.set_mode("native")
    with pytest.raises(custom_ops.BuildError, match="there are no native ops for mps"):
        custom_ops.prepare(torch.device("mps"))
    with pytest.raises(ValueError, match=r"'native' takes float32, .* on cpu or cuda, got torch.float32 on meta"):
        bias_act(torch.ones(2, device="meta"), impl="native")


@pytest.fixture
def heeds_ctrl_c():
    """Ctrl-C interrupts, also where the tests run in the background of a shell, which makes them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_ends_the_compiler_and_leaves_nothing(folder, compiler):
    compiler(HANGS)

    def interrupt():
        while not (folder / "pids").is_file() or not (folder / "pids").read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        custom_ops.build("cpu")
    thread.join()
    pids = [int(pid) for pid in (folder / "pids").read_text().split()]
    deadline = time.monotonic() + 5
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(is_alive(pid) for pid in pids)
    (folder / "pids").unlink()
    assert names(folder) == ["cpu-KEY.log"]


def in_processes(function, count):
    """What `function` puts into the queue it is given, in `count` processes at once."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=function, args=(queue,)) for _ in range(count)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()
    return results


def test_two_processes_build_once(compiler):
    compiler(BUILDS)
    results = in_processes(lambda queue: queue.put(custom_ops.build("cpu").read_text()), 3)
    assert len(results) == 3
    assert len(set(results)) == 1  # the process id of the one compiler


def test_a_failure_is_not_repeated_by_those_who_waited(folder, compiler):
    compiler(
        FAILS.replace("sys.exit", "time.sleep(1); (folder.parent / f'{os.getpid()}.ran').write_text(''); sys.exit")
    )

    def fail(queue):
        try:
            custom_ops.build("cpu")
        except custom_ops.BuildError as error:
            queue.put(str(error))

    results = in_processes(fail, 3)
    assert all("the build failed" in result for result in results)
    assert len(list(folder.glob("*.ran"))) == 1


def test_what_a_killed_process_left_is_taken_over(folder, compiler):
    compiler(HANGS)
    process = multiprocessing.get_context("fork").Process(target=custom_ops.build, args=("cpu",))
    process.start()
    while not (folder / "pids").is_file() or not (folder / "pids").read_text():
        time.sleep(0.01)
    process.kill()
    process.join()
    os.killpg(int((folder / "pids").read_text().split()[0]), signal.SIGKILL)
    (folder / "pids").unlink()
    assert any(name.endswith(".lock") for name in names(folder))
    compiler(BUILDS)
    assert custom_ops.build("cpu").is_file()
    assert names(folder) == ["cpu-KEY", "cpu-KEY.log"]


def test_lock_says_whom_it_waits_for(tmp_path):
    lock, lines = tmp_path / "lock", []
    holder = subprocess.Popen(
        [sys.executable, "-c", f"import fcntl, time; f = open({str(lock)!r}, 'w'); f.write('4711'); f.flush(); "
         "fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); time.sleep(0.6)"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    holder.stdout.readline()
    began = time.monotonic()
    with hold(lock, lines.append, patience_sec=0.2):
        waited = time.monotonic() - began
    holder.wait()
    holder.stdout.close()
    assert 0.3 < waited < 5
    assert len(lines) == 1
    assert "process 4711 has been at work there for " in lines[0]
    with hold(lock, lines.append, patience_sec=0.2):
        assert lock.read_text() == str(os.getpid())
    assert len(lines) == 1
    assert not lock.exists()


def test_without_ninja_the_compiler_itself_is_called(tmp_path, monkeypatch):
    fake = tmp_path / "c++"
    fake.write_text("#!/bin/sh\n[ $1 = --version ] && exec c++ --version\necho $*\nfor last; do :; done; echo >$last\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    monkeypatch.setattr(toolchain, "has_ninja", lambda: False)
    path = custom_ops.build("cpu")
    called = path.parent.with_suffix(".log").read_text().split()
    assert {word for word in called if word.endswith(".cpp")} == {
        str(toolchain.FOLDER / name) for name in toolchain.SOURCES["cpu"]
    }
    assert {"-shared", "-fPIC", "-O3", "-ltorch_cpu"} <= set(called)


def test_architectures_become_flags_of_nvcc():
    assert toolchain.gencode("8.0;9.0a") == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
    ]
    assert toolchain.gencode("12.0+PTX") == [
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]
    tools = dataclasses.replace(toolchain.find("cpu"), kind="cuda", cuda_home="/cuda", architectures="9.0")
    call = tools.compiler_call(Path("/folder/native_ops.so"))
    assert call[0] == "/cuda/bin/nvcc"
    assert call[-1] == "/folder/native_ops.so"
    assert sum(word.endswith((".cu", ".cpp")) for word in call) == len(toolchain.SOURCES["cuda"])
    assert call[call.index("-fPIC") - 1] == "-Xcompiler"


def test_unwritable_cache_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file"))
    with pytest.raises(custom_ops.BuildError, match="name another folder in TORCH_EXTENSIONS_DIR"):
        custom_ops.build("cpu")


def test_key_changes_with_everything_the_library_depends_on(tmp_path, monkeypatch):
    tools = toolchain.find("cpu")
    keys = {tools.key()}
    for field in dataclasses.fields(tools):
        value = getattr(tools, field.name)
        other = "cuda" if field.name == "kind" else ((*value, "-g") if field.name == "flags" else value + "x")
        keys.add(dataclasses.replace(tools, **{field.name: other}).key())
    assert len(keys) == 1 + len(dataclasses.fields(tools))
    for source in (*toolchain.HEADERS, *toolchain.SOURCES["cuda"]):
        shutil.copy(toolchain.FOLDER / source, tmp_path)
    monkeypatch.setattr(toolchain, "FOLDER", tmp_path)
    assert tools.key() in keys
    with (tmp_path / "cpu_math.h").open("a") as file:
        file.write(" ")
    assert tools.key() not in keys


def test_nvcc_is_asked_for_its_toolkit(tmp_path, monkeypatch):
    toolkit, on_path = tmp_path / "toolkit", tmp_path / "bin"
    for directory in (toolkit / "bin", on_path):
        directory.mkdir(parents=True)
    script = f"#!/bin/sh\n[ $1 = --dryrun ] && echo '#$ _HERE_={toolkit}/bin' >&2 || echo 'release 5.0, V5.0.1'\n"
    for nvcc in (toolkit / "bin" / "nvcc", on_path / "nvcc"):
        nvcc.write_text(script)
        nvcc.chmod(0o755)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{on_path}:{os.environ['PATH']}")
    assert toolchain.cuda_home() == toolkit
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(toolchain.Missing, match=r"nvcc is release 5.0, V5.0.1, torch was built with CUDA 13.0"):
        toolchain.find("cuda")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(toolchain.Missing, match=r"no nvcc in CUDA_HOME or on PATH; install the CUDA toolkit 13.0"):
        toolchain.find("cuda")


def test_command_ends_with_one_line_of_verdict(compiler, monkeypatch):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    lines = invoke(custom_ops.main).stdout.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["torch", "CUDA", "nvcc", "compiler", "architectures"]
    assert [line for line in lines if line.startswith("native ops: ")] == lines[-1:]
    assert lines[-1].startswith("native ops: on the CPU, to be built on first use; not on CUDA (")
    compiler(FAILS)
    failed = invoke(custom_ops.main, "--build")
    assert failed.exit_code == 2
    assert failed.stderr.splitlines()[-1].startswith("Error: the build failed")
    assert "native ops: not on the CPU (the build failed" in failed.stdout


@pytest.mark.slow
def test_failing_compiler_is_seen_through_torchs_loader(tmp_path, monkeypatch):
    fake = tmp_path / "c++"
    fake.write_text("#!/bin/sh\n[ $1 = --version ] && exec c++ --version\necho 'internal compiler error'\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    with pytest.raises(custom_ops.BuildError, match="the build failed") as caught:
        custom_ops.build("cpu")
    assert "internal compiler error" in Path(str(caught.value).partition("see ")[2]).read_text()


@pytest.mark.slow
def test_cuda_sources_compile_and_load(monkeypatch):
    """Needs a toolkit but no device. The library is kept in the user's cache."""
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", os.environ.get("TORCH_CUDA_ARCH_LIST", "9.0"))
    try:
        toolchain.find("cuda")
    except toolchain.Missing as missing:
        pytest.skip(str(missing))
    library = custom_ops.library("cuda", must=True)
    for kind in ("cpu", "cuda"):
        for name in ("ops_bias_act", "ops_upfirdn2d"):
            assert getattr(library, f"{name}_{kind}")
    x = torch.tensor([-1.0, 1.0])
    assert bias_act(x, act="relu", gain=1, impl="native").tolist() == [0, 1]  # it holds the CPU's kernels too
    assert json.dumps(list(custom_ops._found)) == '["cuda"]'
