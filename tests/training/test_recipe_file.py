"A recipe goes through a file: what a training wrote trains the same network again."
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import yaml
from trainings import SMALL, assert_same_training, trainer

from cjm_yolox_pytorch.files.checkpoints import load_weights
from cjm_yolox_pytorch.training.recipe import Recipe, paper_recipe
from cjm_yolox_pytorch.training.recipe_file import read_recipe, write_recipe
from cjm_yolox_pytorch.training.runs import check_folder
from cjm_yolox_pytorch.training.train import fit, train, yolox_train

pytestmark = pytest.mark.usefixtures('no_plots')


def test_file_of_a_training_trains_the_same_network(shapes, tmp_path, uninterrupted):
    recipe = read_recipe(uninterrupted/'recipe.yaml')
    assert Recipe(**recipe) == Recipe(**SMALL)
    yolox_train(str(shapes), recipe=str(uninterrupted/'recipe.yaml'), out=str(tmp_path/'run'), device='cpu')
    assert_same_training(tmp_path/'run', uninterrupted)


def test_options_go_above_the_file(shapes, tmp_path):
    (tmp_path/'mine.YAML').write_text('model: yolox_nano\nimg_size: 64\nbatch: 4\nlr: 1e-3\nworkers: 0\nepochs: 50\n'
        'compile: true\n')
    yolox_train(str(shapes), recipe=tmp_path/'mine.YAML', out=tmp_path/'run', device='cpu', epochs=1, compile=False)
    used = load_weights(tmp_path/'run/last.safetensors').notes['recipe']
    assert used == asdict(Recipe('yolox_nano', img_size=64, batch=4, lr=.001, epochs=1))
    assert Recipe(**read_recipe(tmp_path/'run/recipe.yaml')) == Recipe(**used)


def test_resumed_training_writes_what_it_changes(shapes, tmp_path):
    class Stop:
        def on_train_start(self, t): raise StopIteration
    with pytest.raises(StopIteration): fit(trainer(shapes, epochs=1), tmp_path, callbacks=[Stop()])
    fit(trainer(shapes, epochs=1, clip_grad_norm=7.), tmp_path, resume=True)
    assert read_recipe(tmp_path/'recipe.yaml')['clip_grad_norm'] == 7


@pytest.mark.parametrize('text, message', [('epoch: 5', 'odd.yaml: unknown fields: epoch .did you mean epochs'),
    ('batch_size: 2', 'batch_size .did you mean batch'),
    ('lr: fast', "lr='fast': must be a number"), ('epochs: true', 'epochs=True: must be a whole number'),
    ('batch: 8.5', 'batch=8.5: must be a whole number'), ('freeze: 3', 'freeze=3: must be text'),
    ('lr: .inf', 'lr=inf: '), ('lr: 1\nlr: 2', 'lr appears twice'), ('', 'not a recipe'), ('[', 'not YAML'),
    ('epochs: 0', 'epochs=0: must be at least 1'), ('model: yolox_xl', "model='yolox_xl': choose one of")])
def test_odd_files_are_refused_before_the_data_are_read(tmp_path, text, message):
    (tmp_path/'odd.yaml').write_text(text)
    with pytest.raises(ValueError, match=message): yolox_train('no-data', recipe=str(tmp_path/'odd.yaml'))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='none.yaml'): yolox_train('no-data', recipe=str(tmp_path/'none.yaml'))


def test_own_recipe_in_the_folder_is_not_overwritten(shapes, tmp_path):
    own = tmp_path/'recipe.yaml'
    own.write_text('epochs: 1 # Mine')
    with pytest.raises(FileExistsError, match='already holds a training run'): fit(trainer(shapes), tmp_path)
    assert own.read_text() == 'epochs: 1 # Mine'


@pytest.fixture
def printed_recipe(monkeypatch, capsys, tmp_path):
    "The recipe that `yolox_train --print-recipe` prints, read from a file"
    def run(line):
        monkeypatch.setattr(sys, 'argv', ['yolox_train', *line.split()])
        yolox_train()
        (tmp_path/'printed.yaml').write_text(text := capsys.readouterr().out)
        assert '# Passes over the training images' in text
        return Recipe(**read_recipe(tmp_path/'printed.yaml'))
    return run


@pytest.mark.parametrize('line, recipe', [('--print-recipe', Recipe()), ('birds --print-recipe', Recipe()),
    ('--recipe paper --print-recipe --model yolox_s', paper_recipe('yolox_s')),
    ('birds --epochs 3 --lr 1e-5 --freeze backbone,neck --print-recipe --compile',
        Recipe(epochs=3, lr=1e-5, freeze='backbone,neck', compile=True)),
    ('--print-recipe --recipe mine.yaml --batch 8', Recipe(epochs=7, batch=8, img_size=64, rot90=.1)),
    ('--print-recipe --augment aerial', Recipe(flip_ud=.5, rot90=.75)),
    ('--print-recipe --augment aerial --rot90 .2 --recipe mine.yaml',
        Recipe(epochs=7, batch=4, img_size=64, flip_ud=.5, rot90=.2))])
def test_printed_recipe_is_that_of_the_command(monkeypatch, tmp_path, printed_recipe, line, recipe):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'mine.yaml').write_text('epochs: 7\nbatch: 4\nimg_size: 64\nrot90: .1\n')
    assert printed_recipe(f'{line} --workers 2') == replace(recipe, workers=2)


def test_printed_recipe_of_a_resumed_training_is_its_own(uninterrupted, printed_recipe):
    found = printed_recipe(f'--print-recipe --resume --out {uninterrupted} --patience 3')
    assert found == Recipe(**SMALL, patience=3)


@pytest.mark.parametrize('line, changes', [('--grad-accum 3', dict(grad_accum=3)),
    ('--min-size 320', dict(min_size=320)),
    ('--max-scale .5', dict(max_scale=.5))])
def test_options_of_a_resumed_training_go_with_its_own_recipe(tmp_path, printed_recipe, line, changes):
    own = Recipe('yolox_nano', batch=6, min_scale=.1, max_size=320, min_size=256, workers=0)
    write_recipe(own, tmp_path/'recipe.yaml')
    assert printed_recipe(f'--print-recipe --resume --out {tmp_path} {line}') == replace(own, **changes)


def test_folder_of_a_resumed_training_is_found_by_its_model(tmp_path, monkeypatch, printed_recipe):
    monkeypatch.chdir(tmp_path)
    (run := tmp_path/'runs/birds-yolox_s').mkdir(parents=True)
    write_recipe(own := Recipe('yolox_s', batch=6, workers=0), run/'recipe.yaml')
    line = 'birds --print-recipe --resume --model yolox_s --grad-accum 3'
    assert printed_recipe(line) == replace(own, grad_accum=3)


def test_numbers_of_numpy_go_through_a_file(tmp_path):
    recipe = Recipe(lr=np.float64(.001), epochs=np.int64(3), mosaic=1)
    assert [type(v) for v in (recipe.lr, recipe.epochs, recipe.mosaic)] == [float, int, float]
    write_recipe(recipe, tmp_path/'numpy.yaml')
    assert Recipe(**read_recipe(tmp_path/'numpy.yaml')) == Recipe(lr=.001, epochs=3, mosaic=1.)


def test_recipe_that_cannot_be_written_leaves_the_folder_free(shapes, tmp_path):
    bad = trainer(shapes)
    bad.recipe.lr = np.float64(.001) # Not checked
    with pytest.raises(yaml.representer.RepresenterError): fit(bad, tmp_path/'run')
    check_folder(tmp_path/'run')


def test_wrong_values_are_not_printed(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['yolox_train', '--print-recipe', '--epochs', '0'])
    with pytest.raises(SystemExit) as end: yolox_train()
    assert end.value.code == 1 and capsys.readouterr().out == ''


def test_degradation_is_for_files_alone(shapes, tmp_path):
    (tmp_path/'blurred.yaml').write_text('model: yolox_nano\nimg_size: 64\nbatch: 4\nepochs: 1\nblur: .5\nworkers: 0')
    yolox_train(str(shapes), recipe=tmp_path/'blurred.yaml', out=tmp_path/'run', device='cpu', flip_ud=.25)
    used = load_weights(tmp_path/'run/last.safetensors').notes['recipe']
    assert (used['blur'], used['flip_ud'], used['cutout']) == (.5, .25, 0)
    message = r'no such option; blur is a field of recipes only: set it in a YAML file \(--recipe\), or in Recipe'
    with pytest.raises(TypeError, match=message): train(str(shapes), blur=.5)


@pytest.mark.parametrize('words, message', [(['--blur', '.5'], 'blur is a field of recipes only'),
    (['--grayscale', '.5'], 'grayscale is a field of recipes only'), (['--batch-size', '2'], 'did you mean --batch?')])
def test_wrong_options_are_told_the_right_ones(monkeypatch, capsys, words, message):
    monkeypatch.setattr(sys, 'argv', ['yolox_train', 'birds', *words])
    with pytest.raises(SystemExit) as end: yolox_train()
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_recipe_of_another_model_is_refused(monkeypatch, tmp_path, printed_recipe):
    "Its image size would go to a model that is made for another one"
    write_recipe(Recipe(batch=2, workers=0), tmp_path/'tiny.yaml')
    (tmp_path/'none.yaml').write_text('img_size: 320')
    with pytest.raises(ValueError, match=r"model='yolox_s', but the recipe .*tiny\.yaml is for 'yolox_tiny'"):
        train('no-data', 'yolox_s', recipe=tmp_path/'tiny.yaml')
    for line in (f'--recipe {tmp_path}/tiny.yaml --model yolox_tiny', f'--recipe {tmp_path}/none.yaml --model yolox_s'):
        assert printed_recipe(f'--print-recipe {line}').model == line.split()[-1]
