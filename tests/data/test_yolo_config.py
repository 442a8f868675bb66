"data.yaml, obj.data and class lists of a YOLO dataset."
import pytest
from layouts import LINE, NAMES, SPLITS, every, labeled, stems, write, write_files, write_image, write_layout, yolo

from cjm_yolox_pytorch.data.splits import find_splits, read_split
from cjm_yolox_pytorch.data.yolo_config import find_yolo_splits
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
    'missing': (f'train: train/pictures\n{NAMED}', 'data.yaml: train/pictures is not in .*or its `path`'),
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
    'names that are a text': ('train: train/images\nnames: ant, bee', 'names are ant, bee, which is not a list of'),
    'a number in two ways': ('train: train/images\nnames: {0: ant, "0": bee}', 'which is not a list of'),
    'a gap in the numbers': ('train: train/images\nnc: 3\nnames: {0: ant, 2: bee}', 'which is not a list of 3'),
    'one split by two names': (f'train: train/images\nval: valid/images\nvalid: valid/images\n{NAMED}',
                               'several parts for one split: val'),
    'keys at other depths': (f'train: train/images\n{NAMED}\nextra: {{a: 1, a: 2}}', 'a appears twice'),
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
    write_files(tmp_path, {**labeled('images/a'), 'a.yaml': text, 'b.yaml': f'train: images\n{NAMED}'})
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


def test_darknet_refuses_keys_that_appear_twice(tmp_path):
    write_layout('yolo cvat 1.1', tmp_path)
    write(tmp_path/'obj.data', (tmp_path/'obj.data').read_text() + 'train = data/val.txt\n')
    refused(tmp_path, 'obj.data: keys that appear twice: train. Remove one of each')


def test_yaml_says_that_others_are_not_read(tmp_path):
    write_layout('yolo roboflow', tmp_path)
    assert read_split(tmp_path, 'train').notes == []
    write(tmp_path/'args.yaml', 'task: detect')
    write(tmp_path/'birds.yaml', f'train: valid/images\n{NAMED}')
    notes = read_split(tmp_path, 'train').notes
    assert notes == ['1 other file describing a dataset, not read, such as birds.yaml']
    assert read_split(tmp_path/'birds.yaml', 'train').notes == []


def test_yaml_numbers_may_have_gaps_between_them(tmp_path):
    "A class without a name is an error only where it is used"
    write_files(tmp_path, {**labeled('images/a', text=lambda _: '2 .5 .5 .2 .2\n0 .5 .5 .2 .2')})
    write(tmp_path/'data.yaml', 'train: images\nnames: {0: ant, 2: bee}')
    a = read_split(tmp_path, 'train')
    assert (a.names, a.labels.tolist()) == (['ant', 'bee'], [1, 0])
    write(tmp_path/'images/a.txt', '1 .5 .5 .2 .2')
    refused(tmp_path, r'class 1 has no name; \[0, 2\] have names')


@pytest.mark.parametrize('names', ['[" ant ", "bee  "]', '{0: "ant ", 1: " bee"}', '["ant\\t", bee]'])
def test_class_names_lose_blanks_at_their_ends(names, tmp_path):
    write_files(tmp_path, {**labeled('images/a'), 'data.yaml': f'train: images\nnames: {names}'})
    assert read_split(tmp_path, 'train').names == NAMES
    write_files(tmp_path, {'data.yaml': 'train: images', 'classes.txt': ' ant \nbee\t\n'})
    assert read_split(tmp_path, 'train').names == NAMES


@pytest.mark.parametrize('names', ['[ant, "ant "]', '{0: ant, 1: " ant"}'])
def test_class_names_that_differ_in_blanks_are_the_same(names, tmp_path):
    write_files(tmp_path, {**labeled('images/a'), 'data.yaml': f'train: images\nnames: {names}'})
    refused(tmp_path, 'several classes have the same name: ant')


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


@pytest.mark.parametrize('place', ['classes.txt', 'labels/classes.txt', 'labels/train/classes.txt', 'images/obj.names'])
def test_class_lists_beside_labels_have_to_agree_with_the_yaml(place, tmp_path):
    write_files(tmp_path, {**labeled('images/train/a'), 'data.yaml': f'train: images/train\n{NAMED}'})
    (tmp_path/'labels/train').mkdir(parents=True)
    write(tmp_path/place, 'ant\nbee\n')
    assert read_split(tmp_path, 'train').names == NAMES
    write(tmp_path/place, 'bee\nant\n')
    refused(tmp_path, f'class lists differ: .*data.yaml: ant, bee; .*/{place}: bee, ant. Keep the one')


PLACES = ['images/classes.txt', 'Classes.txt', 'labels/CLASSES.TXT', 'images/train/classes.txt', 'obj.names',
          'images/day/classes.txt']


@pytest.mark.parametrize('place', PLACES)
def test_class_list_is_found_in(place, tmp_path):
    write_files(tmp_path, {**labeled('images/train/a', 'images/val/c'), place: 'ant\nbee\n'})
    assert [read_split(tmp_path, split).names for split in SPLITS] == [NAMES]*2
    (tmp_path/place).unlink()
    note, = read_split(tmp_path, 'val').notes
    assert note.startswith('classes are called by their numbers, since there is no classes.txt or obj.names')


def test_class_list_of_another_split_comes_before_those_further_down(tmp_path):
    write_files(tmp_path, {**labeled('images/train/a', 'images/val/c'), 'images/train/classes.txt': 'ant\nbee\n'})
    write_files(tmp_path, {'old/classes.txt': 'bee\nant', 'old/data.yaml': 'train: images'})
    assert read_split(tmp_path, 'val').names == NAMES


@pytest.mark.parametrize('text, message', [
    ('train: images', None), ('train: images\nnc: 2', None), ('train: images\nnc: 3', 'which is not a list of 3')])
def test_class_list_completes_a_yaml_without_names(text, message, tmp_path):
    write_files(tmp_path, {**labeled('images/a'), 'classes.txt': 'ant\nbee', 'data.yaml': text})
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
    write_files(tmp_path, {**labeled('images/train/a'), 'classes.txt': 'كلب\u200f\n'})
    assert read_split(tmp_path, 'train').names == ['كلب\u200f']


def test_class_lists_below_a_parent_of_datasets_are_not_taken(tmp_path):
    "Classes of two datasets would become one, and splits would be mixed"
    write_layout('yolo roboflow', tmp_path/'one/bees')
    write_layout('yolo cvat 1.1', tmp_path/'two/bees')
    for folder in ('one', 'two'):
        message = r'no class names, but datasets further down: .*/bees/(data.yaml|obj.data). Give the folder'
        with pytest.raises(ValueError, match=message): read_split(tmp_path/folder, 'all')
    write_files(tmp_path/'three', {**labeled('day/a', 'night/c'), 'day/classes.txt': 'ant\nbee'})
    assert read_split(tmp_path/'three', 'all').names == NAMES
    write(tmp_path/'three/night/classes.txt', 'bee\nant')
    with pytest.raises(ValueError, match='class lists differ'): read_split(tmp_path/'three', 'all')


# Labels in one folder, images in another

def apart(layout, tmp_path, flat=False):
    "A layout whose images are moved to another folder"
    splits = write_layout(layout, tmp_path/'data')
    for p in files_below(tmp_path/'data', '.png'):
        folder = tmp_path/'pictures'/('' if flat else p.parent.relative_to(tmp_path/'data'))
        folder.mkdir(parents=True, exist_ok=True)
        p.rename(folder/p.name)
    return splits


APART = ['yolo label studio', 'yolo cvat 1.1', 'yolo cvat 1.1, as documented', 'yolo cvat ultralytics', 'yolo roboflow',
         'yolo fiftyone 5', 'yolo images/train', 'yolo train/images', 'yolo in one folder', 'yolo named after files']


@pytest.mark.parametrize('flat', [False, True])
@pytest.mark.parametrize('layout', APART)
def test_images_may_lie_in_another_folder(layout, flat, tmp_path):
    splits = write_layout(layout, tmp_path/'whole')
    whole = {split: read_split(tmp_path/'whole', split) for split in splits}
    apart(layout, tmp_path, flat)
    found = {split: read() for split, read in find_splits(tmp_path/'data', images=tmp_path/'pictures').items()}
    assert found.keys() == whole.keys()
    for split, a in found.items():
        b = whole[split]
        assert (stems(a), a.names, a.boxes.tolist()) == (stems(b), b.names, b.boxes.tolist())
        assert a.labels.tolist() == b.labels.tolist() and a.notes == b.notes and a.stops == []


def test_images_elsewhere_without_labels_are_left_out(tmp_path):
    apart('yolo label studio', tmp_path)
    write_image(tmp_path/'pictures/new', 'x')
    a = read_split(tmp_path/'data', 'all', images=tmp_path/'pictures')
    message = f'1 image in {tmp_path}/pictures without a label file, left out, such as '
    assert (len(a), a.notes) == (3, [f'{message}{tmp_path}/pictures/new/x.png'])


def test_labels_whose_images_are_not_elsewhere_stop(tmp_path):
    apart('yolo label studio', tmp_path)
    (tmp_path/'pictures/images/c.png').unlink()
    stop, = read_split(tmp_path/'data', 'all', images=tmp_path/'pictures').stops
    assert stop.startswith(f'1 of 3 label files have no image in a format that is read, such as {tmp_path}')


def test_images_elsewhere_may_have_the_same_name_in_two_folders(tmp_path):
    "The one in a folder of the same name is taken, or none"
    for split in SPLITS: write_image(tmp_path/'pictures'/split, 'a')
    write_files(tmp_path/'data', {f'labels/{split}/a.txt': LINE for split in SPLITS})
    for split in SPLITS:
        a = read_split(tmp_path/'data', split, images=tmp_path/'pictures')
        assert a.paths.tolist() == [f'{tmp_path}/pictures/{split}/a.png']
    (tmp_path/'data/labels/train/a.txt').rename(tmp_path/'data/labels/a.txt')
    for split in SPLITS: (tmp_path/f'data/labels/{split}/a.txt').unlink(missing_ok=True)
    with pytest.raises(ValueError, match='labels/a.txt: several images fit: .*train/a.png; .*val/a.png. Keep one'):
        read_split(tmp_path/'data', 'all', images=tmp_path/'pictures')


def test_images_elsewhere_match_in_another_unicode_form(tmp_path):
    nfc, nfd = 'caf\u00e9', 'cafe\u0301'
    write_image(tmp_path/'pictures', 'a')
    (tmp_path/'pictures/a.png').rename(tmp_path/f'pictures/{nfd}.png')
    write(tmp_path/f'data/labels/{nfc}.txt', LINE)
    assert len(read_split(tmp_path/'data', 'all', images=tmp_path/'pictures').labels) == 1


def test_images_elsewhere_do_not_make_coco_look_like_yolo(tmp_path):
    "Nor is a folder of splits judged that other formats understand"
    for folder in ('val', 'valid'): write_image(tmp_path/'data'/folder, 'c')
    write_files(tmp_path, {'data/a.txt': 'about a', 'data/train.json': '{}', 'pictures/a': None})
    assert find_yolo_splits(tmp_path/'data', tmp_path/'pictures') == {}
    assert find_yolo_splits(tmp_path/'data/train.json', tmp_path/'pictures') == {}


def test_folder_of_images_that_fits_nothing(tmp_path):
    apart('yolo roboflow', tmp_path)
    for format in ('yolo', None):
        with pytest.raises(FileNotFoundError, match='nowhere: no such folder of images'):
            find_splits(tmp_path/'data', format, images=tmp_path/'nowhere')
    (tmp_path/'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='data.yaml: .*empty has none of its images'):
        find_splits(tmp_path/'data', images=tmp_path/'empty')
    (tmp_path/'data/data.yaml').unlink()
    with pytest.raises(ValueError, match='does not look like any format'):
        find_splits(tmp_path/'data', images=tmp_path/'empty')


def test_runs_in_the_folder_of_the_data_add_nothing_to_it(tmp_path):
    "Their images would become images without objects, and the data others than those of a saved state"
    write_files(tmp_path, labeled('a', 'c', text=lambda _: LINE))
    before = read_split(tmp_path, 'all').paths.tolist()
    training = [f'one/{name}' for name in ('state.pt', 'metrics.csv', 'worst.png', 'curves.png')]
    for name in [*training, 'test/metrics.json', 'test/worst.png']: write(tmp_path/'runs'/name, '')
    assert read_split(tmp_path, 'all').paths.tolist() == before
    assert len(files_below(tmp_path/'runs/one', '.png')) == 2 # Whoever gives that folder means it


@pytest.mark.parametrize('folder, entry', [('validate/images', '../valid/images'), ('images/validation', 'images/val')])
def test_renamed_folder_of_a_split_is_named(tmp_path, folder, entry):
    write_image(tmp_path/'train/images', 'a')
    write_image(tmp_path/folder, 'c')
    write(tmp_path/'data.yaml', f'train: ../train/images\nval: {entry}\nnames: [ant, bee]')
    with pytest.raises(FileNotFoundError, match=f'{entry} is not in {tmp_path}, but {folder} is. Correct the entry'):
        read_split(tmp_path, 'val')


def test_validate_is_a_name_of_val(tmp_path):
    for split, name in (('train', 'a'), ('validate', 'c')):
        write_image(tmp_path/split/'images', name)
        write(tmp_path/split/f'labels/{name}.txt', LINE)
    write(tmp_path/'classes.txt', 'ant')
    assert {*find_splits(tmp_path)} == {'train', 'val'}
