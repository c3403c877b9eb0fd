"""Content maps in any number, made from the sample project's, at the sizes of real ones."""

from __future__ import annotations

import json
import random
from pathlib import Path

SAMPLES = Path(__file__).parents[1] / ".nimbus" / "maps"
#: Bytes of real pages' maps; the middle is where most of them are.
SMALLEST, MIDDLE, LARGEST = 10_000, 40_000, 100_000
_FILES_A_FOLDER = 1000


def make_maps(folder: Path, count: int, size: int | None = None, seed: int = 1) -> int:
    """Write ``count`` maps below ``folder``, the same for the same seed; returns their bytes.

    Each is a sample page under an address of its own, its blocks repeated with other words until
    it has ``size`` bytes, or a size drawn from those of real pages.
    """
    chance = random.Random(seed)
    samples = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(SAMPLES.iterdir())]
    samples = [sample for sample in samples if sample.get("blocks")]
    words = sorted({w for s in samples for w in json.dumps(s["blocks"]).split() if w.isalpha()})
    total = 0
    for number in range(count):
        sample = samples[number % len(samples)]
        wanted = size or int(chance.triangular(SMALLEST, LARGEST, MIDDLE))
        text = json.dumps(_page(sample, number, wanted, chance, words), ensure_ascii=False)
        path = folder / f"{number // _FILES_A_FOLDER:03d}" / f"{number:06d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        total += len(text.encode())
    return total


def _page(
    sample: dict[str, object], number: int, size: int, chance: random.Random, words: list[str]
) -> dict[str, object]:
    blocks = sample["blocks"]
    assert isinstance(blocks, list)
    page = {**sample, "path": f"/pages/{number // _FILES_A_FOLDER:03d}/page-{number:06d}.html"}
    made: list[object] = []
    page["blocks"] = made
    room = size - len(json.dumps(page, ensure_ascii=False))
    while room > 0:
        text = " ".join(chance.choices(words, k=60))
        block = {**blocks[len(made) % len(blocks)], "text": text}
        made.append(block)
        room -= len(json.dumps(block, ensure_ascii=False)) + 2
    return page
