"Detections of a network in half precision keep their digits."
import pytest
import torch

from cjm_yolox_pytorch.detection.detector import predict
from cjm_yolox_pytorch.files.letterbox import InputSpec
from cjm_yolox_pytorch.inference import YOLOXInferenceWrapper


class OneObject(torch.nn.Module):
    "The maps of a network that finds one object, of class 1777 in the last cell"
    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, x):
        size = x.shape[2]//8, x.shape[3]//8
        maps = [torch.full((1, d, *size), v, dtype=self.dtype) for d, v in [(2000, -30.), (4, 0.), (1, -30.)]]
        maps[0][0, 1777, -1, -1] = maps[2][0, 0, -1, -1] = 30
        return tuple([m] for m in maps)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_boxes_and_labels_of_half_precision_outputs_keep_their_digits(dtype):
    "Neither 2000 classes nor 4096 pixels can be counted in half precision, so detections are made in fp32"
    wrapped = YOLOXInferenceWrapper(OneObject(dtype), [0.]*3, [1.]*3, strides=[8])
    assert wrapped(torch.zeros(1, 3, 8, 4096))[0, -1].tolist() == [4084, -4, 8, 8, 1777, 1]
    image = torch.zeros(3, 8, 4096, dtype=torch.uint8)
    (found,) = predict(OneObject(dtype), [image], InputSpec((8, 4096), strides=(8,)))
    assert found.labels.tolist() == [1777] and found.boxes.tolist() == [[4084, 0, 4092, 4]]
