"Every public name and signature of 0.2 is accepted, or stands with its reason in the table of the page from_0_2."
import inspect
import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from names_0_2 import NETWORK, OBJECTS, WRAPPER, attributes, describe, make, modules, parameters

from cjm_yolox_pytorch.layers import ConvModule, CSPLayer, DarknetBottleneck, Focus, SPPBottleneck

HERE = Path(__file__).parent
THEIRS = json.loads((HERE/'names_0_2.json').read_text(encoding='utf-8'))


def stated():
    "First column of the table under 'Names that have changed': `name` or `name(parameters)`"
    page = json.loads((HERE.parents[1]/'nbs/explanations/from_0_2.ipynb').read_text(encoding='utf-8'))
    text = next(t for t in (''.join(c['source']) for c in page['cells']) if t.startswith('## Names that have changed'))
    for row in re.findall(r'^\| (`.+?) \|', text, re.M):
        for name, arguments in re.findall(r'`([\w.]+)(?:\((.+?)\))?`', row):
            yield from ([f'{name}({a})' for a in arguments.split(', ')] if arguments else [name])


def find(name):
    module, *parts = name.split('.')
    thing = modules()[module]
    for part in parts:
        if not hasattr(thing, part): return None
        thing = getattr(thing, part)
    return thing


def split(parameter): # Lists and tuples are the same to us
    name, _, default = parameter.partition('=')
    return name, re.sub(r'^\((.*)\)$', r'[\1]', default)


def refused(theirs, ours):
    "Parameters of 0.2 that ours does not take in the same place and by the same name, with the same default"
    places = [split(p)[0] for p in (ours[:ours.index('*')] if '*' in ours else ours)]
    defaults = dict(map(split, ours))
    for i, (name, default) in enumerate(map(split, theirs)):
        placed = places[i:i+1] == [name]
        if not placed or default and defaults[name] != default: yield name


def parameters_of(thing):
    "As in 0.2; `*` is where parameters by keyword begin, and a static method also has a first one, `self`"
    names = [p.name for p in inspect.signature(thing).parameters.values() if p.kind is p.KEYWORD_ONLY]
    found = parameters(thing)
    if names: found.insert([split(p)[0] for p in found].index(names[0]), '*')
    return found


def changed():
    "Names and parameters of 0.2 that are not there as they were"
    for name, theirs in THEIRS['names'].items():
        thing, place = find(name), name.partition('.')[2]
        if thing is None: yield place if '.' in place else name
        elif theirs is not None:
            if theirs[0] == 'self' and 'self' not in inspect.signature(thing).parameters: theirs = theirs[1:]
            yield from (f'{place}({p})' for p in refused(theirs, parameters_of(thing)))


def test_names_and_signatures_are_those_of_0_2_or_stand_on_the_page():
    assert {*changed()} == {*stated()}


@pytest.mark.parametrize('module', THEIRS['exported'])
def test_star_imports_bring_what_0_2_brought(module):
    assert {*THEIRS['exported'][module]} <= {*modules()[module].__all__}


@pytest.mark.parametrize('expression', OBJECTS)
def test_objects_have_the_attributes_weights_and_outputs_of_0_2(expression):
    theirs, ours = THEIRS['objects'][expression], describe(expression, OBJECTS[expression])
    missing = [name for name in theirs['attributes'] if not hasattr(make(expression), name)]
    assert missing == []
    assert ours.get('state') == theirs.get('state')
    if 'outputs' in theirs: torch.testing.assert_close(ours['outputs'], theirs['outputs'], atol=2e-6, rtol=1e-9)


def as_pickled_by_0_2(module):
    "Without the attributes that 0.2 did not give its objects, as `torch.load` makes them from its files"
    known = {re.match(r'(?:\w+\.)?(\w+)', e)[1]: {*THEIRS['objects'][e]['attributes']} for e in OBJECTS}
    for m in module.modules():
        own = {*attributes(m)} - {*m._modules}
        for name in own - known.get(type(m).__name__, own): delattr(m, name)
    return pickle.loads(pickle.dumps(module))


@pytest.mark.parametrize('expression', [NETWORK, WRAPPER])
def test_models_that_0_2_saved_whole_compute_the_same(expression):
    model, x = make(expression).eval(), torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        want = model(x)
        torch.testing.assert_close(as_pickled_by_0_2(model)(x), want, atol=0, rtol=0)


@pytest.mark.parametrize('make_layer', [
    lambda: CSPLayer(8, 16, stride=2), lambda: ConvModule(8, 16, 3, dilation=2), lambda: Focus(3, 8, padding=1),
    lambda: DarknetBottleneck(8, 16, expansion=.5), lambda: SPPBottleneck(8, 16, kernel_sizes=(5, 9))])
def test_layers_refuse_what_they_do_not_know(make_layer):
    known = 'a layer takes those in its signature, and eps, momentum, affine and track_running_stats of its norm'
    with pytest.raises(TypeError, match=rf"unknown argument '\w+': {known}"): make_layer()


@pytest.mark.parametrize('make_layer', [
    lambda: DarknetBottleneck(8, 16, .1), lambda: CSPLayer(8, 16, 1, 3), lambda: SPPBottleneck(8, 16, (5,), .1),
    lambda: ConvModule(8, 16, 3, 1, 1, True, .1), lambda: Focus(3, 8, 3, 1, False, .1)])
def test_norm_options_by_position_are_refused(make_layer):
    with pytest.raises(TypeError, match='positional arguments'): make_layer()
