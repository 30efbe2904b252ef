"""The 24 words that a person keeps, and the root secret that they stand for.

Words are BIP-39, English: 256 bits of root and 8 bits of checksum, 11 bits a word. Case, line
breaks and extra blanks do not matter. The root is used only to derive keys (`derive`); BIP-39's own
way of stretching words into a seed is not used, because the root already has 256 random bits.

Fingerprint words let two people compare a key aloud: the first 55 bits of BLAKE3 of the key, in the
same list of words. They are no secret.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import cache

from blake3 import blake3
from mnemonic import Mnemonic

from p2pstore.errors import UsageError
from p2pstore.ids import PublicKey

ROOT_SIZE = 32
WORD_COUNT = 24
MAX_TEXT = 1000  # 24 words of 8 letters, numbers and blanks around them, several times over
FINGERPRINT_WORDS = 5  # 55 bits: nobody makes a key with the same words within an invitation's life
FINGERPRINT_CONTEXT = "p2pstore 2026 fingerprint"


@cache
def _list() -> tuple[str, ...]:
    return tuple(Mnemonic("english").wordlist)


@cache
def _places() -> dict[str, int]:
    return {word: place for place, word in enumerate(_list())}


def new_root(random: bytes) -> bytes:
    """A new group's root from 32 random bytes of the caller's."""
    if len(random) != ROOT_SIZE:
        raise ValueError(f"a root is made of {ROOT_SIZE} random bytes, got {len(random)}")
    return blake3(random, derive_key_context="p2pstore 2026 root").digest()


def words_of(root: bytes) -> str:
    """The 24 words, one blank between them."""
    if len(root) != ROOT_SIZE:
        raise ValueError(f"a root has {ROOT_SIZE} bytes, got {len(root)}")
    return str(Mnemonic("english").to_mnemonic(root))


def root_of(words: str) -> bytes:
    """The root that 24 words stand for; UsageError says which word is wrong or how many miss.

    Numbers of a list (`1.`, `2)`) between the words are ignored: people copy them along.
    """
    given = _split(words)
    for place, word in enumerate(given, start=1):
        if word not in _places():
            raise UsageError(_wrong_word(place, word))
    if len(given) != WORD_COUNT:
        count = f"only {len(given)}" if len(given) < WORD_COUNT else str(len(given))
        raise UsageError(f"{WORD_COUNT} words are needed, there are {count}.")
    try:
        return bytes(Mnemonic("english").to_entropy(given))
    except ValueError as exc:
        raise UsageError(
            f"Each of the {WORD_COUNT} words exists, but they do not belong together: "
            "one of them is wrong, or two are swapped."
        ) from exc


def amend(words: str, is_right: Callable[[bytes], bool]) -> str | None:
    """What is wrong with words that `root_of` refused, or that are those of another group.

    Tries each word replaced, any two swapped, and, of 23, one put in anywhere; `is_right` says
    whether a root is the one that is looked for. One sentence, or None when no single mistake
    explains it. Takes about a tenth of a second: of the 50,000 trials the checksum leaves 200.
    """
    given = _split(words)
    if any(word not in _places() for word in given):
        return None
    places = [_places()[word] for word in given]
    for sentence, trial in _trials(places):
        root = _entropy(trial)
        if root is not None and is_right(root):
            return sentence
    return None


def _trials(places: Sequence[int]) -> Iterator[tuple[str, list[int]]]:
    known = _list()
    if len(places) == WORD_COUNT:
        for a, b in itertools.combinations(range(WORD_COUNT), 2):
            trial = list(places)
            trial[a], trial[b] = trial[b], trial[a]
            yield f"Words {a + 1} and {b + 1} are swapped.", trial
        for at, word in itertools.product(range(WORD_COUNT), range(len(known))):
            trial = [*places[:at], word, *places[at + 1 :]]
            yield f"Word {at + 1}, {known[places[at]]!r}, must be {known[word]!r}.", trial
    elif len(places) == WORD_COUNT - 1:
        for at, word in itertools.product(range(WORD_COUNT), range(len(known))):
            yield f"Word {at + 1} is missing: {known[word]!r}.", [*places[:at], word, *places[at:]]


def _entropy(places: Sequence[int]) -> bytes | None:
    """The root of 24 places in the list; None when the checksum says no."""
    number = 0
    for place in places:
        number = number << 11 | place
    root = (number >> 8).to_bytes(ROOT_SIZE, "big")
    return root if hashlib.sha256(root).digest()[0] == number & 0xFF else None


def _split(words: str) -> list[str]:
    if len(words) > MAX_TEXT:
        raise UsageError(f"That is too long; {WORD_COUNT} words are needed.")
    text = unicodedata.normalize("NFKD", words).lower()
    return [word for word in re.split(r"[\s,;]+", text) if word and not _is_number(word)]


def _is_number(word: str) -> bool:
    return re.fullmatch(r"\d{1,2}[.):]?", word) is not None


def _wrong_word(place: int, word: str) -> str:
    shown = word if len(word) <= 20 else word[:20] + "..."
    near = difflib.get_close_matches(word, _list(), n=3, cutoff=0.7)
    # The first four letters tell all words of the list apart: they count for more than likeness.
    same_start = [known for known in _list() if len(word) >= 4 and known.startswith(word[:4])]
    near = same_start or near
    hint = f" Perhaps: {' or '.join(near)}." if near else ""
    return f"Word {place}, {shown!r}, is not in the list of words.{hint}"


def fingerprint(key: PublicKey) -> str:
    """Words for two people to compare aloud, for one public key."""
    digest = blake3(key, derive_key_context=FINGERPRINT_CONTEXT).digest(length=8)
    bits = int.from_bytes(digest, "big") >> (64 - 11 * FINGERPRINT_WORDS)
    places = [(bits >> (11 * place)) & 2047 for place in reversed(range(FINGERPRINT_WORDS))]
    return " ".join(_list()[place] for place in places)
