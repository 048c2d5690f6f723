"""Short words of the command line, as Hydra has them. Imports nothing: --help must not wait."""

import re

# A part of the recipe that is a choice: conf/optimizer/, conf/schedule/.
PARTS = ("optimizer", "schedule")
# What such a part takes is its callable's own business, so that any argument may be given.
ARGUMENT = re.compile(rf"(finetune\.)?recipe\.({'|'.join(PARTS)})\.\w+(\.\w+)*=")


def recipe_words(arguments: list[str]) -> list[str]:
    """`optimizer=adamw` and `schedule=cosine`, which replace a part of the recipe, and arguments of
    these parts, also such as no yaml names; all else stays.

        >>> recipe_words(["optimizer=adamw", "schedule.warmup=0.1", "seed=1"])
        ['optimizer@recipe.optimizer=adamw', '++recipe.schedule.warmup=0.1', 'seed=1']
    """
    words = []
    for word in arguments:
        key, equals, value = word.partition("=")
        if equals and key in PARTS:
            word = f"{key}@recipe.{key}={value}"
        elif equals and key.partition(".")[0] in PARTS:
            word = f"recipe.{word}"
        words.append(f"++{word}" if ARGUMENT.match(word) else word)
    return words
