"""Changes valid input: its bytes, words, values or lines."""

import random
import re

TOKENS = [
    b"", b"\0", b"\n", b"\r\n", b"\r", b"\t", b" ", b"=", b'"', b"\\", b",", b"#", b"-", b"--", b"\xef\xbb\xbf",
    b"\xff", b"\0\0", b"y", b"n", b"none", b"all", b"1e999999999", b"1e-999999", b"9" * 5000, b"10" * 200, b"0x10",
    b"1_000",
    b"1e3", b"nan", b"NaN", b"inf", b"-Infinity", b"-0.0", b"-1", b"2.5", b"1e400", b"18446744073709551616", b"null",
    b"true", b"[]", b"{}", b'""', b"[" * 9000, b'{"a":' * 9000, b"\xed\xa0\x80", b"\\ud800", b"\x1b[2J", b"\\u001b[2J",
    b"\\n", b"../../x", b"/", b"a" * 300, b"a" * 200_000,
    *(character.encode() for character in ("٣", "é", "\u202e", "\x85", "\u2028", "𝟙", "ﬀ")),
]  # fmt: skip


def mutated(chance: random.Random, seeds: list[bytes]) -> bytes:
    """One of the seeds, with a few changes of bytes, words, values or lines."""
    data = chance.choice(seeds)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        change = chance.choice((_bit, _token, _token, _value, _value, _cut, _lines, _splice))
        data = change(chance, data, seeds)
    return data


def _place(chance: random.Random, data: bytes) -> int:
    return chance.randint(0, len(data))


def _bit(chance: random.Random, data: bytes, seeds: list[bytes]) -> bytes:
    if not data:
        return data
    place = chance.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]


def _token(chance: random.Random, data: bytes, seeds: list[bytes]) -> bytes:
    place = _place(chance, data)
    return data[:place] + chance.choice(TOKENS) + data[place + chance.choice((0, 0, 1, 4)) :]


def _value(chance: random.Random, data: bytes, seeds: list[bytes]) -> bytes:
    """Replace a value in JSON or after `=` by a token or by another value of the same input."""
    values = list(re.finditer(rb'(?<=[:=,\[])\s*("(?:[^"\\\n]|\\.)*"|[^\s,"{}\[\]\xff]+|[\[{][^\[\]{}]*[\]}])', data))
    if not values:
        return _token(chance, data, seeds)
    old, other = chance.choice(values), chance.choice(values)[0]
    new = chance.choice((other, chance.choice(TOKENS), b'"' + chance.choice(TOKENS) + b'"'))
    return data[: old.start()] + new + data[old.end() :]


def _cut(chance: random.Random, data: bytes, seeds: list[bytes]) -> bytes:
    first, last = sorted((_place(chance, data), _place(chance, data)))
    return chance.choice((data[:first] + data[last:], data[:first], data[first:last]))


def _lines(chance: random.Random, data: bytes, seeds: list[bytes]) -> bytes:
    lines = data.split(b"\n")
    one, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    chance.choice((lambda: lines.insert(one, lines[other]), lambda: lines.pop(one), lambda: chance.shuffle(lines)))()
    return b"\n".join(lines)


def _splice(chance: random.Random, data: bytes, seeds: list[bytes]) -> bytes:
    other = chance.choice(seeds)
    return data[: _place(chance, data)] + other[_place(chance, other) :]
