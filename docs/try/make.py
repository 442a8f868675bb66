"""What the site's detector of drawn shapes is made of: python docs/try/make.py runs/shapes/best.safetensors

Weights of its size are trained in minutes; `yolox_demo` draws the images, and its own network may be stopped:

    yolox_demo
    yolox_train runs/demo/shapes --model yolox_nano --weights coco --img-size 96 --batch 16 --lr .006 \
        --epochs 11 --warmup-epochs .5 --no-aug-epochs 1 --mosaic 0 --out runs/shapes

The network is stored with 8 bits for each weight of a convolution, which makes the file 3.5 times as small: the site's
repository keeps it. It still computes with 32 bits. AP on the test images is .856, and .861 with all bits.
"""
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from PIL import Image

from cjm_yolox_pytorch.data.shapes import draw_shapes
from cjm_yolox_pytorch.deploy.formats import load_exported
from cjm_yolox_pytorch.deploy.web import _means, _pattern, export_web
from cjm_yolox_pytorch.files.checkpoints import load_weights

HERE = Path(__file__).parent


def to_8_bits(graph):
    "Store weights of convolutions as whole numbers, with a factor for each output channel"
    names = {node.input[1] for node in graph.node if node.op_type == 'Conv'}
    for weight in [w for w in graph.initializer if w.name in names]:
        values = numpy_helper.to_array(weight)
        factors = np.abs(values).reshape(len(values), -1).max(1).clip(1e-12)/127
        whole = np.rint(values/factors.reshape(-1, 1, 1, 1)).astype(np.int8)
        parts = {f'{weight.name}_whole': whole, f'{weight.name}_factors': factors.astype(np.float32)}
        graph.initializer.remove(weight)
        graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in parts.items())
        graph.node.insert(0, helper.make_node('DequantizeLinear', [*parts], [weight.name], axis=0))


def about_page(index):
    return json.loads(index.read_text(encoding='utf-8').partition('application/json">')[2].partition('</script>')[0])


def main(weights):
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder)/'page'
        export_web(load_weights(weights), page)
        model, about = onnx.load(page/'model.onnx'), about_page(page/'index.html')
    to_8_bits(model.graph)
    onnx.save(model, HERE/'model.onnx')
    about['check'] = _means(load_exported(HERE/'model.onnx')(_pattern(about['size'])))
    (HERE/'about.json').write_text(json.dumps(about, indent=1) + '\n')
    for n, seed in enumerate((68, 50, 44), start=1): # With many shapes
        image, _, _ = draw_shapes(np.random.default_rng(seed), size=288)
        Image.fromarray(image).save(HERE/f'shapes-{n}.jpg', quality=85)


if __name__ == '__main__':
    torch.set_num_threads(1)
    main(*sys.argv[1:])
