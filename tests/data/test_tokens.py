"""The token cache: atomic, checked, bounded."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from tunesmith.data.render import RenderedRows
from tunesmith.data.tokens import TableWriter, discard, evict, open_table


def rendered(lengths: list[int], *, start: int = 0) -> RenderedRows:
    count = sum(lengths)
    sizes = np.array(lengths, np.uint32)
    return RenderedRows(
        tokens=np.arange(start, start + count, dtype=np.uint32),
        lengths=sizes,
        targets=sizes - 1,
        cut_starts=np.ones(len(lengths), np.uint32),
        cut_lengths=np.ones(len(lengths), np.uint32),
    )


def write(root: Path, key: str, *, rows: int = 3) -> None:
    with TableWriter(root, key) as writer:
        writer.append(rendered([2, 3]), lines=[1, 2], hashes=[bytes([1] * 16), bytes([2] * 16)])
        writer.append(rendered([4] * rows, start=5), lines=range(3, 3 + rows), hashes=[bytes([9] * 16)] * rows)
        writer.commit({"note": "kept"})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path, "a")
    table = open_table(tmp_path, "a")
    assert table is not None and len(table) == 5 and table.facts == {"note": "kept"}
    assert [table.stored_row(i).tolist() for i in range(3)] == [[0, 1], [2, 3, 4], [5, 6, 7, 8]]
    assert table.index["line"].tolist() == [1, 2, 3, 4, 5]
    assert table.index["hash"][1].tolist() == [0x0202020202020202] * 2
    assert not table.stored_row(0).flags.writeable


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc, which is Linux's"
)
def test_reading_rows_does_not_keep_the_file_in_memory(tmp_path: Path) -> None:
    rows, length = 200, 100_000  # 80 MB
    with TableWriter(tmp_path, "large") as writer:
        for number in range(rows):
            writer.append(rendered([length]), lines=[number + 1], hashes=[bytes(16)])
        writer.commit({})
    table = open_table(tmp_path, "large")
    assert table is not None
    before = resident_bytes()
    for number in range(rows):
        assert len(table.stored_row(number)) == length
    assert resident_bytes() - before < 20_000_000


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_nothing_stays_of_a_build_that_fails(tmp_path: Path) -> None:
    def fail() -> None:
        with TableWriter(tmp_path, "a") as writer:
            writer.append(rendered([2]), lines=[1], hashes=[bytes(16)])
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert list(tmp_path.iterdir()) == []
    assert open_table(tmp_path, "a") is None


def test_two_builders_of_one_cache_both_end_well(tmp_path: Path) -> None:
    barrier = threading.Barrier(2)

    def build() -> None:
        with TableWriter(tmp_path, "a") as writer:
            writer.append(rendered([2]), lines=[1], hashes=[bytes(16)])
            barrier.wait()
            writer.commit({})

    threads = [threading.Thread(target=build) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert open_table(tmp_path, "a") is not None


@pytest.mark.parametrize("name", ["tokens.bin", "index.bin", "meta.json"])
def test_one_changed_byte_is_found(tmp_path: Path, name: str) -> None:
    write(tmp_path, "a")
    content = bytearray((tmp_path / "a" / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "a" / name).write_bytes(bytes(content))
    if name == "meta.json":  # a changed fact is no damage to the tokens; a changed count or checksum is
        (tmp_path / "a" / name).write_bytes(b'{"format": 1}')
    with pytest.raises(ValueError):
        open_table(tmp_path, "a")
    discard(tmp_path, "a")
    assert list(tmp_path.iterdir()) == []


def test_caches_used_longest_ago_go_first_and_the_new_one_stays(tmp_path: Path) -> None:
    for age, key in enumerate(("new", "middle", "old")):
        write(tmp_path, key)
        os.utime(tmp_path / key / "meta.json", (1_000_000 - age, 1_000_000 - age))
    size = sum(file.stat().st_size for file in (tmp_path / "new").iterdir())
    assert evict(tmp_path, keep=tmp_path / "old", limit_bytes=2 * size) == ["middle"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]
    assert evict(tmp_path, keep=tmp_path / "old", limit_bytes=0) == ["new"]


def test_opening_makes_a_cache_young(tmp_path: Path) -> None:
    write(tmp_path, "a")
    os.utime(tmp_path / "a" / "meta.json", (1, 1))
    open_table(tmp_path, "a")
    assert (tmp_path / "a" / "meta.json").stat().st_mtime > 1_000_000
