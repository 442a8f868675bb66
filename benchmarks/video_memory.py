"Memory of `yolox_predict --track` along a long video of tiny frames: python benchmarks/video_memory.py [FRAMES]"
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image

from cjm_yolox_pytorch.detection import predict
from cjm_yolox_pytorch.detection.detections import Detections
from cjm_yolox_pytorch.files.video import VideoWriter


def resident(): # MB
    with open('/proc/self/statm') as f: return int(f.read().split()[1])*4096/2**20


class OneBox:
    "Finds the same box in each image, and notes the memory"
    names, num_classes, bit_depth, conf, notes, model = ['square'], 1, 16, .25, {}, None

    def __init__(self, total): self.total, self.seen = total, 0

    def __call__(self, images, batch, **_):
        before, self.seen = self.seen, self.seen + len(images)
        tenth = self.total//10
        if before//tenth < self.seen//tenth: print(f'{self.seen:7} frames  {resident():7.1f} MB', flush=True)
        box = torch.tensor([[8., 8., 24., 24.]]), torch.tensor([.9]), torch.tensor([0])
        return [Detections(*box, self.names, image) for image in images]


def main(frames):
    with tempfile.TemporaryDirectory() as folder:
        clip, square = Path(folder)/'clip.mp4', Image.new('RGB', (32, 32), 'white')
        square.paste('red', (8, 8, 24, 24))
        writer = VideoWriter(clip)
        for n in range(frames): writer.add(square, n/25)
        writer.close()
        predict.load_detector = lambda *args: OneBox(frames)
        predict.yolox_predict('weights', [str(clip)], out=f'{folder}/out', track=True)


if __name__ == '__main__': main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
