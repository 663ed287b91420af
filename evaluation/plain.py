"""Plain data: what the probe makes of it without any encoder, on the same rows and draws.

Pictures are their own pixels, few of them; sounds the mean and the deviation of each log-mel bin (`Modality.plain`);
texts are TF-IDF of their words. A trained encoder that is not above this is no gain, however far above the untrained
one it is. Samples of a row are averaged as an encoder's vectors are; a text's words are those of all its windows.
"""

import numpy as np

from triptych.evaluation.features import PLAIN, Features
from triptych.training.sources import Rows
from triptych.training.tables import holds_lines

# A word, or one sign of a script that has no blanks between words.
WORD = r"[\u3040-\u9fff]|[^\W\u3040-\u9fff]+"
MOST_WORDS = 50_000
# C of a logistic regression is 1; on texts of length 1, 10 is better.
LENGTH = 10**0.5


def taken(learn: Rows, judge: Rows, x: Features, t: Features):
    """Plain values `[n v]` of the rows that have features, to learn from and to judge; None where there are none.

    Takes them out of features that were made with `plain`.
    """
    made = x.x.pop(PLAIN, None), t.x.pop(PLAIN, None)
    if made[0] is not None:
        return made
    if not holds_lines(learn.modality):
        return None
    return counted(*([text or "" for text in rows.table[rows.column][:]] for rows in (learn, judge)))


def counted(texts: list[str], others: list[str]):
    """TF-IDF `[n words]`, sparse, of texts and of others, with the words and the rarities of the first alone."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    count = TfidfVectorizer(token_pattern=WORD, sublinear_tf=True, max_features=MOST_WORDS, dtype=np.float32)
    try:
        found = count.fit_transform(texts)
    except ValueError:  # there are no words
        return None
    return found * LENGTH, count.transform(others) * LENGTH
