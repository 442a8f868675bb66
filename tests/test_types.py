"A user's file passes mypy: what is public has types, and methods that notebooks add to classes are seen."
import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cjm_yolox_pytorch.detection import detections, detector

ROOT = Path(__file__).resolve().parents[1]
CONFIG = '[mypy]\nstrict = true\nfollow_imports = silent\n'
# Large packages that the types of ours do not depend on: a tenth of the time
QUICK = '''disallow_subclassing_any = false
[mypy-torch.*,torchvision.*,numpy.*,PIL.*,fastcore.*,matplotlib.*,cv2.*]
follow_imports = skip
ignore_missing_imports = true
'''
USER = '''
from pathlib import Path

import torch
from cjm_yolox_pytorch import Detections, Detector, Recipe, Trainer, YOLOXDetector, YOLOXLoss
from cjm_yolox_pytorch import build_model, evaluate, export, load_detector, train

class Items(torch.utils.data.Dataset[tuple[torch.Tensor, dict[str, torch.Tensor]]]):
    def __len__(self) -> int: return 2
    def __getitem__(self, i: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]: raise IndexError

items = Items()
birds = Path('birds')
run = train(birds, 'yolox_nano', weights=Path('a.pth'), epochs=2, out=Path('runs'), device='cpu', img_size=96)
train('birds', recipe=Recipe(epochs=3), callbacks=[object()], val='test')
train(items, val=items, names={0: 'wren'})
metrics = evaluate(run.weights, birds, split='test', out=run.out / 'test', device='cpu')
print({name: metrics[name] for name in ('AP', 'AP50')}, run.metrics['epoch'])
path: Path = export(run.weights, 'onnx', out=Path('x.onnx'))
detect = load_detector(run.weights, device='cpu', img_size=(480, 640), names=['wren'])
found: Detections = detect(Path('a.jpg'), conf=.1, classes={'wren'})
many: list[Detections] = detect([Path('a.jpg'), 'b.jpg'], max_det=3)
for box, score, label, name in found: print(name.upper(), score + 1., label + 1, len(box))
print(found[0].name.upper(), len(found['wren'][:3]), 'wren' in found, found.cpu().numpy().to('cpu').to_json(indent=1))
print(found.save('a.jpg').name, found.to_dict(), found.to_coco(image_id=3))
found.show()
other: Detections = Detector.from_pretrained('user/repo', device='cpu')('a.jpg')
model = build_model('yolox_tiny', num_classes=3, pretrained=False)
losses = YOLOXLoss(num_classes=3, box_loss='squared_iou')(*model(torch.rand(2, 3, 128, 128)), [], [])
both = YOLOXDetector(model, YOLOXLoss(3), conf=.1).eval()
print(Trainer(Recipe(), items, items, device='cpu', names=['wren']).train_epoch())
'''
WRONG = '''
from cjm_yolox_pytorch import load_detector, train
found = load_detector('a.pth')('a.jpg')
found.savee('a.jpg')
found[0].nome
train('birds', epochs='3')
load_detector('a.pth')(['a.jpg']).save('a.jpg')
'''


def mypy(tmp_path, source, config=CONFIG + QUICK):
    "Lines that mypy says about a file of `source`"
    pytest.importorskip('mypy')
    (tmp_path/'user.py').write_text(source)
    (tmp_path/'mypy.ini').write_text(config)
    command = [sys.executable, '-m', 'mypy', '--config-file', 'mypy.ini', '--cache-dir', 'cache', 'user.py']
    environment = dict(PYTHONPATH='', MYPYPATH=str(ROOT))
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode in (0, 1) and not done.stderr, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_program_of_a_user_has_types(tmp_path):
    assert mypy(tmp_path, USER)[:-1] == []
    wrong = mypy(tmp_path, WRONG)
    assert [int(line.split(':')[1]) for line in wrong[:-1]] == [4, 5, 6, 7], wrong


@pytest.mark.slow
def test_a_program_of_a_user_has_types_beside_those_of_torch(tmp_path):
    assert mypy(tmp_path, USER, CONFIG)[:-1] == []


def declared(module):
    "Functions of the base class for type checkers"
    tree = ast.parse(Path(module.__file__).read_text(encoding='utf-8'))
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == 'TYPE_CHECKING']
    base, = [node for block in blocks for node in block.body if isinstance(node, ast.ClassDef)]
    return [node for node in base.body if isinstance(node, ast.FunctionDef)]


def parameters_of(f):
    "Of the parameters of `f` in the source, as `inspect.signature` shows those of a function"
    f.decorator_list, f.returns, f.name = [], None, 'f'
    for argument in (*f.args.args, *f.args.kwonlyargs, f.args.kwarg, f.args.vararg):
        if argument: argument.annotation = None
    scope = {}
    exec(ast.unparse(f), scope)
    return without_types(scope['f'])


def without_types(f):
    return [str(p.replace(annotation=p.empty)) for p in inspect.signature(f).parameters.values()]


@pytest.mark.parametrize('cls', [detections.Detections, detector.Detector])
def test_declared_methods_are_those_of_the_class(cls):
    module = sys.modules[cls.__module__]
    for f in declared(module):
        name = f.name
        real = getattr(cls, name) # Bound if it is a class method
        shown, parameters = parameters_of(f), without_types(getattr(real, '__func__', real))
        if shown[-1:] == ['**options']: assert shown[:-1] == parameters[:len(shown) - 1] != parameters, name
        else: assert shown == parameters, name


@pytest.mark.parametrize('cls', [detections.Detections, detector.Detector])
def test_all_methods_are_declared(cls):
    source = Path(sys.modules[cls.__module__].__file__).read_text(encoding='utf-8')
    added = re.findall(rf'^@patch.*\ndef (\w+)\((?:self|cls):{cls.__name__}\b', source, re.M)
    seen = {f.name for f in declared(sys.modules[cls.__module__])} | {'__repr__'} # Every object has this one
    assert {name for name in added if not re.match('_[^_]|_repr', name)} <= seen and len(added) > 4
