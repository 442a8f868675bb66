"Videos: errors, and PyAV missing."
import sys

import pytest
from PIL import Image

from cjm_yolox_pytorch.files.video import VideoWriter, read_video


def test_end_of_a_video_does_not_hide_what_was_wrong_with_it(tmp_path):
    pytest.importorskip('av')
    writer = VideoWriter(tmp_path/'a.mp4')
    writer.add(Image.new('RGB', (64, 48)), 0)
    with pytest.raises(ValueError, match='NaN'): writer.add(Image.new('RGB', (64, 48)), float('nan'))
    writer.close()
    assert not [*tmp_path.iterdir()]


def test_video_has_its_name_once_it_is_whole(tmp_path):
    pytest.importorskip('av')
    writer = VideoWriter(tmp_path/'a.mp4')
    for n in range(99): writer.add(Image.new('RGB', (64, 48)), n/30) # Enough for FFmpeg to begin the file
    assert [p.name for p in tmp_path.iterdir()] == ['a.mp4.partial']
    writer.close()
    assert [p.name for p in tmp_path.iterdir()] == ['a.mp4']


def test_video_does_not_change_its_size(tmp_path):
    pytest.importorskip('av')
    writer = VideoWriter(tmp_path/'a.mp4')
    writer.add(Image.new('RGB', (65, 48)), 0)
    with pytest.raises(ValueError, match='64x48 pixels in a video of 65x48'): writer.add(Image.new('RGB', (64, 48)), 1)


def test_missing_pyav_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'av', None)
    with pytest.raises(ImportError, match="pip install 'cjm-yolox-pytorch.video.'"): next(read_video(tmp_path/'a.mp4'))
