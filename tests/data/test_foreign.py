"Formats that are not read are named in the error, with the way to convert them."
import pytest
from layouts import LAYOUTS, write, write_image, write_layout

from cjm_yolox_pytorch.data.foreign import describe_foreign
from cjm_yolox_pytorch.data.splits import find_splits

LABELME = dict(version='5.0.1', flags={}, shapes=[dict(label='ant', shape_type='rectangle', points=[[1, 2], [3, 4]])],
               imagePath='a.png', imageData='A'*5000)
REGION = dict(shape_attributes=dict(name='rect', x=1, y=2, width=3, height=4), region_attributes={})
VIA_CSV = '#filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n'
SUPERVISELY = dict(size=dict(height=60, width=80), objects=[dict(classTitle='ant', geometryType='rectangle')])
CVAT = '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
VIDEO = CVAT + '<track id="0" label="ant"></track></annotations>'
FOREIGN = { # Files, and what is said
    'cvat video': ({'annotations.xml': VIDEO},
                   'annotations.xml looks like a video of CVAT, which is not read. In CVAT, export it as COCO 1.0'),
    'labelme': ({'images/a.json': LABELME}, 'images/a.json looks like labelme JSON.* labelme2coco'),
    'via': ({'via_region_data.json': {'a.png9': dict(size=9, regions=[REGION])}}, 'VIA.*Export Annotations .COCO'),
    'via project': ({'via.json': {'_via_settings': {}, '_via_img_metadata': {'a': dict(regions=[REGION])}}}, 'VIA'),
    'via csv': ({'via.csv': VIA_CSV}, 'via.csv looks like a project of VIA'),
    'supervisely': ({'meta.json': dict(classes=[]), 'ds0/ann/a.png.json': SUPERVISELY}, 'Supervisely.* Export to COCO'),
    'tfrecord': ({'train.tfrecord': b'\x00', 'label_map.pbtxt': ''}, 'TFRecord.* FiftyOne'),
    'tfrecord in parts': ({'train.record-00000-of-00010': b'\x00'}, 'looks like TFRecord'),
    'darknet': ({'cfg/ants.names': 'ant'}, 'Darknet without obj.data.* Write obj.data'),
}


@pytest.mark.parametrize('name', FOREIGN)
def test_foreign_format_is_named(name, tmp_path):
    files, message = FOREIGN[name]
    write_image(tmp_path/'images', 'a')
    for path, text in files.items(): write(tmp_path/path, text)
    with pytest.raises(ValueError, match=f'does not look like any format. .*{message}'): find_splits(tmp_path)
    with pytest.raises(ValueError, match=f'does not look like voc. .*{message}'): find_splits(tmp_path, 'voc')


@pytest.mark.parametrize('suffix', ['xml', 'json', 'csv', 'record'])
def test_foreign_file_can_be_given(suffix, tmp_path):
    texts = dict(xml=VIDEO, csv=VIA_CSV, record=b'')
    write(tmp_path/f'a.{suffix}', texts.get(suffix, LABELME))
    assert 'which is not read' in describe_foreign(tmp_path/f'a.{suffix}')


def test_json_min_of_label_studio_is_named(tmp_path):
    region = dict(x=1, y=2, width=3, height=4, rectanglelabels=['ant'], original_width=80, original_height=60)
    write(tmp_path/'project-1.json', [dict(image='a.png', id=1, label=[region])])
    message = 'looks like JSON-MIN of Label Studio, which is not read. In Label Studio, export it as JSON'
    assert message in describe_foreign(tmp_path)


@pytest.mark.parametrize('name', LAYOUTS)
def test_formats_that_are_read_are_not_foreign(name, tmp_path):
    write_layout(name, tmp_path)
    foreign = describe_foreign(tmp_path)
    assert not foreign or (name.startswith('yolo') and 'Darknet' in foreign) # It is only asked about the unread


def test_foreign_looks_at_the_start_of_few_files(tmp_path):
    for n in range(9): write(tmp_path/f'{n}.json', dict(text='x'*2**20, shapes=[], imagePath=''))
    write(tmp_path/'notes.json', LABELME)
    assert describe_foreign(tmp_path) == ''
