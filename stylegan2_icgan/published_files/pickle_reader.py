"""Reads a pickle without executing anything of it.

A pickle is a program for a small stack machine, and Python's own machine calls whatever functions the program names.
This one knows a table of names, each of which stands for a function of ours that makes plain data of its arguments;
any other name ends the reading. What it takes of memory is bounded by the length of the file.
"""

import pickletools
from collections.abc import Callable
from mmap import mmap
from typing import IO, Any, cast

MOST_STEPS = 2_000_000  # a step makes at most some 200 bytes beside those in the file: 400 MiB
LARGEST_KEY = 1 << 60  # larger integers can be chosen so that they all fall into one place of a dictionary

Known = dict[str, Callable[..., object]]  # full name in a pickle -> what makes plain data of its arguments

# fmt: off
LITERALS = frozenset((
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
))
# fmt: on
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
CONTAINERS: dict[str, Callable[[], object]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Refusal(ValueError):
    """Why a file is not read; goes on after its name: 'names os.system, ...'."""


class Restorable:
    """An object whose content a pickle gives after the object."""

    def set_state(self, state: object) -> None:
        raise NotImplementedError


class Name:
    """A function or class that a pickle names and the table knows."""

    def __init__(self, full: str, make: Callable[..., object]) -> None:
        self.full, self.make = full, make


class PickleReader:
    """Reads one pickle.

    Args:
        known: every name that is not refused.
        persistent: for pickles that refer to data beside them: persistent id -> what it stands for.
    """

    def __init__(self, known: Known, persistent: Callable[[object], object] | None = None) -> None:
        self.known, self.persistent = known, persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, object] = {}

    def read(self, file: IO[bytes] | mmap) -> Any:
        """The object in the file, which is left where the pickle ends.

        Args:
            file: in memory or mapped, so that a length that is not there is not made room for.

        Raises:
            Refusal: an unknown name, another machine's opcode, damage, or far too many steps.
        """
        try:
            for step, (opcode, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], file))):
                if step == MOST_STEPS:
                    raise Refusal(f"has more than {MOST_STEPS:,} steps; no network has")
                if opcode.name == "STOP":
                    return self.stack.pop()
                self._step(opcode.name, argument)
        except Refusal:
            raise
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError, MemoryError):
            raise Refusal("is damaged, cut short, or no pickle at all") from None
        raise Refusal("is cut short")

    def _step(self, opcode: str, argument: Any) -> None:
        if opcode in LITERALS:
            self.stack.append(argument)
        elif opcode in CONSTANTS:
            self.stack.append(CONSTANTS[opcode])
        elif opcode in CONTAINERS:
            self.stack.append(CONTAINERS[opcode]())
        elif opcode in TUPLES:
            self.stack[-TUPLES[opcode] :] = [self._last(TUPLES[opcode])]
        elif opcode in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self.memo[argument])
        elif opcode in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[argument] = self.stack[-1]
        elif opcode in OPERATIONS:
            OPERATIONS[opcode](self, argument)
        elif opcode not in ("PROTO", "FRAME"):
            raise Refusal(f"uses the pickle opcode {opcode}, which such files have no use for")

    def _last(self, count: int) -> tuple[Any, ...]:
        if len(self.stack) < count:
            raise IndexError
        return tuple(self.stack[-count:])

    def _since_mark(self) -> list[Any]:
        """Take what lies on the stack above the last mark."""
        height = self.marks.pop()
        items = self.stack[height:]
        del self.stack[height:]
        return items

    def _mark(self, _: object) -> None:
        self.marks.append(len(self.stack))

    def _pop(self, _: object) -> None:
        self.stack.pop()

    def _pop_mark(self, _: object) -> None:
        self._since_mark()

    def _memoize(self, _: object) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _tuple(self, _: object) -> None:
        self.stack.append(tuple(self._since_mark()))

    def _list(self, _: object) -> None:
        self.stack.append(self._since_mark())

    def _frozenset(self, _: object) -> None:
        self.stack.append({key_of(item) for item in self._since_mark()})

    def _dict(self, _: object) -> None:
        items = self._since_mark()
        self.stack.append({})
        self._fill(items)

    def _append(self, _: object) -> None:
        item = self.stack.pop()
        self._top(list).append(item)

    def _appends(self, _: object) -> None:
        items = self._since_mark()
        self._top(list).extend(items)

    def _setitem(self, _: object) -> None:
        pair = self._last(2)
        del self.stack[-2:]
        self._fill(list(pair))

    def _setitems(self, _: object) -> None:
        self._fill(self._since_mark())

    def _additems(self, _: object) -> None:
        items = self._since_mark()
        self._top(set).update(key_of(item) for item in items)

    def _fill(self, items: list[Any]) -> None:
        """Put key, value, key, value, ... into the dictionary on top."""
        into = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            into[key_of(key)] = value

    def _top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise TypeError
        return self.stack[-1]

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._push_name(module, name)

    def _stack_global(self, _: object) -> None:
        module, name = self._last(2)
        del self.stack[-2:]
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError
        self._push_name(module, name)

    def _push_name(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        if full not in self.known:
            raise Refusal(f"names {quoted(full)}, which is not among what such files need and could execute anything")
        self.stack.append(Name(full, self.known[full]))

    def _call(self, _: object) -> None:
        name, arguments = self._last(2)
        del self.stack[-2:]
        if not isinstance(name, Name) or not isinstance(arguments, tuple):
            raise TypeError
        self.stack.append(name.make(*arguments))

    def _build(self, _: object) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Restorable):
            self.stack[-1].set_state(state)
        elif not isinstance(self.stack[-1], dict):  # attributes of a dictionary, such as _metadata, are left out
            raise TypeError

    def _persistent_id(self, _: object) -> None:
        if self.persistent is None:
            raise Refusal("refers to data beside it, which is not there")
        self.stack.append(self.persistent(self.stack.pop()))


OPERATIONS: dict[str, Callable[[PickleReader, Any], None]] = {
    "MARK": PickleReader._mark,
    "POP": PickleReader._pop,
    "POP_MARK": PickleReader._pop_mark,
    "MEMOIZE": PickleReader._memoize,
    "TUPLE": PickleReader._tuple,
    "LIST": PickleReader._list,
    "DICT": PickleReader._dict,
    "FROZENSET": PickleReader._frozenset,
    "APPEND": PickleReader._append,
    "APPENDS": PickleReader._appends,
    "SETITEM": PickleReader._setitem,
    "SETITEMS": PickleReader._setitems,
    "ADDITEMS": PickleReader._additems,
    "GLOBAL": PickleReader._global,
    "STACK_GLOBAL": PickleReader._stack_global,
    "REDUCE": PickleReader._call,
    "NEWOBJ": PickleReader._call,
    "BUILD": PickleReader._build,
    "BINPERSID": PickleReader._persistent_id,
}


def key_of(value: Any) -> Any:
    """A key of a dictionary or member of a set: text, bytes, None or a number; nothing whose hash could be costly."""
    if isinstance(value, int) and abs(value) >= LARGEST_KEY:
        raise TypeError
    if not isinstance(value, str | bytes | int | None):
        raise TypeError
    return value


def quoted(text: str) -> str:
    """Text out of a foreign file, fit to be printed."""
    return repr(text if len(text) <= 80 else text[:80] + "...")[1:-1]
