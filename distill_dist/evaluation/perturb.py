"""The same row with a few of its tokens gone, or replaced by others: what a behaviour must be consistent on.

A pure function of (seed, the row's own tokens): the same for every model, batch, rank and order. A larger rate touches
the tokens of a smaller one and more, and both kinds touch the same ones.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Bools = NDArray[np.bool_]
Chances = NDArray[np.float64]
Kind = Literal["delete", "replace"]
KINDS: tuple[Kind, ...] = ("delete", "replace")


@dataclass(frozen=True)
class Perturbation:
    """``rate`` is the share of tokens touched, on average; tokens of ``special`` (sorted) never are.

    `delete` leaves at least one token between two special ones, so that no text vanishes; `replace` draws uniformly
    from ``words`` (sorted), which may be the token that stood there.
    """

    kind: Kind
    rate: float
    seed: int
    special: Integers
    words: Integers

    def __call__(self, input_ids_L: Integers, token_type_ids_L: Integers) -> tuple[Integers, Integers]:
        """(ids, types) of the perturbed row; a row of special tokens alone comes back as it is."""
        ordinary_L = ~np.isin(input_ids_L, self.special)
        chance_L, pick_L = _draws(self.seed, input_ids_L, token_type_ids_L)
        touched_L = ordinary_L & (chance_L < self.rate)
        if self.kind == "replace":
            drawn_L = self.words[pick_L % np.uint64(len(self.words))]
            return np.where(touched_L, drawn_L, input_ids_L), token_type_ids_L
        kept_L = ~touched_L | _last_of_its_text(touched_L, ordinary_L, chance_L)
        return input_ids_L[kept_L], token_type_ids_L[kept_L]


def _last_of_its_text(touched_L: Bools, ordinary_L: Bools, chance_L: Chances) -> Bools:
    """Where all tokens between two special ones are touched, the one that would have been the last to go."""
    text_L = np.cumsum(~ordinary_L)
    found_L = np.zeros(len(touched_L), dtype=bool)
    for text in np.unique(text_L[ordinary_L]):
        places = np.flatnonzero(ordinary_L & (text_L == text))
        if touched_L[places].all():
            found_L[places[np.argmax(chance_L[places])]] = True
    return found_L


def _draws(seed: int, ids_L: Integers, types_L: Integers) -> tuple[Chances, NDArray[np.uint64]]:
    """(uniform in [0, 1), 64 random bits) for every token."""
    content = hashlib.blake2b(struct.pack("<QI", seed, len(ids_L)), digest_size=16)
    content.update(ids_L.astype("<i4").tobytes())
    content.update(types_L.astype("<i4").tobytes())
    # raw words of a bit generator are the same in every version of numpy; what its distributions draw is not
    words = np.random.Philox(key=np.frombuffer(content.digest(), dtype="<u8")).random_raw(2 * len(ids_L))
    first, second = words[: len(ids_L)], words[len(ids_L) :]
    chance_L: Chances = (first >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return chance_L, second
