"""Photos damaged during training: skipped, counted, named, and too many of them stop it."""

import json
import logging

import numpy as np
import pytest
from made_up import Damaged, jpeg

from smke_jax.data.damage import Damage, DamagedImage, Damages
from smke_jax.data.pipeline import InMemorySource, train_batches
from smke_jax.data.prepare.build import build
from smke_jax.data.prepare.items import Item, Skips
from smke_jax.data.sources import open_prepared
from smke_jax.data.tokenizer import train_wordpiece
from smke_jax.data.transforms import View
from smke_jax.errors import UserError

IMAGES = 30
CAPTIONS = [[f"picture {i} caption {k}" for k in range(1 + i % 3)] for i in range(IMAGES)]
VIEW = View(8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    items = [Item(f"{i}.jpg", texts, jpeg(i), "row") for i, texts in enumerate(CAPTIONS)]
    out = tmp_path_factory.mktemp("damage") / "data"
    build({"train": items}, out, dataset="x", skips=Skips())
    return out


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece([text for texts in CAPTIONS for text in texts], 80)


def views(image, rng):
    return {"image": VIEW(image, rng)}


def batches(source, **changes):
    options = {"batch_size": 4, "seed": 0, "unit": "pairs", "max_length": 8, "threads": 2, **changes}
    return train_batches(source, views, **options)


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def ids(found):
    return np.concatenate([batch["id"] for batch in found])


def test_the_next_sound_image_takes_the_place_of_a_damaged_one(folder, tokenizer):
    whole = open_prepared(folder, "train")
    sound = take(batches(whole, tokenizer=tokenizer), 45)  # three epochs of 15 batches
    iterator = batches(Damaged(whole, {4, 10, 11, 29}), tokenizer=tokenizer)
    skipped = take(iterator, 45)
    takes_over = {4: 5, 10: 12, 11: 12, 29: 0}
    np.testing.assert_array_equal(ids(skipped), [takes_over.get(i, i) for i in ids(sound)])
    for a, b in zip(sound, skipped):
        same = a["id"] == b["id"]
        for name in a:  # a damaged image changes nothing but its own rows
            np.testing.assert_array_equal(a[name][same], b[name][same])
        for image, text in zip(b["id"], b["text"]):
            assert tokenizer.decode(text) in CAPTIONS[image]
    assert iterator.damaged == 4


def test_a_caption_of_the_image_that_is_shown_is_drawn(folder, tokenizer):
    found = take(batches(Damaged(open_prepared(folder, "train"), {4}), unit="images", tokenizer=tokenizer), 70)
    texts = [tokenizer.decode(text) for batch in found for i, text in zip(batch["id"], batch["text"]) if i == 5]
    assert set(texts) == set(CAPTIONS[5])


@pytest.mark.parametrize("mib", [0.001, 256])
@pytest.mark.parametrize("threads", [0, 3])
def test_neither_threads_processes_nor_a_resume_change_what_is_skipped(folder, threads, mib):
    source = Damaged(open_prepared(folder, "train"), {0, 7, 8, 20})
    alone = take(batches(source), 20)
    options = {"threads": threads, "prefetch_mib": mib}
    shares = [batches(source, process=(i, 2), **options) for i in range(2)]
    first = [take(share, 11) for share in shares]
    states = [json.loads(json.dumps(share.get_state())) for share in shares]
    assert states[0] == states[1]
    resumed = [batches(source, process=(i, 2), **options) for i in range(2)]
    for share in resumed:
        share.set_state(states[0])
    rest = [take(share, 9) for share in resumed]
    for i, batch in enumerate(alone):
        parts = [(a + b)[i] for a, b in zip(first, rest)]
        for name in batch:
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), batch[name])


def test_each_is_logged_once_with_its_name_and_counted_with_its_batch(folder, caplog):
    source = Damaged(open_prepared(folder, "train"), {4, 10})
    iterator, counts = batches(source, batch_size=1), []
    with caplog.at_level(logging.WARNING, "smke_jax"):
        for _ in range(3 * 60):
            next(iterator)
            counts.append(iterator.damaged)
    assert sorted(record.getMessage() for record in caplog.records) == [
        "image '10.jpg' is damaged (image file is truncated): training goes on without it",
        "image '4.jpg' is damaged (image file is truncated): training goes on without it",
    ]
    shown = ids(take(batches(open_prepared(folder, "train"), batch_size=1), 3 * 60)).tolist()
    for count, image in enumerate(sorted((4, 10), key=shown.index), start=1):
        assert counts.index(count) == shown.index(image)  # although threads are ahead of it


def test_too_many_stop_training_and_the_first_are_named(folder):
    source = open_prepared(folder, "train")
    iterator = batches(Damaged(source, range(0, 20, 2)))  # ten are skipped
    take(iterator, 60)
    assert iterator.damaged == 10
    iterator = batches(Damaged(source, range(0, 22, 2)))
    with pytest.raises(UserError) as raised:
        take(iterator, 60)
    line = str(raised.value)
    assert line.startswith("11 of the 30 images of PreparedSource(x, train, ") and "\n" not in line
    assert line.count(".jpg' (image file is truncated)") == 3 and "run `smke prepare` again" in line


def test_the_position_saved_when_training_stops_is_that_of_the_last_batch_it_had(folder):
    source = Damaged(open_prepared(folder, "train"), range(0, 22, 2))
    iterator, taken = batches(source), 0
    with pytest.raises(UserError):
        while True:
            next(iterator)
            taken += 1
    assert iterator.get_state() == {"next_index": taken}


@pytest.mark.parametrize("threads", [0, 2])
def test_a_source_without_one_sound_image_stops_training(folder, threads):
    with pytest.raises(UserError, match="11 of the 30 images .* are damaged and training skips 10 at most"):
        next(batches(Damaged(open_prepared(folder, "train"), range(30)), threads=threads))


@pytest.mark.parametrize("images, limit", [(1, 0), (5, 4), (30, 10), (1000, 10), (1100, 11), (113_287, 1132)])
def test_the_limit_is_one_percent_or_ten(images, limit):
    damages = Damages("x", images)
    assert damages.limit == limit
    for i in range(limit):
        damages.add(Damage(i, f"{i}.jpg", "gone"))
        damages.add(Damage(i, f"{i}.jpg", "gone"))
    assert len(damages) == limit
    with pytest.raises(UserError, match=f"^{limit + 1} of the {images} images of x are damaged"):
        damages.add(Damage(limit, "one too many", "gone"))


def test_images_in_memory_are_skipped_and_counted_like_those_on_disk(folder):
    damaged = Damaged(open_prepared(folder, "train"), {4, 10, 29})
    iterator, kept = batches(damaged), batches(InMemorySource(damaged))
    np.testing.assert_array_equal(ids(take(iterator, 15)), ids(take(kept, 15)))
    assert iterator.damaged == kept.damaged == 3
    with pytest.raises(UserError, match="11 of the 30 images .* are damaged and training skips 10 at most"):
        take(batches(InMemorySource(Damaged(open_prepared(folder, "train"), range(11)))), 15)


def test_damage_to_a_shard_costs_the_records_it_lies_in(folder, tmp_path):
    build({"train": [Item(f"{i}.jpg", ["A ."], jpeg(i, (200, 150)), "row") for i in range(20)]},
          tmp_path / "out", dataset="x", skips=Skips())  # fmt: skip
    (path,) = (tmp_path / "out").glob("*.array_record-*")
    data = bytearray(path.read_bytes())
    place = bytes(data).index(jpeg(7, (200, 150))[500:700])
    data[place : place + 100] = bytes(100)
    path.write_bytes(data)
    source = open_prepared(tmp_path / "out", "train")
    with pytest.raises(DamagedImage, match=r"'7.jpg' cannot be read \(Corrupted .*mismatch\)"):
        source[7]
    assert source.captions(7) == ("A .",)
    assert [source[i].image for i in (6, 8)] == [jpeg(6, (200, 150)), jpeg(8, (200, 150))]
    iterator = batches(source, batch_size=20)
    assert sorted(next(iterator)["id"].tolist()) == sorted([*range(7), 8, *range(8, 20)]) and iterator.damaged == 1


def test_a_shard_cut_short_stops_training_in_one_line(folder, tmp_path):
    build({"train": [Item(f"{i}.jpg", ["A ."], jpeg(i), "row") for i in range(20)]},
          tmp_path / "out", dataset="x", skips=Skips())  # fmt: skip
    (path,) = (tmp_path / "out").glob("*.array_record-*")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="11 of the 20 images of .* are damaged"):
        next(batches(open_prepared(tmp_path / "out", "train")))
