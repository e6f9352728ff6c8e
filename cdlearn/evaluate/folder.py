"""A run folder: every answer a line of a file, so that a killed evaluation goes on where it stopped."""

from __future__ import annotations

import json
import os
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

from cdlearn.checks import is_int

Key = tuple[str, str, int]  # task, strategy, item
_key = itemgetter("task", "strategy", "item")


class Records(dict[Key, dict[str, Any]]):
    """Answers by (task, strategy, item). Each is a dict that JSON can hold, with these three inside.

    folder: None keeps them in memory. Otherwise a folder, made where it is missing, with settings.json, and
    answers.jsonl with a line for every answer, flushed at once. settings: what an answer depends on; a folder that was
    begun with others raises ValueError. A last line that was torn by a kill is cut off; another line that holds no
    answer stays and counts for nothing, `odd` has its number. Their answers will be asked for again. A second process
    in the same folder raises ValueError (where the system can lock files). Used as a context, which closes the file.
    """

    def __init__(self, folder: str | Path | None = None, settings: dict[str, Any] | None = None) -> None:
        super().__init__()
        self._file: BinaryIO | None = None
        self.odd: list[int] = []
        if folder is not None:
            folder = Path(folder)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._file = open(folder / "answers.jsonl", "a+b")  # at its end
            except OSError as error:
                raise type(error)(f"--out {folder}: {error.strerror}; give a folder that can be written.") from None
            try:
                _lock(self._file, folder)
                _check(folder, settings or {}, begun=self._file.tell() > 0)
                self._read(self._file)
            except BaseException:
                self._file.close()
                raise

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, record: dict[str, Any]) -> None:
        """Keep a record; one whose key is known already changes nothing."""
        if self._file is not None and _key(record) not in self:
            self._file.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            self._file.flush()
        self.setdefault(_key(record), record)

    def _read(self, file: BinaryIO) -> None:
        file.seek(0)
        whole = 0
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break  # torn: the process was killed while it wrote
            try:
                record = json.loads(line)
                (task, strategy, item), answer = _key(record), record["answer"]
                # a text has its token ids, multiple choice a score for each choice
                numbers, kinds = (record["token_ids"], {int}) if isinstance(answer, str) else (answer, {int, float})
                if not isinstance(task + strategy, str) or not is_int(item) or {*map(type, numbers)} - kinds:
                    raise TypeError
                self.setdefault(_key(record), record)
            except (ValueError, KeyError, TypeError, RecursionError):
                self.odd.append(number)
            whole += len(line)
        file.truncate(whole)
        file.seek(0, os.SEEK_END)


def _check(folder: Path, settings: dict[str, Any], *, begun: bool) -> None:
    """Bind a folder without an answer to its settings; refuse others than those that an old one was begun with."""
    path = folder / "settings.json"
    if not begun:
        path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    try:
        known = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, OSError):
        raise ValueError(f"--out {folder} holds no settings.json of its answers: give another folder.") from None
    for name in sorted({*known, *settings}):
        if known.get(name) != settings.get(name):
            changed = f"was begun with {name} = {known.get(name)}, and this run has {settings.get(name)}"
            raise ValueError(f"--out {folder} {changed}: give the same settings, or another folder.")


def _lock(file: BinaryIO, folder: Path) -> None:
    """Let only one process write; the system frees the lock when that process ends, however it ends."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"--out {folder} is in use by another process: wait for it, or use another folder.") from None
    except (ImportError, OSError):  # Windows, and file systems without locks
        return
