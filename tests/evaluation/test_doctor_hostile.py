"The doctor reports on hostile data without harm."
# ruff: noqa: F811 (fixtures are imported, and arguments bear their names)
import json
import os
import sys
from pathlib import Path

import fuzz
import pytest
from fuzz import TXT, pixels, put
from hostile import armed, coco, png, root # noqa: F401

from cjm_yolox_pytorch.commands.messages import printable
from cjm_yolox_pytorch.evaluation.dataset_figure import draw_dataset
from cjm_yolox_pytorch.evaluation.doctor import examine, report_lines, yolox_doctor


@pytest.mark.skipif(sys.platform != 'linux', reason='other systems have no such names')
def test_names_that_are_not_utf_8_are_drawn(root):
    for name in (b'caf\xe9.png', b'$\xff$.png', b'c.png'):
        path = Path(os.fsdecode(os.fsencode(root) + b'/' + name))
        pixels(root, path.name)
        path.with_suffix('.txt').write_text(TXT.splitlines()[0] + '\n0 .9 .5 .6 .2')
    (root/os.fsdecode(b'caf\xe9.png')).write_bytes(png(20, 10)) # And one with a fault
    report = examine(root)
    (root/'out').mkdir()
    fuzz.WATCH['root'] = None
    draw_dataset(report.splits, report.faults, 416, root/'out/doctor.png')
    assert r'caf\udce9.png' in printable('\n'.join(report_lines(report)))
    assert (root/'out/doctor.png').stat().st_size > 1000


@pytest.mark.parametrize('out', ['report', '.', '../data/a/../report'])
def test_output_in_the_data_is_refused(out, root):
    "Its images would be images without objects the next time"
    pixels(root, 'a.png', 'b.png')
    put(root, {'a.txt': TXT.encode(), 'b.txt': TXT.encode()})
    with pytest.raises(ValueError, match=r'is in the folder of the data, .*choose another out \(--out\)'):
        yolox_doctor(str(root), out=str(root/out))
    assert sorted(os.listdir(root)) == ['a.png', 'a.txt', 'b.png', 'b.txt']


def test_images_that_claim_to_be_large_are_drawn(root):
    doc = coco(images=dict(width=10**6, height=10**6))
    put(root, {'train.json': json.dumps(doc).encode(), 'a.png': b'no picture', 'b.png': png(20, 10, bytes(61*10))})
    report = examine(root)
    (root/'out').mkdir()
    fuzz.WATCH['root'] = None
    before = fuzz.memory(reset=True)
    draw_dataset(report.splits, report.faults, 416, root/'out/doctor.png')
    assert fuzz.memory() - before < 500e3 and 'image does not decode' in '\n'.join(report_lines(report))
