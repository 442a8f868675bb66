"Published weights score what they should."
import json

import pytest

from cjm_yolox_pytorch.data.splits import read_split
from cjm_yolox_pytorch.evaluation.evaluate import yolox_eval


@pytest.mark.parametrize('conf', [.01, .001])
def test_real_nano_weights_score_what_they_should(shared, tmp_path, conf):
    data = shared/'data/coco_ccby'
    annotations = read_split(data, 'all')
    counts = len(annotations), len(annotations.labels), len(annotations.names), annotations.crowd.sum()
    assert counts == (45, 405, 80, 6)
    options = dict(split='all', conf=conf, working_conf=.25, out=str(tmp_path/'out'), device='cpu')
    yolox_eval(str(shared/'weights/yolox_nano_coco.pth'), str(data), **options)
    metrics = json.loads((tmp_path/'out/metrics.json').read_text())
    # The figures of the published weights; forty-five images leave AP75 some play
    if conf == .01: expected = dict(AP=(.330, .004), AP50=(.484, .004), AP75=(.347, .008))
    else: expected = dict(AP_small=(.080, .004), AP_medium=(.302, .004), AP_large=(.611, .004))
    for name, (value, play) in expected.items(): assert abs(metrics[name] - value) < play, (name, metrics[name])
