"""The first files of Kafka's log directory.

For: writing what `kafka.tools.StorageTool format` writes, without a Java process, which would take half a second. Not
for: Kafka's settings and its start (process.py).

features.checkpoint has the versions of Kafka's features, such as its metadata. The tool of the pinned Kafka has written
this file, which is the same for all clusters, apart from its times. tests/kafka/test_embedded.py compares the two.
"""

from __future__ import annotations

import base64
import os
import shutil
from importlib import resources
from pathlib import Path
from typing import Final

from broker.errors import ConfigurationError

# The same node id as in process.py.
_META: Final = "version=1\nnode.id=1\ncluster.id={cluster_id}\ndirectory.id={directory_id}\n"
CHECKPOINT: Final = "__cluster_metadata-0/00000000000000000000-0000000000.checkpoint"


def format_directory(path: Path) -> bool:
    """Create Kafka's log directory if there is none, for a new cluster. Return whether there was none. The directory
    gets its final name when all its files are on disk.

    Raises ConfigurationError if the files can't be written, for example because the disk is full.
    """
    if path.exists():
        return False
    staging = path.with_name(f"{path.name}.new")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        checkpoint = staging / CHECKPOINT
        checkpoint.parent.mkdir(parents=True)
        checkpoint.write_bytes(resources.files("broker.kafka.embedded").joinpath("features.checkpoint").read_bytes())
        meta = _META.format(cluster_id=_new_id(), directory_id=_new_id())
        (staging / "meta.properties").write_text(meta, encoding="ascii")
        for written in (*staging.rglob("*"), staging):
            _sync(written)
        staging.rename(path)
        _sync(path.parent)
    except OSError as error:
        raise ConfigurationError(
            f"the directory {path} for the embedded Kafka can't be created: {error}; free some space on the disk, or "
            "choose another directory with --data-dir"
        ) from error
    return True


def _new_id() -> str:
    """Return a random id as Kafka writes one: 16 bytes as URL-safe base64 without padding."""
    # The id begins with a letter, because Kafka's tools would take an id that begins with `-` for an option.
    return "E" + base64.urlsafe_b64encode(os.urandom(16)).decode()[1:22]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
