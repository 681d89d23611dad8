"""Batches: what an epoch holds, which process loads what, and a position that can be saved."""

import json
import threading
import time

import grain
import numpy as np
import pytest
from made_up import Damaged, jpeg, prepare, write
from PIL import Image

from smke_jax.data import pipeline
from smke_jax.data.damage import DamagedImage
from smke_jax.data.decode import open_image
from smke_jax.data.pipeline import InMemorySource, divide, make_rows, pixels, read_ahead, train_batches
from smke_jax.data.sources import ArraySource, open_prepared
from smke_jax.data.tokenizer import train_wordpiece
from smke_jax.data.transforms import TwoViews, View
from smke_jax.errors import UserError

CAPTIONS = [[f"picture {i} caption {k}" for k in range(1 + i % 3)] for i in range(11)]  # 11 images, 21 captions


def array_source() -> ArraySource:
    images = np.broadcast_to(np.arange(11, dtype=np.uint8)[:, None, None, None], (11, 6, 8, 3))
    return ArraySource(images, CAPTIONS)


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece([text for texts in CAPTIONS for text in texts], 60)


def views(image, rng):
    return {"image": np.asarray(image), "draw": np.float64(rng.random())}


def batches(tokenizer=None, source=None, **changes):
    options = {"batch_size": 4, "seed": 0, "unit": "pairs", "max_length": 8, "threads": 1, **changes}
    return train_batches(source or array_source(), views, tokenizer=tokenizer, **options)


def take(iterator, count: int) -> list[dict]:
    return [next(iterator) for _ in range(count)]


def same(a: list[dict], b: list[dict]) -> bool:
    return all(x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) for k in x) for x, y in zip(a, b, strict=True))


def joined(shares: tuple[dict, ...]) -> dict:
    """One global batch from all processes' shares of it."""
    return {k: np.concatenate([share[k] for share in shares]) for k in shares[0]}


def ids(batches: list[dict]) -> list[int]:
    return np.concatenate([b["id"] for b in batches]).tolist()


def test_the_seed_decides_everything(tokenizer):
    first = take(batches(tokenizer), 7)
    assert same(first, take(batches(tokenizer), 7))
    other = take(batches(tokenizer, seed=1), 7)
    assert ids(first) != ids(other)
    assert not np.intersect1d([b["draw"] for b in first], [b["draw"] for b in other]).size


def test_an_example_keeps_its_picture_and_its_caption(tokenizer):
    for batch in take(batches(tokenizer), 5):
        assert batch["image"].shape == (4, 6, 8, 3) and batch["image"].dtype == np.uint8
        assert batch["id"].dtype == batch["text"].dtype == batch["text_mask"].dtype == np.int32
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["id"])
        for row, image in zip(batch["text"], batch["id"]):
            assert tokenizer.decode(row) in CAPTIONS[image]


def test_masks_cover_the_tokens_and_nothing_else(tokenizer):
    for batch in take(batches(tokenizer, max_length=9), 5):
        assert batch["text"].shape == batch["text_mask"].shape == (4, 9)
        np.testing.assert_array_equal(batch["text_mask"] == 0, batch["text"] == tokenizer.pad_id)
        lengths = batch["text_mask"].sum(axis=1)
        np.testing.assert_array_equal(batch["text_mask"], np.arange(9) < lengths[:, None])
        assert lengths.min() >= 6 and lengths.max() < 9  # [CLS] picture i caption k [SEP], and padding is left


def test_without_a_tokenizer_there_is_no_text():
    assert set(next(batches())) == {"id", "image", "draw"}


def test_pairs_see_every_caption_once_an_epoch(tokenizer):
    everything = sorted(text for texts in CAPTIONS for text in texts)
    iterator = batches(tokenizer, batch_size=7)  # 21 captions in 3 batches
    for _ in range(3):
        seen = [tokenizer.decode(row) for batch in take(iterator, 3) for row in batch["text"]]
        assert sorted(seen) == everything


def test_images_come_once_an_epoch_with_one_of_their_captions(tokenizer):
    iterator = batches(tokenizer, unit="images", batch_size=11)
    captions = {}
    for batch in take(iterator, 12):
        assert sorted(batch["id"]) == list(range(11))
        for image, row in zip(batch["id"], batch["text"]):
            captions.setdefault(int(image), set()).add(tokenizer.decode(row))
    assert all(captions[i] <= set(CAPTIONS[i]) for i in range(11))
    assert all(len(captions[i]) == len(CAPTIONS[i]) for i in range(11))  # drawn anew each epoch


def test_the_incomplete_last_batch_is_dropped_and_another_one_each_epoch():
    iterator = batches(unit="images")  # 11 images: 2 batches of 4, 3 images left out
    left_out = []
    for _ in range(6):
        seen = ids(take(iterator, 2))
        assert len(set(seen)) == 8
        left_out.append(frozenset(range(11)) - set(seen))
    assert len(set(left_out)) > 1


def test_epochs_are_shuffled_anew():
    iterator = batches(unit="images", batch_size=11)
    orders = [tuple(ids(take(iterator, 1))) for _ in range(4)]
    assert len(set(orders)) == 4 and tuple(range(11)) not in orders


def test_random_numbers_are_fresh_in_every_epoch():
    draws = np.concatenate([b["draw"] for b in take(batches(), 20)])
    assert len(np.unique(draws)) == len(draws)


@pytest.mark.parametrize("unit", ["pairs", "images"])
@pytest.mark.parametrize("count", [2, 4])
def test_processes_hold_consecutive_rows_of_the_same_batches(tokenizer, unit, count):
    alone = take(batches(tokenizer, unit=unit), 9)  # across the ends of epochs of 5 and 2 batches
    shares = [take(batches(tokenizer, unit=unit, process=(i, count)), 9) for i in range(count)]
    assert all(len(batch["id"]) == 4 // count for share in shares for batch in share)
    assert same([joined(step) for step in zip(*shares)], alone)


@pytest.mark.parametrize("before, after", [(1, 4), (4, 1), (2, 4)])
def test_a_saved_position_holds_for_any_number_of_processes(tokenizer, before, after):
    def start(count):
        return [batches(tokenizer, process=(i, count)) for i in range(count)]

    def advance(iterators, steps):
        return [joined(step) for step in zip(*(take(iterator, steps) for iterator in iterators))]

    whole, first, second = start(1), start(before), start(after)
    advance(whole, 7), advance(first, 7)
    states = [iterator.get_state() for iterator in first]
    assert all(state == states[0] for state in states)
    for iterator in second:
        iterator.set_state(json.loads(json.dumps(states[0])))
    assert same(advance(second, 5), advance(whole, 5))


@pytest.mark.parametrize("done", [1, 3, 4, 5, 8])
@pytest.mark.parametrize("unit", ["pairs", "images"])
def test_a_saved_position_continues_with_the_same_batches(tokenizer, done, unit):
    iterator = batches(tokenizer, unit=unit)  # epochs of 5 and 2 batches
    take(iterator, done)
    state = json.loads(json.dumps(iterator.get_state()))
    rest = take(iterator, 7)
    resumed = batches(tokenizer, unit=unit, threads=2)
    resumed.set_state(state)
    assert same(rest, take(resumed, 7))
    assert not same(rest, take(batches(tokenizer, unit=unit), 7))


@pytest.mark.parametrize("threads", [0, 2, 5])
def test_threads_change_nothing(tokenizer, threads):
    assert same(take(batches(tokenizer), 12), take(batches(tokenizer, threads=threads), 12))


def by_grain_alone(source, batch_size: int, seed: int, unit: str) -> grain.DatasetIterator:
    """The order of rows and of random numbers that every run so far had."""
    rows = make_rows(source.num_captions, unit)

    def load(row, rng):
        image, caption = row
        if caption < 0:
            caption = int(rng.integers(source.num_captions[image]))
        return {"id": np.int32(image), "caption": caption, **views(Image.fromarray(source[image].image), rng)}

    whole = len(rows) // batch_size * batch_size
    dataset = grain.MapDataset.source(rows).seed(seed).shuffle().slice(slice(0, whole)).repeat().random_map(load)
    return iter(dataset.batch(batch_size, drop_remainder=True).to_iter_dataset())


@pytest.mark.parametrize("unit", ["pairs", "images"])
@pytest.mark.parametrize("batch_size", [1, 4, 6])
def test_order_and_random_numbers_are_those_of_plain_grain(tokenizer, unit, batch_size):
    expected = take(by_grain_alone(array_source(), batch_size, 3, unit), 15)
    found = take(batches(tokenizer, unit=unit, batch_size=batch_size, seed=3), 15)
    for plain, batch in zip(expected, found):
        for name in ("id", "image", "draw"):
            np.testing.assert_array_equal(batch[name], plain[name])
        for image, caption, text in zip(plain["id"], plain["caption"], batch["text"]):
            assert tokenizer.decode(text) == CAPTIONS[image][caption]


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("mib", [0, 0.001, 0.002])
def test_batches_made_in_parts_are_the_same(tokenizer, threads, mib):
    whole, parts = batches(tokenizer), batches(tokenizer, threads=threads, prefetch_mib=mib)
    assert same(take(whole, 7), take(parts, 7))
    state = json.loads(json.dumps(parts.get_state()))
    assert state == whole.get_state()
    rest = take(whole, 5)
    resumed = [batches(tokenizer, threads=threads, prefetch_mib=mib, process=(i, 2)) for i in range(2)]
    for iterator in resumed:
        iterator.set_state(state)
    assert same([joined(step) for step in zip(*(take(iterator, 5) for iterator in resumed))], rest)


@pytest.mark.parametrize(
    "share, example_bytes, threads, mib, expected",
    [
        (64, 50_000, 2, 256, (64, 8)),  # small batches stay whole: four wait for each thread
        (64, 50_000, 0, 256, (64, 4)),
        (1024, 150_528, 2, 256, (256, 6)),  # 1,783 examples fit into 256 MiB
        (32_768, 150_528, 2, 256, (8192, 4)),  # one share waits, 4.6 GiB, in a part for each of four
        (32_768, 150_528, 16, 256, (1024, 32)),
        (7, 150_528, 2, 1, (1, 7)),
        (1, 150_528, 2, 0, (1, 1)),
    ],
)
def test_how_a_share_is_divided(share, example_bytes, threads, mib, expected):
    part, waiting = divide(share, example_bytes, threads=threads, prefetch_mib=mib)
    assert (part, waiting) == expected
    assert share % part == 0 and part * waiting * example_bytes <= max(mib * 2**20, share * example_bytes)


@pytest.mark.parametrize("mib, ahead", [(0.01, 16), (0.05, 40), (256, 128)])
def test_no_more_examples_wait_than_fit_into_the_bytes(mib, ahead):
    class Counted(ArraySource):
        read = 0
        lock = threading.Lock()

        def __getitem__(self, index):
            with self.lock:
                self.read += 1
            return super().__getitem__(index)

    source = Counted(np.zeros((500, 20, 20, 3), np.uint8), [["a"]] * 500)
    iterator = train_batches(  # of 1,200 bytes an example
        source, lambda image, rng: {"image": np.asarray(image.resize((20, 20)))},
        batch_size=16, seed=0, unit="images", threads=2, prefetch_mib=mib,
    )  # fmt: skip
    for step in range(1, 6):
        next(iterator)
        deadline = time.monotonic() + 20
        while source.read < 16 * step + ahead and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert source.read == 16 * step + ahead
    iterator.close()


def test_photos_are_read_some_bytes_ahead_and_damage_keeps_its_place(monkeypatch):
    monkeypatch.setattr(pipeline, "READ_AHEAD", 300)
    read = []

    class Noted(ArraySource):
        def __getitem__(self, index):
            read.append(index)
            if index == 4:
                raise DamagedImage("4", "torn")
            return super().__getitem__(index)

    source = Noted(np.zeros((8, 5, 10, 3), np.uint8), [["a"]] * 8)  # of 150 bytes each
    seen = []
    for found in read_ahead(source, [1, 0, 3, 4, 5, 7, 2]):
        seen.append((getattr(found, "name", None), len(read)))
    assert seen == [("1", 2), ("0", 2), ("3", 5), ("4", 5), ("5", 5), ("7", 7), ("2", 7)]
    assert read == [1, 0, 3, 4, 5, 7, 2]


def test_training_decodes_no_larger_than_its_views_need(tmp_path, monkeypatch):
    write(tmp_path / "s", {"a.jpg": jpeg(1, (1600, 1200)), "a.txt": "A ."})
    prepare("folder", tmp_path / "s", tmp_path / "out")
    source, view = open_prepared(tmp_path / "out", "train"), View(64, crop_scale=(0.5, 1.0))
    assert view.min_side == 105
    sizes = []

    def opened(data, **options):
        sizes.append(open_image(data, **options).size)
        return open_image(data, **options)

    monkeypatch.setattr(pipeline, "open_image", opened)
    options = {"batch_size": 1, "seed": 0, "unit": "images", "threads": 0}
    draft = next(train_batches(source, TwoViews(view), **options))
    full = next(train_batches(source, lambda image, rng: TwoViews(view)(image, rng), **options))
    assert sizes == [(200, 150), (1600, 1200)]  # a callable without min_side sees the full image
    for name in ("view1", "view2"):
        assert np.abs(draft[name].astype(int) - full[name]).mean() < 3
    assert pixels(source[0]).shape == (1200, 1600, 3)


def test_fewer_rows_than_a_batch_are_refused():
    assert len(ids(take(batches(batch_size=21), 1))) == 21
    with pytest.raises(UserError, match=r"has 21 pairs, fewer than one batch of 22: lower batch_size"):
        batches(batch_size=22)
    with pytest.raises(UserError, match=r"has 11 images, fewer than one batch of 12"):
        batches(batch_size=12, unit="images")


def test_an_unknown_unit_is_refused():
    with pytest.raises(UserError, match="config.task.unit 'captions' is neither 'pairs' nor 'images'"):
        make_rows(np.array([1, 2]), "captions")


@pytest.fixture
def prepared(flickr8k, tmp_path):
    prepare("flickr8k", flickr8k, tmp_path / "out")
    return tmp_path / "out"


def test_an_image_damaged_after_preparation_is_named_outside_of_training(prepared):
    source = Damaged(open_prepared(prepared, "train"))
    for read in (lambda: pixels(source[1]), lambda: InMemorySource(source)[1]):
        with pytest.raises(UserError, match=r"'a.jpg' cannot be read \(.*truncated.*run `smke prepare` again"):
            read()


def test_memory_holds_what_the_disk_holds(prepared, tokenizer):
    source = open_prepared(prepared, "train")
    kept = InMemorySource(source)
    assert kept.dataset == source.dataset == "flickr8k"
    assert len(kept) == len(source) and kept.digest == source.digest and repr(kept) == repr(source)
    a = take(batches(tokenizer, source=source, batch_size=2), 4)
    assert same(a, take(batches(tokenizer, source=kept, batch_size=2), 4))
    assert Image.fromarray(kept[0].image).size == (40, 30)
