"The network computes what the published one computes."
import numpy as np
import torch

from cjm_yolox_pytorch.boxes import flatten_levels
from cjm_yolox_pytorch.model import build_model


def test_real_nano_weights_predict_what_they_should(shared):
    model = build_model('yolox_nano', 80, pretrained=shared/'weights/yolox_nano_coco.pth').eval()
    reference = np.load(shared/'weights/reference.npz')
    rgb = torch.from_numpy(reference['x']).flip(1).float() / 255
    with torch.no_grad(): classes, boxes, objectness = map(flatten_levels, model(rgb))
    ours = torch.cat([boxes, objectness.sigmoid(), classes.sigmoid()], dim=-1)
    assert (ours - torch.from_numpy(reference['y'])).abs().max() < 2e-4
