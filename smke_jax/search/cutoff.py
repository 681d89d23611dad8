"""When a photo answers a text, by the scores that the same photo gives to other texts.

Cosines of a text and a photo differ from model to model and from photo to photo, so that no number is right for all.
What a photo scores with everyday phrases that mostly do not describe the photo says what its scores are like.  The fit
of a photo is how many standard deviations its score with the query lies above its mean score with the PHRASES.
(Verifying speakers does the same and calls it test normalisation.)

Among N photos that a text has nothing to do with, about one fits by the quantile 1 - 1 / N of the normal distribution.
A text has an answer where the best photo fits by ABOVE_CHANCE more than that; then the photos that fit by more than
that quantile are shown.  ABOVE_CHANCE = 0.8 was chosen on 600 dev photos of Flickr8k with an earlier LiT model, so that
80 % of 300 sentences of Wikipedia had no answer.  It took the same number among 25, 50, 100, 200, 400 and 600 of the
photos.  What it costs stands in smke_jax/studies/benchmarks/search_cutoff.md, on photos that are partly the same.
Nobody has checked larger collections or other models.
"""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

ABOVE_CHANCE = 0.8
PHRASES = tuple(
    " ".join(
        """
    a dog on the grass; a cat on a sofa; a horse in a field; birds on a wire; a fish in an aquarium; an insect on a
    leaf; cows on a farm; a wild animal in a zoo; a baby in a cot; children in a playground; a woman with glasses; a
    man in a suit; an old couple; a crowd in the street; friends at a party; a wedding; a birthday cake with
    candles; people around a table; a football match; a tennis player; a swimmer in a pool; a skier on a slope; a
    surfer on a wave; a cyclist on a road; a climber on a rock; people dancing; a concert on a stage; a guitar; a
    piano; a book on a desk; a computer screen; a mobile phone; a page of printed text; a receipt; a map; a drawing
    on paper; a painting in a museum; a statue; a church; a castle on a hill; a tall office building; a small house
    with a garden; a kitchen; a bathroom; an empty room; a bed with pillows; a chair by a window; a shop window; a
    market with vegetables; a plate of food; a bowl of soup; a pizza; fruit in a basket; a cup of coffee; a glass of
    wine; a red car; a truck on a motorway; a motorcycle; a bus at a stop; a train at a station; an aeroplane in the
    sky; a boat on a lake; a bridge over a river; a harbour at night; a beach with palm trees; the sea at sunset; a
    snowy mountain; a forest path; a waterfall; a desert; a tree in autumn; flowers in a vase; a field of
    sunflowers; a cloudy sky; the moon; fireworks; a street at night; rain on a window; fog over a valley; a fire in
    a fireplace; a tent on a camp site; a toy on the floor; a ball; a clock on a wall; a pair of shoes; a hat; a
    colourful dress; a bag; a pile of stones; a wooden fence; a road sign; a broken machine; tools on a bench; a
    microscope; a hospital room; a classroom; a factory; a satellite dish; a soldier in uniform; a blurred picture
    of nothing
    """.split()
    ).split("; ")
)


def usual_scores(rows: np.ndarray, phrases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (N,) of what photos (N, D) score with `phrases` (P, D), both L2-normalised."""
    scores = rows.astype(np.float32) @ phrases.T
    return scores.mean(axis=1), scores.std(axis=1)


def fits(scores: np.ndarray, typical: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """How many standard deviations the scores (N,) of a query lie above the usual ones of each photo."""
    return (scores - typical) / np.maximum(spread, 1e-6)


def by_chance(count: int) -> float:
    """What the best of `count` photos fits by that have nothing to do with the text."""
    return NormalDist().inv_cdf(1 - 1 / max(count, 2))


def answering(fit: Sequence[float] | np.ndarray) -> np.ndarray:
    """bool (N,): the photos that answer a text, by the `fits` of all N; none where the best is too near to chance."""
    fit = np.asarray(fit)
    chance = by_chance(len(fit))
    return (fit >= chance) & (fit.max(initial=-np.inf) >= chance + ABOVE_CHANCE)
