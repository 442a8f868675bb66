"Options that mean the same are explained in the same words."
import pytest
from fastcore.docments import docments

from cjm_yolox_pytorch.data.convert import yolox_convert
from cjm_yolox_pytorch.deploy.convert_weights import yolox_convert_weights
from cjm_yolox_pytorch.deploy.export import yolox_export
from cjm_yolox_pytorch.detection.predict import yolox_predict
from cjm_yolox_pytorch.evaluation.doctor import yolox_doctor
from cjm_yolox_pytorch.evaluation.evaluate import yolox_eval
from cjm_yolox_pytorch.training.demo import yolox_demo
from cjm_yolox_pytorch.training.train import yolox_train


@pytest.mark.parametrize('option, commands', [
    ('names', [yolox_predict, yolox_export, yolox_eval, yolox_doctor]), ('iou', [yolox_predict, yolox_eval]),
    ('pixels', [yolox_predict, yolox_eval, yolox_doctor]), ('img_size', [yolox_predict, yolox_eval]),
    ('device', [yolox_predict, yolox_eval, yolox_train, yolox_demo]), ('overlap', [yolox_predict, yolox_eval]),
    ('weights', [yolox_export, yolox_convert_weights]),
    ('bit_depth', [yolox_predict, yolox_eval]), ('bit_depth', [yolox_train, yolox_doctor]),
    ('batch', [yolox_predict, yolox_eval]), ('format', [yolox_train, yolox_doctor, yolox_eval]),
    ('data', [yolox_train, yolox_doctor, yolox_eval, yolox_convert]),
    ('images', [yolox_train, yolox_doctor, yolox_eval, yolox_convert])])
def test_same_options_have_the_same_help(option, commands):
    assert len({docments(command)[option] for command in commands}) == 1
