"Image files that claim too much, are damaged, or are something else, are refused."
# ruff: noqa: F811 (fixtures are imported, and arguments bear their names)
import io
import os
import re

import numpy as np
import pytest
import torch
from hostile import armed, png, root, tried # noqa: F401
from PIL import Image

from cjm_yolox_pytorch.files.images import BitDepthError, _libtiff_errors, as_image, read_image, stored_sizes


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


def jpeg(image, **kwargs):
    file = io.BytesIO()
    image.save(file, 'jpeg', **kwargs)
    return file.getvalue()


def photo(mode='RGB'):
    yy, xx = np.mgrid[:120, :160]
    waves = [127 + 80*np.sin(xx/(7 + c)) + 40*np.sin(yy/(5 + c)) for c in range(3)]
    noise = np.random.default_rng(0).normal(0, 6, (120, 160, 3))
    return Image.fromarray((np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8)).convert(mode)


STORED = dict(baseline={}, progressive=dict(progressive=True), restarts=dict(restart_marker_rows=1))
DAMAGE = '.*cannot be decoded as an image .(Corrupt JPEG data|Premature end)'


@pytest.mark.parametrize('kind', STORED)
@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
def test_jpeg_damaged_in_the_middle_is_named(kind, mode, tmp_path, capfd):
    "With an end marker, so the file looks whole; libjpeg prints nothing, since it would not name the file"
    good = jpeg(photo(mode), **STORED[kind])
    found = 0
    for seed in range(20):
        data = bytearray(good)
        start = np.random.default_rng(seed).integers(len(data)*2//5, len(data)*4//5)
        data[start:start + len(data)//8] = np.random.default_rng(seed).bytes(len(data)//8)
        (tmp_path/'a.jpg').write_bytes(data)
        for read in (read_image, as_image, lambda path: read_image(io.BytesIO(path.read_bytes()))):
            try: read(tmp_path/'a.jpg')
            except OSError as e: found += 'cannot be decoded as an image' in str(e)
    assert found > .9*60 # Bits may also turn into other valid codes
    assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('kind', STORED)
def test_jpeg_cut_off_before_an_end_marker_is_named(kind, tmp_path):
    good = jpeg(photo(), **STORED[kind])
    (tmp_path/'a.jpg').write_bytes(good[:len(good)*2//3] + b'\xff\xd9')
    with pytest.raises(OSError, match=DAMAGE): read_image(tmp_path/'a.jpg')


ODD = { # Bytes that other programs write, and libjpeg remarks on
    'before the end': lambda data: data[:-2] + bytes(7) + data[-2:],
    'after the end': lambda data: data + bytes(99),
    'in the header': lambda data: data.replace(b'\xff\xdb', bytes(7) + b'\xff\xdb', 1),
    'before the tables': lambda data: data.replace(b'\xff\xc4', bytes(3) + b'\xff\xc4', 1),
    'filler': lambda data: data.replace(b'\xff\xc4', b'\xff\xff\xff\xc4', 1),
}


@pytest.mark.parametrize('how', ODD)
@pytest.mark.parametrize('kind', STORED)
def test_jpeg_with_extraneous_bytes_is_read_in_silence(how, kind, tmp_path, capfd):
    good = jpeg(photo(), **STORED[kind])
    (tmp_path/'a.jpg').write_bytes(ODD[how](good))
    assert torch.equal(read_image(tmp_path/'a.jpg'), as_image(Image.open(io.BytesIO(good))))
    assert capfd.readouterr() == ('', '')


def test_jpeg_with_extraneous_bytes_and_damage_is_named(tmp_path):
    "libjpeg reports only the first"
    data = ODD['in the header'](jpeg(photo()))
    middle = len(data)*2//3
    (tmp_path/'a.jpg').write_bytes(data[:middle] + b'\xff\xd0' + data[middle + 2:])
    with pytest.raises(OSError, match=DAMAGE): read_image(tmp_path/'a.jpg')


@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
@pytest.mark.parametrize('options', [*STORED.values(), dict(subsampling=0), dict(subsampling=1), dict(quality=30)])
def test_jpeg_has_the_pixels_of_pillow(mode, options, tmp_path):
    (tmp_path/'a.jpg').write_bytes(jpeg(photo(mode).crop((0, 0, 77, 51)), **options))
    assert torch.equal(read_image(tmp_path/'a.jpg'), as_image(Image.open(tmp_path/'a.jpg')))


def test_tiff_errors_of_libtiff_are_raised(tmp_path, capfd):
    photo('1').save(tmp_path/'a.tif', compression='group4')
    good = (tmp_path/'a.tif').read_bytes()
    errors = []
    for seed in range(30):
        data, random = bytearray(good), np.random.default_rng(seed)
        for place in random.integers(len(data)//4, len(data)*3//4, 3): data[place] ^= int(random.integers(1, 256))
        (tmp_path/'a.tif').write_bytes(data)
        try: read_image(tmp_path/'a.tif')
        except OSError as e: errors.append(str(e))
    assert any('a.tif cannot be decoded as an image (Fax4Decode: ' in error for error in errors)
    assert 'Fax4Decode' not in capfd.readouterr().err


def test_tiff_warnings_are_dropped_and_other_output_is_kept(capfd):
    with _libtiff_errors() as found: os.write(2, b'Read: Warning, unknown.\n 10%|#  | 1/9\rhere\nDecode: Bad code.\n')
    assert found == ['Decode: Bad code.'] and capfd.readouterr().err == ' 10%|#  | 1/9\rhere\n'


# Bit depth

def gray_16(tmp_path, *values):
    path = tmp_path/'a.png'
    Image.fromarray(np.array([values], dtype=np.uint16)).save(path)
    return path


@pytest.mark.parametrize('bits', [8, 10, 12, 16])
def test_bit_depth_gives_the_value_of_white(bits, tmp_path):
    white = 2**bits - 1
    path = gray_16(tmp_path, 0, white//2, white)
    for image in (read_image(path, bit_depth=bits), as_image(path, bits), as_image(Image.open(path), bits)):
        assert image[:, 0].tolist() == [[0, 127, 255]]*3


def test_bit_depth_below_a_pixel_names_the_file(tmp_path):
    path = gray_16(tmp_path, 0, 4096)
    expected = re.escape(f'{path}: pixels reach 4096, but 12 bits end at 4095. Choose bit_depth=13 (--bit-depth)')
    with pytest.raises(BitDepthError, match=expected): read_image(path, bit_depth=12)
    assert read_image(path, bit_depth=13).max() == 127


def test_bit_depth_leaves_images_of_8_bits_alone(tmp_path):
    Image.fromarray(np.array([[0, 200]], dtype=np.uint8)).save(tmp_path/'a.png')
    assert read_image(tmp_path/'a.png', bit_depth=12)[0].tolist() == [[0, 200]]


@pytest.mark.parametrize('bits', [0, 7, 17])
def test_bit_depth_has_a_range(bits, tmp_path):
    for read in (lambda path: read_image(path, bit_depth=bits), lambda path: as_image(path, bits)):
        with pytest.raises(ValueError, match=f'bit_depth={bits}: must be from 8 to 16'): read(gray_16(tmp_path, 0))


@pytest.mark.parametrize('mode', [3, 4])
def test_bit_depth_of_color_is_refused(mode, tmp_path):
    "Pillow keeps the upper 8 bits"
    import cv2
    pixels = np.array([[[0, 2047, 4095, 4095][:mode]]], dtype=np.uint16)
    cv2.imwrite(str(tmp_path/'a.png'), pixels)
    with pytest.raises(BitDepthError, match='a.png: a bit depth of 12 is for gray'):
        read_image(tmp_path/'a.png', bit_depth=12)
    assert read_image(tmp_path/'a.png').flatten().tolist() == [15, 7, 0]


@pytest.mark.parametrize('values', [[0, 200], [0, 4095]])
def test_bit_depth_holds_for_integers_of_32_bits(values):
    "Older versions of Pillow read 16-bit PNG files so"
    image = Image.fromarray(np.array([values], dtype=np.int32))
    assert as_image(image, 12)[0].tolist() == [[v*255//4095 for v in values]]
