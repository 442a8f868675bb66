"Copies of datasets, recipes, averaged weights and detections are equal: people keep them, or send them to workers."
import copy
import pickle

import pytest
import torch
from torch.testing import assert_close

from cjm_yolox_pytorch.data.augment import yolox_transforms
from cjm_yolox_pytorch.data.batches import DetectionDataset, make_loader
from cjm_yolox_pytorch.data.shapes import write_shapes
from cjm_yolox_pytorch.data.splits import read_split
from cjm_yolox_pytorch.detection.detector import predict
from cjm_yolox_pytorch.files.letterbox import InputSpec
from cjm_yolox_pytorch.model import build_model
from cjm_yolox_pytorch.training.recipe import EMA, Recipe


def pickled(thing): return pickle.loads(pickle.dumps(thing))


@pytest.mark.parametrize('again', [copy.deepcopy, pickled], ids=['deepcopy', 'pickle'])
def test_copies_are_equal(again, tmp_path):
    write_shapes(tmp_path, train=12, val=0, test=0, size=64)
    dataset = DetectionDataset(read_split(tmp_path, 'train'), 64, yolox_transforms(64))
    model = build_model('yolox_nano', 3, pretrained=False).eval()
    ema = EMA(model, .9)
    with torch.no_grad():
        x = torch.rand(1, 3, 64, 64)
        assert_close(again(ema).module(x), ema.module(x), rtol=0, atol=0)
    assert again(Recipe('yolox_nano')) == Recipe('yolox_nano')
    blank = torch.zeros(3, 64, 64, dtype=torch.uint8)
    (found,) = predict(model, [blank], InputSpec(64, (.5,)*3), conf=0)
    assert_close(vars(again(found)), vars(found), rtol=0, atol=0)
    assert_close(again(dataset)[3, 7], dataset[3, 7], rtol=0, atol=0)
    assert [len(b.images) for b in make_loader(again(dataset), 5)] == [5, 5, 2]
