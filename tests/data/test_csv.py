"Tables of boxes: which columns and lines are read, where the images are, and what is refused."
import pytest
from layouts import OBJECTS, csv, csv_bare, every, stems, write, write_files, write_image, write_layout

from cjm_yolox_pytorch.data.csv import CSV_HEADER, find_csv_splits
from cjm_yolox_pytorch.data.splits import find_splits, read_split

BOXES_OF_A = [[*box] for _, *box in OBJECTS['a']]


def read(tmp_path, text, name='all.csv'):
    write_files(tmp_path, dict(a=None, b=None, c=None))
    write(tmp_path/name, text)
    return read_split(tmp_path, 'all')


@pytest.mark.parametrize('header', [
    CSV_HEADER, 'image,x1,y1,x2,y2,label', 'Image Path,X Min,Y-Min,x_max,yMax,CLASS_NAME',
    'img,left,top,right,bottom,name', '"filename","xmin","ymin","xmax","ymax","class"',
    'filename, xmin, ymin, xmax, ymax, class'])
def test_csv_knows_the_usual_names_of_columns(header, tmp_path):
    found = read(tmp_path, header + '\n' + csv_bare('abc'))
    assert stems(found) == ['a', 'b', 'c'] and found.objects(0)[0].tolist() == BOXES_OF_A and not found.stops


def test_csv_synonyms_count_only_without_the_name_itself(tmp_path):
    found = read(tmp_path, 'path,filename,class,label,xmin,ymin,xmax,ymax\n/away/x.jpg,a.png,ant,1,1,2,3,4\n')
    assert found.names == ['ant'] and found.boxes.tolist() == [[1, 2, 3, 4]]


def test_csv_counts_pixels_from_0(tmp_path):
    "Whether or not a box begins there"
    found = read(tmp_path, 'a.png,1,1,80,60,ant\n')
    assert found.boxes.tolist() == [[1, 1, 80, 60]]


def test_csv_fields_may_be_quoted_and_blank_around(tmp_path):
    text = CSV_HEADER + '\r\n"a.png", 1,2 ,3,4," big, red ant "\r\n\r\n'
    assert read(tmp_path, text).names == ['big, red ant']


def test_csv_sizes_are_read_from_images_unless_given(tmp_path):
    assert read(tmp_path, csv_bare('abc')).sizes.tolist() == [[60, 80]]*3
    lines = 'a.png,0,,ant,1,2,3,4\nb.png,81.0,61,ant,1,2,3,4\n'
    found = read(tmp_path, 'filename,width,height,class,xmin,ymin,xmax,ymax\n' + lines)
    assert found.sizes.tolist() == [[60, 80], [61, 81]]


def test_csv_file_itself_can_be_given(tmp_path):
    for name in ('csv roboflow', 'csv tensorflow tutorial'):
        write_layout(name, tmp_path/name)
        path = next((tmp_path/name).rglob('train*.csv'), tmp_path/name/'train/_annotations.csv')
        images = None if name == 'csv roboflow' else tmp_path/name/'images/train'
        assert stems(read_split(path, 'all', images=images)) == ['a', 'b']


def test_csv_file_itself_leaves_images_out_on_purpose(tmp_path):
    write_layout('csv one folder of images', tmp_path)
    found = read_split(tmp_path/'train.csv', 'all')
    assert stems(found) == ['a', 'b'] and not found.notes + found.stops
    write(tmp_path/'annotations/val.csv', csv('c'))
    assert stems(read_split(tmp_path/'annotations/val.csv', 'all')) == ['c']


def test_csv_images_may_be_elsewhere(tmp_path):
    write_layout('csv roboflow', tmp_path/'data')
    for path in sorted((tmp_path/'data').rglob('*.png')):
        (tmp_path/'away'/path.parent.name).mkdir(parents=True, exist_ok=True)
        path.rename(tmp_path/'away'/path.parent.name/path.name)
    message = '_annotations.csv: its image a.png is in none of .*/data/train, .*. Give the folder that has it'
    with pytest.raises(FileNotFoundError, match=message): read_split(tmp_path/'data', 'train')
    found = find_splits(tmp_path/'data', images=tmp_path/'away')
    assert {split: stems(read()) for split, read in found.items()} == dict(train=['a', 'b'], val=['c'])


def test_csv_matches_names_in_other_unicode_forms(tmp_path):
    write_files(tmp_path, dict(a=None))
    (tmp_path/'a.png').rename(tmp_path/'cafe\u0301.png')
    write(tmp_path/'all.csv', 'caf\u00e9.png,1,2,3,4,ant\n')
    found = read_split(tmp_path, 'all')
    assert found.boxes.tolist() == [[1, 2, 3, 4]] and not found.notes + found.stops


def test_csv_splits_have_the_classes_of_all(tmp_path):
    write_layout('csv one folder of images', tmp_path)
    assert read_split(tmp_path, 'val').names == ['ant', 'bee']
    (tmp_path/'images/a.png').unlink()
    (tmp_path/'images/b.png').unlink()
    assert read_split(tmp_path, 'val').names == ['ant', 'bee']


@pytest.mark.parametrize('count, kind', [(10, 'stops'), (11, 'notes')])
def test_csv_counts_images_without_a_line(count, kind, tmp_path):
    "A tenth stops; images of another split are not missing"
    names = 'abcdefghijkl'[:count]
    write_files(tmp_path, dict.fromkeys(names) | {'z': None})
    write(tmp_path/'train.csv', ''.join(f'{name}.png,1,2,3,4,ant\n' for name in names[1:]))
    write(tmp_path/'val.csv', 'z.png,1,2,3,4,ant\n')
    found = read_split(tmp_path, 'train')
    text = f'1 of {count} images have no line and are left out, such as {tmp_path}/a.png'
    if kind == 'stops': text += '. Label them, or add lines with nothing but a filename'
    assert getattr(found, kind) == [text] and len(found.notes + found.stops) == 1


def test_csv_one_image_under_two_names_is_one(tmp_path):
    found = read(tmp_path, csv_bare('bc') + 'a.png,1,2,3,4,ant\n./a.png,5,6,7,8,ant\n')
    assert stems(found) == ['b', 'c', 'a'] and found.objects(2)[0].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


@pytest.mark.parametrize('name', ['results.csv', 'people.csv', 'latin.csv', 'classes.csv'])
def test_other_csv_files_are_no_datasets(name, tmp_path):
    texts = {'results.csv': 'epoch,loss\n1,2\n', 'people.csv': 'name,left,right\nAda,1,2\n', 'classes.csv': 'ant,0\n',
             'latin.csv': 'gr\u00f6\u00dfe,h\u00f6he\n1,2\n'.encode('latin-1')}
    write_image(tmp_path, 'a')
    write(tmp_path/name, texts[name])
    assert find_csv_splits(tmp_path) == {}
    with pytest.raises(ValueError, match='does not look like any format.*csv .*filename,xmin,ymin,xmax,ymax,class'):
        find_splits(tmp_path)


HEADER = CSV_HEADER + '\n'
GOOD = 'a.png,1,2,3,4,ant\n'
BAD = {
    'no class': ('filename,xmin,ymin,xmax,ymax\na.png,1,2,3,4\n',
                 f'all.csv: no column for: class. .*needs {CSV_HEADER}'),
    'width instead of xmax': ('filename,xmin,ymin,width,height,class\n' + GOOD, 'no column for: xmax; ymax'),
    'a class twice': ('filename,class,class,xmin,ymin,xmax,ymax\na.png,1,1,1,2,3,4\n', 'several columns for: class'),
    'two synonyms': ('filename,label,category,xmin,ymin,xmax,ymax\na.png,1,1,1,2,3,4\n', 'several columns for: class'),
    'a single field': (HEADER + GOOD + 'a.png\n', 'not boxes: line 3: 1 field instead of 6. Fix them'),
    'a field too few': (HEADER + GOOD + 'a.png,1,2,3,ant\n', 'not boxes: line 3: 5 fields instead of 6. Fix them'),
    'a field too many': (GOOD + 'a.png,1,2,3,4,ant,\n', 'not boxes: line 2: 7 fields instead of 6'),
    'a word': (HEADER + 'a.png,1,2,3,four,ant\n', "line 2: could not convert .*: 'four'"),
    'NaN': (HEADER + 'a.png,1,2,nan,4,ant\n', "line 2: 'nan' is not a number"),
    'an empty corner': (HEADER + 'a.png,1,2,,4,ant\n', 'line 2: could not convert'),
    'an empty class': (HEADER + 'a.png,1,2,3,4, \n', 'line 2: no class'),
    'an empty filename': (HEADER + ',1,2,3,4,ant\n', 'line 2: no filename'),
    'a class alone': (HEADER + 'a.png,,,,,ant\n', 'line 2: could not convert'),
    'no lines': (HEADER, 'all.csv: no lines. Add them'),
    'an open quote': (HEADER + GOOD + '"a.png,1,2,3,4,ant\n', 'all.csv line 3: unexpected end of data. Save'),
    'another encoding': ((HEADER + GOOD).encode() + b'b.png,1,2,3,4,k\xe4fer\n', 'is not UTF-8'),
    'x, y, width, height': (HEADER + 'a.png,30,40,8,9,ant\n', r'boxes of negative size: a.png: box \[30, 40, 8, 9\]'),
    'fractions': (HEADER + 'a.png,.1,.2,.5,.9,ant\n', 'no box ends beyond the first pixel'),
    'several sizes': ('width,height,' + HEADER + '80,60,a.png,1,2,3,4,ant\n60,80,a.png,1,2,3,4,ant\n',
                      'images with several sizes: .*a.png: 80x60, 60x80. Correct'),
    'a missing image': (GOOD + 'd.png,1,2,3,4,ant\n', '1 of 2 images are missing, such as .*d.png'),
    'an image above': (HEADER + '../a.png,1,2,3,4,ant\n', 'all.csv: ../a.png leaves the folder of the data'),
    'an absolute path': (HEADER + '/etc/a.png,1,2,3,4,ant\n', 'all.csv: /etc/a.png is absolute'),
    'control characters': (HEADER + 'a.png,1,2,3,4,"an\nt"\n', 'names of classes with control characters'),
}


@pytest.mark.parametrize('name', BAD)
def test_csv_refuses(name, tmp_path):
    text, message = BAD[name]
    with pytest.raises((ValueError, OSError), match=message): read(tmp_path, text)


def test_csv_file_without_a_header_says_which_is_needed(tmp_path):
    write_image(tmp_path, 'a')
    write(tmp_path/'my.csv', 'a.png,80,60,ant,1,2,3,4\n')
    message = f'my.csv: not a table of boxes. Write the header {CSV_HEADER}'
    with pytest.raises(ValueError, match=message): read_split(tmp_path/'my.csv', 'all')


def test_csv_refuses_two_files_for_a_split(tmp_path):
    every('.')(tmp_path)
    for name in ('train.csv', 'data/train_labels.csv'): write(tmp_path/name, csv('a'))
    with pytest.raises(ValueError, match='several parts for one split: train'): find_splits(tmp_path)
