"A training takes any torch Dataset of images and targets, and resumes it to the bit."
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CocoDetection, VOCDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2
from trainings import SMALL, assert_same_training, trainer

from cjm_yolox_pytorch.data.annotations import read_annotated
from cjm_yolox_pytorch.data.augment import as_sample
from cjm_yolox_pytorch.data.batches import DetectionDataset
from cjm_yolox_pytorch.data.convert import yolox_convert
from cjm_yolox_pytorch.data.named_dataset import NamedDataset, annotate
from cjm_yolox_pytorch.data.shapes import SHAPES, draw_shapes
from cjm_yolox_pytorch.data.tiling import tile_annotations
from cjm_yolox_pytorch.files.checkpoints import load_weights
from cjm_yolox_pytorch.training.recipe import Recipe
from cjm_yolox_pytorch.training.runs import load_state, read_rows, save_state
from cjm_yolox_pytorch.training.train import fit, measure_best
from cjm_yolox_pytorch.training.trainer import Trainer

NAMES = dict(enumerate(SHAPES, start=1)) # torchvision's labels begin at 1


class Drawn(torch.utils.data.Dataset):
    "Drawn shapes with torchvision's keys, and noise of three generators unless it is to be validated on"
    def __init__(self, count, noise=True, first=0): self.count, self.noise, self.first = count, noise, first
    def __len__(self): return self.count

    def __getitem__(self, i):
        pixels, boxes, labels = draw_shapes(np.random.default_rng(self.first + i), 64, max_shapes=4)
        if self.noise: pixels = (pixels + torch.randint(9, ()).numpy() + np.random.randint(9) + random.randrange(9))
        target = dict(boxes=torch.tensor(boxes).float(), labels=torch.tensor(labels) + 1, image_id=i)
        target |= dict(iscrowd=torch.zeros(len(boxes)).long(), area=torch.full((len(boxes),), 100.))
        return torch.from_numpy(pixels.astype(np.uint8)).permute(2, 0, 1), target


def drawn_trainer(**changes):
    recipe = Recipe(**{**SMALL, **changes})
    return Trainer(recipe, Drawn(12), Drawn(4, noise=False, first=50), device='cpu', names=NAMES)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name in ('plot_curves', 'show_detections'):
            patch.setattr(f'cjm_yolox_pytorch.training.train.{name}', lambda *args: None)
        fit(drawn_trainer(), out := tmp_path_factory.mktemp('drawn'))
    return out


@pytest.mark.parametrize('workers', [0, 1])
def test_interrupted_training_ends_the_same(tmp_path, whole, workers, no_plots):
    class Stop:
        def on_epoch_end(self, t):
            if t.epoch == 2: raise StopIteration
    with pytest.raises(StopIteration): fit(drawn_trainer(workers=workers), tmp_path, callbacks=[Stop()])
    torch.rand(3), np.random.rand(3), random.random()
    fit(drawn_trainer(workers=workers), tmp_path, resume=True)
    assert_same_training(tmp_path, whole)
    assert load_weights(tmp_path/'best.safetensors').names == [*SHAPES]


def test_training_in_the_middle_of_an_epoch_resumes(tmp_path):
    full, first, second = (drawn_trainer() for _ in range(3))
    full.train_epoch()
    steps = iter([False, True])
    first.train_epoch(stop=lambda: next(steps))
    save_state(first, tmp_path/'state.pt')
    torch.rand(3), np.random.rand(3), random.random()
    load_state(second, tmp_path/'state.pt')
    second.train_epoch()
    assert all(map(torch.equal, second.model.state_dict().values(), full.model.state_dict().values()))


def test_dataset_trains_as_the_files_it_reads(shapes, tmp_path):
    "Batches and AP are those of annotations in files"
    yolox_convert(str(shapes), to='coco', out=str(tmp_path/'coco'))
    files = trainer(tmp_path/'coco')
    def coco(split):
        found, = (tmp_path/'coco/annotations').glob(f'*{split}*.json')
        data = CocoDetection(tmp_path/'coco/images'/split, found)
        names = {c['id']: c['name'] for c in data.coco.dataset['categories']}
        return wrap_dataset_for_transforms_v2(data, target_keys=['boxes', 'labels', 'iscrowd', 'area']), names
    (train, names), (val, _) = coco('train'), coco('val')
    wrapped = Trainer(files.recipe, train, val, device='cpu', names=names)
    for t in (files, wrapped): t.start_epoch()
    for a, b in zip(files.loader, wrapped.loader):
        assert torch.equal(a.images, b.images) and a.sources == b.sources
        for x, y in zip(a.boxes + a.labels, b.boxes + b.labels): torch.testing.assert_close(x, y, atol=.1, rtol=0)
    assert (wrapped.val.labels == files.val.labels).all()
    np.testing.assert_allclose(wrapped.val.areas, files.val.areas, rtol=1e-3)


def test_figures_show_images_of_the_dataset(tmp_path):
    t = drawn_trainer(epochs=1)
    fit(t, tmp_path/'run')
    assert measure_best(t)['AP'] == read_rows(tmp_path/'run/metrics.csv')[0]['AP']
    assert (tmp_path/'run/detections.png').stat().st_size and (tmp_path/'run/worst.png').stat().st_size


def test_other_names_or_length_are_not_resumed(tmp_path, whole):
    recipe, val = Recipe(**SMALL), Drawn(4, noise=False, first=50)
    for train, names, message in [(Drawn(11), NAMES, r'images=11 \(was 12\)'),
        (Drawn(12), {k: f'{v}s' for k, v in NAMES.items()}, 'names='), (Drawn(12), NAMES, 'val_')]:
        other = val if message != 'val_' else Drawn(4, noise=False, first=60)
        with pytest.raises(ValueError, match=message):
            load_state(Trainer(recipe, train, other, device='cpu', names=names), whole/'state.pt')


def test_tiles_are_cut_from_validation_images_of_a_dataset():
    big = annotate(NamedDataset(Drawn(3, noise=False), NAMES))
    tiles = tile_annotations(big, 32, .2)
    i = len(tiles) - 2
    x1, y1, x2, y2 = tiles.crops[i, 2:]
    assert len(tiles) > 3 and torch.equal(read_annotated(tiles, i), Drawn(3, False)[2][0][:, y1:y2, x1:x2])


def test_random_validation_images_are_the_same_each_time():
    "Also in other processes, which take every other one of them"
    a = annotate(NamedDataset(Drawn(4), NAMES))
    assert torch.equal(read_annotated(a, 3), read_annotated(a, 3))
    assert torch.equal(read_annotated(a.take([1, 3]), 1), read_annotated(a, 3))


def refused(message, train=None, val=None, names=NAMES, **changes):
    recipe = Recipe(**{**SMALL, **changes})
    with pytest.raises(ValueError, match=message):
        train, val = (Drawn(4) if data is None else data for data in (train, val))
        Trainer(recipe, train, val, device='cpu', names=names).train_epoch()


class Items(torch.utils.data.Dataset):
    def __init__(self, *items): self.items = items
    def __len__(self): return len(self.items)
    def __getitem__(self, i): return self.items[i]


def item(boxes=((1, 2, 30, 40),), labels=(1,), image=None, **more):
    image = torch.zeros(3, 64, 64, dtype=torch.uint8) if image is None else image
    return image, dict(boxes=torch.tensor(boxes).float(), labels=torch.tensor(labels), **more)


@pytest.mark.parametrize('odd, message', [(item(boxes=((40, 50, 20, 10),)), r'Items\[0\]: the box \[40.0, 50.0, 20.0'),
    (item(labels=(6,)), r'Items\[0\]: label 6, but there are names for \[1, 2, 3, 4, 5\]'),
    (item(labels=(1, 2)), r'of the lengths \[1, 2, 1, 1\]'), (item()[0], 'not a pair of image and target'),
    ((item()[0], []), 'a target of type list'), ((item()[0], dict(bbox=[])), 'without boxes and labels'),
    (item(boxes=((0, 0, float('nan'), 9),)), 'finite x1, y1'),
    (item(image=np.zeros((9, 9, 3))), 'Items.0.: ndarray, but for an image')])
@pytest.mark.parametrize('role', ['train', 'val'])
def test_odd_items_are_named(odd, message, role): refused(message, **{role: Items(odd)})


def test_odd_datasets_are_refused():
    refused('a Dataset has no class names', names=None)
    refused('nothing to train on: NamedDataset.0 items', train=Items())
    refused('nothing to validate on', val=Items())
    refused('tile=64 is for images in files', tile=64)
    refused('has no length', train=iter([1]))


def test_images_without_objects_are_background():
    items, recipe = Items(item(), (item()[0], dict(image_id=7)), item(), item()), Recipe(**{**SMALL, 'mixup': 0.})
    t = Trainer(recipe, items, Drawn(2, noise=False), device='cpu', names=NAMES)
    t.start_epoch()
    assert sorted(len(b) for batch in t.loader for b in batch.boxes) == [0, 1, 1, 1]


def test_crowds_and_invisible_boxes_are_told_apart():
    boxes = ((1, 2, 30, 40), (5, 5, 60, 60), (70, 70, 80, 80), (9, 9, 9, 20))
    data = NamedDataset(Items(item(boxes, (1, 2, 3, 4), iscrowd=[0, 1, 0, 0])), NAMES)
    _, target = data.read(0)
    assert target['labels'].tolist() == [0, 1] and target['crowd'].tolist() == [False, True]
    assert annotate(data).crowd.tolist() == [False, True]


def test_random_validation_images_of_other_sizes_are_refused():
    class Cropped(Drawn):
        calls = 0
        def __getitem__(self, i):
            self.calls += 1
            image, target = super().__getitem__(i)
            return image[:, :64 - self.calls], target
    t = Trainer(Recipe(**SMALL), Drawn(4), Cropped(2, noise=False), device='cpu', names=NAMES)
    with pytest.raises(ValueError, match=r'Cropped\[0\] is 64x61 pixels, and was 64x63'): t.validate()


def test_voc_of_torchvision_is_read(tmp_path):
    folder = tmp_path/'VOCdevkit/VOC2012'
    for name in ('ImageSets/Main', 'JPEGImages', 'Annotations'): (folder/name).mkdir(parents=True)
    (folder/'ImageSets/Main/train.txt').write_text('cat\n')
    Image.new('L', (80, 60)).save(folder/'JPEGImages/cat.jpg')
    box = ''.join(f'<{k}>{v}</{k}>' for k, v in zip(('xmin', 'ymin', 'xmax', 'ymax'), (5, 6, 70, 50)))
    (folder/'Annotations/cat.xml').write_text(
        f'<annotation><object><name>cat</name><bndbox>{box}</bndbox></object></annotation>')
    wrapped = wrap_dataset_for_transforms_v2(VOCDetection(tmp_path, image_set='train'))
    a = annotate(NamedDataset(wrapped, {8: 'cat', 12: 'dog'}))
    assert a.boxes.tolist() == [[5, 6, 70, 50]] and a.labels.tolist() == [0] and a.sizes.tolist() == [[60, 80]]


PAGE = Path(__file__).resolve().parents[2]/'nbs/data/10a_named_dataset.ipynb'


@pytest.mark.parametrize('module, name', [('albumentations', 'Albumentations'), ('kornia', 'Kornia')])
def test_adapters_of_the_page_move_boxes_with_the_image(module, name):
    "A white box on black stays around the white pixels, and the same seed makes the same"
    pytest.importorskip(module)
    sources = [''.join(c['source']) for c in json.loads(PAGE.read_text(encoding='utf-8'))['cells']]
    start, = [i for i, source in enumerate(sources) if f'class {name}' in source]
    scope = dict(torch=torch, np=np, Tensor=torch.Tensor, as_sample=as_sample, v2=v2)
    for source in sources[start - 1:start + 2]: exec(source, scope)
    A, K = scope.get('A'), scope.get('K')
    move = A.Compose([A.HorizontalFlip(p=.5), A.RandomCrop(50, 50)]).transforms if A else [K.RandomHorizontalFlip(p=.5)]
    assert len([*filter(None, sources[start].split('\n'))]) - 1 <= 10
    transform, seen = scope[name](*move), set()
    pixels = np.zeros((64, 80, 3), np.uint8)
    pixels[20:50, 20:60] = 255
    sample = as_sample(pixels, [[20, 20, 60, 50]], [3])
    for seed in (*range(8), 7):
        torch.manual_seed(seed)
        image, target = transform(*sample)
        y, x = (image[0] > 128).nonzero().T
        expected = [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert target['boxes'][0].tolist() == pytest.approx([v.item() for v in expected], abs=1)
        assert target['labels'].tolist() == [3] and target['crowd'].tolist() == [False]
        seen.add(str(target['boxes'].tolist()))
    assert 1 < len(seen) < 9
    data = NamedDataset(Drawn(6), NAMES)
    both = DetectionDataset(data, 64, scope['transforms'])
    assert all(torch.equal(both[i, 5][0], both[i, 5][0]) for i in range(6))
    empty = as_sample(pixels, [], [])
    assert transform(*empty)[1]['crowd'].dtype == torch.bool
