"""The vocabulary of the small invented world, and seeded draws from it.

In: a `random.Random`. Out: people with their pronouns, things, places, times and reasons, as plain strings or tuples.
Times come in two forms: as said in a conversation ("tomorrow"), and as told afterwards ("the next day"). Reasons come
as the person says them ("my car broke down") and as others report them ("{their} car broke down").
Nothing here knows of conversations, tasks or models.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    name: str
    they: str
    them: str
    their: str

    def report(self, text: str) -> str:
        """Fill the pronouns of this person into "{they}", "{them}" and "{their}"."""
        return text.format(they=self.they, them=self.them, their=self.their)


def items(text: str) -> list[str]:
    return text.split(", ")


WOMEN = items(
    "Anna, Bella, Clara, Dora, Ella, Flora, Greta, Hanna, Ida, Julia, Klara, Lena, Mara, Nora, Olive, "
    "Paula, Rosa, Sara, Tilda, Vera, Wilma, Zoe, Alma, Berta, Celia, Edith, Fiona, Iris, Jane, Lucy, Mia, "
    "Nina, Ruth, Sofia, Amanda, Betty, Carol, Emma, Grace, Hazel, Ivy, Kate, Lily, Molly, Pearl, Stella"
)
MEN = items(
    "Adam, Ben, Carl, David, Emil, Felix, Georg, Hugo, Ivan, Jakob, Karl, Leo, Max, Nils, Otto, Paul, "
    "Robert, Simon, Tom, Viktor, Walter, Zeno, Anton, Bruno, Conrad, Edgar, Frank, Henry, Jonas, Luca, "
    "Martin, Oscar, Peter, Theo, Jerry, Eric, Daniel, Finn, Gustav, Harry, James, Kurt, Moritz, Noah, "
    "Philip, Sam"
)
# Nobody with one of these names is in train.jsonl: the last ten of each list.
NAMES_HELD_OUT = frozenset(WOMEN[-10:] + MEN[-10:])

_SYLLABLES = items(
    "ba, be, bi, bo, da, de, di, do, fa, fe, ga, ka, ki, ko, la, le, li, lo, ma, me, mi, mo, na, ne, no, "
    "pa, pe, ra, re, ri, ro, sa, se, si, ta, te, ti, to, va, ve, wa, wi, ya, za, zo"
)

# (base form, past form, plural food)
FOODS = [
    (base, past, food)
    for base, past, foods in (
        ("bake", "baked", "cookies,muffins,apple pies,cheese rolls,honey cakes,cherry tarts,cinnamon buns,pretzels"),
        ("make", "made", "pancakes,dumplings,waffles,sandwiches,noodles,meatballs,lemon drops,rice balls"),
        ("cook", "cooked", "beans,mushrooms,stuffed peppers,lentils,potatoes,vegetables"),
        ("pick", "picked", "plums,pears,strawberries,cherries,blueberries,tomatoes"),
    )
    for food in foods.split(",")
]
GROCERIES = items(
    "bread, milk, butter, eggs, cheese, rice, flour, salt, sugar, honey, tea, coffee, apples, onions, "
    "carrots, lemons, soap, candles, olive oil, garlic, cabbage, yoghurt, pepper, oats"
)
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]

# (as said, as told afterwards)
TIMES = [
    ("tomorrow", "the next day"),
    ("tonight", "that evening"),
    ("next week", "the week after"),
    ("tomorrow morning", "the next morning"),
    ("this afternoon", "that afternoon"),
    ("after work", "after work"),
    ("after lunch", "after lunch"),
    *((f"on {day}", f"on {day}") for day in DAYS),
    *((f"on {day} {part}", f"on {day} {part}") for day in DAYS for part in ("morning", "evening")),
]
CLOCKS = [f"{hour}:{minute}" for hour in range(1, 13) for minute in ("00", "15", "30", "45")] + [
    f"{hour} o'clock" for hour in range(1, 13)
]

# Places to go to: (place with its article, what one does there)
OUTINGS = [
    ("the lake", "swim"),
    ("the river", "fish"),
    ("the park", "play chess"),
    ("the museum", "see the old ships"),
    ("the market", "look for books"),
    ("the forest", "pick mushrooms"),
    ("the theatre", "see a play"),
    ("the cinema", "watch a film"),
    ("the beach", "fly kites"),
    ("the library", "read"),
    ("the café", "eat cake"),
    ("the mountains", "ski"),
    ("the castle", "take photos"),
    ("the zoo", "see the elephants"),
    ("the concert hall", "hear the choir"),
    ("the stadium", "watch the match"),
    ("the pool", "swim"),
    ("the harbour", "watch the boats"),
    ("the garden show", "see the roses"),
    ("the ice rink", "skate"),
]
MEETING_PLACES = items(
    "the station, the bus stop, the town hall, the bridge, the school, the bakery, the fountain, the old "
    "mill, the post office, the church, the airport, the front gate, the bookshop, the hotel"
)
SHOPS = items(
    "the market, the corner shop, the flea market, the book fair, the antique shop, the garden centre, the new shop"
)

# Things one owns: (thing, is it plural)
BELONGINGS = [
    (thing, False)
    for thing in items(
        "wallet, phone, umbrella, scarf, notebook, passport, watch, ring, hat, camera, backpack, library card, "
        "water bottle, purse, sketchbook, flute, train ticket, jacket"
    )
] + [(thing, True) for thing in ["keys", "glasses", "gloves", "headphones", "sandals", "car keys"]]
HIDING_PLACES = items(
    "under the sofa, on the kitchen table, behind the door, in the car, on the shelf, next to the sink, in "
    "the bathroom, under the bed, in the blue bag, on the piano, in the garden, by the window, in the top "
    "drawer, on the fridge"
)
# Things one lends: (thing, what it is needed for, as a bare verb phrase)
TOOLS = [
    ("ladder", "paint the ceiling"),
    ("bike", "ride to the village"),
    ("car", "visit my aunt"),
    ("drill", "hang up a shelf"),
    ("tent", "camp by the lake"),
    ("sewing machine", "mend a curtain"),
    ("suitcase", "pack for the trip"),
    ("guitar", "practise for the concert"),
    ("lawn mower", "cut the grass"),
    ("projector", "show my photos"),
    ("blender", "make a smoothie"),
    ("telescope", "look at the moon"),
    ("toolbox", "fix the sink"),
    ("printer", "print my essay"),
    ("kayak", "cross the bay"),
    ("typewriter", "write a letter"),
]
# Work to do: bare verb phrases without a possessive, so that anyone can be the doer.
CHORES = items(
    "paint the fence, clean the attic, move the piano, plant the roses, fix the roof, wash the windows, "
    "build a shed, carry the boxes, rake the leaves, cook for the guests, set up the tent, sort the books, "
    "clear the snow, bake the cake, repair the boat, tidy the cellar, write the invitations, assemble the "
    "wardrobe, water the plants, decorate the hall"
)
# Why someone cannot come: (as said, as reported)
EXCUSES = [
    ("I have to work", "{they} has to work"),
    ("I have to study", "{they} has to study"),
    ("I have a dentist appointment", "{they} has a dentist appointment"),
    ("my parents are visiting", "{their} parents are visiting"),
    ("I have a cold", "{they} has a cold"),
    ("my car broke down", "{their} car broke down"),
    ("I'm looking after my niece", "{they} is looking after {their} niece"),
    ("I hurt my back", "{they} hurt {their} back"),
    ("I'm flying to Lindenau", "{they} is flying to Lindenau"),
    ("I have choir practice", "{they} has choir practice"),
    ("I promised to help my brother", "{they} promised to help {their} brother"),
    ("my dog is ill", "{their} dog is ill"),
    ("I have an exam", "{they} has an exam"),
    ("I have to finish a report", "{they} has to finish a report"),
]
# How one feels: (adjective, as said, as reported)
FEELINGS = [
    (adjective, said, reported)
    for adjectives, reasons in (
        (
            "happy,excited,glad,proud",
            (
                ("I won the chess contest", "{they} won the chess contest"),
                ("I got a new job", "{they} got a new job"),
                ("I passed my driving test", "{they} passed {their} driving test"),
                ("my sister had a baby", "{their} sister had a baby"),
                ("my team won", "{their} team won"),
                ("I sold my first painting", "{they} sold {their} first painting"),
                ("my story was printed", "{their} story was printed"),
                ("I finished my novel", "{they} finished {their} novel"),
                ("my garden won a prize", "{their} garden won a prize"),
            ),
        ),
        (
            "sad,upset,worried,unhappy",
            (
                ("my cat ran away", "{their} cat ran away"),
                ("I failed my exam", "{they} failed {their} exam"),
                ("my best friend is moving away", "{their} best friend is moving away"),
                ("I broke my favourite cup", "{they} broke {their} favourite cup"),
                ("my grandfather is in hospital", "{their} grandfather is in hospital"),
                ("I lost my job", "{they} lost {their} job"),
                ("my bike was stolen", "{their} bike was stolen"),
                ("I missed my flight", "{they} missed {their} flight"),
                ("my trip was cancelled", "{their} trip was cancelled"),
            ),
        ),
    )
    for adjective in adjectives.split(",")
    for said, reported in reasons
]
GLAD = frozenset({"happy", "excited", "glad", "proud"})
# Why someone is late: (as said, as reported)
DELAYS = [
    ("the train was cancelled", "the train was cancelled"),
    ("I missed the bus", "{they} missed the bus"),
    ("there is a lot of traffic", "there is a lot of traffic"),
    ("I overslept", "{they} overslept"),
    ("I couldn't find my keys", "{they} couldn't find {their} keys"),
    ("the road is closed", "the road is closed"),
    ("it is snowing", "it is snowing"),
    ("my meeting took too long", "{their} meeting took too long"),
    ("I have a flat tyre", "{they} has a flat tyre"),
    ("I took the wrong tram", "{they} took the wrong tram"),
    ("the ferry is late", "the ferry is late"),
]
COLOURS = ["red", "blue", "green", "yellow", "white", "black", "brown", "silver", "purple", "grey"]
WARES = items(
    "lamp, chair, coat, teapot, clock, vase, carpet, mirror, bag, basket, sweater, bowl, blanket, kite, "
    "radio, desk, bench, hammock"
)
GIFTS = items(
    "a book, a scarf, a puzzle, a cookbook, a plant, a necklace, a board game, a teapot, a fountain pen, a "
    "music box, a picnic basket, a drum, a globe, a mug, a calendar, a chess set"
)
PETS = ["cat", "dog", "parrot", "rabbit", "hamster", "goldfish", "turtle", "pony", "canary", "hens"]
TRIPS = ["away", "in Lindenau", "at the seaside", "in hospital", "on a business trip", "abroad", "in the mountains"]
SKILLS = items(
    "swim, skate, play the guitar, bake bread, knit, juggle, play chess, drive, speak Spanish, draw horses, "
    "ride a horse, dance, sail, cook soup, sew, ski, whistle, take photos, play the violin, grow tomatoes"
)


def choose(rng: random.Random, options: Sequence[T]) -> T:
    # random() instead of choice(): a third of the time, and its stream has been the same in every Python version.
    return options[int(rng.random() * len(options))]


def known_person(rng: random.Random) -> Person:
    if rng.random() < 0.5:
        return Person(name=choose(rng, WOMEN), they="she", them="her", their="her")
    return Person(name=choose(rng, MEN), they="he", them="him", their="his")


def unheard_person(rng: random.Random) -> Person:
    """A person with a made-up name, so that a model learns to copy names, not to recall them."""
    stem = "".join(choose(rng, _SYLLABLES) for _ in range(1 + int(rng.random() * 2))).capitalize()
    if rng.random() < 0.5:
        return Person(name=stem + choose(rng, ("na", "lia", "ra", "ta")), they="she", them="her", their="her")
    return Person(name=stem + choose(rng, ("n", "ko", "r", "nd", "s")), they="he", them="him", their="his")


def a_or_an(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
