"""What builds the native ops on this machine, and for what: compilers, versions, architectures, flags."""

import dataclasses
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).resolve().parent
HEADERS = ("activations.h", "cpu_math.h", "cuda_math.cuh")
SOURCES = {
    "cpu": ("bias_act.cpp", "conv3x3.cpp", "upfirdn2d.cpp"),
    "cuda": ("bias_act.cpp", "conv3x3.cpp", "upfirdn2d.cpp", "bias_act.cu", "upfirdn2d.cu", "upfirdn2d_small.cu"),
}
# Rounding is the default one and infinities and NaNs count, so much of -ffast-math is out of the question; errno and
# floating-point traps are what else keeps the compiler from making vectors.
CPU_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math")
CUDA_FLAGS = ("-O3", "--extra-device-vectorization")


@dataclasses.dataclass(frozen=True)
class Toolchain:
    """Everything that a library depends on beside its sources. Two machines with equal ones can share it."""

    kind: str  # cpu, or cuda: that and the processor
    torch: str
    compiler: str  # the program
    compiler_version: str
    processor: str  # instruction sets, since the library is made for this processor
    flags: tuple[str, ...]
    cuda_home: str = ""
    nvcc_version: str = ""
    architectures: str = ""  # of GPUs, as in TORCH_CUDA_ARCH_LIST

    def key(self) -> str:
        """16 hexadecimal digits that change with anything above and with any source."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self)).encode())
        for name in (*HEADERS, *SOURCES[self.kind]):
            digest.update((FOLDER / name).read_bytes())
        return digest.hexdigest()[:16]

    def load_arguments(self, directory: Path) -> dict[str, Any]:
        """Arguments of torch.utils.cpp_extension.load."""
        includes = Path(torch.__file__).parents[1] / "nvidia" / f"cu{(torch.version.cuda or '').split('.')[0]}/include"
        openmp = [] if sys.platform == "darwin" else ["-fopenmp"]  # Apple's compiler has none; one thread then
        return {
            "name": "native_ops",
            "sources": [str(FOLDER / name) for name in SOURCES[self.kind]],
            "extra_cflags": [*self.flags, *openmp],
            "extra_cuda_cflags": list(CUDA_FLAGS),
            "extra_include_paths": [str(includes)] if self.kind == "cuda" and includes.is_dir() else [],
            "build_directory": str(directory),
            "with_cuda": self.kind == "cuda",
            "is_python_module": False,
            "verbose": True,
        }

    def compiler_call(self, library: Path) -> list[str]:
        """What builds the library without torch's loader, which needs ninja: one call of the compiler."""
        given, home = self.load_arguments(library.parent), Path(torch.__file__).parent
        headers = [*given["extra_include_paths"], home / "include", home / "include/torch/csrc/api/include"]
        common = ["-std=c++17", "-shared", *given["sources"], *(f"-I{folder}" for folder in headers)]
        common += [f"-L{home / 'lib'}", "-lc10", "-ltorch_cpu", "-o", str(library)]
        if self.kind == "cpu":
            return [self.compiler, "-fPIC", *given["extra_cflags"], *common]
        host = [word for flag in ("-fPIC", *given["extra_cflags"]) for word in ("-Xcompiler", flag)]
        nvcc = [str(Path(self.cuda_home) / "bin" / "nvcc"), "-ccbin", self.compiler, "--threads=0", "--cudart=shared"]
        return [*nvcc, *CUDA_FLAGS, *gencode(self.architectures), *host, *common]

    def environment(self) -> dict[str, str]:
        """The environment to build in. Bytecode of torch is left as it is."""
        found = dict(os.environ, PATH=search_path(), PYTHONDONTWRITEBYTECODE="1", CXX=self.compiler)
        if self.kind == "cuda":
            found |= {"CUDA_HOME": self.cuda_home, "TORCH_CUDA_ARCH_LIST": self.architectures}
        return found


class Missing(Exception):
    """Why there is no toolchain: half a sentence, with the remedy."""


def find(kind: str) -> Toolchain:
    """The toolchain for tensors on 'cpu' or 'cuda'.

    Raises:
        Missing: something it takes is not there.
    """
    if sys.platform == "win32":
        raise Missing("native ops are not built on Windows; use --ops=ref")
    compiler = os.environ.get("CXX") or "c++"
    program = shutil.which(compiler)
    if program is None:
        raise Missing(f"no C++ compiler: {compiler} is not on PATH; install one, or name it in CXX")
    flags = (*CPU_FLAGS, *shlex.split(os.environ.get("CXXFLAGS", "")))
    tools = Toolchain(kind, torch.__version__, program, version(program), instruction_sets(), flags)
    if kind == "cpu":
        return tools
    if torch.version.cuda is None:
        raise Missing(f"torch {torch.__version__} is a build without CUDA")
    architectures = cuda_architectures()
    if not architectures:
        raise Missing("there is neither a CUDA device nor TORCH_CUDA_ARCH_LIST")
    home = cuda_home()
    if home is None:
        raise Missing(f"no nvcc in CUDA_HOME or on PATH; install the CUDA toolkit {torch.version.cuda}")
    nvcc = version(str(home / "bin" / "nvcc"))
    release = re.search(r"release (\d+)", nvcc)
    if release is None or release[1] != torch.version.cuda.split(".")[0]:
        raise Missing(f"nvcc is {nvcc}, torch was built with CUDA {torch.version.cuda}; install that toolkit")
    return dataclasses.replace(
        tools, cuda_home=str(home), nvcc_version=f"{nvcc}, torch {torch.version.cuda}", architectures=architectures
    )


def cuda_architectures() -> str:
    """TORCH_CUDA_ARCH_LIST, or the compute capabilities of the devices: '8.0;9.0'. '' where there is neither."""
    given = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    devices = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return given or ";".join(sorted({"{}.{}".format(*torch.cuda.get_device_capability(i)) for i in devices}))


def gencode(architectures: str) -> list[str]:
    """'8.0;9.0+PTX' -> flags of nvcc: kernels for each, and with +PTX what later GPUs make theirs of."""
    flags = []
    for word in architectures.replace(" ", ";").split(";"):
        number = word.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if word.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def has_ninja() -> bool:
    return shutil.which("ninja", path=search_path()) is not None


def cuda_home() -> Path | None:
    """The toolkit's folder; nvcc itself is asked, since what is on PATH may be a script or a link to it."""
    given = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if given:
        return Path(given) if (Path(given) / "bin" / "nvcc").is_file() else None
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    told = re.search(r"_HERE_=(.+)", _output(nvcc, "--dryrun", "-x", "cu", os.devnull))
    return Path(told[1].strip()).resolve().parent if told else Path(nvcc).resolve().parents[1]


def instruction_sets() -> str:
    """What -march=native depends on: the processor's flags where Linux tells them, else its name."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.is_file() else []
    flags = next((line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features"))), "")
    return " ".join(sorted(flags.split())) or f"{platform.machine()} {platform.processor()}"


def search_path() -> str:
    """Where programs are looked for."""
    # `pip install ninja` puts it beside the Python that runs us, which need not be on PATH.
    return os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])


def version(program: str) -> str:
    """The line of `program --version` that tells it."""
    lines = [line.strip() for line in _output(program, "--version").splitlines() if line.strip()]
    return next((line for line in lines if "release" in line), lines[0] if lines else "unknown version")


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr
