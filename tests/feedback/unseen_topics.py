"""What the people of the held-out set ask about: a grammar of subjects and what one wants to know.

Every subject of a field meets every aspect of it, so that a question about another subject, or about another
side of the same one, looks as much like asking again as it does in life. `unseen` has what is said besides.
"""

import random
from typing import NamedTuple

from tests.feedback.wordings import Topic


class Aspect(NamedTuple):
    """One thing to know of any subject of a field; {s} is the subject, {n} a figure of its own."""

    asked: tuple[str, ...]
    facts: tuple[str, ...]
    deeper: tuple[str, ...]
    """Next questions about the answer."""
    aside: str
    """How somebody who had asked about another aspect comes to this one."""


class Field(NamedTuple):
    subjects: tuple[tuple[str, str], ...]
    """Two names of each."""
    aspects: tuple[Aspect, ...]
    check: tuple[str, str]


PLANTS = Field(
    (
        ("monstera", "swiss cheese plant"),
        ("rubber plant", "ficus elastica"),
        ("orchid", "phalaenopsis"),
        ("bonsai", "little juniper"),
        ("aloe", "aloe vera"),
        ("olive tree", "potted olive"),
    ),
    (
        Aspect(
            (
                "How often should I water my {s}?",
                "what's a sensible watering schedule for a {s}",
                "Is once a week enough water for the {s}, or too much?",
                "{s} watering frequency?",
                "I never know when my {s} is thirsty. How many times per month does it need a drink?",
            ),
            (
                "Push a finger {n} cm into the soil; water the {s} when it comes out dry.",
                "In winter it drinks about half of what it takes in July.",
                "Tap water is fine unless yours is very hard.",
                "Tip away whatever stands in the saucer after {n} minutes.",
                "Limp leaves on wet soil mean that the roots are drowning.",
            ),
            ("Can I use rain water from the barrel?", "what does too much water look like on the leaves"),
            "How thirsty does it get in summer?",
        ),
        Aspect(
            (
                "Where in the flat should the {s} stand?",
                "does a {s} want direct sun or shade",
                "How much light does my {s} need?",
                "Best spot for a {s}: window sill or the back of the room?",
                "my flat is quite dark, will the {s} cope with that little light",
            ),
            (
                "An east window suits the {s} best.",
                "Direct noon sun scorches it within {n} days.",
                "A cheap grow lamp at {n} cm replaces a window.",
                "Turn the pot a quarter every week so that it grows straight.",
                "Leggy growth says that it is reaching for the light.",
            ),
            ("Would a grow lamp on a timer work?", "Do I have to turn it around from time to time?"),
            "and how bright should it be for the {s}",
        ),
        Aspect(
            (
                "When do I have to repot the {s}?",
                "signs that a {s} needs a bigger pot",
                "My {s} looks cramped. Is it time for a new container?",
                "how do i know the {s} has outgrown its pot",
                "Should a {s} get fresh soil every spring, or can that wait?",
            ),
            (
                "Roots at the drainage hole are the surest sign.",
                "The next pot may be {n} cm wider, not more.",
                "March is kinder to the {s} than October.",
                "Old soil may stay on the root ball.",
                "It sulks for {n} weeks after the move; that is normal.",
            ),
            ("Which soil mix do you recommend?", "should the new pot be clay or plastic"),
            "Do I need to change its soil at some point?",
        ),
        Aspect(
            (
                "There are tiny flies around my {s}, what can I do?",
                "{s} full of gnats help",
                "How do I get rid of the little black insects in the soil of my {s}?",
                "My {s} has visitors: small flies that come up whenever I touch the pot. Remedy?",
                "what kills fungus gnats without hurting a {s}",
            ),
            (
                "They are fungus gnats, and harmless to the {s} itself.",
                "Let the top {n} cm dry out; the larvae die without moisture.",
                "Yellow sticky cards catch the adults.",
                "Nematodes from the garden centre eat the larvae within {n} days.",
                "A layer of sand keeps the next generation out.",
            ),
            ("Are nematodes safe with cats in the house?", "How long do the sticky cards last?"),
            "what pests does the {s} attract?",
        ),
    ),
    ("Is the soil still damp?", "No, bone dry."),
)

PETS = Field(
    (
        ("hamster", "dwarf hamster"),
        ("budgie", "parakeet"),
        ("guinea pig", "cavy"),
        ("gecko", "leopard gecko"),
        ("ferret", "pet ferret"),
        ("rabbit", "bunny"),
    ),
    (
        Aspect(
            (
                "What does a {s} eat?",
                "daily diet for my new {s}",
                "Which foods are right for a {s}, and how much of them?",
                "what do i feed the {s}",
                "I want to plan the meals of our {s}. What belongs in the bowl?",
            ),
            (
                "Give the {s} {n} grams in the evening.",
                "Fresh water every day, also when the bowl is half full.",
                "Sugar of any kind is out, fruit included.",
                "Change brands over {n} days, not from one day to the next.",
                "A bit of variety keeps the {s} from getting picky.",
            ),
            ("Is cucumber allowed as a treat?", "can the food stay in the bowl overnight"),
            "And what should I put on its menu?",
        ),
        Aspect(
            (
                "How big must the cage of a {s} be?",
                "minimum enclosure size {s}",
                "What amount of room does a {s} need to be happy?",
                "is 60 cm enough space for a {s}",
                "We live in a small apartment: could a {s} live with us, or is its home too large for that?",
            ),
            (
                "Plan {n} square decimetres for the floor at the very least.",
                "Height matters less to the {s} than length.",
                "Shops sell many homes that are far too small.",
                "Two hours outside a day make up for a little less.",
                "Put it {n} m away from the television.",
            ),
            ("Which bedding goes on the floor?", "does it need a second level"),
            "How much space would a {s} take up?",
        ),
        Aspect(
            (
                "How old do {s}s get?",
                "life expectancy of a {s}",
                "For how many years will we have our {s}?",
                "whats the lifespan of the average {s}",
                "My kids want a {s}. How long is that a commitment for, realistically?",
            ),
            (
                "Expect {n} years with good care.",
                "Overweight takes more of them than any illness.",
                "Females of the {s} live a little shorter.",
                "The record is more than twice that.",
                "The first {n} weeks after the move are the riskiest.",
            ),
            ("What do they usually die of?", "How do I tell the age of an adult one?"),
            "roughly what age can a {s} reach",
        ),
        Aspect(
            (
                "Can a {s} be kept alone?",
                "does my {s} need a companion",
                "Is one {s} by itself lonely, or should I get two?",
                "keeping a single {s} ok?",
                "Would it be cruel to have only one {s}?",
            ),
            (
                "That depends on what it grew up with.",
                "Introduce a second {s} over {n} days, with a grid between them.",
                "Two males will fight sooner or later.",
                "Your own company counts, though only when you are there.",
                "A mirror is no friend; it confuses the {s}.",
            ),
            ("How do I introduce them to each other?", "what if they fight anyway"),
            "And would it want company?",
        ),
    ),
    ("Has it been to a vet this year?", "no, the last visit was in 2024"),
)

SERVERS = Field(
    (
        ("Redis", "redis"),
        ("RabbitMQ", "our rabbit broker"),
        ("Grafana", "the grafana instance"),
        ("Elasticsearch", "elastic"),
        ("MinIO", "minio"),
        ("Gitea", "the gitea server"),
    ),
    (
        Aspect(
            (
                "How do I back up {s} properly?",
                "{s} backup strategy",
                "What's a safe way of taking a copy of all data in {s}?",
                "which files do i have to save so that {s} can be restored",
                "If the disk died tonight I would lose everything in {s}. How should I save its state?",
            ),
            (
                "Stop writes, or take a snapshot of the volume at one moment.",
                "A copy on the same machine is none: ship it elsewhere within {n} hours.",
                "{s} keeps its settings apart from the data; take both.",
                "Restore it to a spare host every {n} weeks, else you only hope.",
                "Encrypt the archive before it leaves the building.",
            ),
            ("How would I automate that with cron?", "does the snapshot block clients while it runs"),
            "And what about disaster recovery?",
        ),
        Aspect(
            (
                "Why does {s} use so much memory?",
                "{s} RAM usage keeps growing",
                "Our {s} eats up more and more memory until the kernel kills it. What could be behind that?",
                "is there a memory leak in {s} or am i doing it wrong",
                "How can I bring down the memory footprint of {s}?",
            ),
            (
                "By default it takes what the host has and gives little back.",
                "Cap it at {n} GB and watch what is evicted.",
                "Fragmentation can double what {s} seems to hold.",
                "Idle connections cost {n} MB a thousand.",
                "The page cache counts as used and is not lost.",
            ),
            ("How can I see the fragmentation?", "what happens when the cap is reached"),
            "By the way, how heavy is {s} on RAM?",
        ),
        Aspect(
            (
                "How do I upgrade {s} without downtime?",
                "rolling update of {s} possible?",
                "What's the procedure for moving {s} to the next major version while users are on it?",
                "zero downtime upgrade {s}",
                "We have to get {s} from the old release to the new one and nobody may notice. How?",
            ),
            (
                "Put a second node beside it and let it catch up.",
                "Read the release notes from your version on, not only the last.",
                "{s} refuses to go back once the data format was raised.",
                "Keep the old one for {n} days.",
                "Clients need a retry of {n} seconds for the moment of the switch.",
            ),
            ("Can I skip a major version?", "what's the rollback plan then"),
            "Which version of {s} would you run?",
        ),
        Aspect(
            (
                "How can I secure {s} on a public host?",
                "hardening checklist for {s}",
                "What must be done before {s} may face the internet?",
                "is it dangerous to expose {s} and what to lock down",
                "An auditor is coming: which measures protect {s} from outsiders?",
            ),
            (
                "Bind it to the inner address; a proxy with TLS does the rest.",
                "The default account of {s} is known to every scanner.",
                "Rotate credentials every {n} days.",
                "Log failed logins and block after {n} of them.",
                "Updates close more holes than any firewall rule.",
            ),
            ("Which port do I leave open?", "would a VPN be enough"),
            "anything I should know about {s} security?",
        ),
    ),
    ("Does the log say anything?", "no errors at all in there"),
)

PAPERS = Field(
    (
        ("work visa", "employment visa"),
        ("trademark", "brand registration"),
        ("building permit", "planning permission"),
        ("student loan", "education loan"),
        ("driving licence", "driver's license"),
        ("library card", "reader's pass"),
    ),
    (
        Aspect(
            (
                "How do I apply for a {s}?",
                "{s} application process",
                "What are the stages of getting a {s}?",
                "where do i hand in the form for a {s}",
                "I'd like to have a {s} and don't know where to begin. Who takes the request?",
            ),
            (
                "The form is online; the office on the third floor has it on paper.",
                "Sign page {n}, which most people overlook.",
                "You get a number with which you can follow your {s}.",
                "Somebody else may hand it in with a letter from you.",
                "Appointments open {n} days ahead, at midnight.",
            ),
            ("May my partner hand it in for me?", "is there an appointment system"),
            "Who is in charge of issuing a {s}?",
        ),
        Aspect(
            (
                "How much does a {s} cost?",
                "price of a {s}",
                "What fees will I have to pay for my {s}?",
                "is a {s} expensive",
                "What should I budget for a {s}, all in?",
            ),
            (
                "The basic fee for the {s} is {n} euros.",
                "Cards are taken, cash is not.",
                "Half is waived for those under 25.",
                "A late request is charged {n} euros more.",
                "Copies have to be certified, which the notary bills apart.",
            ),
            ("Can the fee be paid in instalments?", "do i get it back if they say no"),
            "And what would I pay for that?",
        ),
        Aspect(
            (
                "How long does it take to get a {s}?",
                "processing time {s}",
                "When can I expect my {s} if I send everything in today?",
                "waiting time for a {s} these days?",
                "I need the {s} by June. Is that realistic or should I have started earlier?",
            ),
            (
                "At the moment {n} weeks, in summer more.",
                "A missing stamp puts you back to the end of the queue.",
                "An express desk exists for the {s}, at twice the fee.",
                "No news after {n} weeks: write to the ombudsman.",
                "The letter itself is four days under way.",
            ),
            ("Does the express desk need a reason?", "whom do I call if nothing comes"),
            "is the {s} something one gets quickly",
        ),
        Aspect(
            (
                "Which documents do I need for a {s}?",
                "paperwork needed {s}",
                "What do I have to bring along when I request a {s}?",
                "list of papers for the {s} pls",
                "What proof will they ask me for if I want a {s}?",
            ),
            (
                "A passport or identity card that is valid {n} months more.",
                "Proof of address, no older than {n} weeks.",
                "Two photos, without glasses.",
                "For the {s} they also want to see the tax number.",
                "Everything in another language needs a sworn translation.",
            ),
            ("Does a phone bill count as proof of address?", "who does sworn translations"),
            "what do they want to see before they hand out a {s}",
        ),
    ),
    ("Do you live in the city itself?", "No, in a village nearby."),
)

SPORTS = Field(
    (
        ("bouldering", "indoor climbing"),
        ("rowing", "sculling"),
        ("fencing", "foil fencing"),
        ("trail running", "running off-road"),
        ("table tennis", "ping pong"),
        ("freediving", "apnea diving"),
    ),
    (
        Aspect(
            (
                "What equipment do I need for {s}?",
                "{s} gear for beginners",
                "What should I buy before my first session of {s}?",
                "do i need special shoes for {s} or other stuff",
                "I start {s} next week. What goes into the bag?",
            ),
            (
                "Borrow everything for the first {n} sessions.",
                "Shoes are the one thing that should be your own.",
                "Clubs for {s} lend out the rest.",
                "Used gear costs a third, check the seams.",
                "Budget {n} euros if you insist on new.",
            ),
            ("Where can I get it second-hand?", "how tight should the shoes be"),
            "And what kit would I have to get?",
        ),
        Aspect(
            (
                "How do I avoid injuries in {s}?",
                "common {s} injuries and prevention",
                "What hurts most often in {s}, and what can one do against it?",
                "is {s} bad for the joints",
                "I'm 52 and would like to do {s} without ending up at the doctor's. Any precautions?",
            ),
            (
                "Warm up for {n} minutes, also when you are late.",
                "Most accidents in {s} happen in the last quarter of an hour.",
                "Shoulders want strength before they want range.",
                "Pain that stays {n} days is a reason to see somebody.",
                "Sleep does more than any tape.",
            ),
            ("Which stretches come first?", "does taping help at all"),
            "How risky is {s} for somebody over fifty?",
        ),
        Aspect(
            (
                "How quickly will I get better at {s}?",
                "{s} progress how many months",
                "After what time do people usually reach a decent level in {s}?",
                "when will i stop being a beginner in {s}",
                "Training twice a week, how soon would I see improvement in {s}?",
            ),
            (
                "The first {n} weeks bring the most.",
                "After that {s} is a matter of technique.",
                "Film yourself once a month.",
                "Plateaus of {n} weeks are the rule.",
                "A coach saves you a year.",
            ),
            ("What should I look at in the film?", "what do you do on a plateau"),
            "what level could I get to in a year of {s}",
        ),
        Aspect(
            (
                "Which muscles does {s} train?",
                "{s} muscle groups",
                "What parts of the body get stronger from {s}?",
                "does {s} work the core",
                "Would {s} give me a workout for the whole body or just the arms?",
            ),
            (
                "Mostly the back, and the grip.",
                "The core works in {s} all the time without your noticing.",
                "Legs get their share at higher levels.",
                "An hour burns {n} kilocalories.",
                "Add push-ups, {n} a day, for balance.",
            ),
            ("Is it enough cardio by itself?", "what should I add for the legs"),
            "And is it good for the back?",
        ),
    ),
    ("Did you do any sport before?", "no never really"),
)

MACHINES = Field(
    (
        ("microwave", "microwave oven"),
        ("espresso machine", "coffee maker"),
        ("tumble dryer", "clothes dryer"),
        ("chest freezer", "deep freezer"),
        ("air purifier", "air cleaner"),
        ("robot vacuum", "hoover robot"),
    ),
    (
        Aspect(
            (
                "Why does my {s} smell?",
                "{s} stinks what to do",
                "A bad odour comes out of the {s}. Where could that be from?",
                "how do i get rid of the smell in the {s}",
                "Every time I open the {s} my nose complains. Any idea what's rotting in there?",
            ),
            (
                "Nine times of ten it is the filter of the {s}.",
                "Let it run empty and hot with {n} spoons of vinegar.",
                "Leave the door ajar for {n} hours.",
                "The hose holds water where it sags.",
                "Rubber seals hide what you smell.",
            ),
            ("Is vinegar bad for the seals?", "where is the filter in most models"),
            "And should I worry when it smells?",
        ),
        Aspect(
            (
                "How much electricity does a {s} use?",
                "power consumption {s} per year",
                "What will running a {s} add to my bill?",
                "is my {s} an energy guzzler",
                "Our meter spins since we've had the {s}. How many kWh are normal?",
            ),
            (
                "A recent {s} takes {n} kWh a month.",
                "Standby is a tenth of it.",
                "The eco programme is slower and saves a third.",
                "Measure it with a plug meter for {n} days.",
                "Old ones can need three times as much.",
            ),
            ("Are plug meters reliable?", "how can I switch off standby"),
            "what does a {s} draw on standby",
        ),
        Aspect(
            (
                "How long does a {s} last?",
                "{s} average service life",
                "After how many years should I replace my {s}?",
                "when is it time for a new {s}",
                "The {s} is nine years old and the repair is 180. Still worth it?",
            ),
            (
                "Most are thrown away after {n} years.",
                "Pumps go first, electronics second.",
                "A repair for less than half the price of a new {s} pays off.",
                "Spare parts have to be sold for {n} years by law.",
                "Care doubles what you get out of it.",
            ),
            ("Where do I find spare parts?", "which brand holds out the longest"),
            "How durable are they, by the way?",
        ),
        Aspect(
            (
                "My {s} is so loud, how can I make it quieter?",
                "noisy {s} fix",
                "What helps against the racket that the {s} makes?",
                "how many decibels are ok for a {s} and how to lower them",
                "The neighbours hear my {s} through the wall. How do I dampen it?",
            ),
            (
                "Level the feet of the {s} first.",
                "A rubber mat takes {n} dB off.",
                "Rattling comes from screws, humming from the motor.",
                "Pull it {n} cm away from the wall.",
                "Night mode is slower and halves the noise.",
            ),
            ("Which mat would you take?", "can the humming be repaired"),
            "is it normal for a {s} to be that loud?",
        ),
    ),
    ("Is it still under warranty?", "No, it ran out in spring."),
)

FIELDS = (PLANTS, PETS, SERVERS, PAPERS, SPORTS, MACHINES)


def topics(seed: int) -> tuple[Topic, ...]:
    """Every aspect of every subject, with figures of its own; the same for the same seed."""
    rng = random.Random(seed)
    return tuple(
        _topic(field, subject, at, rng)
        for field in FIELDS
        for subject in range(len(field.subjects))
        for at in range(len(field.aspects))
    )


def _topic(field: Field, subject: int, at: int, rng: random.Random) -> Topic:
    names, aspect = field.subjects[subject], field.aspects[at]
    other, other_name = field.subjects[(subject + rng.randint(1, 5)) % 6]
    asides = [a.aside for n, a in enumerate(field.aspects) if n != at]
    direct = [rng.choice(a.asked) for n, a in enumerate(field.aspects) if n != at]
    return Topic(
        tuple(_about(q, rng.choice((names[0], names[0], names[1]))) for q in aspect.asked),
        tuple(_about(f, names[0]).replace("{n}", str(rng.randint(2, 28))) for f in aspect.facts),
        tuple(_about(q, rng.choice(names)) for q in (*aspect.deeper, *asides, rng.choice(direct))),
        _about(rng.choice(aspect.asked), other),
        rng.choice((f"the {other_name}", f"the {other_name}, not the {names[0]}", f"our {other}")),
        field.check,
    )


def _about(template: str, subject: str) -> str:
    filled = template.replace("{s}", subject)
    return filled[:1].upper() + filled[1:] if template[:1].isupper() else filled


TOPICS = topics(5)
