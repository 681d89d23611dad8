"""What the description of a model says without the model being built."""

# ImageNet statistics: the student, BEiT v2 and ResNet-50-A1 all use these (spec 0.5).
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def image_sizes(description: dict) -> dict[str, int]:
    """{array: pixels per side} of the images that the model takes; {} of one that takes none."""
    if description["type"] == "aligned":
        return {own["image"]: own["image_size"] for own in description["networks"].values() if "image_size" in own}
    size = description.get("image", description).get("image_size")
    return {} if size is None else {"image": size}
