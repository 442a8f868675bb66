"Class names as the option `--names` gives them."
from pathlib import Path

import numpy as np
import pytest

from cjm_yolox_pytorch.files.class_names import class_numbers, parse_names

ERRORS = [
    ('', "names='': name 1 of 1 is empty"), ('cat,,dog', 'name 2 of 3 is empty'), ('cat,dog,', 'name 3 of 3 is empty'),
    ('classes.txt', 'classes.txt: no such file'), ('data/classes', 'data/classes: no such file'),
    ('cat,dog,cat', 'several classes have the same name: cat'), ('a\x1bb', 'control characters')]
FILES = [
    ('gap.txt', b'cat\n\ndog\n', "name 2 of 3 is empty"), ('empty.txt', b'\n', 'name 1 of 1 is empty'),
    ('data.yaml', b'names: [cat]', 'one name per line'), ('weights.pth', b'\x80\x02', 'not UTF-8'),
    ('twice.txt', b'cat\ncat\n', 'twice.txt: several classes have the same name: cat')]


def test_parse_names_takes_a_list_or_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('classes.txt').write_bytes('\ufeffcat\r\n dog, wild \r\n猫\r\n\r\n'.encode())
    assert parse_names('classes.txt') == parse_names(Path('classes.txt')) == ['cat', 'dog, wild', '猫']
    assert parse_names('cat, traffic light,St. Bernard') == ['cat', 'traffic light', 'St. Bernard']
    assert parse_names('cat') == ['cat'] and parse_names('car/van,bus') == ['car/van', 'bus']
    assert parse_names(None) is None and parse_names(['cat']) == ['cat']


def test_parse_names_keeps_the_order():
    for names in (['dog', 'cat'], ('dog', 'cat'), np.array(['dog', 'cat']), {1: 'cat', 0: 'dog'}):
        assert parse_names(names) == ['dog', 'cat']


@pytest.mark.parametrize('names', [{'dog', 'cat'}, frozenset(['dog']), 3, True, np.array(3), (n for n in 'ab')])
def test_names_without_an_order_are_refused(names):
    with pytest.raises(ValueError, match='names=.*: give them in order, as a list'): parse_names(names)


def test_errors_name_the_option_that_was_given():
    with pytest.raises(ValueError, match="^classes='cat,,dog': name 2 of 3"): class_numbers('cat,,dog', ['cat', 'dog'])


@pytest.mark.parametrize('text, problem', ERRORS)
def test_parse_names_says_what_it_found(text, problem):
    with pytest.raises((ValueError, OSError), match=problem): parse_names(text)


@pytest.mark.parametrize('name, content, problem', FILES)
def test_parse_names_reads_no_other_files(tmp_path, name, content, problem):
    (tmp_path/name).write_bytes(content)
    with pytest.raises(ValueError, match=problem): parse_names(tmp_path/name)
