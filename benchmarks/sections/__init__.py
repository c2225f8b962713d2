"""The sections of the report, first to last."""

from __future__ import annotations

from benchmarks.bench import Section
from benchmarks.sections import (
    blocks,
    compare,
    durability,
    growth,
    natural,
    scaling,
    sweepers,
)

SECTIONS: tuple[Section, ...] = (
    compare.SECTION,
    growth.SECTION,
    blocks.SECTION,
    durability.SECTION,
    sweepers.SECTION,
    natural.SECTION,
    scaling.SECTION,
)
