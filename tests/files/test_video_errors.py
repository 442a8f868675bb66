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


def test_missing_pyav_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'av', None)
    with pytest.raises(ImportError, match="pip install 'cjm-yolox-pytorch.video.'"): next(read_video(tmp_path/'a.mp4'))
