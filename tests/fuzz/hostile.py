"""Hostile input from a seeded ``random.Random``: bytes, text, names, values, YAML, CSV, folders."""

import json
import math
import os
import socket
from pathlib import Path
from random import Random
from typing import Any

import yaml

TEXTS = [
    *("", " ", "a", "cat", "-1", "nan", "null", "True", "1e400", "9" * 400, "0x10", "٣", "½"),
    *("=cmd|' /C calc'!A0", "@SUM(1)", "a;=1+1", "'=1", '"', '""', "a,b", "a\tb", "a|b"),
    *("<img src=x onerror=alert(1)>", "{{ 7*7 }}", "$\\frac$", "\\input{/etc/passwd}", "%s%n"),
    *("\x1b[31m", "a\nb", "a\r\nb", "\0", "\u202e", "\u2028", "\ufeff", "e\u0301", "\U0001f600"),
    *("../outside/secret.png", "/etc/passwd", "~root/x", "~nobody-here/x", "a/../../b", "."),
    *("..", "C:\\x", "file:///etc/passwd", "http://127.0.0.1:9/x", "x" * 300, "é" * 200),
    *("x" * 5000, "{", "[", "- a", "&a [*a]", "!!python/object:os.system", "a: b", "#", "? "),
]
NUMBERS: list[Any] = [
    *(0, 1, -1, 2, 3, 8, 255, 10**12, 2**31, 2**63, 2**64, 10**400, -(10**400)),
    *(0.5, -0.0, 1e-320, 1e308, math.inf, -math.inf, math.nan, True, False, None),
]
NAMES = [
    *(
        "a.png",
        "b.jpg",
        "train",
        "test",
        "metadata.csv",
        "x.parquet",
        ".hidden",
        "a b.png",
        "=1.png",
    ),
    *("-rf", "a\nb.png", "\x1b[2J.png", "ü.png", "u\u0308.png", "日本.png", "a" * 250, "README.md"),
    *("'.png", '".png', "a,b.png", "$x$.png", "<b>.png", "%s.png", "con", "valid", "dev", "Train"),
]


def text(rng: Random) -> str:
    """A text of the list, two of them, or any characters."""
    kind = rng.randrange(10)
    if kind < 7:
        return rng.choice(TEXTS)
    if kind < 9:
        return rng.choice(TEXTS) + rng.choice(TEXTS)
    return "".join(
        chr(rng.choice([rng.randrange(32, 127), rng.randrange(0xD800)])) for _ in range(9)
    )


def value(rng: Random, depth: int = 3) -> Any:
    """A value as JSON and YAML have it."""
    kind = rng.randrange(10 if depth else 7)
    if kind < 3:
        return text(rng)
    if kind < 7:
        return rng.choice(NUMBERS)
    inner = [value(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind < 9:
        return inner
    return {text(rng): part for part in inner}


def changed(rng: Random, whole: Any) -> Any:
    """A JSON value with one part replaced, left out or wrapped, at any depth."""
    if isinstance(whole, dict) and whole and rng.random() < 0.8:
        key = rng.choice(list(whole))
        rest = {k: v for k, v in whole.items() if k != key}
        kind = rng.randrange(6)
        if kind == 0:
            return rest
        if kind == 1:
            return {**rest, text(rng): whole[key]}
        return {**whole, key: changed(rng, whole[key])}
    if isinstance(whole, list) and whole and rng.random() < 0.7:
        at = rng.randrange(len(whole))
        return [*whole[:at], changed(rng, whole[at]), *whole[at + 1 :]]
    return value(rng)


def json_text(rng: Random, whole: Any) -> bytes:
    """The value as JSON after a change; now and then no JSON, or a tower of brackets."""
    kind = rng.randrange(10)
    if kind == 0:
        return rng.choice([b"", b"{", b"[" * 100_000, b'{"a":' * 5000, b"\xff\xfe", b"null", b"\0"])
    plain = json.dumps(changed(rng, whole) if kind < 8 else whole)
    return damaged(rng, plain.encode()) if kind > 6 else plain.encode()


def damaged(rng: Random, data: bytes) -> bytes:
    """Bytes that a bad copy, or somebody, has changed."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at, kind = rng.randrange(len(data) + 1), rng.randrange(7)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            del data[at : at + rng.choice([1, 4, 100])]
        elif kind == 2:
            data[at:at] = rng.choice(
                [b"\0", b"\xff" * 9, b"\xff" * 40, b"\n", b'"', b"[" * 50, rng.randbytes(8)]
            )
        elif kind == 3 and data:
            begin = rng.randrange(len(data))
            data[at:at] = data[begin : begin + 64]
        elif kind == 4:
            data[at : at + 8] = rng.choice([b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7])
        elif data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def yaml_text(rng: Random, whole: dict[str, Any]) -> bytes:
    """A recipe or a table: a change, strange YAML, or damage."""
    kind = rng.randrange(10)
    if kind == 0:
        odd = [
            b"&a\nx: *a\n",
            b"a: &a [*a]\n",
            b"[" * 5000,
            b"? [a]\n: 1\n",
            b"<<: 5\n",
            b"a: *b\n",
        ]
        odd += [b"a: &a [x]\nb: &b [" + b"*a," * 99 + b"]\nc: [" + b"*b," * 99 + b"]\n"]
        odd += [b"labels: !!python/object/apply:os.system ['touch ../outside/x']\n", b"%YAML 9.9\n"]
        return rng.choice(odd)
    whole = changed(rng, whole)
    try:
        plain = yaml.safe_dump(whole, allow_unicode=rng.random() < 0.5).encode()
    except (yaml.YAMLError, UnicodeEncodeError):
        plain = repr(whole).encode("utf-8", "replace")
    return damaged(rng, plain) if kind > 7 else plain


def csv_bytes(rng: Random, names: list[str]) -> bytes:
    """A table of labels."""
    separator = rng.choice([",", ",", ";", "\t", "|"])
    head = rng.choice(
        [["file", "label"], ["File Name", "class"], ["label", "file", "x"], ["a", "b"]]
    )
    rows = [head if rng.random() < 0.9 else [text(rng), text(rng)]]
    for _ in range(rng.randrange(9)):
        rows.append(
            [rng.choice([*names, text(rng)]), rng.choice(["a", "b", "1", text(rng)]), text(rng)][
                : rng.choice([1, 2, 2, 2, 3])
            ]
        )
    quote = rng.choice(["", '"', '"'])
    lines = [separator.join(f"{quote}{cell}{quote}" for cell in row) for row in rows]
    plain = rng.choice(["\n", "\r\n", "\r"]).join(lines)
    if rng.random() < 0.05:
        plain += f'\n"{"y" * 140_000}",a'
    encoded = plain.encode(
        rng.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32"]), "replace"
    )
    return damaged(rng, encoded) if rng.random() < 0.3 else encoded


def name(rng: Random) -> bytes:
    """The name of a file, as bytes: not always UTF-8."""
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice([b"\xff.png", b"caf\xe9.jpg", b"\x80\x81", b"\xed\xa0\x80.png"])
    return rng.choice(NAMES).encode()[:255]


def odd_entry(rng: Random, folder: Path, at: bytes, content: bytes) -> None:
    """An entry of a folder: a file, a link, a loop, a pipe, a socket, an unreadable folder."""
    path = os.path.join(os.fsencode(folder), at)
    kind = rng.randrange(12)
    try:
        if kind < 5:
            with open(path, "xb") as file:
                file.write(content)
        elif kind == 5:
            os.mkfifo(path)
        elif kind == 6:
            os.symlink(at, path)
        elif kind == 7:
            os.symlink(rng.choice([b".", b"..", b"/dev/zero", b"/dev/tty", b"nowhere"]), path)
        elif kind == 8:
            os.symlink(b"../outside", path)
        elif kind == 9:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)
        else:
            os.mkdir(path)
            for _ in range(rng.randrange(3)):
                odd_entry(rng, Path(os.fsdecode(path)), name(rng), content)
    except OSError:
        pass  # the name is taken, or too long for a socket
