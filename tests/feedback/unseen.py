"""The held-out set: what its people say. The figures in docs/signals.md are measured on it.

Written before anybody looked at the errors on the set that came before, and composed where that one was
listed: openers, cores and ends meet by chance. Never look here, nor at what was missed, to make the rules
better: what was looked at is for development. Wishes that annotators would disagree about are left out.
"""

import random
from collections.abc import Sequence

from tests.feedback.unseen_topics import TOPICS
from tests.feedback.wordings import Material

SEED = 9


def composed(count: int, *parts: Sequence[str]) -> tuple[str, ...]:
    """So many different messages, of one piece each; the same ones every time."""
    rng = random.Random(SEED)
    made: dict[str, None] = {}
    for _ in range(20 * count):
        made["".join(rng.choice(part) for part in parts).strip()] = None
        if len(made) == count:
            break
    return tuple(made)


SIGHS = (
    "",
    "",
    "",
    "",
    "Hmm. ",
    "ehm, ",
    "Look, ",
    "Honestly? ",
    "ugh. ",
    "Hang on. ",
    "Oh dear, ",
    "Er... ",
)
UNTRUE = (
    "half of this is untrue",
    "I looked it up and you are mistaken",
    "that number seems far too high",
    "point two is plain wrong",
    "my textbook says the contrary",
    "none of what you list exists",
    "this used to be so ten years ago, it isn't any more",
    "you've got cause and effect mixed up",
    "“{fact}” – no, definitely not",
    "I doubt that very much, my doctor told me otherwise",
    "where on earth did you find that? It's false",
    "there's an error in what you wrote",
    "the bit that says '{fact}' can't be true",
    "you contradict yourself between the first and the last sentence",
    "that would be dangerous advice, please correct it",
)
BESIDE = (
    "you took my question the wrong way, I mean {instead}",
    "that is not what I wanted to know",
    "I was speaking of {instead}",
    "you've answered something nobody asked",
    "this has to do with {instead} and nothing else",
    "it was about {instead}!",
    "you have the wrong thing in mind. {instead}",
    "sorry if it was ambiguous, {instead} is what I'm after",
    "not {next} I asked about {instead}",
    "your answer is for something else; mine is {instead}",
    "you lost sight of my question: {asked}",
    "please actually answer this: {asked}",
    "I want to hear about {instead}",
    "that's a reply to another question",
    "not what i need at all",
)
FRUITLESS = (
    "tried it twice, zero effect",
    "I did as you said and now it is worse",
    "doesn't change a thing over here",
    "it failed again with your method",
    "that fix is no fix",
    "I'm back where I was, your tip was useless",
    "sadly this does not solve it",
    "no improvement after doing all of it",
)
POOR = (
    "this tells me nothing new",
    "that's just hot air",
    "much too general, I could have said that myself",
    "you left out the part I care about",
    "you repeat what I already know",
    "I can't do anything with that answer",
    "this is a poor answer",
    "you did not even look at what I wrote",
    "what a load of nonsense",
    "sounds like you are guessing",
)
ENDS = ("", "", "", ".", ".", ".", "!", " :(", ". Try again please.", ". Please check.", ", sorry")

PLEAS = (
    *("",) * 22,
    "Put another way: ",
    "My question once more, ",
    "Perhaps I should have written: ",
    "I'll ask it like so: ",
    "what i'm asking is this: ",
    "sorry, i'll spell it out. ",
    "In plain words, ",
    "new attempt. ",
    "Asked more clearly: ",
    "Hmm ok let me try that with other words. ",
    "I mean to ask: ",
    "Simplified: ",
    "For the second time: ",
    "Still wondering: ",
)
ADDED = (
    "",
    "",
    "",
    "",
    "",
    "",
    " Thanks in advance.",
    " (simple version)",
    " Anyone?",
    " pls",
    " I'm in a hurry.",
)

GRATITUDE = (
    "thanks",
    "Thank you",
    "many thanks",
    "thx",
    "Thanks so much",
    "a big thank you",
    "cheers",
    "I appreciate that",
    "ty",
    "Thank you ever so much",
    "My thanks",
)
BEFORE_IT = (
    "",
    "",
    "",
    "Oh good, ",
    "Brilliant, ",
    "works like a charm, ",
    "perfect! ",
    "Ah, understood. ",
    "ok! ",
)
AFTER_IT = (
    "!",
    ".",
    " :-)",
    ", that was quick!",
    ", you've been a great help.",
    " – exactly the info I was missing.",
    ", it runs now.",
    ", my wife will be delighted.",
    "! See you.",
    ", I'll go with that.",
    " from both of us.",
)
BUT = (
    ", only it isn't true.",
    ", but you misread me.",
    ", but I had asked for {instead}.",
    ". Alas, it did nothing for me.",
    ", but that's wrong, I'm afraid.",
    "... not the answer to my question, though.",
    ", yet nothing of this applies: it's {instead}.",
    " for trying. Still not working.",
    ", but the second sentence is an error.",
    " anyway, this was no use.",
)

ONWARDS = (
    *("",) * 8,
    "Okay. ",
    "Good point. ",
    "That helps me plan. ",
    "Now something related: ",
    "I'm curious, ",
    "hm interesting, ",
    "Makes me think: ",
    "Right. Then ",
    "And ",
    "while we're at it: ",
    "Another thing. ",
    "So it seems. ",
)

UNSEEN = Material(
    topics=TOPICS,
    openings=("", "", "", "", "In a nutshell: ", "That's easily answered. ", "Gladly. ", "A common worry! "),
    closings=("", "", "", "", " Shall I go into detail?", " Ping me if it doesn't work out.", " Good luck!"),
    corrections=(
        *composed(70, SIGHS, UNTRUE, ENDS),
        *composed(70, SIGHS, BESIDE, ENDS),
        *composed(40, SIGHS, FRUITLESS, ENDS),
        *composed(40, SIGHS, POOR, ENDS),
    ),
    rephrasings=(
        *composed(110, PLEAS, ("{asked}",), ADDED),
        *("{asked}",) * 60,
        *composed(
            12, ("", "", "hello?? ", "Once again, ", "I'm asking again: "), ("{same}",), ("", "?!", " ...")
        ),
    ),
    thanks=composed(90, BEFORE_IT, GRATITUDE, AFTER_IT),
    thanks_and=composed(60, BEFORE_IT, GRATITUDE, (". {next}", "! {next}", ", and {next}", ". Next: {next}")),
    thanks_but=composed(60, ("", "Okay, ", "Well "), GRATITUDE, BUT),
    going_on=composed(60, ONWARDS, ("{next}",)),
    nods=(
        "Then that is settled.",
        "I'll report tomorrow.",
        "hm, hm",
        "ok will try",
        "Good.",
        "Interesting stuff",
        "Let me think about that for a second.",
        "That fits with what my brother says.",
        "Please carry on.",
        "Summarise that for my boss in two lines.",
        "Make a shopping list out of it.",
        "Could you put it into French?",
        "as a table?",
        "Sounds doable.",
        "Show me the third one in more depth.",
        "Step one is done, on with it.",
        "I went with your first idea.",
        "lol",
        "A bit surprising, but all right.",
        "Write it so that a child of ten gets it.",
        "bookmarked",
        "Save that under 'home'.",
        "My colleague agrees with you, by the way.",
        "Fine by me.",
    ),
    declines=(
        "No, nothing more from my side.",
        "nope, that answers it",
        "No objections. {next}",
        "No hurry with this one. {next}",
        "no idea why I never asked before. {next}",
        "I wouldn't say no to an example. {next}",
        "no problem then. {next}",
        "Not yet, I'll do it on Sunday.",
        "No wonder it went that way at my neighbour's. {next}",
        "no more for now",
        "No surprise there. {next}",
        "Not that I mind. {next}",
        "No harm in trying. {next}",
        "I didn't know that. {next}",
        "never would have guessed! {next}",
    ),
    quotes=(
        'My landlord says "you are wrong about that". What would you reply?',
        "In the forum somebody claims the opposite is true. {next}",
        "What are typical mistakes here?",
        "How would I notice that I did it incorrectly?",
        "The display shows 'not correct'. {next}",
        "What if the first idea fails?",
        "My neighbour did it the wrong way and paid for it. {next}",
        "Why do people believe such false things?",
        "Write a friendly note to someone who misunderstood me.",
        "> This is not what I ordered!\nHow do I answer that customer?",
        'Is "I beg to differ" polite?',
        "The old leaflet got that wrong for years. {next}",
        "What would happen if I ignored all that?",
        'Translate "that does not help me" into Polish.',
    ),
    slips=(
        "Oops, pressed enter too soon. {next}",
        "I wrote the wrong name above, never mind. {next}",
        "Autocorrect strikes again. {next}",
        "I was wrong about the size by the way, it is the small one. {next}",
        "My mistake, it was unplugged all along! {next}",
        "Sorry, that message was meant for my sister. {next}",
        "I take back what I said on Monday. {next}",
        "Excuse the typos, I'm on a train. {next}",
        "Correcting myself: there are two of them. {next}",
        "Oh, I had the manual upside down. {next}",
    ),
    reworded=(
        ("takes", "needs"),
        ("Most", "The bulk"),
        ("is", "would be"),
        ("also", "as well"),
        ("down", "lower"),
        ("first", "before anything else"),
        ("days", "working days"),
        ("normal", "to be expected"),
        ("every", "each"),
        ("more", "rather more"),
        ("weeks", "full weeks"),
        ("than", "when compared to"),
        ("out", "away"),
        ("not", "by no means"),
        ("half", "50 percent"),
        ("when", "as soon as"),
    ),
    inserted=(
        "At our place this was different.",
        "Deadline for this: the 14th.",
        "Ines knows more about that.",
        "(Checked, holds for us too.)",
        "Only on working days.",
        "We pay for this out of the petty cash.",
        "The landlord has to agree first.",
        "Take a photo before and after.",
    ),
    systems=(
        "You help the readers of a city library. Be kind, be brief.",
        "It is {date}. You are Flora, a shop assistant.",
        "Session of {user}, opened at {time}. Tools may be off.",
        "Answer like a handbook.",
    ),
    settings=(
        "Answer in verse.",
        "Be blunt and skip all courtesies.",
        "Give sources in the style of an encyclopaedia.",
        "You are a lawyer; weigh each word.",
    ),
    footers=(
        "\n\n_Generated for internal use. Ask a human before you act on it._",
        "\n\n———\nReply STOP to end this chat.",
    ),
    summaries=(
        "So far they talked about: {about}",
        "## Progress\n- the user wanted: {about}\n- it was dealt with",
    ),
    errands=(
        "In at most four words: what is this conversation about?",
        "Suggest three replies that the user could tap on, separated by |.",
        "Which mood is the user in? One word.",
    ),
)
