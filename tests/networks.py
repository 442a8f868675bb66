"Networks that need no training"
import torch

from cjm_yolox_pytorch.model import build_model


def decisive_model(num_classes):
    "A random yolox_nano that finds several things in every image, with scores that differ and boxes that overlap"
    torch.manual_seed(0)
    model = build_model('yolox_nano', num_classes, pretrained=False)
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(m.weight, 2, 3)
            m.running_mean.normal_(0, .1)
            m.running_var.uniform_(.5, 1.5)
    for convs, std, bias in (('cls', .3, .5), ('reg', .05, 1.2), ('obj', .3, .5)):
        for conv in getattr(model.bbox_head, f'multi_level_conv_{convs}'):
            torch.nn.init.normal_(conv.weight, std=std)
            torch.nn.init.constant_(conv.bias, bias)
    return model
