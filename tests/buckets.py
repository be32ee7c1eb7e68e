"""A bucket of the S3 kind, seen by another library."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Bucket:
    """A bucket, and a client of another library that looks at it."""

    name: str
    client: Any

    def __str__(self) -> str:
        return f"s3://{self.name}"

    def objects(self, folder: str = "") -> dict[str, bytes]:
        """All objects below a folder, by their names counted from it."""
        found = self.client.list_objects_v2(Bucket=self.name, Prefix=f"{folder}/" if folder else "").get("Contents", [])
        return {
            each["Key"][len(folder) + bool(folder) :]: self.client.get_object(Bucket=self.name, Key=each["Key"])[
                "Body"
            ].read()
            for each in found
        }

    def uploads(self) -> list[str]:
        """The keys of the multipart uploads that are neither completed nor aborted."""
        return [each["Key"] for each in self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", [])]

    def put(self, key: str, data: bytes) -> None:
        """Put an object there."""
        self.client.put_object(Bucket=self.name, Key=key, Body=data)

    def copy_in(self, folder: Path, key: str) -> None:
        """Put a folder of a disk there."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(f"{key}/{path.relative_to(folder).as_posix()}", path.read_bytes())
