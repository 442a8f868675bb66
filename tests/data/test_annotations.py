"Annotations as arrays, and the images they were made for."
import gc
import os
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from layouts import HEIGHT, WIDTH, broken_images, coco, one_image, pixels, write, write_image
from PIL import Image
from torchvision.transforms import v2

from cjm_yolox_pytorch.data import annotations as annotations_module
from cjm_yolox_pytorch.data.annotations import Annotations, read_annotated
from cjm_yolox_pytorch.data.batches import DetectionDataset
from cjm_yolox_pytorch.data.coco import read_coco
from cjm_yolox_pytorch.data.yolo import read_yolo
from cjm_yolox_pytorch.files.images import as_image, read_image, stored_sizes


def many_annotations(images, each):
    N, T = images, images*each
    paths = np.array([f'/a/folder/{i:012}.jpg' for i in range(N)])
    return Annotations(['ant'], paths, np.full((N, 2), 480), np.arange(N + 1)*each, np.zeros((T, 4), dtype=np.float32),
                       np.zeros(T, dtype=np.int64), np.zeros(T, dtype=bool), np.zeros(T, dtype=np.float32))


def test_workers_do_not_copy_annotations():
    "Arrays hold all that there is many of, so a forked process that reads every object gets no pages of its own"
    if not Path('/proc/self/smaps_rollup').exists(): pytest.skip('measures with Linux')
    N = 50_000
    a = many_annotations(N, 7)
    assert sum(v.nbytes for v in vars(a).values() if isinstance(v, np.ndarray)) < 25e6
    assert len(a.names) + len(a.dropped) + len(a.notes) == 1

    def private(): return 1024*int(re.search(r'Private_Dirty:\s+(\d+)', Path('/proc/self/smaps_rollup').read_text())[1])

    def grown(touch): # Bytes of its own that a forked process has after it has touched every image
        gc.collect()
        read, end = os.pipe()
        if (child := os.fork()) == 0:
            before = private()
            for i in range(N): touch(i)
            os.write(end, str(private() - before).encode())
            os._exit(0)
        os.waitpid(child, 0)
        return int(os.read(read, 99))
    objects = [Path(p) for p in a.paths.tolist()]
    assert grown(lambda i: (a.paths[i], a.sizes[i], a.objects(i))) < 2e6 < grown(lambda i: objects[i])


SLIVERS = [([-50.3, 10, 50.30001, 20], 0), ([79.995, 10, 10, 20], 0), ([40, 10, 3e-5, 20], 0), ([40, 10, .02, 20], 1),
           ([-5, 10, 5.5, 20], 1)]


@pytest.mark.parametrize('box, seen', SLIVERS)
def test_slivers_are_left_out(box, seen, tmp_path):
    "Mirrored or scaled, they would have no area, in the middle of a training"
    for name in 'ab': write_image(tmp_path, name)
    file = coco(['a', 'b'])
    file['annotations'].append(dict(id=99, image_id=1, category_id=1, bbox=box, area=1, iscrowd=0))
    write(tmp_path/'train.json', file)
    a = read_coco(tmp_path/'train.json')
    assert len(a.objects(1)[0]) == seen
    assert [why for *_, why in a.dropped] == ['is too thin in the image of 80x60']*(1 - seen)
    for size in (32, 64, 416):
        for flip in (0, 1): DetectionDataset(a, size, [v2.RandomHorizontalFlip(flip)])[1]


# Images

def test_square_image_is_decoded_once(tmp_path, monkeypatch):
    Image.new('RGB', (9, 9)).save(tmp_path/'a.png')
    decoded = []
    monkeypatch.setattr(annotations_module, 'read_image', lambda *args: decoded.append(args) or read_image(*args))
    read_annotated(one_image(tmp_path/'a.png', (9, 9)), 0)
    assert len(decoded) == 1


def grey_16(image): return Image.fromarray(np.asarray(image.convert('L'), dtype=np.uint16)*257)


KINDS = {'gray.png': lambda i: i.convert('L'), 'gray.jpg': lambda i: i.convert('L'),
         'rgba.png': lambda i: i.convert('RGBA'), 'palette.png': lambda i: i.quantize(),
         'palette.gif': lambda i: i.quantize(), 'cmyk.jpg': lambda i: i.convert('CMYK'),
         'bits.png': lambda i: i.convert('1'), '16.png': grey_16, '16.tif': grey_16,
         'rgb.webp': lambda i: i, 'rgb.bmp': lambda i: i}


@pytest.mark.parametrize('name', KINDS)
def test_images_of_every_kind_become_rgb(name, tmp_path):
    ramp = np.linspace(0, 255, WIDTH).astype(np.uint8)
    smooth = Image.fromarray(ramp[None, :, None].repeat(HEIGHT, 0).repeat(3, 2)) # Grey from black to white
    KINDS[name](smooth).save(tmp_path/name)
    image = read_annotated(one_image(tmp_path/name, (HEIGHT, WIDTH)), 0)
    assert image.shape == (3, HEIGHT, WIDTH) and image.dtype == torch.uint8
    if name == 'bits.png': return
    assert np.abs(image.numpy().astype(int) - np.asarray(smooth).transpose(2, 0, 1)).max() <= 16


@pytest.mark.parametrize('orientation', range(1, 9))
def test_rotated_image_is_read_in_either_size(orientation, tmp_path):
    "The size in YOLO's format is that of the upright image, and COCO's may be either"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels('a')).save(tmp_path/'a.jpg', exif=exif)
    write(tmp_path/'a.txt', '0 .25 .25 .5 .5')
    upright = (HEIGHT, WIDTH) if orientation < 5 else (WIDTH, HEIGHT)
    found = read_yolo(tmp_path, ['ant'])
    assert tuple(found.sizes[0]) == upright and found.boxes.tolist() == [[0, 0, upright[1]/2, upright[0]/2]]
    for size in {upright, (HEIGHT, WIDTH)}:
        assert read_annotated(one_image(tmp_path/'a.jpg', size), 0).shape[1:] == size


def test_image_of_one_pixel(tmp_path):
    Image.new('RGB', (1, 1), (1, 2, 3)).save(tmp_path/'a.png')
    write(tmp_path/'a.txt', '0 .5 .5 1 1')
    found = read_yolo(tmp_path, ['ant'])
    assert read_annotated(found, 0).flatten().tolist() == [1, 2, 3] and found.boxes.tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize('kind', ['jpeg', 'png'])
@pytest.mark.parametrize('how', ['half', 'noise', 'empty', 'hole'])
def test_undecodable_image_is_named(kind, how, tmp_path):
    path = tmp_path/f'a.{kind}'
    path.write_bytes(broken_images(kind)[how])
    one = one_image(path, (HEIGHT, WIDTH))
    with pytest.raises(OSError, match=rf'a.{kind} cannot be decoded as an image .*'): read_annotated(one, 0)
    if how not in ('noise', 'empty'): return
    write(tmp_path/'a.txt', '0 .5 .5 1 1') # Not even a header, where YOLO's format needs one
    with pytest.raises(ValueError, match=f'cannot be opened as images: .*a.{kind}'): read_yolo(tmp_path, ['ant'])


# Upright

def chunk(kind, data):
    return len(data).to_bytes(4, 'big') + kind + data + zlib.crc32(kind + data).to_bytes(4, 'big')


def png_with(data, kind, inside, late):
    place = data.rindex(b'IEND') - 4 if late else data.index(b'IDAT') - 4
    return data[:place] + chunk(kind, inside) + data[place:]


def xmp(o):
    return (f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
            f'tiff:Orientation="{o}"/></x:xmpmeta>').encode()


def png_xmp(data, o, exif): return png_with(data, b'iTXt', b'XML:com.adobe.xmp\0\0\0\0\0' + xmp(o), late=False)
def png_late_exif(data, o, exif): return png_with(data, b'eXIf', exif.tobytes()[6:], late=True)


ORIENTATIONS = { # Where it is stored: suffix, mode, what to save with, and what to do to the bytes of a PNG
    'EXIF': ('jpg', 'RGB', lambda o, exif: dict(exif=exif), None),
    'EXIF, grey': ('jpg', 'L', lambda o, exif: dict(exif=exif), None),
    'XMP': ('jpg', 'RGB', lambda o, exif: dict(xmp=xmp(o)), None),
    'XMP, grey': ('jpg', 'L', lambda o, exif: dict(xmp=xmp(o)), None),
    'EXIF in PNG': ('png', 'RGB', lambda o, exif: dict(exif=exif), None),
    'EXIF in WebP': ('webp', 'RGB', lambda o, exif: dict(exif=exif, lossless=True), None),
    'XMP in WebP': ('webp', 'RGB', lambda o, exif: dict(xmp=xmp(o), lossless=True), None),
    'TIFF': ('tif', 'RGB', lambda o, exif: dict(tiffinfo={274: o}), None),
    'TIFF, packed': ('tif', 'RGB', lambda o, exif: dict(tiffinfo={274: o}, compression='tiff_lzw'), None),
    'TIFF, grey': ('tif', 'L', lambda o, exif: dict(tiffinfo={274: o}), None),
    'XMP in PNG': ('png', 'RGB', lambda o, exif: {}, png_xmp),
    'behind the pixels of a PNG': ('png', 'RGB', lambda o, exif: {}, png_late_exif)}
LIT = {1: [[1, 0], [0, 0]], 2: [[0, 1], [0, 0]], 3: [[0, 0], [0, 1]], 6: [[0, 1], [0, 0]], 7: [[0, 0], [0, 1]],
       8: [[0, 0], [1, 0]]} # Where the top left quarter is after turning


@pytest.mark.parametrize('orientation', LIT)
@pytest.mark.parametrize('name', ORIENTATIONS)
def test_orientation_is_the_same_in_training_and_prediction(name, orientation, tmp_path):
    "The size that boxes are scaled by is that of the image, which is turned by one rule for all"
    suffix, mode, options, change = ORIENTATIONS[name]
    path = tmp_path/f'a.{suffix}'
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.new(mode, (WIDTH, HEIGHT))
    stored.paste(Image.new(mode, (WIDTH//2, HEIGHT//2), 'white')) # Top left
    stored.save(path, **options(orientation, exif))
    if change: path.write_bytes(change(path.read_bytes(), orientation, exif))
    write(tmp_path/'a.txt', '0 .25 .25 .5 .5')
    turned = 1 if 'behind' in name else orientation # That one is not seen in time
    a = read_yolo(tmp_path, ['ant'])
    seen = read_image(path)
    assert torch.equal(read_annotated(a, 0), seen) and torch.equal(as_image(Image.open(path)), seen)
    assert tuple(a.sizes[0]) == seen.shape[1:] == ((HEIGHT, WIDTH) if turned < 5 else (WIDTH, HEIGHT))
    quarters = seen.float().mean(0).unflatten(1, (2, -1)).unflatten(0, (2, -1)).mean((1, 3))
    assert (quarters > 128).int().tolist() == LIT[turned]
    flat = read_image(path, upright=False).float().mean(0)
    assert flat.shape == (HEIGHT, WIDTH) and flat[:HEIGHT//2, :WIDTH//2].mean() > 250


@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_unreadable_orientation_turns_nothing(mode, tmp_path):
    Image.new(mode, (WIDTH, HEIGHT)).save(tmp_path/'a.jpg', exif=b'Exif\0\0no TIFF at all')
    assert read_image(tmp_path/'a.jpg').shape[1:] == (HEIGHT, WIDTH)
    assert stored_sizes('', [tmp_path/'a.jpg']).tolist() == [[HEIGHT, WIDTH]]
