"Worker processes make the same batches, however they are started."
import multiprocessing

import pytest
from torch.testing import assert_close

from cjm_yolox_pytorch.data.augment import yolox_transforms
from cjm_yolox_pytorch.data.batches import DetectionDataset, EpochBatches, train_loader
from cjm_yolox_pytorch.data.shapes import write_shapes
from cjm_yolox_pytorch.data.splits import read_split


def pixels(loader): return [(b.images, b.boxes, b.labels, b.crowds) for b in loader]


@pytest.mark.slow
@pytest.mark.parametrize('method', multiprocessing.get_all_start_methods())
def test_workers_make_the_same_batches_by_any_start_method(tmp_path, method):
    write_shapes(tmp_path, train=12, val=0, test=0, size=64)
    dataset = DetectionDataset(read_split(tmp_path, 'train'), 64, yolox_transforms(64))
    batches = EpochBatches(12, 4, seed=1)
    here, loader = pixels(train_loader(dataset, batches)), train_loader(dataset, batches, workers=1)
    loader.multiprocessing_context = method
    assert_close(pixels(loader), here, rtol=0, atol=0)
