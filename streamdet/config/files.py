"""`[files]`: where `streamdet bridge files` records events, as what, and for how long. The daemon does not read it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from streamdet.config.listening import parse_host_port
from streamdet.config.values import Bytes, Seconds, refuse, table
from streamdet.security.endpoints import is_loopback

FileFormat = Literal["parquet", "jsonl"]
RecordedKind = Literal["detections", "objects", "alerts", "states"]

ACCEPTS_OF_FILES = {
    "formats": 'a list of `"parquet"`, `"jsonl"`',
    "kinds": 'a list of `"detections"`, `"objects"`, `"alerts"`, `"states"`',
}
"""What the keys accept that are neither numbers nor words."""


class FilesConfig(BaseModel):
    """The recording of `streamdet bridge files`; the daemon does not read it. docs/bridges.md has the columns."""

    model_config = table("at a restart")

    directory: str | None = Field(
        None,
        min_length=1,
        description="A directory for the files of this bridge alone, relative to this file; created if it is missing.",
        examples=["/var/lib/streamdet-files"],
    )
    formats: tuple[FileFormat, ...] = Field(
        ("parquet",),
        description='What is written: "parquet", which needs the extra `files`, "jsonl", one JSON object per line, or '
        "both.",
        examples=[["jsonl"]],
    )
    kinds: tuple[RecordedKind, ...] = Field(
        ("detections", "objects", "alerts", "states"),
        description='Which events are recorded: "detections", "objects", "alerts", "states".',
        examples=[["objects", "alerts", "states"]],
    )
    streams: tuple[str, ...] = Field(
        (), description="Only events of these streams; empty for all.", examples=[["yard"]]
    )
    rotate_seconds: Seconds = Field(
        600.0,
        ge=1,
        le=86400,
        description="How often files are finished, which is when readers see them. The daemon's spool must keep events "
        "for longer: after a kill the bridge asks for those again whose file was not finished.",
        examples=["10 min", "1 h"],
    )
    rotate_bytes: Bytes = Field(
        128 * 2**20,
        ge=2**16,
        le=2**36,
        description="Files are also finished when the rows of one of them have this size, before compression.",
        examples=["128 MiB"],
    )
    compression: Literal["auto", "zstd", "gzip", "none"] = Field(
        "auto",
        description='"zstd" (in JSONL files with the extra `files` alone), "gzip", "none", or "auto": zstd in Parquet '
        "files, gzip in JSONL files.",
        examples=["zstd"],
    )
    max_bytes: Bytes = Field(
        10 * 2**30,
        ge=2**20,
        le=2**50,
        description="Size on disk of all finished files at most; the oldest are deleted.",
        examples=["100 GiB"],
    )
    max_age_seconds: Seconds = Field(
        31_536_000.0,
        ge=86400,
        le=315_360_000,
        description="Files that were written earlier, with events of days before that, are deleted.",
        examples=["720 h", "8760 h"],
    )
    metrics_endpoint: str = Field(
        "127.0.0.1:9099",
        description="HOST:PORT of the metrics page of `streamdet bridge files`, on loopback (port 0: any free one).",
        examples=["127.0.0.1:9099"],
    )

    @property
    def needs_pyarrow(self) -> str | None:
        """The setting that needs pyarrow; None where none does."""
        if "parquet" in self.formats:
            return 'formats = ["parquet"]'
        return 'compression = "zstd"' if self.compression == "zstd" else None

    @field_validator("formats", "kinds")
    @classmethod
    def _are_some(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        if not words or len(set(words)) < len(words):
            refuse("must name at least one, and each once")
        return words

    @field_validator("metrics_endpoint")
    @classmethod
    def _is_on_loopback(cls, endpoint: str) -> str:
        if not is_loopback(parse_host_port(endpoint).host):
            refuse("would be open to other machines; use an address of loopback, such as 127.0.0.1:9099")
        return endpoint

    @model_validator(mode="after")
    def _holds_a_file(self) -> Self:
        if self.max_bytes < 4 * self.rotate_bytes:
            refuse(f"max_bytes must be at least four times rotate_bytes = {self.rotate_bytes}; raise it, or lower that")
        return self
