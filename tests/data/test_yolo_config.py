"data.yaml, obj.data and class lists of a YOLO dataset."
import pytest
from layouts import LINE, NAMES, SPLITS, every, labelled, write, write_files, write_image, write_layout, yolo

from cjm_yolox_pytorch.data.splits import find_splits, read_split
from cjm_yolox_pytorch.files.paths import files_below


def refused(root, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message): read_split(root, 'train', 'yolo')


NAMED = 'names: [ant, bee]'
BAD = {
    'not YAML': ('train: [a', 'data.yaml: not YAML: .*line 1'),
    'a number': ('3', 'data.yaml: not a description'),
    'no split': (NAMED, 'data.yaml: no train, val or test'),
    'absolute': (f'train: /etc\n{NAMED}', '/etc is absolute'),
    'outside': (f'train: ../../etc\n{NAMED}', 'leaves the folder'),
    'outside, later': (f'train: images/../../etc\n{NAMED}', 'leaves the folder'),
    'absolute below data': (f'train: data//etc/passwd\n{NAMED}', 'data.yaml: data//etc/passwd is not in'),
    'missing': (f'train: train/pictures\n{NAMED}', 'data.yaml: train/pictures is not in .*Correct the entry, or path:'),
    'names that are truths': ('train: train/images\nnames: [no, yes]', 'classes that are not text: False; True. Put'),
    'too few names': (f'train: train/images\nnc: 3\n{NAMED}', 'which is not a list of 3'),
    'a name twice': ('train: train/images\nnames: [ant, ant]', 'the same name: ant'),
    'numbers by name': ('train: train/images\nnames: {ant: 0, bee: 1}', 'which is not a list of'),
    'a key twice': ('train: train/images\nnames:\n  0: ant\n  0: bee', 'data.yaml: not YAML: 0 appears twice'),
    'poses': (f'train: train/images\nkpt_shape: [4, 3]\n{NAMED}', 'for poses'),
    'an image': (f'train: train/images/a.png\n{NAMED}', 'train/images/a.png is an image. Write a folder'),
    'an alias of a list': (
        'train: &t [train/images]\nval: *t\nnames: [ant]',
        'aliases .* of lists and long texts are not read'),
    'absolute in a list': (f'train: list.txt\n{NAMED}', '/etc/passwd is absolute'),
    'missing in a list': (f'train: short.txt\n{NAMED}', 'short.txt: 1 of 2 images are missing, such as .*z.png'),
    'no such root': (f'path: /mnt/birds\ntrain: images\n{NAMED}',
                     'data.yaml, whose path: /mnt/birds does not exist: images is not in'),
    'a root outside': (f'path: ..\ntrain: train/images\n{NAMED}', 'data.yaml: its path: leads out of .*give this file'),
}


@pytest.mark.parametrize('name', BAD)
def test_yaml_is_refused(name, tmp_path):
    text, message = BAD[name]
    write_layout('yolo roboflow', tmp_path)
    write(tmp_path/'data.yaml', text)
    write(tmp_path/'list.txt', 'train/images/a.png\n/etc/passwd\n')
    write(tmp_path/'short.txt', 'train/images/a.png\ntrain/images/z.png')
    refused(tmp_path, message)


@pytest.mark.parametrize('name', ['data/train/images', 'data\\\\train\\\\images', '../train/images', './train/images'])
def test_yaml_paths_of_other_programs_mean_the_folder_of_the_file(name, tmp_path):
    write_layout('yolo roboflow', tmp_path)
    write(tmp_path/'data.yaml', f'train: "{name}"\n{NAMED}')
    assert len(read_split(tmp_path, 'train')) == 2


OTHERS = ['task: detect\nval: true', 'train:\n  batch: 8', 'train: {batch: 8}', 'train: # Nothing', 'trainer: images',
          'train: 0.8', 'val: True', 'val: yes', 'val: 1', 'train: null']
DESCRIPTIONS = ['train: images', 'train:\n- images', 'val:\r\n  - images', 'train: [images]', 'val: "images"',
                'train = images', '\ufefftrain: images', 'nc: 1\nval: images', 'train: [broken',
                'train: true_images', 'train: images\nval: 1']


@pytest.mark.parametrize('text', OTHERS + DESCRIPTIONS)
def test_yaml_of_any_name_counts_if_it_says_where_images_are(text, tmp_path):
    write_files(tmp_path, {**labelled('images/a'), 'a.yaml': text, 'b.yaml': f'train: images\n{NAMED}'})
    if text in OTHERS: assert len(read_split(tmp_path, 'train')) == 1
    else: refused(tmp_path, 'several files describe a dataset')


def test_yaml_aliases_of_short_texts_are_read(tmp_path):
    write_layout('yolo roboflow', tmp_path)
    write(tmp_path/'data.yaml', f'train: &t train/images\nval: *t\n{NAMED}')
    assert [len(read_split(tmp_path, split)) for split in ('train', 'val')] == [2, 2]


def test_yaml_may_only_count_the_classes(tmp_path):
    write_layout('yolo roboflow', tmp_path)
    write(tmp_path/'data.yaml', 'train: train/images\nval: valid/images\nnc: 3')
    assert [read_split(tmp_path, split).names for split in SPLITS] == [['0', '1', '2']]*2


def test_yaml_outside_and_links_are_followed(tmp_path):
    write_layout('yolo roboflow', tmp_path/'data')
    write(tmp_path/'elsewhere/data.yaml', f'path: {tmp_path}/data\ntrain: train/images\n{NAMED}')
    assert len(read_split(tmp_path/'elsewhere/data.yaml', 'train')) == 2
    (tmp_path/'link').symlink_to(tmp_path/'data')
    (tmp_path/'data/extra').mkdir()
    (tmp_path/'data/train').rename(tmp_path/'far')
    (tmp_path/'data/train').symlink_to(tmp_path/'far')
    assert len(read_split(tmp_path/'link', 'train')) == 2


def test_yaml_absolute_path_of_its_root_may_not_leave_it(tmp_path):
    write_layout('yolo roboflow', tmp_path/'data')
    write_image(tmp_path/'secret', 'a')
    write(tmp_path/'data/data.yaml', f'train: {tmp_path}/data/../secret\n{NAMED}')
    refused(tmp_path/'data', r'\.\./secret leaves the folder')


@pytest.mark.parametrize('names', [('a.yaml', 'b.yaml'), ('obj.data', 'birds.yml')])
def test_two_descriptions_are_refused(names, tmp_path):
    every('images', 'labels/{name}.txt', yolo)(tmp_path)
    for name in names: write(tmp_path/name, 'train = images' if name == 'obj.data' else f'train: images\n{NAMED}')
    with pytest.raises(ValueError, match='several files describe a dataset: .*Give one of them'): find_splits(tmp_path)
    assert len(read_split(tmp_path/names[1], 'train')) == 3


def test_promised_test_split_that_is_missing_is_left_out(tmp_path):
    "Roboflow writes one into every data.yaml"
    write_layout('yolo roboflow', tmp_path)
    assert sorted(find_splits(tmp_path)) == ['train', 'val']
    text = (tmp_path/'data.yaml').read_text()
    write(tmp_path/'data.yaml', text.replace('../test/images', '/content/birds/test/images'))
    assert len(read_split(tmp_path, 'train')) == 2
    with pytest.raises(ValueError, match='/content/birds/test/images is absolute'): read_split(tmp_path, 'test')


def test_darknet_counts_its_classes(tmp_path):
    write_layout('yolo cvat 1.1', tmp_path)
    write(tmp_path/'obj.data', 'classes = 7\ntrain = data/train.txt\nnames = data/obj.names')
    refused(tmp_path, 'which is not a list of 7')


# Class lists

def test_each_folder_may_have_its_own_order_of_classes(tmp_path):
    "LabelImg writes classes.txt into each folder; two that hold for one folder have to agree"
    every('{split}', '{split}/{name}.txt', yolo)(tmp_path)
    write(tmp_path/'train/classes.txt', 'ant\nbee')
    write(tmp_path/'val/classes.txt', 'bee\nant')
    assert [read_split(tmp_path, split).names for split in SPLITS] == [['ant', 'bee'], ['bee', 'ant']]
    write(tmp_path/'classes.txt', 'bee\nant')
    assert read_split(tmp_path, 'val').names == ['bee', 'ant']
    refused(tmp_path, 'class lists differ: .*bee, ant; .*train/classes.txt: ant, bee. Keep the one')


PLACES = ['images/classes.txt', 'Classes.txt', 'labels/CLASSES.TXT', 'images/train/classes.txt', 'obj.names',
          'images/day/classes.txt']


@pytest.mark.parametrize('place', PLACES)
def test_class_list_is_found_in(place, tmp_path):
    write_files(tmp_path, {**labelled('images/train/a', 'images/val/c'), place: 'ant\nbee\n'})
    assert [read_split(tmp_path, split).names for split in SPLITS] == [NAMES]*2
    (tmp_path/place).unlink()
    note, = read_split(tmp_path, 'val').notes
    assert note.startswith('no classes.txt or obj.names or _darknet.labels names the classes, so they are called by')


def test_class_list_of_another_split_comes_before_those_further_down(tmp_path):
    write_files(tmp_path, {**labelled('images/train/a', 'images/val/c'), 'images/train/classes.txt': 'ant\nbee\n'})
    write_files(tmp_path, {'old/classes.txt': 'bee\nant', 'old/data.yaml': 'train: images'})
    assert read_split(tmp_path, 'val').names == NAMES


@pytest.mark.parametrize('text, message', [
    ('train: images', None), ('train: images\nnc: 2', None), ('train: images\nnc: 3', 'which is not a list of 3')])
def test_class_list_completes_a_yaml_without_names(text, message, tmp_path):
    write_files(tmp_path, {**labelled('images/a'), 'classes.txt': 'ant\nbee', 'data.yaml': text})
    if message: refused(tmp_path, message)
    else: assert read_split(tmp_path, 'train').names == NAMES


@pytest.mark.parametrize('layout, file', [('yolo images/train', 'classes.txt'), ('yolo cvat 1.1', 'obj.names')])
def test_class_list_ends_at_its_last_name(layout, file, tmp_path):
    write_layout(layout, tmp_path)
    write(tmp_path/file, 'ant\nbee\n\n \n')
    assert read_split(tmp_path, 'train').names == NAMES
    write(tmp_path/file, 'ant\n\nbee\n')
    refused(tmp_path, f'{file}: blank lines between class names: line 2')


def test_darknet_data_may_leave_names_empty(tmp_path):
    write_layout('yolo cvat 1.1', tmp_path)
    text = (tmp_path/'obj.data').read_text()
    write(tmp_path/'obj.data', text.replace('names = data/obj.names', 'names ='))
    assert read_split(tmp_path, 'train').names == NAMES


def test_class_names_may_hold_marks_of_direction(tmp_path):
    write_files(tmp_path, {**labelled('images/train/a'), 'classes.txt': 'كلب\u200f\n'})
    assert read_split(tmp_path, 'train').names == ['كلب\u200f']


def test_class_lists_below_a_parent_of_datasets_are_not_taken(tmp_path):
    "Classes of two datasets would become one, and splits would be mixed"
    write_layout('yolo roboflow', tmp_path/'one/bees')
    write_layout('yolo cvat 1.1', tmp_path/'two/bees')
    for folder in ('one', 'two'):
        message = r'no class names, but datasets further down: .*/bees/(data.yaml|obj.data). Give the folder'
        with pytest.raises(ValueError, match=message): read_split(tmp_path/folder, 'all')
    write_files(tmp_path/'three', {**labelled('day/a', 'night/c'), 'day/classes.txt': 'ant\nbee'})
    assert read_split(tmp_path/'three', 'all').names == NAMES
    write(tmp_path/'three/night/classes.txt', 'bee\nant')
    with pytest.raises(ValueError, match='class lists differ'): read_split(tmp_path/'three', 'all')


def test_runs_in_the_folder_of_the_data_add_nothing_to_it(tmp_path):
    "Their images would become images without objects, and the data others than those of a saved state"
    write_files(tmp_path, labelled('a', 'c', text=lambda _: LINE))
    before = read_split(tmp_path, 'all').paths.tolist()
    training = [f'one/{name}' for name in ('state.pt', 'metrics.csv', 'worst.png', 'curves.png')]
    for name in [*training, 'test/metrics.json', 'test/worst.png']: write(tmp_path/'runs'/name, '')
    assert read_split(tmp_path, 'all').paths.tolist() == before
    assert len(files_below(tmp_path/'runs/one', '.png')) == 2 # Whoever gives that folder means it
