"CUDA is used only behind a question for the device, so that other accelerators work."
import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1]/'cjm_yolox_pytorch'
MODULES = sorted(p for p in PACKAGE.rglob('*.py') if p.name not in ('__init__.py', '_modidx.py'))
NAMES = 'cuda', 'there', 'torch.cuda.is_available()' # Conditions that hold a question for CUDA


@pytest.mark.parametrize('module', MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_cuda_is_used_only_where_it_was_asked_for(module):
    for use, asked in cuda_uses(module.read_text(encoding='utf-8')): assert asked, use


def cuda_uses(source):
    "Each use of torch.cuda, `.cuda()` or a text such as 'cuda:0', and whether a question for CUDA decides about it"
    tree, found = ast.parse(source), []
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node): child.parent = node
    for node in ast.walk(tree):
        used = use_of_cuda(node)
        if used is not None: found.append((used, any(asks_for_cuda(test) for test in conditions(node))))
    return found


def conditions(node):
    "What must hold for `node` to be run: the tests of each `if` around it, and the parts of `and`"
    while hasattr(node, 'parent'):
        branch, node = node, node.parent
        if not isinstance(node, (ast.If, ast.IfExp)) or branch is node.test: continue
        body = node.body if isinstance(node, ast.If) else [node.body]
        if branch not in body: continue
        both = isinstance(node.test, ast.BoolOp) and isinstance(node.test.op, ast.And)
        yield from node.test.values if both else [node.test]


def use_of_cuda(node):
    if isinstance(node, ast.Constant): return use_in_text(node)
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        imports = ast.unparse(node)
        return imports if re.search(r'\btorch\.cuda\b|torch import .*\bcuda\b', imports) else None
    if not isinstance(node, ast.Attribute) or node.attr != 'cuda' or 'backends' in ast.unparse(node): return None
    whole = node.parent if isinstance(node.parent, ast.Attribute) else node
    return None if ast.unparse(whole) == 'torch.cuda.is_available' else ast.unparse(whole)


def use_in_text(node):
    "A device such as 'cuda:0', unless it is compared or an index, as in `d in ('cpu', 'cuda')`"
    if not isinstance(node.value, str) or not re.fullmatch(r'cuda(:.*)?', node.value): return None
    holder = node.parent
    if isinstance(holder, ast.Tuple) and isinstance(holder.parent, ast.Compare): holder = holder.parent
    return None if isinstance(holder, (ast.Compare, ast.Subscript)) else repr(node.value)


def asks_for_cuda(test):
    text = ast.unparse(test)
    equal = isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.Eq) and text.endswith("== 'cuda'")
    return equal or text in NAMES or text.endswith('.is_cuda')


ASKED = ["if d.type == 'cuda': torch.cuda.synchronize()", 'x = torch.cuda.Event() if v.is_cuda else None',
         "if d.type == 'cuda' and n: torch.cuda.synchronize()",
         "return torch.device('cuda') if torch.cuda.is_available() else None"]
NOT_ASKED = ["x = 'nccl' if cuda else torch.device('cuda')", 'torch.cuda.empty_cache()', 'model.cuda()', "x.to('cuda')",
             "if d.type == 'cuda': pass\nelse: torch.cuda.synchronize()", 'x = 1 if v.is_cuda else torch.cuda.Event()',
             "f(device='cuda:1')", "f(('cpu', 'cuda'))", "torch.amp.GradScaler('cuda')", 'from torch import cuda',
             'from torch.cuda import amp', 'import torch.cuda', 'c = torch.cuda',
             "if d.type == 'cuda' or True: torch.cuda.synchronize()"]
NO_USE = ['torch.cuda.is_available()', "x.to(d, non_blocking=d.type == 'cuda')", "state['cuda']",
          "x = b.double() if d.type in ('cpu', 'cuda') else b"]


CASES = [(s, uses) for sources, uses in ((ASKED, [True]), (NOT_ASKED, [False]), (NO_USE, [])) for s in sources]


@pytest.mark.parametrize('source, uses', CASES)
def test_cuda_uses_without_a_question_would_be_seen(source, uses):
    assert [asked for _, asked in cuda_uses(source)] == uses
