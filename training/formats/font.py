"""A font as a data set: every emoji of a list, drawn once.

The list is Unicode's emoji-test.txt, which sorts emoji into groups and subgroups: Unicode Technical Standard 51. Emoji
that differ in skin tone only share the attribute `base`, so that near-duplicates can be kept on one side of a split.
"""

import functools
import re
import unicodedata
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont, features

from torch_utils.command_line import UserError
from torch_utils.images import Color, ImageRefused, encode_png
from training.formats.font_tables import characters_of, font_credits
from training.formats.format import Format, SourceOptions
from training.image_source import Source
from training.labelling import labels_of_words

ENDINGS = (".ttf", ".otf", ".ttc")
DEFAULT_LIST = Path("/usr/share/unicode/emoji/emoji-test.txt")  # Debian's and Ubuntu's package unicode-data
LINE = re.compile(r"(?P<codes>[0-9A-F ]+?)\s*; (?P<status>[\w-]+)\s*# \S+ E\d+\.\d+ (?P<name>.+)")
BITMAP_SIZE = 109  # pixels an em: the only size of Noto Color Emoji's bitmaps
DEFAULT_SIZE = 128  # of outlines, when no --resolution is given
SKIN_TONES = range(0x1F3FB, 0x1F400)
EMOJI_STYLE, JOINER = 0xFE0F, 0x200D  # need no glyph of their own
TAGS = range(0xE0020, 0xE0080)  # spell the flags of England, Scotland and Wales


class Emoji(NamedTuple):
    """One line of the list."""

    text: str
    group: str
    subgroup: str
    name: str  # "grinning face"

    @property
    def codepoints(self) -> str:
        return " ".join(f"{ord(char):04X}" for char in self.text)

    @property
    def base(self) -> str:
        """Without skin tones. The style selector goes, too, because a skin tone stands in its place."""
        kept = [ord(char) for char in self.text if ord(char) not in SKIN_TONES and ord(char) != EMOJI_STYLE]
        return " ".join(f"{code:04X}" for code in kept)


class GlyphImage(NamedTuple):
    """One emoji, drawn when it is read."""

    name: str
    path: str  # of the font
    text: str
    size: int  # pixels an em
    side: int  # of the square it is drawn in
    background: Color

    def read(self) -> bytes:
        try:
            return encode_png(self.draw())
        except OSError as error:
            raise ImageRefused(f"can't be drawn ({error})") from None

    def draw(self) -> Image.Image:
        """Mode RGB; on the background, its advance in the middle of the width, its ink in the middle of the height."""
        font = load_font(self.path, self.size)
        left, top, right, bottom = font.getbbox(self.text)
        canvas = Image.new("RGB", (self.side, self.side), self.background)
        place = ((self.side - (right - left)) // 2 - left, (self.side - (bottom - top)) // 2 - top)
        ink = "black" if sum(self.background) > 3 * 127 else "white"  # of fonts without colours
        ImageDraw.Draw(canvas).text(place, self.text, font=font, fill=ink, embedded_color=True)
        return canvas

    def stamp(self) -> str:
        return ""


@functools.lru_cache(maxsize=4)
def load_font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.RAQM)


def recognises(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in ENDINGS


def open_font(path: Path, options: SourceOptions) -> Source:
    if not features.check("raqm"):
        raise UserError(
            f"--source={path}: this Pillow was built without raqm, which joins emoji; install it from a wheel: "
            "pip install --force-reinstall pillow"
        )
    list_file = options.emoji_list or DEFAULT_LIST
    emojis = _read_list(list_file, given=options.emoji_list is not None)
    size = _find_size(path, options.resolution or DEFAULT_SIZE)
    font = load_font(str(path), size)
    try:
        characters = characters_of(path)
    except (ValueError, OSError) as error:
        raise UserError(f"--source={path} can't be read as a font ({error}); get it again") from None

    source = Source(path, containers=[path, list_file], described=font_credits(path))
    drawn = []
    side = 1
    for emoji in emojis:
        name = f"{emoji.codepoints.lower().replace(' ', '-')}.png"
        reason = _why_not(font, characters, emoji)
        if reason:
            source.refused[name] = f"{emoji.name}: {reason}"
            continue
        left, top, right, bottom = font.getbbox(emoji.text)
        side = max(side, int(right - left), int(bottom - top))
        drawn.append((name, emoji))
    if not drawn:
        raise UserError(f"--source={path} has none of the {len(emojis):,} emoji of {list_file}; give an emoji font")
    source.files = [GlyphImage(name, str(path), emoji.text, size, side, options.background) for name, emoji in drawn]
    source.attributes = {
        name: {
            "group": emoji.group,
            "subgroup": emoji.subgroup,
            "base": emoji.base,
            "codepoints": emoji.codepoints,
            "short_name": emoji.name,
        }
        for name, emoji in drawn
    }
    source.labels = labels_of_words({name: emoji.group for name, emoji in drawn}, "{} Unicode groups")
    return source


def _find_size(path: Path, wanted: int) -> int:
    """Outlines can be drawn at any size, bitmaps at their own."""
    for size in (wanted, BITMAP_SIZE):
        try:
            load_font(str(path), size)
        except OSError as error:
            reason = error
        else:
            return size
    raise UserError(
        f"--source={path} can't be opened as a font of {BITMAP_SIZE} or any pixels ({reason}); get it again"
    )


def _read_list(path: Path, given: bool) -> list[Emoji]:
    """The emoji that are fully qualified, in the order of the list."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        if given:
            raise UserError(
                f"--emoji-list={path} can't be read ({error}); expected emoji-test.txt of Unicode"
            ) from None
        raise UserError(
            f"a font needs Unicode's emoji-test.txt, and {path} is not there; on Debian or Ubuntu: apt install "
            "unicode-data, elsewhere give --emoji-list=FILE"
        ) from None
    group = subgroup = ""
    found = []
    for line in text.splitlines():
        if line.startswith("# group:"):
            group = line.partition(":")[2].strip()
        elif line.startswith("# subgroup:"):
            subgroup = line.partition(":")[2].strip()
        else:
            match = LINE.fullmatch(line)
            if match and match["status"] == "fully-qualified":
                chars = "".join(chr(int(code, 16)) for code in match["codes"].split())
                found.append(Emoji(chars, group, subgroup, match["name"]))
    if not found:
        raise UserError(f"{path} lists no fully-qualified emoji; expected emoji-test.txt of Unicode")
    return found


def _why_not(font: ImageFont.FreeTypeFont, characters: Any, emoji: Emoji) -> str:
    """Why the emoji does not come out as one glyph of the font; '' when it does."""
    codes = [ord(char) for char in emoji.text]
    missing = [code for code in codes if code not in characters and code not in (EMOJI_STYLE, JOINER)]
    if missing:
        listed = " ".join(f"U+{code:04X}" for code in missing)
        return f"the font has no glyph for {listed} ({unicodedata.name(chr(missing[0]), 'unnamed')})"
    visible = [chr(code) for code in codes if code not in (EMOJI_STYLE, JOINER) and code not in TAGS]
    widest = max(font.getlength(char) for char in visible)
    if font.getlength(emoji.text) > 1.5 * widest:  # joined ones are as wide as one
        return f"the font draws it as {round(font.getlength(emoji.text) / widest)} glyphs, not one"
    left, top, right, bottom = font.getbbox(emoji.text)
    if right <= left or bottom <= top:
        return "the font draws nothing"
    plain = "".join(char for char in emoji.text if ord(char) not in TAGS)
    if plain != emoji.text and font.getmask(emoji.text).getbbox() and _same_drawing(font, plain, emoji.text):
        return "the font draws it as its first character alone"
    return ""


def _same_drawing(font: ImageFont.FreeTypeFont, one: str, other: str) -> bool:
    def drawing(text: str) -> bytes:
        canvas = Image.new("RGB", (int(font.size) * 2, int(font.size) * 2), "white")
        ImageDraw.Draw(canvas).text((0, 0), text, font=font, fill="black", embedded_color=True)
        return canvas.tobytes()

    return drawing(one) == drawing(other)


FORMAT = Format(
    "font",
    "a .ttf or .otf with emoji, such as NotoColorEmoji.ttf",
    recognises,
    open_font,
    options=("emoji_list",),
)
