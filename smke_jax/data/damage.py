"""Photos that are no longer what they were when the dataset was prepared."""

import logging
from collections.abc import Collection
from typing import NamedTuple

from smke_jax.errors import UserError

log = logging.getLogger("smke_jax")

NAMED = 3  # damaged photos that the last message names


class DamagedImage(UserError):
    """A photo of a prepared dataset that can no longer be read; `name` and `reason` say which and why."""

    def __init__(self, name: str, reason: str):
        super().__init__(
            f"image {name!r} cannot be read ({reason}) though it could when the dataset was made: "
            "the data has been damaged since, run `smke prepare` again"
        )
        self.name, self.reason = name, reason


class Damage(NamedTuple):
    """What training remembers of one damaged photo."""

    image: int  # its number in the source
    name: str
    reason: str


class Damages:
    """The damaged photos that training has skipped, each counted and logged once.

    Args:
      dataset: what the messages call the data.
      num_images: N, the images of the training split.

    Attributes:
      limit: how many distinct photos training skips: 10, or 1 % of N where that is more, and never all N.
    """

    def __init__(self, dataset: str, num_images: int):
        self.dataset, self.num_images = dataset, num_images
        self.limit = min(max(10, num_images // 100), num_images - 1)
        self._found: dict[int, Damage] = {}

    def __len__(self) -> int:
        return len(self._found)

    def add(self, damage: Damage) -> None:
        """Counts the photo and logs its name, unless it is known; raises as `check` does."""
        if damage.image not in self._found:
            self._found[damage.image] = damage
            log.warning("image %r is damaged (%s): training goes on without it", damage.name, damage.reason)
            self.check(self._found.values())

    def check(self, damages: Collection[Damage]) -> None:
        """Raises UserError where `damages`, of distinct photos, are more than `limit`; the line names the first."""
        if len(damages) > self.limit:
            first = ", ".join(f"{damage.name!r} ({damage.reason})" for damage in list(damages)[:NAMED])
            raise UserError(
                f"{len(damages)} of the {self.num_images} images of {self.dataset} are damaged and training skips "
                f"{self.limit} at most; the first are {first}: restore the folder or run `smke prepare` again"
            )
