"Image files that claim too much, or are something else, are refused."
# ruff: noqa: F811 (fixtures are imported, and arguments bear their names)
import pytest
from hostile import armed, png, root, tried # noqa: F401
from PIL import Image

from cjm_yolox_pytorch.files.images import read_image, stored_sizes


@pytest.mark.parametrize('size', [(31623, 31623), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (0, 0)])
def test_images_that_claim_to_be_large(size, root):
    (root/'a.png').write_bytes(png(*size))
    assert 'a.png cannot be decoded as an image' in tried(lambda root: read_image(root/'a.png'), root, megabytes=50)
    message = tried(lambda root: stored_sizes(root, [root/'a.png']), root, megabytes=50)
    assert 'files that cannot be opened as images' in message


@pytest.mark.parametrize('kind', ['eps', 'ico', 'tga', 'jpeg2000'])
def test_formats_other_than_those_of_photos(kind, root):
    "For EPS, Pillow would start Ghostscript"
    Image.new('RGB', (20, 10)).save(root/'a.jpg', kind)
    message = tried(lambda root: read_image(root/'a.jpg'), root)
    assert 'cannot be decoded as an image (none of BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP): fix or remove it' in message
