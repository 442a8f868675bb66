"""The public names of cjm-yolox-pytorch 0.2.0, its signatures, and what its layers compute.

names_0_2.json was written with that version, for test_names_0_2.py to compare ours with. To write it again:
    pip install cjm-yolox-pytorch==0.2.0
    python tests/core/names_0_2.py > tests/core/names_0_2.json
"""
import importlib
import inspect
import json
import math

import torch
from torch import nn

MODULES = 'utils', 'model', 'simota', 'loss', 'inference'
NETWORK = 'YOLOX(CSPDarknet("P5", .33, .125), YOLOXPAFPN([32, 64, 128], 32, 1), YOLOXHead(3, 32, 32))'
WRAPPER = f'inference.YOLOXInferenceWrapper({NETWORK})'
# An object of each class, in module `model` unless another is named, with a shape of its input if it is a layer
OBJECTS = {
    'ConvModule(3, 8, 3)': (3, 8, 12),
    'ConvModule(3, 8, 3, 2, 1, False)': (3, 8, 12),
    'ConvModule(3, 8, 1, eps=.1, momentum=.2, affine=False, activation_function=nn.ReLU)': (3, 8, 12),
    'Focus(3, 8)': (3, 8, 12),
    'Focus(3, 8, 3, 2, True)': (3, 8, 12),
    'Focus(3, 8, 4)': (3, 8, 12),
    'DarknetBottleneck(8, 16)': (8, 6, 4),
    'DarknetBottleneck(8, 8, eps=.1)': (8, 6, 4),
    'DarknetBottleneck(8, 16, add_identity=False)': (8, 6, 4),
    'CSPLayer(8, 15, 2)': (8, 6, 4),
    'CSPLayer(8, 16, 1, add_identity=False)': (8, 6, 4),
    'SPPBottleneck(8, 16)': (8, 6, 4),
    'SPPBottleneck(8, 16, [3, 5])': (8, 6, 4),
    'CSPDarknet("P5", .33, .125)': (3, 64, 96),
    'CSPDarknet("P6", .33, .125, (2, 3, 4, 5))': (3, 64, 64),
    'CSPDarknet("P5", .5, .1, (4, 1), (3, 5))': (3, 64, 96),
    'YOLOXPAFPN([8, 16, 32], 8)': [(8, 8, 12), (16, 4, 6), (32, 2, 3)],
    'YOLOXPAFPN([8, 16], 8, 1, dict(scale_factor=2, mode="bilinear"))': [(8, 4, 6), (16, 2, 3)],
    'YOLOXHead(3, 8, 16)': [(8, 8, 12), (8, 4, 6), (8, 2, 3)],
    'YOLOXHead(3, 8, 16, 1, [8, 16])': [(8, 4, 6), (8, 2, 3)],
    NETWORK: (3, 64, 96),
    WRAPPER: (3, 64, 96),
    'simota.SimOTAAssigner()': None,
    'loss.YOLOXLoss(3)': None}


def modules(): return {name: importlib.import_module(f'cjm_yolox_pytorch.{name}') for name in MODULES}


def make(expression):
    torch.manual_seed(0)
    names = modules()
    return eval(expression, dict(vars(names['model']), nn=nn, **names))


def parameters(function):
    "Such as ['x', 'strides=[8, 16, 32]', '**kwargs']; a default tensor of one value is written as that number"
    found = []
    for p in inspect.signature(function).parameters.values():
        value = p.default.unique().item() if isinstance(p.default, torch.Tensor) else p.default
        stars = {p.VAR_POSITIONAL: '*', p.VAR_KEYWORD: '**'}.get(p.kind, '')
        found.append(stars + p.name + ('' if p.default is p.empty else f'={value!r}'))
    return found


def public(module):
    "Names that a module defines, or takes from another module of the project, with their parameters"
    for name, value in sorted(vars(module).items()):
        foreign = inspect.isclass(value) or inspect.isfunction(value)
        foreign = foreign and not value.__module__.startswith('cjm_')
        if name.startswith('_') or foreign or inspect.ismodule(value) or 'typing' in str(type(value)): continue
        if not callable(value): yield name, None
        elif value.__module__.startswith('cjm_'): yield name, parameters(value)
        if not inspect.isclass(value): continue
        for part, method in vars(value).items():
            if part.startswith('_') or part == 'category_labels': continue # A field of a dataclass
            yield f'{name}.{part}', parameters(method) if callable(method) else None


def fill(module):
    "Weights that do not depend on random numbers"
    for name, t in module.state_dict().items():
        wave = torch.sin(torch.arange(t.numel(), dtype=torch.float64)*.7 + len(name)).reshape(t.shape)
        if 'running_var' in name or name.endswith('bn.weight'): wave = 1 + wave/4
        if t.is_floating_point() and 'normalize' not in name: t.copy_(wave / max(1, t.numel()/max(1, len(t)))**.5)


def tensors(output):
    if isinstance(output, torch.Tensor): return [output]
    return [t for part in output for t in tensors(part)]


@torch.no_grad()
def outputs(module, shape):
    "Shape and a digest of each output of a filled layer, in fp64"
    module = module.double().eval()
    fill(module)
    def image(s): return torch.cos(torch.arange(math.prod(s), dtype=torch.float64)).reshape(1, *s)
    found = tensors(module(image(shape) if isinstance(shape, tuple) else [image(s) for s in shape]))
    return [[*t.shape, round(t.mean().item(), 6), round(t.std().item(), 6)] for t in found]


def attributes(thing):
    inherited = vars(nn.Module()) if isinstance(thing, nn.Module) else {}
    children = thing._modules if isinstance(thing, nn.Module) else {}
    return sorted({*vars(thing)} - {*inherited} | {*children})


def describe(expression, shape):
    thing = make(expression)
    found = dict(attributes=attributes(thing))
    if shape is None: return found
    state = {k: list(v.shape) for k, v in thing.state_dict().items()}
    if len(state) > 60: state = [len(state), sum(map(math.prod, state.values()))]
    return found | dict(state=state, outputs=outputs(thing, shape))


def lines(table): return '{\n' + ',\n'.join(f'{json.dumps(k)}: {json.dumps(v)}' for k, v in table.items()) + '}'


def main():
    names = {f'{module}.{name}': p for module, m in modules().items() for name, p in public(m)}
    exported = {module: sorted(m.__all__) for module, m in modules().items()}
    objects = {expression: describe(expression, shape) for expression, shape in OBJECTS.items()}
    print(f'{{"names": {lines(names)},\n"exported": {lines(exported)},\n"objects": {lines(objects)}}}')


if __name__ == '__main__': main()
