"""What a network expects of its pixels: mean and standard deviation of each channel, of values in [0, 1]."""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))  # spec A.1


def pixel_statistics(config: dict, usual: tuple) -> dict:
    """{'mean': (3,), 'std': (3,)} for a description; `usual` holds where `config` is silent.

    `config` is transformers' preprocessor_config.json or timm's config.json.
    """
    timm = config.get("pretrained_cfg", {})
    mean = config.get("image_mean") or timm.get("mean") or usual[0]
    std = config.get("image_std") or timm.get("std") or usual[1]
    return {"mean": tuple(mean), "std": tuple(std)}
