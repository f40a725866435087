"""What the people and assistants of `traffic` say, in four sets that share no topic and no phrase.

DEVELOPMENT, `released.RELEASED` and `third.THIRD` are for looking at while `feedback.implicit` is worked on.
`unseen.UNSEEN` is what the published figures are measured on: look at it only to add to it, never to see why
something was missed.
"""

from typing import NamedTuple


class Topic(NamedTuple):
    """One thing people ask about."""

    asked: tuple[str, ...]
    """The same need in several wordings."""
    facts: tuple[str, ...]
    """Sentences that answers are made of."""
    following: tuple[str, ...]
    """Honest next questions; they share words with the first one, or with the answer."""
    sibling: str
    """A question of the same build about something else."""
    instead: str
    """What the user means who was misunderstood."""
    check: tuple[str, str]
    """The assistant asks back; the user says no."""


class Material(NamedTuple):
    topics: tuple[Topic, ...]
    openings: tuple[str, ...]
    closings: tuple[str, ...]
    corrections: tuple[str, ...]
    """{instead}: what was meant, {asked}: the question in other words, {fact}: a bit of the answer."""
    rephrasings: tuple[str, ...]
    """{asked}: the question in other words; {same}: as it was."""
    thanks: tuple[str, ...]
    thanks_and: tuple[str, ...]
    """{next}: a further question."""
    thanks_but: tuple[str, ...]
    """Thanks, then a complaint: a correction."""
    going_on: tuple[str, ...]
    """{next}: a further question."""
    nods: tuple[str, ...]
    """Neither thanks nor a question."""
    declines: tuple[str, ...]
    """No, but politely: nothing is wrong with the reply."""
    quotes: tuple[str, ...]
    """Somebody else's words, some of them objections."""
    slips: tuple[str, ...]
    """The user's own mistake, put right by the user."""
    reworded: tuple[tuple[str, str], ...]
    """What people do to an assistant's sentence: opening words and what they make of them."""
    inserted: tuple[str, ...]
    """Sentences that people add to a reply."""
    systems: tuple[str, ...]
    """Instructions; {time}, {date} and {user} change from request to request."""
    settings: tuple[str, ...]
    """Other instructions that a user or a product switches to."""
    footers: tuple[str, ...]
    summaries: tuple[str, ...]
    """{about}: the first question."""
    errands: tuple[str, ...]
    """What clients ask on their own at the end of a history."""


DEVELOPMENT = Material(
    topics=(
        Topic(
            (
                "How do I get red wine out of a wool rug?",
                "What removes red wine stains from a woollen rug?",
                "I spilled red wine on my wool rug, how can I clean the stain?",
                "wool rug red wine stain remove",
            ),
            (
                "Blot the spot with a dry cloth and never rub it.",
                "Mix a spoonful of dish soap with two cups of cold water and dab it on.",
                "White vinegar diluted one to three lifts what is left of the colour.",
                "Rinse with cold water, because heat sets the pigment for good.",
                "Let it dry flat and away from the sun.",
                "For an antique piece, call a professional cleaner first.",
            ),
            (
                "How long should the rug dry before I walk on it?",
                "Does the vinegar leave a smell in wool?",
                "Can I use the same soap on a cotton curtain?",
            ),
            "How do I get candle wax out of a linen tablecloth?",
            "a dried stain from last week",
            ("Is the stain still wet?", "No, it dried overnight."),
        ),
        Topic(
            (
                "Can you write a cover letter for a junior accountant position?",
                "I need a cover letter, I'm applying as a junior accountant.",
                "Write me an application letter for an entry-level accountant job.",
                "junior accountant cover letter please",
            ),
            (
                "Dear hiring team, I am writing to apply for the position of junior accountant.",
                "During my studies I closed the monthly books of a student association with 400 members.",
                "I work with spreadsheets every day and learn new ledgers quickly.",
                "My professors describe me as careful and calm under deadlines.",
                "I would be glad to tell you more in a conversation.",
                "Kind regards, and thank you for your time.",
            ),
            (
                "Should I attach my certificates to the letter as well?",
                "What salary can a junior accountant expect in Leeds?",
                "Could you also suggest a subject line for the mail?",
            ),
            "Can you write a resignation letter for a senior nurse position?",
            "a letter to a former employer asking for a reference",
            ("Do you have any work experience yet?", "No, only an internship."),
        ),
        Topic(
            (
                "Why does my Python script raise a KeyError when I read the dict?",
                "My python program fails with KeyError on a dictionary lookup, why?",
                "What causes KeyError in Python when accessing a dict?",
                "python dict KeyError why",
            ),
            (
                "A `KeyError` means that the key is not in the dictionary at that moment.",
                "Use `data.get(key)` if a missing key is normal, or `key in data` to test first.",
                "Print `sorted(data)` right before the failing line to see what is there.",
                "Keys that look alike may differ: the string '1' is not the number 1.",
                "```python\nvalue = data.get('name', 'unknown')\n```",
                "A `defaultdict` creates missing entries on the fly.",
            ),
            (
                "Is get slower than square brackets?",
                "What does defaultdict do with a list?",
                "How would I log the missing key instead of raising?",
            ),
            "Why does my Rust program raise a borrow error when I read the vector?",
            "the KeyError that pandas raises for columns",
            ("Does the error come on every run?", "No, only with large files."),
        ),
        Topic(
            (
                "What should I see in Lisbon in two days?",
                "We have a weekend in Lisbon, which sights are worth it?",
                "Recommend things to see during two days in Lisbon.",
                "lisbon 2 day itinerary",
            ),
            (
                "Start early at the castle, before the queues.",
                "Take the number 28 tram through Alfama or, better, walk beside it.",
                "Belém deserves an afternoon: the monastery, the tower and the custard tarts.",
                "In the evening go up to a viewpoint such as Graça.",
                "The tile museum is quiet and lies a short bus ride to the east.",
                "On Mondays many museums are closed.",
            ),
            (
                "Is the tile museum open on Mondays too?",
                "How do I get from the castle to Belém?",
                "And where would we eat near Alfama?",
            ),
            "What should I see in Naples in three days?",
            "places for small children",
            ("Have you been to Lisbon before?", "No, it is our first time."),
        ),
        Topic(
            (
                "How much water should I drink per day?",
                "What amount of water is healthy to drink daily?",
                "How many litres of water a day should one drink?",
                "daily water intake recommended",
            ),
            (
                "About two litres a day is enough for most adults, food not counted.",
                "Thirst and the colour of urine are better guides than any figure.",
                "In the heat or when you run, add half a litre per hour.",
                "Coffee and tea count as well.",
                "People with heart or kidney disease should ask their doctor.",
                "Drinking far too much at once can be dangerous.",
            ),
            (
                "Does sparkling water count the same?",
                "How much of it should I drink while running a marathon?",
                "Which signs tell me that I am dehydrated?",
            ),
            "How much protein should I eat per day?",
            "how much my dog needs",
            ("Are you exercising a lot?", "No, I sit most of the day."),
        ),
        Topic(
            (
                "Explain the French Revolution's causes briefly.",
                "What were the main causes of the French Revolution, in short?",
                "Give me a short summary of why the French Revolution happened.",
                "causes french revolution short",
            ),
            (
                "The state was bankrupt after decades of war and of help for the American colonies.",
                "Bread was dear after the failed harvest of 1788.",
                "The third estate paid nearly all taxes and had one vote in three.",
                "Writers of the Enlightenment had made privilege look absurd.",
                "The king called the Estates General and then lost control of it.",
                "Rumours of a noble plot set the countryside on fire.",
            ),
            (
                "Who sat in the third estate?",
                "What did bread cost before the harvest failed?",
                "When did the king try to flee?",
            ),
            "Explain the Russian Revolution's consequences briefly.",
            "the revolution of 1830",
            ("Is this for a school essay?", "No, just out of curiosity."),
        ),
        Topic(
            (
                "How can I cancel my gym membership early?",
                "I want to end my gym contract before it runs out, how?",
                "What do I have to do to get out of my gym membership ahead of time?",
                "cancel gym membership early",
            ),
            (
                "Read the clause on notice first, since most contracts ask for one month.",
                "Illness or a move of more than 25 kilometres often ends a contract at once.",
                "Send the cancellation as a letter with proof of delivery.",
                "Keep paying until it is confirmed, or they may send a collector.",
                "Some studios let you hand the membership to a friend.",
                "Ask for a pause if you only need a few months off.",
            ),
            (
                "What proof of illness will the gym accept?",
                "Would a pause cost me anything?",
                "Can they charge a fee if I move abroad?",
            ),
            "How can I cancel my phone contract early?",
            "cancelling before the first month has begun",
            ("Did you sign for more than a year?", "No, for six months."),
        ),
        Topic(
            (
                "Is 91 a prime number?",
                "Could you tell me whether 91 is prime?",
                "Check if the number 91 is a prime.",
                "91 prime?",
            ),
            (
                "No: 91 is 7 times 13.",
                "A prime has no divisors but one and itself.",
                "You only need to try primes up to the square root, here 2, 3, 5 and 7.",
                "The last digit rules out 2 and 5, the digit sum rules out 3.",
                "The next prime after it is 97.",
                "It is a popular trap, since it looks like one.",
            ),
            (
                "And is 97 one?",
                "Why does the square root suffice?",
                "How many primes are there below 100?",
            ),
            "Is 119 a prime number?",
            "whether it is a Fibonacci number",
            ("Do you know how to find divisors?", "No, not really."),
        ),
        Topic(
            (
                "My tomato leaves are turning yellow, what's wrong?",
                "Why are the leaves of my tomatoes going yellow?",
                "What makes tomato plants get yellow leaves?",
                "tomato yellow leaves cause",
            ),
            (
                "Old leaves near the ground yellow first when nitrogen is short.",
                "Wet feet do the same: the soil should dry between waterings.",
                "Yellow between green veins points to a lack of magnesium.",
                "Brown rings on yellow spots are early blight.",
                "Take the affected leaves off and do not compost them.",
                "Feed every two weeks once the first fruit has set.",
            ),
            (
                "Which fertiliser has enough nitrogen?",
                "Can blight spread to my potatoes?",
                "How often should I water tomatoes in a pot?",
            ),
            "My basil stems are turning black, what's wrong?",
            "the leaves at the top, not the bottom",
            ("Are there spots on the leaves?", "No, they are evenly yellow."),
        ),
        Topic(
            (
                "Translate 'we look forward to your visit' into German.",
                "How do you say 'we look forward to your visit' in German?",
                "What is the German for 'we look forward to your visit'?",
                "german translation: we look forward to your visit",
            ),
            (
                "It is 'Wir freuen uns auf Ihren Besuch'.",
                "Among friends you would say 'euren Besuch'.",
                "The verb takes 'auf' with the accusative.",
                "In a letter it often stands at the end, before the greeting.",
                "The phrase sounds warm without being casual.",
                "Do not mix it up with 'sich freuen über', which is about the present.",
            ),
            (
                "What would the informal version be for one person?",
                "Does the verb always take auf?",
                "How do I pronounce Besuch?",
            ),
            "Translate 'we are sorry for the delay' into Dutch.",
            "the Swiss way of putting it",
            ("Is it a formal letter?", "No, it's for my cousins."),
        ),
        Topic(
            (
                "How do I split a PDF into single pages on a Mac?",
                "What's the way to separate a PDF into individual pages on macOS?",
                "I have a PDF on my Mac and want every page as its own file.",
                "mac split pdf pages",
            ),
            (
                "Open the file in Preview and show the thumbnails.",
                "Drag a page out of the sidebar onto the desktop and it becomes a file.",
                "For many pages the Automator action 'Split PDF' is quicker.",
                "On the command line `qpdf --split-pages in.pdf out.pdf` does it at once.",
                "The original stays as it is.",
                "Scanned pages keep their size, so the parts together are as large as the whole.",
            ),
            (
                "Where do I find Automator?",
                "Can Preview merge the pages again?",
                "Will qpdf keep the bookmarks?",
            ),
            "How do I merge photos into a video on a Mac?",
            "splitting one page into two halves",
            ("Does the file have a password?", "No, it is open."),
        ),
        Topic(
            (
                "What can I cook with chickpeas and spinach tonight?",
                "Give me a quick dinner idea with spinach and chickpeas.",
                "I have chickpeas and spinach at home, what dish could I make?",
                "chickpeas spinach dinner recipe",
            ),
            (
                "Fry an onion with cumin and smoked paprika until it is soft.",
                "Add a tin of chickpeas with a little of their water.",
                "Stir in the spinach by handfuls until it collapses.",
                "A spoon of tahini or yoghurt makes it creamy.",
                "Serve it with flat bread or over rice.",
                "Lemon juice at the end wakes everything up.",
            ),
            (
                "Can I replace tahini with peanut butter?",
                "How long does it keep in the fridge?",
                "Would frozen spinach work as well?",
            ),
            "What can I bake with rhubarb and oats tonight?",
            "something cold, like a salad",
            ("Do you eat dairy?", "No, I am vegan."),
        ),
        Topic(
            (
                "Summarise this: The committee met on Tuesday and put off the vote on the harbour bridge.",
                "Can you give a summary of: The committee met on Tuesday and put off the vote on the harbour"
                " bridge.",
                "In a few words please: The committee met on Tuesday and put off the vote on the harbour"
                " bridge.",
                "tl;dr The committee met on Tuesday and put off the vote on the harbour bridge.",
            ),
            (
                "The vote on the bridge was postponed.",
                "The committee dealt with it on Tuesday.",
                "No new date is given.",
                "The text does not say why.",
                "It concerns the bridge at the harbour.",
                "Nothing was decided.",
            ),
            (
                "Which date would be usual after such a delay?",
                "How would you put that in a headline?",
                "What might the reason have been?",
            ),
            "Summarise this: The school board hired two teachers and sold its old bus on Friday.",
            "a summary in one sentence for a newsletter",
            ("Do you want the names as well?", "No, leave them out."),
        ),
        Topic(
            (
                "Give me a name for a cat café with a nautical theme.",
                "What would be a good name for a sea-themed cat café?",
                "I'm opening a cat café in maritime style, suggest a name.",
                "cat cafe nautical name ideas",
            ),
            (
                "How about 'The Purring Anchor'?",
                "'Port Whiskers' is short and easy to find.",
                "'Catfish and Coffee' makes people smile.",
                "'The Ninth Wave' plays on nine lives.",
                "Check that the domain is free before you paint the sign.",
                "A name with two stressed syllables sticks best.",
            ),
            (
                "Is the domain for Port Whiskers taken?",
                "Could you draw up a slogan for The Purring Anchor?",
                "Which of them would suit older guests?",
            ),
            "Give me a name for a dog hotel with a space theme.",
            "a name in Spanish",
            ("Is it in a harbour town?", "No, it's in the mountains."),
        ),
    ),
    openings=(
        "",
        "",
        "Sure! ",
        "Of course. ",
        "Good question. ",
        "Here is what I would do. ",
        "Happy to help. ",
    ),
    closings=("", "", "", " Let me know if anything is unclear.", " Anything else?", " Good luck!"),
    corrections=(
        "No, I meant {instead}.",
        "no i mean {instead}",
        "That's not what I asked. {asked}",
        "You misunderstood, I was talking about {instead}.",
        "Wrong.",
        "That is wrong, please check again.",
        "Hmm, that doesn't look right to me.",
        "I asked about {instead}, not about that.",
        "Not that. I need {instead}.",
        "This is incorrect.",
        "You didn't answer my question.",
        "Sorry, I should have been clearer: I meant {instead}.",
        "Actually I was asking about {instead}.",
        "That did not work at all.",
        "I think you are mixing something up there.",
        "Way too long, please shorten it.",
        "But I wanted {instead}!",
        "Are you sure? I believe that is a mistake.",
        "You forgot what I said about {instead}.",
        "no, not that one, {instead}",
        "Your answer makes no sense.",
        "I tried that and it still fails.",
    ),
    rephrasings=(
        "{asked}",
        "{asked}",
        "{asked}",
        "{asked}",
        "Let me rephrase: {asked}",
        "In other words, {asked}",
        "{same}",
        "I'll ask differently. {asked}",
        "Once more: {same}",
        "What I want to know is this: {asked}",
    ),
    thanks=(
        "Thanks!",
        "Thank you so much, that helped.",
        "thx",
        "Perfect, thank you.",
        "Great, thanks a lot!",
        "Many thanks, that's all I needed.",
        "Cheers, works now.",
        "ty!",
    ),
    thanks_and=(
        "Thanks! {next}",
        "Thank you. {next}",
        "Great, thanks. One more thing: {next}",
        "thanks, and {next}",
    ),
    thanks_but=(
        "Thanks, but that's not what I asked.",
        "Thank you, but this is wrong.",
        "Thanks, but I meant {instead}.",
        "Thanks for trying, but it still doesn't work.",
        "Thank you, however I was asking about {instead}.",
    ),
    going_on=("{next}", "{next}", "{next}", "OK. {next}", "Good. {next}", "And another question: {next}"),
    nods=("OK", "I see.", "Interesting!", "Great.", "Got it", "Go on.", "Tell me more", "haha nice"),
    declines=(
        "No thanks.",
        "No, that's all.",
        "No problem, I can do that.",
        "No need to apologise.",
        "No wonder it never worked before! {next}",
        "no worries, {next}",
        "No idea, to be honest. {next}",
    ),
    quotes=(
        'My boss answered: "No, that is wrong, I meant Tuesday." How do I reply politely?',
        "> That's not what I asked.\n\nHow should I react to this comment from a customer?",
        'What does the phrase "you got me wrong" mean in this context?',
        "Is it incorrect to leave out the comma here?",
        'My sister just wrote "thanks for nothing". Should I call her?',
        "What went wrong with the first attempt, in your opinion?",
        "Someone told me this method doesn't work in winter. {next}",
    ),
    slips=(
        "Oops, typo on my side. {next}",
        "My mistake, I had the wrong file open. {next}",
        "Sorry, I pressed enter too early. {next}",
        "I meant to add that we are four people. {next}",
    ),
    reworded=(
        ("Use", "Please use"),
        ("Take", "You could take"),
        ("The", "As a rule, the"),
        ("For", "When it comes to"),
        ("A", "Any"),
        ("It", "This"),
    ),
    inserted=(
        "Please check this against our own handbook.",
        "We offer this service for free.",
        "Our team is there from 9 to 5.",
        "This holds for customers in Europe only.",
        "Ask Maria if anything is missing.",
    ),
    systems=(
        "You are a helpful assistant.",
        "You are a helpful assistant. Current time: {time}.",
        "Today is {date}. Answer in plain English.",
        "You answer questions of {user}. Be accurate.",
    ),
    settings=(
        "You are a pirate. Answer every question in pirate speech.",
        "You are a strict teacher and give hints only.",
        "Answer in formal language and in at most two sentences.",
    ),
    footers=("\n\n_Generated by AI. Please verify._", "\n\n— sent by the shop assistant"),
    summaries=(
        "The user asked about this: {about} The assistant explained it.",
        "Conversation so far: a question ({about}) and a detailed answer.",
    ),
    errands=(
        "Generate a concise title of 3 to 5 words for this conversation.",
        "Suggest three short follow-up questions the user might ask next, as a JSON list.",
    ),
)
