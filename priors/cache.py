"""Tokens on disk, so that the same frame is never encoded twice.

An entry is one frame: its name is the hash of the encoder's fingerprint and of the preprocessed
    pixels,
so neither a file name nor a time stamp can make it stale, and two clips that share frames share
entries. The clip time u is no part of the key: tokens do not depend on it. Values are kept in the
precision they were computed in, with a checksum of their bytes, because safetensors has none.

A cache may fail without harm. An entry that is missing, cut short or altered is computed again;
a folder that cannot be written gives one warning. Least recently used entries go first when the
folder outgrows its bound.
"""

import contextlib
import hashlib
import os
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

VARIABLE = "DIFFUSION4D_CACHE"
MAX_BYTES = 1 << 30


def default_folder() -> Path | None:
    """`$DIFFUSION4D_CACHE`, else the platform's cache folder; None if the variable says "off"."""
    chosen = os.environ.get(VARIABLE, "")
    if chosen.lower() == "off":
        return None
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local"))
    elif sys.platform == "darwin":
        base = Path("~/Library/Caches")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return base.expanduser() / "diffusion4d"


class FeatureCache:
    """Token arrays in a folder, bounded in size, oldest use first to go.

    Args:
        folder: made when the first entry is written.
        max_bytes: bound on the entries together, 1 GiB by default; enforced after each `put`.

    Raises:
        ValueError: `max_bytes` is negative.
    """

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> None:
        if max_bytes < 0:
            raise ValueError(f"need max_bytes >= 0, got {max_bytes}")
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self._warned = False

    @classmethod
    def default(cls) -> "FeatureCache | None":
        """The user's cache, in `default_folder()/tokens`; None where it is switched off."""
        folder = default_folder()
        return None if folder is None else cls(folder / "tokens")

    @staticmethod
    def key(fingerprint: str, pixels: Float[Tensor, "3 H W"]) -> str:
        """The name of the entry for one frame's preprocessed pixels."""
        content = hashlib.sha256(f"{fingerprint} {pixels.dtype} {tuple(pixels.shape)} ".encode())
        content.update(_bytes(pixels))
        return content.hexdigest()

    def get(self, key: str) -> Float[Tensor, "L C"] | None:
        """The tokens [L, C] under `key`, or None where there are none that can be trusted."""
        from safetensors import SafetensorError, safe_open

        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as entry:
                checksum = (entry.metadata() or {}).get("sha256")
                tokens = entry.get_tensor("tokens")
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError):
            tokens, checksum = None, None
        if tokens is None or hashlib.sha256(_bytes(tokens)).hexdigest() != checksum:
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        # The time of last use; a read-only cache still serves.
        with contextlib.suppress(OSError):
            os.utime(path)
        return tokens

    def put(self, entries: Mapping[str, Float[Tensor, "L C"]]) -> None:
        """Write entries, each whole or not at all, then drop the oldest beyond the bound."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for key, tokens in entries.items():
                self._write(key, tokens)
            self._prune()
        except OSError as error:
            if not self._warned:
                warnings.warn(f"tokens are not cached in {self.folder}: {error}", stacklevel=2)
            self._warned = True

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _write(self, key: str, tokens: Tensor) -> None:
        from safetensors.torch import save

        tokens = tokens.detach().cpu().contiguous()
        checksum = hashlib.sha256(_bytes(tokens)).hexdigest()
        handle, name = tempfile.mkstemp(prefix=".writing-", dir=self.folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(save({"tokens": tokens}, metadata={"sha256": checksum}))
            Path(name).replace(self._path(key))
        finally:
            Path(name).unlink(missing_ok=True)

    def _prune(self) -> None:
        entries = []
        for path in self.folder.glob("*.safetensors"):
            # Another process may prune at the same time.
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                entries.append((stat.st_mtime_ns, stat.st_size, path))
        excess = sum(size for _, size, _ in entries) - self.max_bytes
        for _, size, path in sorted(entries):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= size


def _bytes(values: Tensor) -> memoryview:
    # Bytes of any dtype: numpy has no bfloat16. A scalar view of the flat array is enough to hash.
    flat = values.detach().cpu().contiguous().flatten().view(torch.uint8)
    return flat.numpy().data
