"""What `streamdet run` makes of the streams on its command line, before it starts a daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamdet.cli.run import _check_files, _config_of
from streamdet.cli.sources import read_sources
from streamdet.errors import ConfigError


@pytest.mark.parametrize("as_url", [False, True], ids=["path", "url"])
def test_a_file_is_read_to_its_end_and_opened_first_however_it_is_named(tmp_path: Path, *, as_url: bool) -> None:
    broken = tmp_path / "My Clip.mp4"
    broken.write_bytes(b"not a video")
    (given,) = read_sources([f"clip={broken.as_uri() if as_url else broken}"])
    config, ends = _config_of([given._asdict()], {})
    assert (config.streams[0].pace, ends) == ("fastest", True)
    with pytest.raises(ConfigError, match="clip: cannot be read: "):
        _check_files(config)
