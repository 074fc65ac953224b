"""Frames -> a folder of PNG, a GIF, or an MP4 by ffmpeg or PyAV, whichever is there."""

import contextlib
import itertools
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import torch

from stylegan2_icgan.using.encoding import in_threads
from stylegan2_icgan.using.image_files import save_image
from torch_utils.command_line import UserError
from torch_utils.files import atomic_write, replace_folder
from training.image_grid import picture

FORMATS = ("auto", "frames", "gif", "mp4")
CRF = "17"  # quality of H.264: nearly no loss that can be seen
GIF_UNIT_MS = 10  # what a GIF counts the time of a frame in


def pick_format(name: str) -> str:
    """What 'auto' stands for here: mp4 where it can be written, else gif.

    Raises:
        UserError: mp4 asked for, and there is nothing to write it with.
    """
    can = shutil.which("ffmpeg") is not None or _pyav() is not None
    if name == "mp4" and not can:
        raise UserError("--format=mp4 needs ffmpeg on the PATH or PyAV (pip install av); or take --format=gif")
    if name == "auto":
        return "mp4" if can else "gif"
    return name


def write_video(
    frames: Iterable[torch.Tensor], outdir: Path, kind: str, fps: int, scale: int, stem: str = "walk"
) -> Path:
    """Write uint8 [C, H, W] frames, all of one size; the file or folder gets its name when it is whole.

    Args:
        kind: 'frames', 'gif' or 'mp4'.
        scale: by what GIF and MP4 are enlarged. A side that is odd then loses a row or column in MP4.
    """
    if kind == "frames":
        return _write_frames(frames, outdir / "frames")
    path = outdir / f"{stem}.{kind}"
    if kind == "gif":
        _write_gif(frames, path, fps, scale)
    else:
        _write_mp4((_rgb(frame, scale) for frame in frames), path, fps)
    return path


def _write_frames(frames: Iterable[torch.Tensor], folder: Path) -> Path:
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        jobs = ((temporary / f"{number:05d}.png", frame) for number, frame in enumerate(frames))
        for _ in in_threads(save_image, jobs):
            pass
        replace_folder(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def _write_gif(frames: Iterable[torch.Tensor], path: Path, fps: int, scale: int) -> None:
    pictures = (picture(frame, scale) for frame in frames)
    first = next(pictures)
    duration = max(round(1000 / fps / GIF_UNIT_MS), 2) * GIF_UNIT_MS  # browsers slow down what is shorter than 20 ms
    with atomic_write(path) as file:
        first.save(file, "GIF", save_all=True, append_images=pictures, duration=duration, loop=0)


def _rgb(frame: torch.Tensor, scale: int) -> torch.Tensor:
    """uint8 [H, W, 3], H and W even, as the usual chroma subsampling of H.264 wants them."""
    frame = frame.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
    height, width = frame.shape[1] // 2 * 2, frame.shape[2] // 2 * 2
    return frame[:, :height, :width].expand(3, -1, -1).permute(1, 2, 0).contiguous()


def _write_mp4(frames: Iterator[torch.Tensor], path: Path, fps: int) -> None:
    first = next(frames)
    frames = itertools.chain([first], frames)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{secrets.token_hex(4)}.tmp.mp4")
    try:
        if shutil.which("ffmpeg") is not None:
            _by_ffmpeg(frames, temporary, fps, first.shape[0], first.shape[1])
        else:
            _by_pyav(frames, temporary, fps, first.shape[0], first.shape[1])
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _by_ffmpeg(frames: Iterator[torch.Tensor], path: Path, fps: int, height: int, width: int) -> None:
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
    coded = ["-c:v", "libx264", "-crf", CRF, "-pix_fmt", "yuv420p", "-movflags", "+faststart", str(path)]
    with tempfile.TemporaryFile() as said:
        command = ["ffmpeg", "-y", "-loglevel", "error", *raw, *coded]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said)
        assert process.stdin is not None
        try:
            for frame in frames:
                process.stdin.write(frame.numpy().data)
        except BrokenPipeError:  # it gave up; why, it says below
            pass
        except BaseException:
            process.kill()
            raise
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()
        said.seek(0)
        if process.returncode:
            reason = " ".join(said.read().decode(errors="replace").split())[-300:]
            raise UserError(f"--format=mp4: ffmpeg failed ({reason}); take --format=gif, or another ffmpeg")


def _by_pyav(frames: Iterator[torch.Tensor], path: Path, fps: int, height: int, width: int) -> None:
    av = _pyav()
    assert av is not None
    with av.open(str(path), "w", format="mp4") as container:
        try:
            stream = container.add_stream("libx264", rate=fps, options={"crf": CRF})
        except ValueError as error:  # built without it
            raise UserError(
                f"--format=mp4: PyAV can't encode H.264 ({error}); install ffmpeg, or --format=gif"
            ) from None
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.numpy(), format="rgb24")))
        container.mux(stream.encode(None))


def _pyav() -> ModuleType | None:
    try:
        import av
    except ImportError:
        return None
    return av
