"A video may not be a list of other files."
# ruff: noqa: F811 (fixtures are imported, and arguments bear their names)
import socket

import pytest
from hostile import armed, root # noqa: F401

from cjm_yolox_pytorch.files.video import read_video

PLAYLISTS = [
    '#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1,\n{}/a.ts\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n',
    '#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}/a.ts\n#EXT-X-ENDLIST\n',
    '#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{}/a.m3u8\n', "ffconcat version 1.0\nfile '{}/a.mp4'\n"]


@pytest.mark.parametrize('playlist', PLAYLISTS)
@pytest.mark.parametrize('suffix', ['mp4', 'm3u8'])
def test_playlists_disguised_as_videos(playlist, suffix, root, monkeypatch):
    "What they name is not fetched, whatever FFmpeg does of its own accord"
    av = pytest.importorskip('av')
    opened, real = [], av.open
    monkeypatch.setattr(av, 'open', lambda *args, **kwargs: opened.append(kwargs) or real(*args, **kwargs))
    with socket.create_server(('127.0.0.1', 0)) as server:
        server.setblocking(False)
        address = f'http://127.0.0.1:{server.getsockname()[1]}'
        (root/f'a.{suffix}').write_text(playlist.format(address, secret=root.parent/'secret'))
        with pytest.raises((OSError, ValueError)) as refused: list(read_video(root/f'a.{suffix}'))
        with pytest.raises(BlockingIOError): server.accept()
    assert isinstance(refused.value, av.error.FFmpegError) and 'refused' not in str(refused.value).lower()
    assert opened == [dict(options=dict(protocol_whitelist='file'))]
