"""The tasks over images and captions: what is refused, what is read when, and how long it is kept."""

import pytest

from smke_jax.errors import UserError
from smke_jax.tasks import images


@pytest.mark.parametrize("views", [0, 3])
def test_a_number_of_views_that_is_not_made_is_refused(views):
    with pytest.raises(UserError, match=f"views is {views}: give 1, or 2"):
        images(source="scenes", views=views)
