# Find objects in a photo: python detect.py nano.onnx names.txt photo.jpg
import sys
from pathlib import Path

import cv2, onnxruntime, numpy as np

network, names_file, photo_file = sys.argv[1:]
session = onnxruntime.InferenceSession(network)
side = session.get_inputs()[0].shape[1]
names = Path(names_file).read_text(encoding='utf-8').splitlines()

def resize(image, size): return np.floor(cv2.resize(np.float32(image), size) + .5)

# Letterbox
photo = cv2.cvtColor(cv2.imread(photo_file), cv2.COLOR_BGR2RGB)
h, w = photo.shape[:2]
scale = side/max(w, h)
width, height = max(1, round(w*scale)), max(1, round(h*scale))
canvas = np.full((1, side, side, 3), 114, np.uint8)
canvas[0, :height, :width] = resize(resize(photo, (width, h)), (width, height))

# Run
rows, = session.run(None, {'images': canvas})

# Undo
corners = np.concatenate([rows[:, 1:3], rows[:, 1:3] + rows[:, 3:5]], axis=1)
boxes = np.clip(corners*np.tile([w/width, h/height], 2), 0, [w, h, w, h])
for (x1, y1, x2, y2), label, score in zip(boxes, rows[:, 5], rows[:, 6]):
    print(f'{names[int(label)]:15} {score:.2f}  {x1:.1f} {y1:.1f} {x2:.1f} {y2:.1f}')
