"Files found by their names, in any Unicode form and letter case."
from unicodedata import normalize

import pytest
from layouts import coco, voc, write, write_image

from cjm_yolox_pytorch.data.coco import read_coco
from cjm_yolox_pytorch.data.splits import read_split
from cjm_yolox_pytorch.files.paths import check_files_exist, files_by_stem, find_path, new_folder, subfolder, with_form

NFC, NFD = normalize('NFC', 'caf\u00e9'), normalize('NFD', 'caf\u00e9')
MIXED = f'{NFC} {NFD}'


def touch(root, *names):
    for name in names: write(root/name, '')
    return root


@pytest.mark.parametrize('name, form', [
    ('plain', ''), (NFC, ' (NFC)'), (NFD, ' (NFD)'), (MIXED, ' (neither NFC nor NFD)'), ('\u56fe', '')])
def test_form_is_told_where_a_name_has_several(name, form):
    assert with_form(name) == name + form


@pytest.mark.parametrize('on_disk', [NFC, NFD, MIXED])
def test_files_are_found_in_any_unicode_form(on_disk, tmp_path):
    touch(tmp_path, f'{on_disk}/{on_disk}.png')
    for form in ('NFC', 'NFD'):
        name = normalize(form, on_disk)
        assert find_path(tmp_path/name/f'{name}.png') == tmp_path/on_disk/f'{on_disk}.png'
        assert find_path(tmp_path/name) == tmp_path/on_disk
    assert [*files_by_stem(tmp_path, '.png')] == [normalize('NFC', f'{on_disk}/{on_disk}')]


def test_files_that_differ_only_in_their_unicode_form_are_refused(tmp_path):
    touch(tmp_path, f'{NFC} {NFC}.png', f'{NFD} {NFD}.png', f'{NFC}.txt')
    message = r'differ only in their Unicode form: .*png \(NFD\); .*png \(NFC\). Keep one of them'
    with pytest.raises(ValueError, match=message): files_by_stem(tmp_path, '.png')
    with pytest.raises(ValueError, match=message): find_path(tmp_path/f'{MIXED}.png')
    exact = tmp_path/f'{NFD} {NFD}.png'
    assert find_path(exact) == exact
    assert [*files_by_stem(tmp_path, '.txt')] == [NFC]


def test_two_extensions_are_two_files(tmp_path):
    touch(tmp_path, f'{NFC}.png', f'{NFD}.jpg')
    assert [p.suffix for p in files_by_stem(tmp_path, '.png', '.jpg')[NFC]] == ['.jpg', '.png']


def test_listed_files_are_found_in_another_unicode_form(tmp_path):
    touch(tmp_path, 'a.png', f'{NFD}.png')
    found = check_files_exist('list', [tmp_path/'a.png', tmp_path/f'{NFC}.png'])
    assert found == [tmp_path/'a.png', tmp_path/f'{NFD}.png']


def test_coco_file_names_match_in_another_unicode_form(tmp_path):
    write_image(tmp_path/'images', 'a')
    (tmp_path/'images/a.png').rename(tmp_path/f'images/{NFD}.png')
    text = coco(['a'])
    text['images'][0]['file_name'] = f'{NFC}.png'
    write(tmp_path/'all.json', text)
    assert read_coco(tmp_path/'all.json', tmp_path/'images').paths.tolist() == [f'{tmp_path}/images/{NFD}.png']


def test_voc_files_match_in_another_unicode_form(tmp_path):
    write_image(tmp_path/'images', 'a')
    (tmp_path/'images/a.png').rename(tmp_path/f'images/{NFD}.png')
    write(tmp_path/f'annotations/{NFC}.xml', voc('a'))
    a = read_split(tmp_path, 'all')
    assert (len(a.labels), a.paths.tolist()) == (2, [f'{tmp_path}/images/{NFD}.png'])


@pytest.mark.parametrize('listed, on_disk', [
    ('photo.JPG', 'photo.jpg'), ('Images/a.png', 'images/a.png'), (f'{NFC}.PNG', f'{NFD}.png')])
def test_missing_files_that_differ_in_letter_case_are_named(listed, on_disk, tmp_path):
    touch(tmp_path, on_disk)
    message = f'list: 1 of 1 images are missing, such as .*{listed} .there is .*{on_disk}.. Correct their letter case'
    with pytest.raises(FileNotFoundError, match=message): check_files_exist('list', [tmp_path/listed])


def test_missing_files(tmp_path):
    touch(tmp_path, 'a.png', 'folder/x')
    for name in ('b.png', 'folder', 'a.png/b', 'x'*300, 'a/'*1500, 'nul\0'):
        message = 'list: 1 of 2 images are missing, such as .*. Add the files or remove the entries'
        with pytest.raises(FileNotFoundError, match=message):
            check_files_exist('list', [tmp_path/'a.png', tmp_path/name])


def test_subfolder_refuses_two_that_differ_in_case(tmp_path):
    "Unless one of them has the exact name"
    touch(tmp_path, 'IMAGES/x', 'Images/x')
    with pytest.raises(ValueError, match='folders that differ only in case: IMAGES; Images. Merge or rename them'):
        subfolder(tmp_path, 'images')
    touch(tmp_path, 'images/x')
    assert subfolder(tmp_path, 'images') == tmp_path/'images'


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, SystemExit])
def test_new_folders_are_removed_on_failure_unless_something_is_there(tmp_path, error):
    def fail(path, *names):
        with pytest.raises(error), new_folder(path) as folder:
            touch(folder, *names)
            raise error('stopped')
    (tmp_path/'old').mkdir()
    fail(tmp_path/'old')
    fail(tmp_path/'old/new/deep')
    assert [p.name for p in tmp_path.rglob('*')] == ['old']
    fail(tmp_path/'full/deep', '../kept')
    assert sorted(p.name for p in (tmp_path/'full').rglob('*')) == ['kept']
    with new_folder(tmp_path/'a/b') as folder: pass
    assert folder.is_dir()
