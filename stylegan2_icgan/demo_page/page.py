"""How the page of demo.py looks, and which answer goes where. Needs gradio."""

import functools
import secrets
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import PIL.Image
import torch

from stylegan2_icgan.conditioning import Rows
from stylegan2_icgan.demo_page.answers import (
    MOST_SAMPLES,
    MOST_SHOWN,
    UPLOAD_BYTES,
    UPLOAD_FORMATS,
    Answers,
    Settings,
    Shown,
    as_sheet,
    as_zip,
)
from torch_utils.command_line import UserError
from training.image_grid import SMALLEST_SHOWN, picture, sheet_scale

AT_ONCE = 4  # requests of one kind that are worked on; others wait
WAITING = 64  # requests; more are told to come back
KEEP_SEC = 3600  # files of a request
FONT = ["system-ui", "sans-serif"]  # of the visitor's machine: the page asks no other for anything
STYLE = """
footer { display: none !important }
.images .grid-container { padding-top: 1.75rem !important; gap: 6px !important; grid-auto-rows: auto !important }
.images .gallery-item { min-width: 0 !important }
.images .thumbnail-item { width: 100% !important; height: auto !important; min-width: 0 !important }
.images .thumbnail-item { min-height: 0 !important; aspect-ratio: 1 !important }
.instance img { width: 100% !important; height: 100% !important; object-fit: contain !important }
.made .grid-wrap { height: auto !important; min-height: 0 !important; max-height: none !important }
.pick .grid-container { grid-template-columns: repeat(auto-fill, minmax(56px, 1fr)) !important }
.samples .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important }
.near .grid-container { grid-template-columns: repeat(auto-fill, minmax(64px, 1fr)) !important }
.steps .grid-container { grid-template-columns: repeat(8, minmax(0, 1fr)) !important }
@media (max-width: 640px) { .steps .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important } }
"""
PIXELS = "img { image-rendering: pixelated }\n"  # of images that are small enough to count them


def theme() -> gr.themes.Base:
    return gr.themes.Default(font=FONT, font_mono=["ui-monospace", "monospace"])


def style(answers: Answers) -> str:
    return STYLE + (PIXELS if answers.shape.img_resolution <= SMALLEST_SHOWN else "")


class Page:
    """The page of one model.

    Args:
        folder: for files to download; what is older than KEEP_SEC is removed.
    """

    def __init__(self, answers: Answers, folder: Path) -> None:
        self.answers, self.folder = answers, folder

    def build(self) -> gr.Blocks:
        """The page; each visitor has a `gr.State` of their own, and nothing else is kept."""
        answers = self.answers
        starts = [answers.instance(0), answers.instance(min(1, max(answers.num_instances - 1, 0)))]
        with gr.Blocks(title="Instance-conditional GAN", analytics_enabled=False, delete_cache=(600, KEEP_SEC)) as page:
            gr.Markdown(self._heading())
            a, b = (gr.State(rows) for rows in starts)
            with gr.Row(equal_height=False):
                with gr.Column(scale=2, min_width=320):
                    picked = []
                    if answers.num_instances:
                        with gr.Tabs():
                            picked = [
                                *self._side("A", a, starts[0]),
                                *self._side("B", b, starts[1]),
                            ]
                    controls, changed = self._controls()
                with gr.Column(scale=3, min_width=320):
                    inputs = [a, b, *controls]
                    samples = _Results("Samples", "samples")
                    near = self._nearest_gallery()
                    strip = self._strip(inputs)
                    self._answer_to([page.load, *changed], picked, inputs, samples, near, strip)
        return page

    def _heading(self) -> str:
        shape, on = self.answers.shape, []
        if shape.h_dim:
            on.append("an instance")
        if shape.c_dim:
            on.append(f"one of {shape.c_dim} classes")
        conditions = f"conditioned on {' and '.join(on)}" if on else "unconditional"
        return (
            f"## {self.answers.model.path.name}\n{self.answers.model.recipe.system}, {shape.img_resolution} pixels, "
            f"{conditions}"
        )

    def _side(self, letter: str, state: gr.State, start: Rows) -> list[Any]:
        """Gallery, list and upload of one instance; the events after which it is another."""
        answers, shown = self.answers, self.answers.gallery()
        noun = "exemplar" if answers.shape.h_dim else "class"
        has_images = shown.images.shape[1] > 0
        events = []
        with gr.Tab(f"{'Instance' if answers.shape.h_dim else 'Class'} {letter}"):
            with gr.Row(equal_height=False):
                now = gr.Image(
                    _instance_picture(start), show_label=False, height=150, width=150, format="png", type="pil",
                    interactive=False, buttons=[], scale=0, min_width=150, visible=has_images,
                    elem_classes="instance", elem_id=f"instance-{letter}",
                )  # fmt: skip
                with gr.Column(min_width=150):
                    number = gr.Dropdown(
                        [(str(i), i) for i in range(answers.num_instances)],
                        value=start.ids[0],
                        label=noun.capitalize(),
                    )
                    upload = gr.UploadButton(
                        "Upload an image",
                        file_types=[ending for endings in UPLOAD_FORMATS.values() for ending in endings],
                        size="sm", visible=not answers.no_uploads, elem_id=f"upload-{letter}",
                    )  # fmt: skip
            if answers.no_uploads and answers.shape.h_dim:
                gr.Markdown(f"<small>{answers.no_uploads}</small>")
            if has_images:
                few = f" ({MOST_SHOWN} of {answers.num_instances})" if answers.num_instances > MOST_SHOWN else ""
                gallery = gr.Gallery(
                    [picture(images[0], sheet_scale(images.shape[-1])) for images in shown.images],
                    label=f"Pick one{few}", columns=6, height=230, format="png", allow_preview=False, buttons=[],
                    object_fit="contain", interactive=False, elem_classes=["images", "pick"],
                    elem_id=f"gallery-{letter}",
                )  # fmt: skip

                def clicked(event: gr.SelectData) -> tuple[Any, ...]:
                    rows = answers.instance(shown.ids[event.index])
                    return rows, _instance_picture(rows), rows.ids[0]

                events.append(gallery.select(_told(clicked), None, [state, now, number], **QUIET))

        def listed(chosen: int | None) -> tuple[Any, ...]:
            if chosen is None:
                raise UserError(f"Choose the {noun} by its number.")
            rows = answers.instance(chosen)
            return rows, _instance_picture(rows)

        def sent(path: str | None) -> tuple[Any, ...]:
            if path is None:
                raise UserError("No file arrived: send it again.")
            rows = answers.uploaded(Path(path))
            return rows, _instance_picture(rows), None

        events.append(number.input(_told(listed), number, [state, now], **QUIET))
        events.append(upload.upload(_told(sent), upload, [state, now, number], **QUIET))
        return events

    def _controls(self) -> tuple[list[Any], list[Any]]:
        """Mix, class, truncation, seed and number: the components, and their events."""
        answers = self.answers
        two = answers.num_instances > 1 or bool(answers.num_instances and not answers.no_uploads)
        mix = gr.Slider(0, 1, 0, step=0.05, label="Mix: 0 is A, 1 is B", visible=two, buttons=["reset"])
        classes = [("that of the instance", -1), *((f"class {i}", i) for i in range(answers.shape.c_dim))]
        label = gr.Dropdown(classes, value=-1, label="Class", visible=answers.has_class_choice)
        trunc = gr.Slider(0, 1, 1, step=0.05, label="Truncation: lower is more typical, less varied")
        seed = gr.Slider(0, 9999, 0, step=1, label="Seed of the first sample")
        count = gr.Slider(1, MOST_SAMPLES, 8, step=1, label="Number of samples")
        controls = [mix, label, trunc, seed, count]
        return controls, [control.change for control in controls]

    def _nearest_gallery(self) -> gr.Gallery:
        of = "training images" if self.answers.data is not None else "exemplars of the snapshot"
        return gr.Gallery(
            label=f"Nearest {of}", visible=self.answers.has_nearest, columns=6, height="auto", format="png",
            allow_preview=False, buttons=[], object_fit="contain", interactive=False, elem_id="nearest",
            elem_classes=["images", "made", "near"],
        )  # fmt: skip

    def _answer_to(
        self, changed: list[Any], picked: list[Any], inputs: list[Any], samples: "_Results", near: gr.Gallery,
        strip: gr.Column,
    ) -> None:  # fmt: skip
        """When a control was moved, or another instance picked: samples and nearest images; what is old is hidden."""

        def answer(a: Rows, b: Rows, *controls: Any) -> tuple[Any, ...]:
            settings = _settings(*controls)
            shown = self.answers.samples(a, b, settings)
            nearest = _entries(self.answers.nearest(a, b, settings)) if self.answers.has_nearest else None
            explaining = [rows for rows, there in ((a, settings.mix < 1), (b, settings.mix > 0)) if there]
            return _entries(shown), *self._files("samples", shown, explaining), nearest, gr.update(visible=False)

        how = {"concurrency_limit": AT_ONCE, "concurrency_id": "samples", "show_progress_on": [samples.gallery]}
        outputs = [*samples.outputs, near, strip]
        gr.on(changed, _told(answer), inputs, outputs, trigger_mode="always_last", api_name="samples", **how)
        for event in picked:
            event.success(_told(answer), inputs, outputs, api_visibility="private", **how)

    def _strip(self, inputs: list[Any]) -> gr.Column:
        """A button, and what it brings: the way from A to B in a column that is hidden before."""
        between = "From A to B" if self.answers.num_instances else "From the seed to the next"
        button = gr.Button(f"{between}, in steps", size="sm", elem_id="strip")
        with gr.Column(visible=False) as place:
            strip = _Results(between, "steps")

        def answer(a: Rows, b: Rows, *controls: Any) -> tuple[Any, ...]:
            shown = self.answers.strip(a, b, _settings(*controls))
            return gr.update(visible=True), _entries(shown), *self._files("steps", shown, [])

        outputs = [place, *strip.outputs]
        button.click(_told(answer), inputs, outputs, concurrency_limit=AT_ONCE, api_name="steps")
        return place

    def _files(self, name: str, shown: Shown, explaining: list[Rows]) -> tuple[Any, Any]:
        """Updates of two download buttons: a zip and a sheet, in a folder of their own."""
        for old in self.folder.iterdir():
            if old.stat().st_mtime < time.time() - KEEP_SEC:
                shutil.rmtree(old, ignore_errors=True)
        folder = self.folder / secrets.token_hex(16)
        folder.mkdir()
        files = {f"{name}.zip": as_zip(shown), f"{name}.png": as_sheet(shown, explaining)}
        for file, content in files.items():
            (folder / file).write_bytes(content)
        paths = [str(folder / file) for file in files]
        return gr.update(value=paths[0], interactive=True), gr.update(value=paths[1], interactive=True)


QUIET: dict[str, Any] = {"concurrency_limit": AT_ONCE, "show_progress": "hidden", "api_visibility": "private"}


class _Results:
    """A gallery of images that were made, and the buttons that download them."""

    def __init__(self, label: str, name: str) -> None:
        self.gallery = gr.Gallery(
            label=label, columns=4, height="auto", format="png", buttons=[], object_fit="contain", interactive=False,
            elem_classes=["images", "made", name],
        )  # fmt: skip
        with gr.Row():
            buttons = [
                gr.DownloadButton(text, size="sm", min_width=120, interactive=False, elem_id=f"{name}-{kind}")
                for kind, text in (("zip", "Download PNGs in a zip"), ("sheet", "Download one sheet"))
            ]
        self.outputs = [self.gallery, *buttons]


def _settings(mix: float, label: int, trunc: float, seed: float, count: float) -> Settings:
    if None in (mix, label, trunc, seed, count):
        raise UserError("A number is missing beside one of the sliders.")
    return Settings(trunc=trunc, seed=int(seed), count=int(count), mix=mix, label=None if label < 0 else label)


def _told(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a visitor got wrong is said on the page, and is no error of the program."""

    @functools.wraps(function)
    def answer(*inputs: Any) -> Any:
        try:
            return function(*inputs)
        except UserError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from None

    return answer


def _entries(shown: Shown) -> list[PIL.Image.Image]:
    return [picture(image) for image in shown.images]


def _instance_picture(rows: Rows) -> PIL.Image.Image | None:
    images: torch.Tensor = rows.images[0]
    return picture(images[0], sheet_scale(images.shape[-1])) if len(images) else None


def launch_arguments(answers: Answers) -> dict[str, Any]:
    """For `Blocks.launch`: nothing is asked of or told to another machine, whatever the environment says."""
    return {
        "share": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "enable_monitoring": False,
        "footer_links": [],
        "quiet": True,
        "max_file_size": UPLOAD_BYTES,
        "theme": theme(),
        "css": style(answers),
    }


def serve(answers: Answers, folder: Path, host: str, port: int, say: Callable[[str], None]) -> None:
    """Show the page until it is interrupted.

    Args:
        folder: gradio's; files to download lie below it.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service manager's stop is an interruption, too
    downloads = folder / "downloads"
    downloads.mkdir()
    page = Page(answers, downloads).build().queue(max_size=WAITING)
    try:
        page.launch(server_name=host, server_port=port, prevent_thread_lock=True, **launch_arguments(answers))
    except OSError as error:  # somebody else took the port meanwhile
        raise UserError(f"--port={port} on {host} can't be used ({error}); give another --port") from None
    say(f"The demo is at {page.local_url} (end it with Ctrl+C)")
    page.block_thread()
