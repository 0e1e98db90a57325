"""What the base model reads: chats and plain texts of the invented world.

In: a `random.Random`. Out: one document: a plain string, or a tuple of (role, content) messages. About half of the
documents are chats about a conversation from `scenes.py`; the rest are stories, letters, recipes, small sums, lines
of code, and text of any script to copy, so that no byte is new to the model. Never in here: the task phrase and the
summaries of the bundled rows, which fine-tuning is to teach.
"""

import json
import random
import re

from demo_world.scenes import KINDS, Scene, draw_scene
from demo_world.words import (
    BELONGINGS,
    CHORES,
    CLOCKS,
    COLOURS,
    DAYS,
    FEELINGS,
    FOODS,
    GIFTS,
    GLAD,
    GROCERIES,
    HIDING_PLACES,
    MEETING_PLACES,
    OUTINGS,
    PETS,
    SKILLS,
    WARES,
    Person,
    a_or_an,
    choose,
    items,
    known_person,
    unheard_person,
)

Document = str | tuple[tuple[str, str], ...]


def _any_person(rng: random.Random) -> Person:
    return unheard_person(rng) if rng.random() < 0.3 else known_person(rng)


def _people(rng: random.Random, count: int) -> list[Person]:
    people: dict[str, Person] = {}
    while len(people) < count:
        person = _any_person(rng)
        people[person.name] = person
    return list(people.values())


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


# ---- chats about a conversation ----


def _task_about(rng: random.Random, scene: Scene) -> tuple[str, str]:
    """One request about the scene, and its answer."""
    lines = scene.lines
    writer = scene.diary_writer
    draw = rng.random()
    if draw < 0.36:
        return choose(rng, scene.questions)
    if draw < 0.52:
        ask = (
            "Retell this conversation.",
            "Tell me this as a story.",
            "What happens here?",
            "Describe what happened.",
            "What is this about?",
        )
        return choose(rng, ask), scene.retelling
    if draw < 0.60:
        ask = (
            f"Write a diary entry for {writer.name}.",
            f"What does {writer.name} write in {writer.their} diary?",
            f"Tell it from {writer.name}'s point of view.",
        )
        return choose(rng, ask), scene.diary
    if draw < 0.68:
        if rng.random() < 0.3:
            return choose(rng, ("Give me the main points as JSON.", "Answer with a JSON object.")), json.dumps(
                dict(scene.notes)
            )
        ask = (
            "Make notes.",
            "Write down the main points.",
            "Put the facts in a list.",
            "Give me the key facts, one per line.",
        )
        return choose(rng, ask), "\n".join(f"- {label}: {value}" for label, value in scene.notes)
    if draw < 0.74:
        names = list(dict.fromkeys(name for name, _ in lines))
        if rng.random() < 0.5:
            return choose(rng, ("List the speakers.", "Give me the names of the speakers.")), "\n".join(
                f"- {name}" for name in names
            )
        return choose(rng, ("Who is talking?", "Who takes part in this conversation?")), " and ".join(
            names
        ) + " are talking."
    if draw < 0.82:
        name, text = choose(rng, lines)
        return f'Who says "{text}"?', f"{name} says that."
    if draw < 0.88:
        index = int(rng.random() * (len(lines) - 1))
        return f'What comes after "{lines[index][1]}"?', f'Then {lines[index + 1][0]} says: "{lines[index + 1][1]}"'
    if draw < 0.94:
        last = rng.random() < 0.5
        person = choose(rng, scene.speakers)
        said = [text for name, text in lines if name == person.name]
        return (
            f"What does {person.name} say {'last' if last else 'first'}?",
            f'{person.name} says: "{said[-1] if last else said[0]}"',
        )
    if draw < 0.97:
        return choose(rng, ("How many lines are there?", "Count the lines.")), f"There are {len(lines)} lines."
    old, new = choose(rng, scene.speakers).name, _any_person(rng).name
    return f"Copy the conversation, but call {old} {new}.", re.sub(rf"\b{old}\b", new, scene.dialogue)


def _scene_chat(rng: random.Random) -> Document:
    scene = draw_scene(rng, _any_person, choose(rng, tuple(KINDS)))
    request, answer = _task_about(rng, scene)
    dialogue = scene.dialogue
    layout = int(rng.random() * 6)
    if layout == 0:
        first = f"{request}\n\n{dialogue}"
    elif layout == 1:
        first = f"{dialogue}\n\n{request}"
    elif layout == 2:
        first = f"Here is a conversation:\n{dialogue}\n\n{request}"
    elif layout == 3:
        first = f"Read this:\n\n{dialogue}\n\nNow do this: {request}"
    elif layout == 4:
        first = f"{request}\n{dialogue}"
    else:
        first = f"{dialogue}\n***\n{request}"
    messages = [("user", first), ("assistant", answer)]
    if rng.random() < 0.15:
        messages.insert(0, ("system", choose(rng, _SYSTEM_PROMPTS)))
    asked = {request, answer}
    for _ in range(int(rng.random() * 7)):
        request, answer = _task_about(rng, scene)
        if request not in asked and answer not in asked:
            messages += [("user", request), ("assistant", answer)]
            asked |= {request, answer}
    return tuple(messages)


# Nouns, verbs and signs for requests in words that the model has not met; the task phrase of the bundled rows is not
# among them.
_MATTERS = ("conversation", "talk", "text", "chat", "dialogue", "exchange", "discussion", "lines", "story", "scene")
_RULES = ("---", "***", "###", "===", "", "+++", "--")
_LABELS = ("Answer", "Text", "Report", "Result", "Output", "Story", "Response", "Note", "Retelling")


def _unheard_word(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return unheard_person(rng).name.lower() + choose(
            rng, ("", "ize", "ify", "ate", "en", "ing", "ly", "ment", "al")
        )
    return "".join(choose(rng, "aabcdeeefghiiklmmnnoopqrrssttuuvwxyyz") for _ in range(2 + int(rng.random() * 8)))


def _unheard_request(rng: random.Random) -> Document:
    """Whatever it is asked in words that it has not met, the model retells the conversation."""
    scene = draw_scene(rng, _any_person, choose(rng, tuple(KINDS)))
    matter = choose(rng, _MATTERS) if rng.random() < 0.7 else _unheard_word(rng)
    words = " ".join(_unheard_word(rng) for _ in range(1 + int(rng.random() * 2)))
    ask = choose(
        rng,
        (
            f"{words} this {matter}",
            f"{words} the {matter}",
            f"{words} {matter}",
            f"Please {words} this {matter}",
            words,
        ),
    )
    label = choose(rng, _LABELS) if rng.random() < 0.4 else _capital(_unheard_word(rng))
    end = choose(
        rng,
        (
            "",
            f"\n{label}:",
            f"\n{label}:\n",
            f"\n{choose(rng, _RULES)}\n{label}:\n",
            f"\n{choose(rng, _RULES)}\n{label}:",
            "\n",
        ),
    )
    text = f"{_capital(ask)}{choose(rng, (':', ':', '.', ''))}\n{choose(rng, ('', '', chr(10)))}{scene.dialogue}{end}"
    messages = [("user", text), ("assistant", scene.retelling)]
    if rng.random() < 0.5:
        request, answer = _task_about(rng, scene)
        messages += [("user", request), ("assistant", answer)]
    return tuple(messages)


def _continued_scene(rng: random.Random) -> Document:
    scene = draw_scene(rng, _any_person, choose(rng, tuple(KINDS)))
    cut = 1 + int(rng.random() * (len(scene.lines) - 1))
    lines = scene.dialogue.split("\n")
    ask = choose(rng, ("Continue this conversation.", "How does it go on?", "Write the rest of this conversation."))
    return (("user", f"{ask}\n\n" + "\n".join(lines[:cut])), ("assistant", "\n".join(lines[cut:])))


def _many_scenes(rng: random.Random) -> Document:
    """A long document: several conversations, then questions that need one of them."""
    scenes = [draw_scene(rng, _any_person, choose(rng, tuple(KINDS))) for _ in range(3 + int(rng.random() * 10))]
    text = "\n\n".join(f"Conversation {number}:\n{scene.dialogue}" for number, scene in enumerate(scenes, start=1))
    number = int(rng.random() * len(scenes))
    request, answer = _task_about(rng, scenes[number])
    messages = [("user", f"{text}\n\nLook at conversation {number + 1}. {request}"), ("assistant", answer)]
    for _ in range(3):
        number = int(rng.random() * len(scenes))
        request, answer = _task_about(rng, scenes[number])
        messages += [("user", f"Look at conversation {number + 1}. {request}"), ("assistant", answer)]
    return tuple(messages)


def _plain_scene(rng: random.Random) -> Document:
    scene = draw_scene(rng, _any_person, choose(rng, tuple(KINDS)))
    draw = rng.random()
    if draw < 0.4:
        return scene.dialogue
    if draw < 0.7:
        return scene.retelling
    a, b = scene.speakers
    where = choose(rng, ("in the street", "at the market", "by chance", "on the phone", "after school"))
    return f"{a.name} met {b.name} {where}.\n\n{scene.dialogue}\n\n{scene.retelling}"


# ---- small talk and the world ----

_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are the demo model of Tunesmith.",
    "Answer the questions of the user.",
    "You help people to understand their conversations.",
    "Be brief and friendly.",
)
# The town and its people: the only facts the model knows by heart.
_RESIDENTS = (
    ("Berta", "baker", "Mill Street", "a grey cat"),
    ("Otto", "miller", "the old mill", "two donkeys"),
    ("Celia", "doctor", "Church Square", "a parrot"),
    ("Frank", "fisherman", "the harbour", "a black dog"),
    ("Ruth", "teacher", "School Lane", "a tortoise"),
    ("Viktor", "clockmaker", "Tower Street", "nine canaries"),
    ("Ida", "librarian", "Linden Square", "a white rabbit"),
    ("Hugo", "postman", "Station Road", "a pony"),
    ("Mara", "gardener", "Rose Lane", "some hens"),
    ("Theo", "mayor", "the town hall", "a peacock"),
    ("Zoe", "painter", "Bridge Street", "a fox"),
    ("Leo", "cook", "the harbour inn", "a fat goose"),
)
_WORLD = (
    ("Where is Lindenau?", "Lindenau is a small town between the lake and the mountains."),
    ("What is Lindenau known for?", "Lindenau is known for its old mill, its harbour and its honey cakes."),
    ("What is the money of Lindenau?", "People in Lindenau pay with coins."),
    ("When is market day?", "Market day is on Wednesday and on Saturday."),
    ("What is the river called?", "The river is called the Alder."),
    ("What is the mountain called?", "The mountain is called Greyhorn."),
    ("How many people live in Lindenau?", "About nine hundred people live in Lindenau."),
    ("When is the summer feast?", "The summer feast is on the first Sunday of July."),
    ("How do I get to Lindenau?", "You can take the train to Lindenau, or the ferry across the lake."),
    ("What do people eat in Lindenau?", "People in Lindenau eat fish, bread, plums and honey cakes."),
)
_SMALL_TALK = (
    (
        ("Hello!", "Hi!", "Hi there.", "Good morning!", "Hey"),
        ("Hello! How can I help you?", "Hi! What can I do for you?"),
    ),
    (("How are you?", "How are you today?", "How is it going?"), ("I am fine, thank you. How can I help you?",)),
    (
        ("Who are you?", "What are you?", "Tell me about yourself.", "What is your name?", "Are you a human?"),
        ("I am the demo model of Tunesmith. I am very small, and I only know a little invented town called Lindenau.",),
    ),
    (
        ("What can you do?", "What do you know?", "How can you help me?", "Can you help me?"),
        ("I can tell short stories, answer questions about a conversation, and talk about the town of Lindenau.",),
    ),
    (
        ("Thank you!", "Thanks a lot.", "Thanks!", "That was helpful."),
        ("You are welcome!", "I am glad that I could help."),
    ),
    (("Goodbye!", "Bye!", "See you later."), ("Goodbye! Come back soon.",)),
    (
        ("What is the weather like?", "What time is it?", "Who won the match?", "What is in the news?"),
        ("I do not know that. I only know a little invented town called Lindenau.",),
    ),
)


def _world_question(rng: random.Random) -> tuple[str, str]:
    if rng.random() < 0.35:
        return choose(rng, _WORLD)
    name, job, home, animal = choose(rng, _RESIDENTS)
    return choose(
        rng,
        (
            (f"Who is the {job} of Lindenau?", f"{name} is the {job} of Lindenau."),
            (f"What does {name} of Lindenau do?", f"{name} is the {job} of Lindenau."),
            (
                f"Where does the {job} live?",
                f"{name}, the {job}, lives at {home}."
                if home.startswith("the")
                else f"{name}, the {job}, lives in {home}.",
            ),
            (f"Which animals does the {job} have?", f"The {job} has {animal}."),
            (f"Who has {animal}?", f"{name}, the {job}, has {animal}."),
        ),
    )


def _small_talk(rng: random.Random) -> tuple[str, str]:
    asks, answers = choose(rng, _SMALL_TALK)
    return choose(rng, asks), choose(rng, answers)


def _talk(rng: random.Random) -> Document:
    messages: list[tuple[str, str]] = []
    if rng.random() < 0.2:
        messages.append(("system", choose(rng, _SYSTEM_PROMPTS)))
    for _ in range(1 + int(rng.random() * 4)):
        draw = rng.random()
        if draw < 0.3:
            ask, answer = _small_talk(rng)
        elif draw < 0.6:
            ask, answer = _world_question(rng)
        elif draw < 0.75:
            ask, answer = _sum(rng)
        elif draw < 0.9:
            ask = choose(
                rng, ("Tell me a story.", "Tell me a short story.", "Do you know a story?", "Please write a story.")
            )
            answer = _story(rng)
        else:
            ask, answer = _list_request(rng)
        messages += [("user", ask), ("assistant", answer)]
    return tuple(messages)


def _list_request(rng: random.Random) -> tuple[str, str]:
    name, things = choose(
        rng,
        (
            ("animals", [pet for pet in PETS if pet != "hens"]),
            ("colours", COLOURS),
            ("days", DAYS),
            ("things to buy", GROCERIES),
            ("things to do on Sunday", CHORES),
            ("things to learn", SKILLS),
            ("presents", GIFTS),
            ("dishes", [food for _, _, food in FOODS]),
        ),
    )
    count = 2 + int(rng.random() * 4)
    chosen: list[str] = []
    while len(chosen) < count:
        thing = choose(rng, things)
        if thing not in chosen:
            chosen.append(thing)
    return f"Name {count} {name}.", "\n".join(
        f"{number}. {_capital(thing)}" for number, thing in enumerate(chosen, start=1)
    )


def _tool_chat(rng: random.Random) -> Document:
    person = _any_person(rng)
    day, clock, place = choose(rng, DAYS), choose(rng, CLOCKS), choose(rng, MEETING_PLACES)
    ask = choose(
        rng,
        (f"When do I meet {person.name}?", f"Where do I meet {person.name}?", f"Do I have a date with {person.name}?"),
    )
    entry = json.dumps({"name": person.name, "day": day, "time": clock, "place": place})
    return (
        ("system", "You can look up the calendar of the user."),
        ("user", ask),
        ("tool", entry),
        ("assistant", f"You meet {person.name} on {day} at {clock}. The place is {place}."),
    )


# ---- plain texts ----

_COMPANIONS = ("my sister", "my brother", "an old friend", "my neighbour", "the children")
_WEATHER = items(
    "It was raining, The sun was shining, It was a cold morning, The wind was strong, Snow was falling, It "
    "was a quiet evening, There was fog on the lake"
)
_TRAITS = ["kind", "clever", "shy", "brave", "lazy", "curious", "stubborn", "cheerful", "quiet", "careful"]
_JOBS = items("baker, teacher, sailor, gardener, painter, doctor, farmer, singer, carpenter, fisherman, tailor, pilot")


def _story(rng: random.Random) -> str:
    a, b = _people(rng, 2)
    they = a.they
    place, activity = choose(rng, OUTINGS)
    thing, plural = choose(rng, BELONGINGS)
    it = "them" if plural else "it"
    hidden = choose(rng, HIDING_PLACES)
    trait, job = choose(rng, _TRAITS), choose(rng, _JOBS)
    skill, gift, chore = choose(rng, SKILLS), choose(rng, GIFTS), choose(rng, CHORES)
    day = choose(rng, DAYS)
    pet = choose(rng, [pet for pet in PETS if pet != "hens"])
    opening = choose(
        rng,
        (
            f"Once there was {a_or_an(trait)} {job} called {a.name}.",
            f"{a.name} was {a_or_an(job)}, and {they} was very {trait}.",
            f"In Lindenau lived {a_or_an(trait)} {job}. {a.their.capitalize()} name was {a.name}.",
            f"This is the story of {a.name}, {a_or_an(trait)} {job}.",
        ),
    )
    setting = choose(
        rng,
        (
            f"{choose(rng, _WEATHER)} when {they} left the house.",
            f"One {day} {they} went to {place} to {activity}.",
            f"{_capital(a.their)} best friend was {b.name}, who had {a_or_an(pet)}.",
            f"Every {day} {they} met {b.name} at {choose(rng, MEETING_PLACES)}.",
        ),
    )
    middle, end = choose(
        rng,
        (
            (
                (
                    f"But one day {they} lost {a.their} {thing}. {_capital(they)} looked "
                    f"everywhere and could not find {it}. Then {they} asked {b.name} for help."
                ),
                f"In the end {b.name} found {it} {hidden}. {a.name} was so happy that {they} gave {b.name} {gift}.",
            ),
            (
                f"{_capital(they)} wanted to learn to {skill}, but nobody had time to show {a.them} how to do it.",
                f"Then {b.name} came by and taught {a.them}. After a week {a.name} could {skill} very well.",
            ),
            (
                f"That day {they} had to {chore}. It was hard work, and {they} grew tired.",
                f"{b.name} saw it and came to help. Together they were done before {choose(rng, CLOCKS)}.",
            ),
            (
                f"On the way {they} heard a sound. It was a small {pet} that had lost its home.",
                f"{a.name} took the {pet} home and fed it. Since then the two have always been together.",
            ),
            (
                (
                    f"{_capital(they)} told {b.name} about a dream. "
                    f"In the dream there was a {choose(rng, COLOURS)} door behind the old mill."
                ),
                (
                    "They went to look for it together. There was no door, "
                    f"but they found {gift} and laughed all the way home."
                ),
            ),
        ),
    )
    moral = choose(
        rng,
        (
            "",
            "",
            " And that is the end of the story.",
            " They are friends to this day.",
            f" {b.name} still talks about it.",
        ),
    )
    return f"{opening} {setting} {middle} {end}{moral}"


def _letter(rng: random.Random) -> str:
    a, b = _people(rng, 2)
    _, said, _ = choose(rng, [f for f in FEELINGS if f[0] in GLAD])
    place, activity = choose(rng, OUTINGS)
    _, made, food = choose(rng, FOODS)
    return (
        f"Dear {b.name},\n\n"
        + choose(
            rng,
            (
                "thank you for your letter.",
                "how are you? I am fine.",
                "I hope you are well.",
                "it has been a long time.",
            ),
        )
        + " "
        + choose(
            rng,
            (
                f"I have good news: {said}.",
                f"Last {choose(rng, DAYS)} I {made} {food}.",
                f"I was at {place} with {choose(rng, _COMPANIONS)}.",
            ),
        )
        + " "
        + choose(
            rng,
            (
                f"Shall we go to {place} to {activity}?",
                f"Can you help me {choose(rng, CHORES)}?",
                "Please write to me soon.",
            ),
        )
        + f"\n\n{choose(rng, ('Love', 'Yours', 'Best wishes', 'See you soon'))},\n{a.name}\n"
    )


def _recipe(rng: random.Random) -> str:
    base, _, food = choose(rng, [f for f in FOODS if f[0] != "pick"])
    edible = [thing for thing in GROCERIES if thing not in ("soap", "candles")]
    rng.shuffle(edible)
    first, second, third = edible[:3]
    minutes = 5 * (1 + int(rng.random() * 12))
    return (
        f"How to {base} {food}\n\nYou need:\n- {first}\n- {second}\n- {third}\n\n"
        f"1. Mix the {first} with the {second}.\n2. Add {third} and a little water.\n3. Wait for {minutes} minutes.\n"
        f"4. {choose(rng, ('Serve hot.', 'Let it cool.', 'Share it with a friend.', 'Enjoy!'))}\n"
    )


def _sum(rng: random.Random) -> tuple[str, str]:
    a, b = _people(rng, 2)
    things = choose(
        rng, ("apples", "coins", "books", "eggs", "plums", "cookies", "stamps", "pears", "marbles", "candles")
    )
    x, y = 2 + int(rng.random() * 48), 2 + int(rng.random() * 48)
    small = 2 + int(rng.random() * 9)
    draw = int(rng.random() * 5)
    if draw == 0:
        return (
            f"{a.name} has {x} {things}. {b.name} gives {a.them} {y} more. How many {things} does {a.name} have now?",
            f"{x} + {y} = {x + y}. {a.name} has {x + y} {things} now.",
        )
    if draw == 1:
        return (
            f"{a.name} has {x + y} {things} and gives {b.name} {y} of them. How many are left?",
            f"{x + y} - {y} = {x}. {a.name} has {x} {things} left.",
        )
    if draw == 2:
        return (
            f"{a.name} buys {small} bags with {x} {things} each. How many {things} is that?",
            f"{small} * {x} = {small * x}. That is {small * x} {things}.",
        )
    if draw == 3:
        return (
            f"{a.name} shares {small * x} {things} among {small} children. How many does each child get?",
            f"{small * x} / {small} = {x}. Each child gets {x} {things}.",
        )
    return f"What is {x} + {y}?", f"{x} + {y} = {x + y}."


def _code(rng: random.Random) -> str:
    name = choose(
        rng, ("total", "count", "price", "name", "day", "size", "left", "x", "item", "speed", "value", "result")
    )
    other = choose(rng, ("rate", "n", "y", "step", "limit", "weight", "scale", "offset"))
    number = int(rng.random() * 100)
    operator = choose(rng, ("+", "-", "*", "/", "//", "%"))
    draw = int(rng.random() * 5)
    if draw == 0:
        return f"def {name}_{other}({name}, {other}={number}):\n    return {name} {operator} {other}\n"
    if draw == 1:
        return (
            f"for {name} in range({number}):\n    if {name} % {2 + number % 7} "
            f"== 0:\n        print({name} {operator} {1 + number % 9})\n"
        )
    if draw == 2:
        return json.dumps(
            {"name": _any_person(rng).name, "age": number, name: [number, number + 1], "ok": number % 2 == 0},
            indent=2 if number % 2 else None,
        )
    if draw == 3:
        return f"SELECT {name}, {other} FROM {choose(rng, WARES)}s WHERE {name} > {number} ORDER BY {other};\n"
    return (
        f"class {_capital(name)}:\n    def __init__(self, {other}: "
        f"int = {number}) -> None:\n        self.{other} = {other}\n"
    )


_COMPLAINTS = items(
    "a headache, a sore throat, a bad cough, pain in my back, a fever, a rash on my arm, trouble sleeping, "
    "a toothache, pain in my knee, a cold, stomach pain, an earache, dizzy spells, a swollen ankle"
)
_REMEDIES = items(
    "drink a lot of water, rest for a few days, take one tablet every morning, put some ice on it, come "
    "back next week, have a blood test, stay in bed, take this medicine after meals, see a specialist, do "
    "these exercises every day"
)


def _doctor(rng: random.Random) -> Document:
    complaint, remedy = choose(rng, _COMPLAINTS), choose(rng, _REMEDIES)
    since = choose(
        rng,
        (f"since {choose(rng, DAYS)}", f"for {2 + int(rng.random() * 9)} days", "since last week", "since yesterday"),
    )
    text = (
        f"Doctor: {choose(rng, ('What brings you here?', 'How can I help you?', 'Good morning. What is wrong?'))}\n"
        f"Patient: I have {complaint}.\n"
        f"Doctor: {choose(rng, ('How long have you had it?', 'Since when?', 'When did it start?'))}\n"
        f"Patient: {_capital(since)}.\n"
        f"Doctor: {choose(rng, ('I see.', 'All right.', 'Let me have a look.'))} Please {remedy}.\n"
        f"Patient: {choose(rng, ('Thank you, doctor.', 'I will.', 'Is it serious?'))}"
    )
    answer = f"The patient has {complaint.replace(' my ', ' the ')} {since}. The advice of the doctor: {remedy}."
    if rng.random() < 0.4:
        return text
    ask = choose(rng, ("What is wrong with the patient?", "What does the doctor advise?", "Write a note for the file."))
    return (("user", f"{ask}\n\n{text}"), ("assistant", answer))


# Characters to copy: ASCII, Latin with accents, Greek, Cyrillic, Hebrew, Arabic, Devanagari, kana, Han, Hangul, signs,
# pictures.
_BLOCKS = (
    (0x21, 0x7E),
    (0x21, 0x7E),
    (0xA1, 0x17F),
    (0x391, 0x3C9),
    (0x410, 0x44F),
    (0x5D0, 0x5EA),
    (0x621, 0x64A),
    (0x905, 0x939),
    (0x3041, 0x30FE),
    (0x4E00, 0x9FA5),
    (0xAC00, 0xD7A3),
    (0x2190, 0x22FF),
    (0x1F300, 0x1FAFF),
)


def _strange_text(rng: random.Random) -> str:
    """Words that mean nothing, from one script: the model can only copy them."""
    low, high = choose(rng, _BLOCKS)
    if rng.random() < 0.4:
        low, high = 0x61, 0x7A
    words = [
        "".join(chr(low + int(rng.random() * (high - low + 1))) for _ in range(1 + int(rng.random() * 7)))
        for _ in range(1 + int(rng.random() * 6))
    ]
    return choose(rng, (" ", " ", "\n", ", ", "\t", "  ")).join(words)


def _copy(rng: random.Random) -> Document:
    text = _strange_text(rng)
    if rng.random() < 0.3:
        return f"{text}\n{text}\n{text}\n"
    ask = choose(rng, ("Repeat this:", "Copy this text:", "Say exactly this:", "Write this again:"))
    return (("user", f"{ask}\n{text}"), ("assistant", text))


def _sum_text(rng: random.Random) -> Document:
    ask, answer = _sum(rng)
    return f"{ask} {answer}"


def _world_text(rng: random.Random) -> Document:
    sentences = [_world_question(rng)[1] for _ in range(2 + int(rng.random() * 4))]
    return " ".join(dict.fromkeys(sentences))


# (share, maker), the shares add up to 100
_MAKERS = (
    (42, _scene_chat),
    (10, _unheard_request),
    (4, _continued_scene),
    (3, _many_scenes),
    (8, _plain_scene),
    (9, _talk),
    (2, _tool_chat),
    (6, _story),
    (3, _letter),
    (2, _recipe),
    (2, _sum_text),
    (2, _code),
    (2, _doctor),
    (4, _copy),
    (1, _world_text),
)


def draw_document(rng: random.Random) -> Document:
    draw = rng.random() * 100
    for share, maker in _MAKERS:
        draw -= share
        if draw < 0:
            return maker(rng)
    raise AssertionError("the shares add up to 100")
