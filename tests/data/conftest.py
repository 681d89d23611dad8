"""A made-up Flickr8k with every kind of bad row."""

from pathlib import Path

import pytest
from made_up import jpeg, write


@pytest.fixture
def flickr8k(tmp_path) -> Path:
    captions = "".join(f"{n}.jpg#{k}\t  A  dog {n} {k} .\n" for n in "abcde" for k in range(2))
    captions += "2258277193_586949ec62.jpg.1#0\tsome one\nno tab here\n\na.jpg#2\t   \n"
    files = {f"Flicker8k_Dataset/{n}.jpg": jpeg(ord(n)) for n in "abcd"}
    files["Flicker8k_Dataset/d.jpg"] = files["Flicker8k_Dataset/d.jpg"][:300]
    return write(
        tmp_path / "source",
        {
            **files,
            "Flickr8k_text/Flickr8k.token.txt": captions.encode() + b"a.jpg#3\t\xff\xfe\n",
            "Flickr8k_text/Flickr_8k.trainImages.txt": "c.jpg\r\na.jpg\n\nd.jpg\ne.jpg\nf.jpg\n",
            "Flickr8k_text/Flickr_8k.devImages.txt": "b.jpg",
        },
    )
