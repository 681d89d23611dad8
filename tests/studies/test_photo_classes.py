"""Photos in a folder for each class, by what their captions name."""

import pytest
from made_up import jpeg, prepare, write

from smke_jax.data.labelled import open_labelled
from smke_jax.errors import UserError
from smke_jax.studies.photo_classes import FLICKR8K, class_of, main, parse_classes

TWO = parse_classes("bicycle: bicycle, bike\npool: pool", "two")


@pytest.mark.parametrize(
    ("captions", "named"),
    [
        (["A bike.", "A BIKE on grass", "a red bicycle", "people", "a street"], "bicycle"),
        (["a bike", "a bicycle", "a wheel", "people", "a street"], None),  # two of five
        (["a bike", "a bike", "a bike", "a bike by a pool", "a street"], None),  # another class, too
        (["bikers", "a motorbike", "bike-shed poolside", "a bike", "a bike"], "bicycle"),  # whole words alone
        (["a pool"], "pool"),
        (["a pool", "water"], None),
        ([], None),
    ],
)
def test_captions_name_a_class(captions, named):
    assert class_of(captions, TWO) == named


def test_folders_hold_the_photos(tmp_path, capsys):
    rows = {"a/1": "bike", "b/1": "bike", "2": "pool", "3": "dog"}
    captions = "".join(f'{{"image_path": "{name}.jpg", "text": "a {word}"}}\n' for name, word in rows.items())
    photos = {f"{name}.jpg": jpeg(i) for i, name in enumerate(rows)}
    prepare("jsonl", write(tmp_path / "from", {"dev.jsonl": captions, **photos}), tmp_path / "data")
    (tmp_path / "list").write_text("bicycle: bike\npool: pool\n")
    command = [f"--data={tmp_path}/data", f"--out={tmp_path}/out", f"--classes={tmp_path}/list"]
    assert main(command) == 0
    folder = tmp_path / "out/dev"
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jpg")}
    wanted = {"bicycle/a_1.jpg": "a/1.jpg", "bicycle/b_1.jpg": "b/1.jpg", "pool/2.jpg": "2.jpg"}
    assert found == {new: photos[old] for new, old in wanted.items()}
    source = open_labelled("folders", str(tmp_path / "out"), "dev")
    assert (len(source), source.classes) == (3, ("bicycle", "pool"))
    assert "3 of 4 photos in 2 classes" in capsys.readouterr().out
    with pytest.raises(UserError, match="exists: remove it"):
        main(command)
    with pytest.raises(UserError, match="no photo of dev is of baby, baseball"):
        main(command[:2])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: x\nb y", "line 2: 'b y' is not of the form"),
        ("a: x\n../b: y", "line 2: '../b: y' is not of the form"),
        ("a: x\n\nb: y, X", "line 3: 'x' stands for 'a' already"),
        ("a: x\na: y", "line 2: the class 'a' stands there already"),
        ("a: x", "FILE has 1 classes: give two or more"),
    ],
)
def test_lists_that_are_none(text, message):
    with pytest.raises(UserError, match=message):
        parse_classes(text, "FILE")


def test_the_list_that_comes_along():
    assert len(parse_classes(FLICKR8K, "the list")) == 20
