"""Make static/card.png, which previews of links show, and static/icon.png: python docs/card.py

The card shows what the site's own detector (docs/try) finds in its first drawing.
"""
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import Circle, Rectangle
from PIL import Image

from cjm_yolox_pytorch.detection.detector import load_detector

HERE = Path(__file__).parent
BLUE, ORANGE = '#2757dd', '#ff9100'
LINES = ['YOLOX for PyTorch', 'Detect, train and export.', 'Or take only the loss.']


def canvas(width, height, color):
    figure = plt.figure(figsize=(width/100, height/100), dpi=100, facecolor=color)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.axis('off')
    ax.set(xlim=(0, width), ylim=(0, height))
    return figure, ax


def box(ax, x, y, width, height, line): ax.add_patch(Rectangle((x, y), width, height, fill=False, ec=ORANGE, lw=line))


def icon():
    "As in icon.svg"
    figure, ax = canvas(180, 180, 'white')
    ax.add_patch(Circle((90, 90), 45, color=BLUE))
    box(ax, 23, 23, 134, 134, 12)
    figure.savefig(HERE/'static/icon.png')


def card():
    figure, ax = canvas(1200, 630, 'white')
    photo = Image.open(HERE/'try/shapes-1.jpg')
    found = load_detector(HERE/'try/model.onnx')(photo)
    scale, left, bottom = 530/max(photo.size), 620, 50
    width, height = (side*scale for side in photo.size)
    ax.imshow(photo, extent=(left, left + width, bottom, bottom + height), interpolation='bicubic')
    ax.set(xlim=(0, 1200), ylim=(0, 630), aspect='auto')
    for (x1, y1, x2, y2), score, _, name in found:
        box(ax, left + x1*scale, bottom + height - y2*scale, (x2 - x1)*scale, (y2 - y1)*scale, 4)
        ax.text(left + x1*scale, bottom + height - y1*scale + 6, f'{name} {score:.2f}', size=15, weight='bold')
    ax.text(60, 430, LINES[0], size=37, weight='bold', color='#111827')
    for n, line in enumerate(LINES[1:]): ax.text(60, 350 - 50*n, line, size=25, color='#374151')
    ax.text(60, 100, 'cjm-yolox-pytorch', size=22, family='monospace', color=BLUE)
    figure.savefig(HERE/'static/card.png')


icon()
card()
