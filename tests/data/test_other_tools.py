"""The converters of other tools read what we write, and we read what they make of it.

They come with many packages, so they may live in another environment: set DATUMARO_PYTHON and LABEL_STUDIO_PYTHON to
an interpreter that has `datumaro` or `label-studio-sdk`. Otherwise the tests use ours, or skip."""
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from cjm_yolox_pytorch.data.annotations import build_annotations
from cjm_yolox_pytorch.data.label_files import label_files, write_files
from cjm_yolox_pytorch.data.splits import find_splits

NAMES = ['red cell', 'platelet & co', 'Zürich <b>']
SIZES = {'a.png': (60, 80), 'day 1/ü & b.jpg': (50, 90), 'empty.png': (40, 40), 'day 1/tall.jpg': (90, 50)}
ROWS = [(0, 0, 0, 0, 80, 60, 0, 4800, .875), (0, 2, 1.25, 2.5, 30.75, 40.25, 0, 1113.625, .5),
        (1, 1, 10, 10, 20, 30, 0, 200, .25), (3, 0, 5, 6, 45, 80, 0, 2960, .75)]


def python_with(package, variable):
    found = os.environ.get(variable) or (sys.executable if importlib.util.find_spec(package) else None)
    if not found: pytest.skip(f'needs {package}, or {variable}')
    return found


def run(python, code, *words, cwd):
    "What a script prints as its last line, as JSON"
    done = subprocess.run([python, '-c', code, *words], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().split('\n')[-1])


def write_sample(root, format):
    "Labels and images, as a dataset"
    scored = build_annotations('sample', NAMES, [*SIZES], [*SIZES.values()], ROWS)
    write_files(root, label_files(format, dict(all=scored), 'nano'))
    for path, (height, width) in SIZES.items():
        place = root/('JPEGImages' if format == 'voc' else 'images')/path
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (width, height)).save(place)
    return scored


def by_stem(a):
    "Size, and sorted names and corners of the objects of each image"
    found = {}
    for i, path in enumerate(a.paths):
        boxes, labels, _ = a.objects(i)
        objects = sorted([a.names[n], *box] for n, box in zip(labels, boxes.tolist()))
        found[Path(path).stem] = a.sizes[i].tolist(), objects
    return found


READ = '''
import json, sys, datumaro as dm
data = dm.Dataset.import_from(sys.argv[1], sys.argv[2])
names = data.categories()[dm.AnnotationType.label]
def box(a): x, y, w, h = a.get_bbox(); return [names[a.label].name, x, y, x + w, y + h]
items = {i.id.split('/')[-1]: (list(i.media.size), sorted(map(box, i.annotations)),
    sorted(float(a.attributes.get('score', -1)) for a in i.annotations)) for i in data}
for format in sys.argv[3:]: data.export(format, format, save_media=True)
print(json.dumps([[n.name for n in names], items]))
'''
AS_DATUMARO_CALLS_IT = dict(voc='voc_detection', coco='coco_instances', cvat='cvat', yolo='yolo')


@pytest.mark.slow
@pytest.mark.parametrize('format', AS_DATUMARO_CALLS_IT)
def test_datumaro_reads_what_we_write_and_we_what_it_writes(format, tmp_path):
    python = python_with('datumaro', 'DATUMARO_PYTHON')
    expected = by_stem(write_sample(tmp_path/'data', format))
    exports = ['coco_instances'] # In VOC it leaves out the files of images without objects
    names, items = run(python, READ, 'data', AS_DATUMARO_CALLS_IT[format], *exports, cwd=tmp_path)
    assert names == NAMES and items.keys() == expected.keys()
    scores = {stem: sorted(row[-1] for row in ROWS if row[0] == n) for n, stem in enumerate(expected)}
    for stem, (size, objects) in expected.items():
        assert items[stem][0] == size and len(items[stem][1]) == len(objects)
        for (name, *box), (other, *corners) in zip(items[stem][1], objects):
            assert name == other
            np.testing.assert_allclose(box, corners, atol=.01)
        if format != 'yolo': assert items[stem][2] == pytest.approx(scores[stem])
    for export in exports:
        read = [read() for read in find_splits(tmp_path/export).values()]
        found = {stem: rest for a in read for stem, rest in by_stem(a).items()}
        assert found.keys() == expected.keys()
        for stem, (size, objects) in expected.items():
            assert found[stem][0] == size and [o[0] for o in found[stem][1]] == [o[0] for o in objects]
            for mine, theirs in zip(found[stem][1], objects): np.testing.assert_allclose(mine[1:], theirs[1:], atol=.02)


ACCEPT = '''
import json, pathlib, sys
from label_studio_sdk.converter import Converter
from label_studio_sdk.label_interface import LabelInterface
config = pathlib.Path('data/label_config.xml').read_text()
tasks = json.loads(pathlib.Path('data/tasks.json').read_text())
interface = LabelInterface(config)
interface.validate()
problems = [interface.validate_prediction(p, return_errors=True) for t in tasks for p in t['predictions']]
for n, t in enumerate(tasks): # As its server does when an annotator accepts a prediction
    t.update(id=n, annotations=[dict(id=n, result=t['predictions'][0]['result'], was_cancelled=False)])
pathlib.Path('accepted.json').write_text(json.dumps(tasks))
converter = Converter(config, project_dir=None, upload_dir='x', download_resources=False)
for format in ('COCO', 'YOLO', 'VOC'): converter.convert('accepted.json', format, format, is_dir=False)
print(json.dumps(problems))
'''


@pytest.mark.slow
def test_label_studio_accepts_and_converts_what_we_write(tmp_path):
    python = python_with('label_studio_sdk', 'LABEL_STUDIO_PYTHON')
    written = write_sample(tmp_path/'data', 'labelstudio')
    assert run(python, ACCEPT, cwd=tmp_path) == [[]]*4
    coco = json.loads((tmp_path/'COCO/result.json').read_text())
    names = {c['id']: c['name'] for c in coco['categories']}
    found = {}
    for image in coco['images']:
        boxes = [[names[a['category_id']], *a['bbox']] for a in coco['annotations'] if a['image_id'] == image['id']]
        corners = sorted([name, x, y, x + w, y + h] for name, x, y, w, h in boxes)
        found[unquote(image['file_name']).partition('?d=')[2]] = corners
    assert [*found] == [*SIZES]
    for corners, (_, objects) in zip(found.values(), by_stem(written).values()):
        for mine, theirs in zip(corners, objects):
            assert mine[0] == theirs[0]
            np.testing.assert_allclose(mine[1:], theirs[1:], atol=1e-9)
    assert sorted((tmp_path/'YOLO/classes.txt').read_text().split('\n')[:3]) == sorted(NAMES)
    line = (tmp_path/'YOLO/labels/tall.txt').read_text().split()
    np.testing.assert_allclose([*map(float, line[1:])], [.5, 43/90, .8, 74/90], atol=1e-9)


def test_what_label_studio_exports_after_that_is_read(tmp_path):
    "The same tasks with annotations, as its server exports them"
    written = write_sample(tmp_path/'data', 'labelstudio')
    [read] = find_splits(tmp_path/'data').values()
    predicted = read()
    assert by_stem(predicted) == by_stem(written) and 'nobody has annotated anything yet' in predicted.notes[0]
    tasks = json.loads((tmp_path/'data/tasks.json').read_text())
    for task in tasks[:3]: task['annotations'] = [dict(result=task['predictions'][0]['result'])]
    tasks[0]['annotations'][0]['result'] = tasks[0]['annotations'][0]['result'][:1]
    tasks[2]['annotations'].append(dict(result=[], was_cancelled=True))
    (tmp_path/'data/tasks.json').write_text(json.dumps(tasks))
    [read] = find_splits(tmp_path/'data').values()
    corrected = read()
    assert len(corrected) == 3 and len(corrected.objects(0)[1]) == 1
    assert '1 of 4 tasks are not annotated and are left out' in corrected.stops[0]


@pytest.mark.parametrize('format, name', [('labelstudio', 'tasks.json'), ('cvat', 'annotations.xml')])
def test_the_file_of_a_tool_is_read_like_its_folder(format, name, tmp_path):
    written = write_sample(tmp_path/'data', format)
    [read] = find_splits(tmp_path/'data'/name).values()
    assert by_stem(read()) == by_stem(written)


@pytest.mark.parametrize('address, path', [
    ('/data/local-files/?d=data/a%20%2B%23.png', 'data/a +#.png'), ('/data/upload/1/0a1b2c3d-a.png', 'a.png'),
    ('https://example.org/a.png?id=3&X-Amz-Credential=d=', 'a.png'), ('s3://data/sub/a.png', 'sub/a.png')])
def test_images_of_label_studio_are_found_by_their_address(address, path, tmp_path):
    for place in {path, 'a.png'}:
        (tmp_path/'images'/place).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (80, 60)).save(tmp_path/'images'/place)
    tasks = [dict(data=dict(image=address), annotations=[dict(result=[]), dict(result=[])])]
    (tmp_path/'tasks.json').write_text(json.dumps(tasks))
    [read] = find_splits(tmp_path/'tasks.json').values()
    found = read()
    assert [*found.paths] == [str(tmp_path/'images'/path)]
    assert '1 task with several annotations, of which the last is read' in found.notes[0]


def test_a_project_of_cvat_with_subsets_is_read(tmp_path):
    scored = write_sample(tmp_path/'data', 'cvat')
    parts = dict(train=scored.take([0, 1]), val=scored.take([2, 3]))
    parts = {split: replace(a, scores=None) for split, a in parts.items()}
    write_files(tmp_path/'data', label_files('cvat', parts), overwrite=True)
    found = {split: read() for split, read in find_splits(tmp_path/'data').items()}
    assert {split: by_stem(a) for split, a in found.items()} == {split: by_stem(a) for split, a in parts.items()}
    assert all(a.names == NAMES for a in found.values())
