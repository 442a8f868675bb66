"Images of Pillow that are unusual: floats, very large, or smaller once decoded."
import numpy as np
import pytest
import torch
from PIL import Image, features

from cjm_yolox_pytorch.files.images import as_image


@pytest.mark.parametrize('high, shade', [(1, 128), (255, 128), (300, None), (float('nan'), None), (-1, None)])
def test_floats_are_from_0_to_1_or_to_255(high, shade, tmp_path):
    "Otherwise nobody knows what white is"
    Image.fromarray(np.array([[0, 128/255*high], [high, high]], np.float32)).save(tmp_path/'a.tif')
    for image in (tmp_path/'a.tif', Image.open(tmp_path/'a.tif')):
        if shade is None:
            with pytest.raises((OSError, ValueError), match='float'): as_image(image)
        else: assert as_image(image)[0].tolist() == [[0, shade], [255, 255]]


def test_large_image_in_memory_is_no_bomb(monkeypatch):
    "Pillow's limit is for files, which can claim any size"
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 300_000)
    pixels = np.arange(3000*900*3, dtype=np.uint32).reshape(900, 3000, 3).astype(np.uint8)
    assert torch.equal(as_image(Image.fromarray(pixels)), torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.skipif(not features.check('jpg_2000'), reason='this Pillow knows no JPEG 2000')
def test_image_may_turn_out_smaller(tmp_path):
    Image.new('RGB', (80, 60), 'red').save(tmp_path/'a.jp2')
    with Image.open(tmp_path/'a.jp2') as image:
        image.reduce = 1 # Half its size, which it has once it is decoded
        assert as_image(image).shape == (3, 30, 40)


def test_as_image_takes_images_of_pillow_in_memory_with_any_bit_depth():
    "Those that were not opened from a file have no tiles"
    assert as_image(Image.new('RGB', (4, 3)).resize((8, 6)), bit_depth=12).shape == (3, 6, 8)
