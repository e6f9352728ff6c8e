"""A run folder: every answer a line of a file, so that a killed evaluation goes on where it stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

Key = tuple[str, str, int, int]  # task, strategy, run, item


class Records(dict[Key, dict[str, Any]]):
    """Answers by (task, strategy, run, item), in memory. Each is a dict that JSON can hold, with these four inside."""

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *error: Any) -> None:
        """Nothing to close."""

    def add(self, record: dict[str, Any]) -> None:
        """Keep a record; one whose key is known already changes nothing."""
        self.setdefault(_key(record), record)


class RunFolder(Records):
    """The same in a folder: settings.json, and answers.jsonl with a line for every answer, flushed at once.

    folder: made where it is missing. settings: what an answer depends on; a folder that was begun with others raises
    ValueError. A last line that was torn by a kill is cut off, its answer will be asked for again; a broken line before
    the last raises ValueError. A second process in the same folder raises ValueError (where the system can lock files).
    Used as a context, which closes the file.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any]) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = open(self.folder / "answers.jsonl", "a+b")
        try:
            _lock(self._file, self.folder)
            self._check(json.loads(json.dumps(settings)))
            self._read()
        except BaseException:
            self._file.close()
            raise

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def add(self, record: dict[str, Any]) -> None:
        if _key(record) not in self:
            self._file.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            self._file.flush()
        super().add(record)

    def _check(self, settings: dict[str, Any]) -> None:
        path = self.folder / "settings.json"
        if not path.exists():
            if self._file.tell():
                raise ValueError(f"--out {self.folder} holds answers but no settings.json: use another folder.")
            # written beside and renamed: a kill leaves the whole file or none
            beside = path.with_suffix(".part")
            beside.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
            os.replace(beside, path)
        known = json.loads(path.read_text(encoding="utf-8"))
        for name in sorted({*known, *settings}):
            before, now = known.get(name), settings.get(name)
            if before != now:
                begun = f"--out {self.folder} was begun with {name} = {before}, and this run has {now}"
                raise ValueError(f"{begun}: give the same settings, or another folder.")

    def _read(self) -> None:
        self._file.seek(0)
        whole = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break  # torn: the process was killed while it wrote
            try:
                super().add(json.loads(line))
            except (ValueError, KeyError, TypeError):
                path = self.folder / "answers.jsonl"
                raise ValueError(f"{path}, line {number}, is not an answer: delete this line, or the file.") from None
            whole += len(line)
        self._file.truncate(whole)
        self._file.seek(0, os.SEEK_END)


def _key(record: dict[str, Any]) -> Key:
    return record["task"], record["strategy"], record["run"], record["item"]


def _lock(file: BinaryIO, folder: Path) -> None:
    """Let only one process write; the system frees the lock when that process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"--out {folder} is in use by another process: wait for it, or use another folder.") from None
    except OSError:  # a file system without locks
        return
