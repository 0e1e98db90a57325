"""Short conversations of the invented world, each with the facts behind it told in several ways.

In: a `random.Random` and a way to draw people. Out: a `Scene`: the lines of a conversation between two people, its
one-sentence summary (used by the bundled rows only), and what the base model learns instead: a longer retelling, a
diary entry, notes, and questions with answers. Every kind of scene has several outcomes, and most lines can be put in
several ways: `Scene.forms` and `Scene.facts` say which were drawn, so that combinations can be held out.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from demo_world.words import (
    BELONGINGS,
    CHORES,
    CLOCKS,
    COLOURS,
    DELAYS,
    EXCUSES,
    FEELINGS,
    FOODS,
    GIFTS,
    GLAD,
    GROCERIES,
    HIDING_PLACES,
    MEETING_PLACES,
    OUTINGS,
    PETS,
    SHOPS,
    SKILLS,
    TIMES,
    TOOLS,
    TRIPS,
    WARES,
    Person,
    T,
    a_or_an,
    choose,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    kind: str
    speakers: tuple[Person, Person]
    facts: str
    forms: str
    lines: tuple[tuple[str, str], ...]
    summary: str
    retelling: str
    diary_writer: Person
    diary: str
    notes: tuple[tuple[str, str], ...]
    questions: tuple[tuple[str, str], ...]

    @property
    def dialogue(self) -> str:
        return "\n".join(f"{name}: {text}" for name, text in self.lines)


class Draw:
    """Seeded choices that remember what was chosen: facts (what happened) and forms (how it was put)."""

    def __init__(self, rng: random.Random, person: Callable[[random.Random], Person]) -> None:
        self.rng = rng
        self.facts: list[str] = []
        self.forms: list[str] = []
        self._person = person
        self._names: set[str] = set()

    def person(self) -> Person:
        while True:
            person = self._person(self.rng)
            if person.name not in self._names:
                self._names.add(person.name)
                return person

    def fact(self, options: Sequence[T]) -> T:
        index = int(self.rng.random() * len(options))
        self.facts.append(str(index))
        return options[index]

    def form(self, *options: str) -> str:
        index = int(self.rng.random() * len(options))
        self.forms.append(str(index))
        return options[index]

    def outcome(self, *options: str) -> str:
        outcome = self.form(*options)
        self.facts.append(outcome)
        return outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What one kind of scene fills in; greetings and asides are added by `draw_scene`."""

    a: Person
    b: Person
    lines: list[tuple[Person, str]]
    summary: str
    retelling: str
    diary: str
    notes: list[tuple[str, str]]
    questions: list[tuple[str, str]]
    written_by_b: bool = False


GOING_TO = "What is going to happen?"
YES = ("Sure!", "Yes, please!", "Of course!", "Yes, I'd love to!", "Gladly!", "Sounds good!")


def _food(draw: Draw) -> Told:
    a, b = draw.person(), draw.person()
    base, made, food = draw.fact(FOODS)
    when, later = draw.fact(TIMES)
    offer = draw.form(
        f"I {made} {food}. Do you want some?",
        f"I've just {made} {food}. Would you like some?",
        f"Guess what, I {made} {food}! Do you like {food}?",
        f"I {made} far too many {food}. Can I offer you some?",
    )
    questions = [
        (f"What did {a.name} {base}?", f"{a.name} {made} {food}."),
        (f"Who {made} the {food}?", f"{a.name} did."),
    ]
    outcome = draw.outcome("bring", "fetch", "no")
    if outcome == "bring":
        promise = draw.form(
            f"I'll bring you some {when}.",
            f"Great, then I'll bring some {when}.",
            f"You'll get them {when}, I'll bring some.",
        )
        lines = [
            (a, offer),
            (b, draw.form("Sure!", "Yes, please!", "Oh yes, I'm so hungry!", "I'd love some!")),
            (a, promise),
        ]
        summary = f"{a.name} {made} {food} and will bring {b.name} some {when}."
        retelling = (
            f"{a.name} had {made} {food}. When {a.they} offered some to {b.name}, {b.they} was glad to accept. "
            f"So {a.name} promised to bring {b.them} some {later}."
        )
        diary = f"I {made} {food} today. {b.name} wants to try them, so I have to take some along {when}."
        questions += [
            (f"What does {a.name} promise?", f"{a.they.capitalize()} promises to bring {b.name} some {food} {when}."),
            (f"When will {b.name} get the {food}?", f"{b.they.capitalize()} will get them {when}."),
        ]
        questions.append((GOING_TO, f"{a.name} is going to bring {b.name} some {food} {when}."))
        notes = [("cook", a.name), ("food", food), ("eater", b.name), ("when", when)]
    elif outcome == "fetch":
        reply = draw.form(
            f"Yes! I'll pick some up {when}.",
            f"Oh yes. Can I pick some up {when}?",
            f"I'd love some. I could pick them up {when}.",
        )
        lines = [(a, offer), (b, reply), (a, draw.form("No problem.", "Perfect!", "Okay, they'll be ready."))]
        summary = f"{a.name} {made} {food} and {b.name} will pick some up {when}."
        retelling = (
            f"{a.name} had {made} {food}. When {a.they} offered some to {b.name}, {b.they} was glad to accept. "
            f"{b.name} wanted to come and get them {later}."
        )
        diary = f"I {made} {food} today. {b.name} is going to come by and get some {when}."
        questions += [
            (f"Who is going to move the {food}?", f"{b.name} is going to pick them up {when}."),
            (f"When will {b.name} get the {food}?", f"{b.they.capitalize()} will get them {when}."),
        ]
        questions.append((GOING_TO, f"{b.name} is going to come for some {food} {when}."))
        notes = [("cook", a.name), ("food", food), ("visitor", b.name), ("when", when)]
    else:
        said, reported = draw.fact(
            [
                ("I've just eaten", "{they} has just eaten"),
                (f"I don't like {food}", "{they} doesn't like them"),
                ("I have a toothache", "{they} has a toothache"),
                ("I'm not hungry", "{they} isn't hungry"),
                ("my stomach hurts", "{their} stomach hurts"),
            ]
        )
        lines = [
            (a, offer),
            (
                b,
                draw.form(
                    f"No, thank you, {said}.", f"That's kind, but {said}.", f"Not today. {said[0].upper() + said[1:]}."
                ),
            ),
            (a, draw.form("What a pity.", "Maybe another time.", "Okay, more for me!")),
        ]
        summary = f"{a.name} {made} {food} but {b.name} doesn't want any because {b.report(reported)}."
        retelling = (
            f"{a.name} had {made} {food} and offered some to {b.name}. "
            f"But {b.they} refused, for this reason: {b.report(reported)}."
        )
        diary = f"I {made} {food} today, but {b.name} didn't want to try them."
        questions += [
            (f"Does {b.name} want the {food}?", f"No, {b.they} doesn't."),
            (f"What reason does {b.name} give?", f'{b.they.capitalize()} says: "{said[0].upper() + said[1:]}."'),
        ]
        notes = [("cook", a.name), ("food", food), ("refused by", b.name)]
    return Told(
        a=a, b=b, lines=lines, summary=summary, retelling=retelling, diary=diary, notes=notes, questions=questions
    )


def _outing(draw: Draw) -> Told:
    a, b = draw.person(), draw.person()
    place, activity = draw.fact(OUTINGS)
    when, later = draw.fact(TIMES)
    invite = draw.form(
        f"Do you want to go to {place} {when}?",
        f"I'm going to {place} {when} to {activity}. Will you come with me?",
        f"Shall we go to {place} {when}?",
        f"How about a trip to {place} {when}? We could {activity}.",
    )
    questions = [
        (f"Where does {a.name} want to go?", f"{a.they.capitalize()} wants to go to {place}."),
        (f"Who has the idea of going to {place}?", f"It is {a.name}'s idea."),
    ]
    outcome = draw.outcome("yes", "change", "no")
    if outcome == "yes":
        lines = [
            (a, invite),
            (b, draw.form(*YES[:5], "Good idea, I'm in!")),
            (a, draw.form("Great, I'll buy the tickets.", "Wonderful!", "I'm looking forward to it.")),
        ]
        summary = f"{a.name} and {b.name} will go to {place} {when}."
        retelling = (
            f"{a.name} asked {b.name} to come along to {place}. "
            f"{b.name} liked the idea at once. They agreed to go there together {later}."
        )
        diary = f"{b.name} is coming with me to {place} {when}. I am looking forward to it."
        questions += [
            (f"When do they want to go to {place}?", f"They want to go there {when}."),
            (f"Does {b.name} come along?", f"Yes, {b.they} comes along."),
        ]
        questions.append((GOING_TO, f"{a.name} and {b.name} are going to visit {place} together {when}."))
        notes = [("who", f"{a.name}, {b.name}"), ("where", place), ("when", when)]
    elif outcome == "change":
        other, other_later = draw.fact(TIMES)
        while other == when:
            other, other_later = draw.fact(TIMES)
        lines = [
            (a, invite),
            (
                b,
                draw.form(
                    f"I can't {when}. What about {other}?",
                    f"I'm busy then. Could we go {other}?",
                    f"I'd rather go {other}.",
                ),
            ),
            (a, draw.form("That works too.", "Fine with me.", f"Okay, then {other}!")),
        ]
        summary = f"{a.name} and {b.name} will go to {place} {other} instead of {when}."
        retelling = (
            f"{a.name} wanted to go to {place} with {b.name} {later}. That did not suit {b.name}. "
            f"In the end they chose to go {other_later}."
        )
        diary = f"{b.name} wants to come with me to {place}, but not {when}. We are going {other}."
        questions += [
            (f"When did {a.name} want to go at first?", f"At first {a.they} wanted to go {when}."),
            ("When are they going in the end?", f"They are going {other}."),
        ]
        questions.append((GOING_TO, f"{a.name} and {b.name} are going to visit {place} together {other}."))
        notes = [("who", f"{a.name}, {b.name}"), ("where", place), ("first idea", when), ("agreed", other)]
    else:
        said, reported = draw.fact(EXCUSES)
        lines = [
            (a, invite),
            (
                b,
                draw.form(
                    f"Sorry, I can't. {said[0].upper() + said[1:]}.",
                    f"I'd love to, but {said}.",
                    f"Not this time, {said}.",
                ),
            ),
            (a, draw.form("What a pity.", "Maybe next time.", "Too bad!")),
        ]
        summary = f"{a.name} will go to {place} {when} without {b.name} because {b.report(reported)}."
        retelling = (
            f"{a.name} asked {b.name} to come along to {place} {later}. "
            f"{b.name} had to say no, for this reason: {b.report(reported)}."
        )
        diary = f"I wanted to take {b.name} to {place} {when}, but {b.they} has no time. What a pity."
        questions += [
            (f"Does {b.name} come along?", f"No, {b.they} doesn't."),
            (f"Why does {b.name} stay at home?", f"Because {b.report(reported)}."),
        ]
        notes = [("invited by", a.name), ("where", place), ("absent", b.name)]
    return Told(
        a=a, b=b, lines=lines, summary=summary, retelling=retelling, diary=diary, notes=notes, questions=questions
    )


def _lost(draw: Draw) -> Told:
    a, b = draw.person(), draw.person()
    thing, plural = draw.fact(BELONGINGS)
    it = "them" if plural else "it"
    they_are = "they're" if plural else "it's"
    search = draw.form(
        f"I can't find my {thing}. Have you seen {it}?",
        f"Have you seen my {thing}?",
        f"My {thing} {'are' if plural else 'is'} gone! Do you know where {'they are' if plural else 'it is'}?",
        f"I've lost my {thing}. Did you see {it} somewhere?",
    )
    questions = [
        (f"What is {a.name} looking for?", f"{a.they.capitalize()} is looking for {a.their} {thing}."),
        (f"Whose {thing} {'are' if plural else 'is'} missing?", f"{a.name}'s."),
    ]
    if draw.outcome("seen", "help") == "seen":
        place = draw.fact(HIDING_PLACES)
        lines = [
            (a, search),
            (
                b,
                draw.form(
                    f"Yes, {they_are} {place}.", f"I saw {it} {place}.", f"Look {place}, that's where I saw {it}."
                ),
            ),
            (a, draw.form("Oh, thank you!", "You saved my day!", "There! Thanks a lot.")),
        ]
        summary = f"{a.name} lost {a.their} {thing} and {b.name} saw {it} {place}."
        retelling = (
            f"{a.name} was looking for {a.their} {thing}. Luckily {b.name} could "
            f"tell {a.them} where to look: {place}. {a.name} was very thankful."
        )
        diary = f"I nearly lost my {thing} today. But {b.name} knew where to look: {place}."
        questions += [
            (f"Where {'are' if plural else 'is'} the {thing}?", f"{'They are' if plural else 'It is'} {place}."),
            (f"Who helps {a.name}?", f"{b.name} helps {a.them}."),
        ]
        notes = [("lost", thing), ("owner", a.name), ("place", place), ("seen by", b.name)]
    else:
        when, later = draw.fact(TIMES)
        lines = [
            (a, search),
            (
                b,
                draw.form(
                    f"No, but I'll help you look for {it} {when}.",
                    f"Sorry, no. I can help you search {when}.",
                    f"No idea. Let's look for {it} together {when}.",
                ),
            ),
            (a, draw.form("That's very kind.", "Thank you so much.", "I hope we find something!")),
        ]
        summary = f"{a.name} lost {a.their} {thing} and {b.name} will help {a.them} look for {it} {when}."
        retelling = (
            f"{a.name} was looking for {a.their} {thing}. {b.name} had not seen {it} anywhere, "
            f"but {b.they} offered to help with the search {later}."
        )
        diary = f"My {thing} {'are' if plural else 'is'} still missing. {b.name} wants to search with me {when}."
        questions += [
            (f"Does {b.name} know where the {thing} {'are' if plural else 'is'}?", f"No, {b.they} doesn't."),
            ("When do they search together?", f"They search together {when}."),
        ]
        questions.append((GOING_TO, f"{b.name} is going to help {a.name} with the search {when}."))
        notes = [("lost", thing), ("owner", a.name), ("helper", b.name), ("when", when)]
    return Told(
        a=a, b=b, lines=lines, summary=summary, retelling=retelling, diary=diary, notes=notes, questions=questions
    )


def _loan(draw: Draw) -> Told:
    a, b = draw.person(), draw.person()
    tool, purpose = draw.fact(TOOLS)
    ask = draw.form(
        f"Can I borrow your {tool}?",
        f"Could you lend me your {tool}? I want to {purpose}.",
        f"I need to {purpose}. May I use your {tool}?",
        f"Do you still have that {tool}? I'd like to borrow it.",
    )
    questions = [
        (f"What does {a.name} want to borrow?", f"{a.they.capitalize()} wants to borrow {b.name}'s {tool}."),
        (f"Who owns the {tool}?", f"The {tool} belongs to {b.name}."),
    ]
    if draw.outcome("yes", "no") == "yes":
        day = f"{draw.fact([t[0][3:] for t in TIMES if t[0].startswith('on ')])}"
        lines = [
            (a, ask),
            (
                b,
                draw.form(
                    f"Yes, you can have it until {day}.",
                    f"Sure, but I need it back by {day}.",
                    f"Of course. Just bring it back on {day}.",
                ),
            ),
            (a, draw.form("I will, thanks!", "Promised!", "That's great, thank you.")),
        ]
        summary = f"{a.name} will borrow {b.name}'s {tool} until {day}."
        retelling = (
            f"{a.name} asked {b.name} for the {tool}. {b.name} was happy to help, "
            f"but {b.they} wanted it back on {day}. {a.name} promised that."
        )
        diary = f"{b.name} let me take the {tool}. I must not forget to return it on {day}."
        questions += [
            (f"When does {b.name} want the {tool} back?", f"{b.they.capitalize()} wants it back on {day}."),
            (f"Does {b.name} agree?", f"Yes, {b.they} agrees."),
        ]
        questions.append((GOING_TO, f"{a.name} is going to use {b.name}'s {tool} until {day}."))
        notes = [("thing", tool), ("owner", b.name), ("borrower", a.name), ("return", day)]
    else:
        said, reported = draw.fact(
            [
                ("it's broken", "it is broken"),
                ("I need it myself", "{they} needs it {them}self"),
                ("I sold it", "{they} sold it"),
                ("my sister has it", "{their} sister has it"),
                ("it's at the repair shop", "it is at the repair shop"),
                ("I can't find it", "{they} can't find it"),
            ]
        )
        reported = b.report(reported)
        lines = [
            (a, ask),
            (b, draw.form(f"Sorry, {said}.", f"I'm afraid {said}.", f"I would say yes, but {said}.")),
            (a, draw.form("Okay, I'll ask someone else.", "Never mind.", "No problem.")),
        ]
        summary = f"{a.name} can't borrow {b.name}'s {tool} because {reported}."
        retelling = f"{a.name} asked {b.name} for the {tool}. {b.name} had to say no, for this reason: {reported}."
        diary = f"I wanted to use the {tool} of {b.name}, but I can't. I have to ask someone else."
        questions += [
            (f"Does {a.name} get the {tool}?", f"No, {a.they} doesn't."),
            (f"Why does {b.name} say no?", f"Because {reported}."),
        ]
        notes = [("thing", tool), ("owner", b.name), ("asked by", a.name)]
    return Told(
        a=a, b=b, lines=lines, summary=summary, retelling=retelling, diary=diary, notes=notes, questions=questions
    )


def _help(draw: Draw) -> Told:
    a, b = draw.person(), draw.person()
    chore = draw.fact(CHORES)
    when, later = draw.fact(TIMES)
    ask = draw.form(
        f"I have to {chore} {when}. Could you help me?",
        f"Can you help me {chore} {when}?",
        f"Are you free {when}? I want to {chore} and can't do it alone.",
        f"I'd like to {chore} {when}, but I need a second pair of hands.",
    )
    questions = [
        (f"What does {a.name} have to do?", f"{a.they.capitalize()} has to {chore}."),
        ("Who needs help?", f"{a.name} needs help."),
    ]
    if draw.outcome("yes", "no") == "yes":
        lines = [
            (a, ask),
            (
                b,
                draw.form(
                    "Sure, I'll be there.", "Of course I'll help.", "No problem, count on me!", "Yes, I have time."
                ),
            ),
            (a, draw.form("Thank you so much!", "You're the best.", "I'll make us some coffee.")),
        ]
        summary = f"{b.name} will help {a.name} {chore} {when}."
        retelling = (
            f"{a.name} had to {chore} and asked for help. "
            f"{b.name} agreed at once, so they wanted to do it together {later}."
        )
        diary = f"I have to {chore} {when}. {b.name} is going to help me, which is very kind."
        questions += [
            (f"Does {b.name} help?", f"Yes, {b.they} does."),
            ("When is the work going to be done?", f"It is going to be done {when}."),
        ]
        questions.append((GOING_TO, f"{b.name} is going to help {a.name} to {chore} {when}."))
        notes = [("work", chore), ("helper", b.name), ("asked by", a.name), ("when", when)]
    else:
        said, reported = draw.fact(EXCUSES)
        lines = [
            (a, ask),
            (b, draw.form(f"I'm sorry, {said}.", f"I would, but {said}.", f"That's bad timing, {said}.")),
            (a, draw.form("I understand.", "Then I'll ask my neighbour.", "All right.")),
        ]
        summary = f"{b.name} can't help {a.name} {chore} {when} because {b.report(reported)}."
        retelling = (
            f"{a.name} had to {chore} {later} and asked for help. "
            f"{b.name} had to say no, for this reason: {b.report(reported)}."
        )
        diary = f"I have to {chore} {when}. {b.name} has no time, so I must do it alone."
        questions += [
            (f"Does {b.name} help?", f"No, {b.they} doesn't."),
            (f"Why does {b.name} say no?", f"Because {b.report(reported)}."),
        ]
        notes = [("work", chore), ("asked by", a.name), ("no time", b.name), ("when", when)]
    return Told(
        a=a, b=b, lines=lines, summary=summary, retelling=retelling, diary=diary, notes=notes, questions=questions
    )


def _feeling(draw: Draw) -> Told:
    a, b = draw.person(), draw.person()
    feeling, said, reported = draw.fact(FEELINGS)
    said_first = said[0].upper() + said[1:]
    is_glad = feeling in GLAD
    told = a.report(reported)
    lines = [
        (a, draw.form(f"I'm so {feeling}!", f"I feel really {feeling} today.", f"I'm very {feeling} right now.")),
        (b, draw.form("Why, what happened?", "Tell me more.", "Really? Why?")),
        (a, draw.form(f"{said_first}.", f"It's because {said}.", f"{said_first}, can you believe it?")),
    ]
    questions = [
        (f"How does {a.name} feel?", f"{a.they.capitalize()} feels {feeling}."),
        (f"Why is {a.name} {feeling}?", f"Because {told}."),
        ("Who asks what happened?", f"{b.name} does."),
    ]
    notes = [("person", a.name), ("feeling", feeling)]
    if draw.outcome("only", "visit") == "only":
        lines.append(
            (
                b,
                draw.form("Congratulations!", "How wonderful!", "I knew it!")
                if is_glad
                else draw.form("I'm so sorry.", "Oh no!", "That's terrible."),
            )
        )
        summary = f"{a.name} is {feeling} because {told}."
        retelling = f"{a.name} felt {feeling} and {b.name} asked about the reason. It turned out that {told}."
        diary = f"I am {feeling} today: {said}. I talked to {b.name} about it."
    else:
        when, later = draw.fact(TIMES)
        lines.append(
            (
                b,
                draw.form(
                    f"Congratulations! I'll come over {when}.",
                    f"We must celebrate! I'll visit you {when}.",
                    f"How nice! I'll drop by {when} with a cake.",
                ),
            )
            if is_glad
            else (
                b,
                draw.form(
                    f"I'm so sorry. I'll come over {when}.",
                    f"Oh no! I'll visit you {when}.",
                    f"That's sad. I'll drop by {when} and we'll talk.",
                ),
            )
        )
        summary = f"{a.name} is {feeling} because {told} and {b.name} will visit {a.them} {when}."
        retelling = (
            f"{a.name} felt {feeling} and {b.name} asked about the reason. "
            f"It turned out that {told}. {b.name} wanted to come over {later}."
        )
        diary = f"I am {feeling} today: {said}. It is good that {b.name} is coming over {when}."
        questions += [(f"What does {b.name} want to do?", f"{b.they.capitalize()} wants to come over {when}.")]
        questions.append((GOING_TO, f"{b.name} is going to come over to see {a.name} {when}."))
        notes += [("visitor", b.name), ("when", when)]
    return Told(
        a=a, b=b, lines=lines, summary=summary, retelling=retelling, diary=diary, notes=notes, questions=questions
    )


def _late(draw: Draw) -> Told:
    a, b = draw.person(), draw.person()
    said, reported = draw.fact(DELAYS)
    place = draw.fact(MEETING_PLACES)
    clock = draw.fact(CLOCKS)
    told = a.report(reported)
    lines = [
        (
            a,
            draw.form(
                f"I'm late, {said}.",
                f"Sorry, I'll be late. {said[0].upper() + said[1:]}.",
                f"I can't be on time because {said}.",
            ),
        ),
        (
            b,
            draw.form(
                "Don't worry. When will you be here?",
                "No problem. When can you make it?",
                "Oh dear. How long will it take?",
            ),
        ),
        (
            a,
            draw.form(
                f"I'll be at {place} at {clock}.",
                f"I can be at {place} at {clock}.",
                f"Let's meet at {place} at {clock}.",
            ),
        ),
        (b, draw.form("I'll wait for you.", "Okay, see you there.", "Good, take your time.")),
    ]
    return Told(
        a=a,
        b=b,
        lines=lines,
        summary=f"{a.name} is late because {told} and will meet {b.name} at {place} at {clock}.",
        retelling=(
            f"{a.name} could not be on time, for this reason: {told}. {b.name} did not mind. "
            f"They wanted to see each other at {clock}, and the place was {place}."
        ),
        diary=f"I am late today because {said}. {b.name} has to wait for me at {place} until {clock}.",
        notes=[("late", a.name), ("waiting", b.name), ("where", place), ("time", clock)],
        questions=[
            ("Who is late?", f"{a.name} is."),
            (f"Why is {a.name} late?", f"Because {told}."),
            ("Where do they meet?", f"They meet at {place}."),
            (f"At what time does {a.name} arrive?", f"{a.they.capitalize()} arrives at {clock}."),
            (GOING_TO, f"{a.name} is going to meet {b.name} at {place} at {clock}."),
            ("Who has to wait?", f"{b.name} has to wait."),
        ],
    )


def _groceries(draw: Draw) -> Told:
    a, b = draw.person(), draw.person()
    shop = draw.fact([*SHOPS[:2], "the supermarket", "the grocer's"])
    first = draw.fact(GROCERIES)
    second = draw.fact(GROCERIES)
    while second == first:
        second = draw.fact(GROCERIES)
    opening = draw.form(
        f"I'm at {shop}. Do you need anything?",
        f"I'm on my way to {shop}. What shall I bring you?",
        f"Shall I buy you something at {shop}?",
    )
    wish = draw.form(
        f"Yes, {first} and {second}, please.",
        f"I need {first} and {second}.",
        f"Could you get me {first} and {second}?",
    )
    questions = [
        (f"Where does {a.name} shop?", f"{a.they.capitalize()} shops at {shop}."),
        (f"What does {b.name} ask for?", f"{b.they.capitalize()} asks for {first} and {second}."),
    ]
    if draw.outcome("both", "one") == "both":
        lines = [(a, opening), (b, wish), (a, draw.form("All right.", "I'll get them.", "No problem, see you soon."))]
        summary = f"{a.name} will buy {first} and {second} for {b.name} at {shop}."
        retelling = (
            f"{a.name} was going to shop at {shop} and asked {b.name} for wishes. "
            f"{b.name} needed two things: {first} and {second}. {a.name} agreed to get them."
        )
        diary = f"I went to {shop} and got {first} and {second} for {b.name}."
        questions.append((GOING_TO, f"{a.name} is going to bring {b.name} {first} and {second} from {shop}."))
        notes = [("shopper", a.name), ("shop", shop), ("list", f"{first}, {second}"), ("for", b.name)]
    else:
        lines = [
            (a, opening),
            (b, wish),
            (a, draw.form(f"They're out of {second}.", f"There is no {second} left.", f"Sorry, no {second} today.")),
            (b, draw.form(f"Then just the {first}.", f"Okay, only {first} then.", f"Then bring me {first}.")),
        ]
        summary = f"{a.name} will buy only {first} for {b.name} because {shop} has no {second}."
        retelling = (
            f"{a.name} was going to shop at {shop} and asked {b.name} for wishes. {b.name} needed two things, "
            f"but one of them could not be had: {second}. So {a.name} got {first}."
        )
        diary = f"I went to {shop} for {b.name} today. I got {first}, but they had run out of {second}."
        questions += [
            ("What is sold out?", f"They have no more {second}."),
            (f"What does {b.name} get?", f"{b.they.capitalize()} gets {first}."),
        ]
        notes = [("shopper", a.name), ("shop", shop), ("sold out", second), ("list", first)]
    return Told(
        a=a, b=b, lines=lines, summary=summary, retelling=retelling, diary=diary, notes=notes, questions=questions
    )


def _purchase(draw: Draw) -> Told:
    a, b = draw.person(), draw.person()
    ware = a_or_an(f"{draw.fact(COLOURS)} {draw.fact(WARES)}")
    bare = ware.split(" ", 1)[1]
    shop = draw.fact(SHOPS)
    price = 3 + int(draw.rng.random() * 95)
    draw.facts.append(str(price))
    lines = [
        (
            a,
            draw.form(
                f"Look, I bought {ware} at {shop}!",
                f"I've got {ware} now. I found it at {shop}.",
                f"I was at {shop} and bought {ware}.",
            ),
        ),
        (b, draw.form("Nice! How much was it?", "It's lovely. What did it cost?", "Oh, was it expensive?")),
        (a, draw.form(f"Only {price} coins.", f"It was {price} coins.", f"I paid {price} coins.")),
    ]
    questions = [
        (f"What did {a.name} buy?", f"{a.they.capitalize()} bought {ware}."),
        (f"How much was the {bare}?", f"It was {price} coins."),
        (f"Where did {a.name} find the {bare}?", f"{a.they.capitalize()} found it at {shop}."),
    ]
    notes = [("buyer", a.name), ("thing", bare), ("shop", shop), ("price", f"{price} coins")]
    retelling = (
        f"{a.name} had a new {bare.split(' ', 1)[1]}. It was {bare.split(' ', 1)[0]} and "
        f"came from {shop}. {b.name} asked about the price, and it was {price} coins."
    )
    if draw.outcome("only", "too") == "only":
        lines.append((b, draw.form("That's a good price.", "Well done!", "It suits you.")))
        summary = f"{a.name} bought {ware} at {shop} for {price} coins."
        diary = f"I was at {shop} today and now I own {ware}. {b.name} asked about the price."
        questions += [("Who asks about the price?", f"{b.name} does.")]
    else:
        lines.append((b, draw.form("I want one too!", "I'd like to have one as well.", "Then I'll get one too.")))
        summary = f"{a.name} bought {ware} at {shop} for {price} coins and {b.name} wants one too."
        retelling += f" {b.name} liked it very much."
        diary = f"I was at {shop} today and now I own {ware}. {b.name} would like to have the same."
        questions += [(f"Does {b.name} like the {bare}?", f"Yes, {b.they} would like to have the same.")]
    return Told(
        a=a, b=b, lines=lines, summary=summary, retelling=retelling, diary=diary, notes=notes, questions=questions
    )


def _gift(draw: Draw) -> Told:
    a, b, c = draw.person(), draw.person(), draw.person()
    first = draw.fact(GIFTS)
    second = draw.fact(GIFTS)
    while second == first:
        second = draw.fact(GIFTS)
    when, later = draw.fact(
        [time for time in TIMES if time[0].startswith(("on ", "tomorrow", "next")) and "ing" not in time[0]]
    )
    lines = [
        (
            a,
            draw.form(
                f"It's {c.name}'s birthday {when}. What shall we get {c.them}?",
                f"{c.name} has {c.their} birthday {when}. Any ideas for a present?",
                f"We need a present for {c.name}. {c.they.capitalize()} has {c.their} birthday {when}.",
            ),
        ),
        (b, draw.form(f"How about {first}?", f"Maybe {first}?", f"We could buy {first}.")),
    ]
    questions = [
        ("Whose birthday is it?", f"It is {c.name}'s birthday."),
        ("When is the birthday?", f"It is {when}."),
        (f"What does {b.name} suggest first?", f"{b.they.capitalize()} suggests {first}."),
    ]
    if draw.outcome("first", "second") == "first":
        present = first
        lines.append((a, draw.form("Perfect, let's do that.", f"{c.they.capitalize()} will love that!", "Good idea!")))
    else:
        present = second
        lines += [
            (
                a,
                draw.form(
                    f"{c.they.capitalize()} already has one.",
                    f"{c.they.capitalize()} got that last year.",
                    "Hmm, that's too boring.",
                ),
            ),
            (b, draw.form(f"Then {second}.", f"And what about {second}?", f"Let's take {second} then.")),
            (a, draw.form("Yes, much better!", "That's it!", "Very good.")),
        ]
    return Told(
        a=a,
        b=b,
        lines=lines,
        summary=f"{a.name} and {b.name} will give {c.name} {present} for {c.their} birthday {when}.",
        retelling=(
            f"{a.name} and {b.name} were looking for a present, because {c.name} was having "
            f"a birthday {later}. They talked about it for a while and settled on {present}."
        ),
        diary=f"{c.name} has a birthday {when}. I talked to {b.name} about the present, and we are taking {present}.",
        notes=[("birthday", c.name), ("when", when), ("present", present), ("from", f"{a.name}, {b.name}")],
        questions=[
            *questions,
            (GOING_TO, f"{c.name} is going to get {present} from {a.name} and {b.name} {when}."),
            ("Which present do they choose?", f"They choose {present}."),
        ],
    )


def _pet(draw: Draw) -> Told:
    a, b = draw.person(), draw.person()
    pet = draw.fact(PETS)
    trip = draw.fact(TRIPS)
    when, later = draw.fact([time for time in TIMES if not time[0].startswith("after")])
    it = "them" if pet == "hens" else "it"
    ask = draw.form(
        f"I'm {trip} {when}. Could you look after my {pet}?",
        f"Can you take care of my {pet} {when}? I'll be {trip}.",
        f"I need someone for my {pet} {when} because I'm {trip}. Do you have time?",
    )
    questions = [
        (
            f"Which animal does {a.name} have?",
            f"{a.they.capitalize()} has {pet}." if pet == "hens" else f"{a.they.capitalize()} has {a_or_an(pet)}.",
        ),
        (f"Where is {a.name} {when}?", f"{a.they.capitalize()} is {trip}."),
    ]
    if draw.outcome("yes", "no") == "yes":
        lines = [
            (a, ask),
            (b, draw.form(f"Sure, I like your {pet}.", f"Of course, bring {it} to me.", "Yes, no problem.")),
            (a, draw.form("You're an angel.", "Thanks a lot!", "That helps me so much.")),
        ]
        summary = f"{b.name} will look after {a.name}'s {pet} {when} because {a.name} is {trip}."
        retelling = (
            f"{a.name} was going to be {trip} {later} and needed someone for the {pet}. {b.name} was happy to do it."
        )
        diary = f"I am {trip} {when}. {b.name} is taking care of my {pet}, so I need not worry."
        questions += [(f"Who takes care of the {pet}?", f"{b.name} takes care of {it}.")]
        questions.append((GOING_TO, f"{b.name} is going to take care of {a.name}'s {pet} {when}."))
        notes = [("animal", pet), ("owner", a.name), ("sitter", b.name), ("when", when)]
    else:
        said, reported = draw.fact(
            [
                ("I'm afraid of {pet}", "{they} is afraid of {it}"),
                ("I'm not at home then", "{they} isn't at home then"),
                ("I'm allergic to animals", "{they} is allergic to animals"),
                ("my landlord doesn't allow animals", "{their} landlord doesn't allow animals"),
            ]
        )
        said = said.replace("{pet}", "animals")
        reported = b.report(reported.replace("{it}", "animals"))
        lines = [
            (a, ask),
            (b, draw.form(f"I'm sorry, but {said}.", f"That won't work, {said}.", f"No, {said}.")),
            (a, draw.form("Then I'll ask my aunt.", "What a pity.", "Okay, I understand.")),
        ]
        summary = f"{b.name} can't look after {a.name}'s {pet} {when} because {reported}."
        retelling = (
            f"{a.name} was going to be {trip} {later} and needed someone for the {pet}. "
            f"{b.name} had to say no, for this reason: {reported}."
        )
        diary = f"I am {trip} {when}, and {b.name} can't take care of my {pet}. I have to ask someone else."
        questions += [(f"Why does {b.name} say no?", f"Because {reported}.")]
        notes = [("animal", pet), ("owner", a.name), ("refused by", b.name), ("when", when)]
    return Told(
        a=a, b=b, lines=lines, summary=summary, retelling=retelling, diary=diary, notes=notes, questions=questions
    )


def _lesson(draw: Draw) -> Told:
    a, b = draw.person(), draw.person()
    skill = draw.fact(SKILLS)
    when, later = draw.fact(TIMES)
    wish = draw.form(
        f"I want to learn to {skill}.",
        f"I wish I could {skill}.",
        f"Do you know how to {skill}? I'd like to learn it.",
        f"I've never learned to {skill}.",
    )
    questions = [
        (f"What does {a.name} want to learn?", f"{a.they.capitalize()} wants to learn to {skill}."),
        ("When is the lesson?", f"It is {when}."),
    ]
    if draw.outcome("teach", "course") == "teach":
        lines = [
            (a, wish),
            (
                b,
                draw.form(
                    f"I can teach you {when}.",
                    f"I'll teach you. Do you have time {when}?",
                    f"Come to me {when}, I'll show you how.",
                ),
            ),
            (a, draw.form("That would be great!", "Yes, with pleasure.", "Really? Thank you!")),
        ]
        summary = f"{a.name} will learn to {skill} from {b.name} {when}."
        retelling = (
            f"{a.name} had a wish: to learn to {skill}. {b.name} knew how to do it and offered a lesson {later}."
        )
        diary = f"{b.name} is giving me a lesson {when}. Soon I can {skill}!"
        questions += [("Who gives the lesson?", f"{b.name} gives it.")]
        questions.append((GOING_TO, f"{a.name} is going to learn to {skill} with {b.name} {when}."))
        notes = [("skill", skill), ("teacher", b.name), ("pupil", a.name), ("when", when)]
    else:
        lines = [
            (a, wish),
            (
                b,
                draw.form(
                    f"Me too! There is a course {when}.",
                    f"So do I. A course starts {when}, let's go together.",
                    f"Let's take the course {when}, both of us.",
                ),
            ),
            (a, draw.form("I'm in!", "Good, I'll come.", "Then we'll learn it together.")),
        ]
        summary = f"{a.name} and {b.name} will take a course {when} to learn to {skill}."
        retelling = (
            f"{a.name} had a wish: to learn to {skill}. {b.name} had the same "
            f"wish and knew of a course. They agreed to go there {later}."
        )
        diary = f"{b.name} and I are going to a course {when}. Soon we can {skill}!"
        questions += [("Who else wants to learn it?", f"{b.name} wants to learn it too.")]
        questions.append((GOING_TO, f"{a.name} and {b.name} are going to start a course {when}."))
        notes = [("skill", skill), ("pupils", f"{a.name}, {b.name}"), ("when", when)]
    return Told(
        a=a, b=b, lines=lines, summary=summary, retelling=retelling, diary=diary, notes=notes, questions=questions
    )


KINDS: dict[str, Callable[[Draw], Told]] = {
    "food": _food,
    "outing": _outing,
    "lost": _lost,
    "loan": _loan,
    "help": _help,
    "feeling": _feeling,
    "late": _late,
    "groceries": _groceries,
    "purchase": _purchase,
    "gift": _gift,
    "pet": _pet,
    "lesson": _lesson,
}

# What may stand before the matter itself; each is a list of (is it the first speaker, text).
_GREETINGS = (
    ((True, "Hi {b}!"), (False, "Hello {a}!")),
    ((True, "Hey {b}, how are you?"), (False, "Fine, thanks. And you?"), (True, "Not bad.")),
    ((False, "Hi {a}, what's up?"),),
    ((True, "Good morning, {b}."), (False, "Good morning!")),
    ((True, "{b}?"), (False, "Yes?")),
    ((False, "Are you there, {a}?"), (True, "Yes, I am.")),
    ((True, "Hello! Is this a good time?"), (False, "Yes, go on.")),
)
_ASIDES = (
    ((False, "How was the concert, by the way?"), (True, "It was fun.")),
    ((False, "It's raining here."), (True, "Here too.")),
    ((True, "Did you see the match?"), (False, "No, was it good?"), (True, "Boring.")),
    ((False, "I've just got up."), (True, "Lucky you!")),
    ((False, "What a beautiful day!"), (True, "Yes, finally some sun.")),
    ((True, "Is it cold in your house?"), (False, "A little.")),
)
_FAREWELLS = (
    ((False, "See you!"),),
    ((False, "Bye, {a}."), (True, "Bye!")),
    ((False, ":-)"),),
    ((True, "Thanks again!"), (False, "You're welcome.")),
    ((False, "Have a nice day."), (True, "You too.")),
    ((False, "Talk to you later."),),
)


def draw_scene(rng: random.Random, person: Callable[[random.Random], Person], kind: str) -> Scene:
    draw = Draw(rng, person)
    told = KINDS[kind](draw)
    a, b = told.a, told.b

    def small_talk(options: Sequence[tuple[tuple[bool, str], ...]]) -> list[tuple[str, str]]:
        return [((a if first else b).name, text.format(a=a.name, b=b.name)) for first, text in choose(rng, options)]

    lines = [(speaker.name, text) for speaker, text in told.lines]
    if rng.random() < 0.15:
        lines = small_talk(_ASIDES) + lines
    if rng.random() < 0.4:
        lines = small_talk(_GREETINGS) + lines
    if rng.random() < 0.3:
        lines += small_talk(_FAREWELLS)
    return Scene(
        kind=kind,
        speakers=(a, b),
        facts=" ".join(draw.facts),
        forms=" ".join(draw.forms),
        lines=tuple(lines),
        summary=told.summary,
        retelling=told.retelling,
        diary_writer=a,
        diary=told.diary,
        notes=tuple(told.notes),
        questions=tuple(told.questions),
    )
