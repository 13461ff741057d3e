from .augment import (
    AUGMENTATIONS as AUGMENTATIONS,
    NEGATION as NEGATION,
    SYNONYMS as SYNONYMS,
    drop_negations as drop_negations,
    drop_words as drop_words,
    swap_words as swap_words,
    use_synonyms as use_synonyms,
)
from .batching import (
    SENTENCES as SENTENCES,
    LengthBucketedSampler as LengthBucketedSampler,
    encode as encode,
    make_loader as make_loader,
)
from .cleaning import REPLACEMENTS as REPLACEMENTS, Cleaning as Cleaning, clean as clean, clean_text as clean_text
from .errors import DataError as DataError
from .instructions import (
    QUESTION as QUESTION,
    AnswerScores as AnswerScores,
    answer as answer,
    commonest as commonest,
    question as question,
    read_answer as read_answer,
    read_sentiment as read_sentiment,
    score_answers as score_answers,
)
from .labels import refuse_wrong_labels as refuse_wrong_labels
from .own_data import OwnTexts as OwnTexts, read_own as read_own
from .ratings import DOMAINS as DOMAINS, load_ratings as load_ratings
from .splits import (
    load_sentiment as load_sentiment,
    near_duplicate_groups as near_duplicate_groups,
    three_way_split as three_way_split,
)
