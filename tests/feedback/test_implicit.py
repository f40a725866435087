"""What the traffic shows, and above all what it does not: every hard negative is what clients really do."""

import pytest

from feedback.conversations import fold
from feedback.events import IdentitySource, SignalKind, TurnStatus
from feedback.implicit import infer
from feedback.reactions import reaction
from tests.feedback.builders import assistant, system, turn, user

QUESTION = "How do I reset my password?"
REPLY = "Open the settings, choose security and press reset. A mail with a link comes within a minute."
EDITED = "Open the settings, choose security and press reset. A mail with a code comes within a minute."
FIRST = turn("r1", QUESTION, REPLY)


def kinds(*events) -> list[tuple[str, str]]:
    """What was inferred, as (kind, response id)."""
    return [(s.kind.value, s.response_id) for s in infer(fold(events))]


def follow_up(said: str, after: str = REPLY, *, at: float = 40, **fields):
    return turn("r2", [user(QUESTION), assistant(after), user(said)], "Fine.", at=at, **fields)


# --- regeneration


def test_the_same_history_asked_again_is_a_regeneration_of_the_first_reply():
    found = infer(fold([FIRST, turn("r2", QUESTION, "Call us.", at=20)]))
    assert [(s.kind, s.response_id, s.other_response_id) for s in found] == [
        (SignalKind.REGENERATION, "r1", "r2")
    ]
    assert found[0].event_ids == ("turn-r1", "turn-r2")


def test_two_regenerations_make_a_chain():
    again = [turn(f"r{n}", QUESTION, f"Answer {n}.", at=20 * n) for n in (2, 3)]
    assert kinds(FIRST, *again) == [("regeneration", "r1"), ("regeneration", "r2")]


@pytest.mark.parametrize(
    ("case", "second"),
    [
        ("retried by the client within two seconds of the reply", turn("r2", QUESTION, "Call us.", at=2.9)),
        ("two requests at once, as from parallel tabs", turn("r2", QUESTION, "Call us.", at=0.5)),
        ("asked again on another day", turn("r2", QUESTION, "Call us.", at=7200)),
        ("another user", turn("r2", QUESTION, "Call us.", at=20, who="bob")),
        (
            "other instructions: the product changed, not the user's mind",
            turn("r2", [system("Be brief."), user(QUESTION)], "Call us.", at=20),
        ),
        ("without consent", turn("r2", QUESTION, "Call us.", at=20, learn=False)),
        ("another question", turn("r2", "Where are my invoices?", "Under billing.", at=20)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_this_is_no_regeneration(case, second):
    assert kinds(FIRST, second) == []


@pytest.mark.parametrize("status", [TurnStatus.ABORTED, TurnStatus.FAILED])
def test_asking_again_after_a_broken_reply_is_a_retry(status):
    """The reply never arrived whole, so it was not disliked."""
    broken = turn("r1", QUESTION, "Open the", status=status)
    assert kinds(broken, turn("r2", QUESTION, REPLY, at=20)) == []


def test_end_users_behind_one_key_may_ask_the_same_first_question():
    """With identity `history` the conversation is only the key and the first message."""
    fields = {"identity": IdentitySource.HISTORY, "who": "acme"}
    assert kinds(turn("r1", QUESTION, REPLY, **fields), turn("r2", QUESTION, "No.", at=20, **fields)) == []


def test_deeper_in_a_history_the_same_request_is_one_persons():
    """Two strangers do not share a first question, a sampled reply and a second question."""
    fields = {"identity": IdentitySource.HISTORY, "who": "acme"}
    messages = [user(QUESTION), assistant(REPLY), user("What if no mail comes?")]
    events = [turn("r1", QUESTION, REPLY, **fields), turn("r2", messages, "Wait.", at=20, **fields)]
    assert ("regeneration", "r2") in kinds(*events, turn("r3", messages, "Check spam.", at=40, **fields))


def test_the_retry_window_can_be_set():
    """Simulated users need no two seconds to read."""
    quick = fold([FIRST, turn("r2", QUESTION, "Call us.", at=1.5)])
    assert infer(quick, retry_window_s=2.0) == []
    assert [s.kind for s in infer(quick, retry_window_s=0.1)] == [SignalKind.REGENERATION]


def test_who_drops_a_first_reply_and_asks_again_at_once_is_one_person_though_nobody_is_named():
    """A first question that is asked once an hour does not bring two strangers within ten seconds."""
    unnamed = {"identity": IdentitySource.HISTORY, "who": "acme"}
    again = turn("r2", QUESTION, "Call us.", at=12, **unnamed)
    on = turn("r3", [user(QUESTION), assistant("Call us."), user("When?")], "Now.", at=40, **unnamed)
    assert ("regeneration", "r1") in kinds(turn("r1", QUESTION, REPLY, **unnamed), again, on)


def test_a_first_question_that_many_ask_is_somebody_elses():
    """A button of the product: with 90 openings an hour a quarter of all pauses of 10 s see another one."""
    unnamed = {"identity": IdentitySource.HISTORY, "who": "acme"}
    others = [turn(f"b{n}", QUESTION, f"Reply {n}.", at=100 + 40 * n, **unnamed) for n in range(90)]
    again = turn("r2", QUESTION, "Call us.", at=12, **unnamed)
    on = turn("r3", [user(QUESTION), assistant("Call us."), user("When?")], "Now.", at=40, **unnamed)
    found = kinds(turn("r1", QUESTION, REPLY, **unnamed), again, on, *others)
    assert "regeneration" not in [kind for kind, _ in found]


def test_a_reply_gone_on_with_before_was_not_disliked():
    """Somebody went back to it in another tab."""
    named = {"identity": IdentitySource.EXPLICIT}
    on = follow_up("Great.", **named)
    assert "regeneration" not in [
        k
        for k, _ in kinds(
            turn("r1", QUESTION, REPLY, **named), on, turn("r3", QUESTION, "No.", at=90, **named)
        )
    ]


def test_a_shortened_history_still_shows_a_regeneration():
    """The client sends the last messages only, so that the places in the dialogue have other names."""
    opened = [user("Hello!"), assistant("Hello, how can I help you today?")]
    asked = [*opened, user(QUESTION), assistant(REPLY), user("What if no mail comes?")]
    events = [
        turn("r0", "Hello!", "Hello, how can I help you today?"),
        turn("r1", [*opened, user(QUESTION)], REPLY, at=20),
        turn("r2", asked, "Wait.", at=40),
        turn("r3", asked[2:], "Check the spam.", at=60),
    ]
    assert ("regeneration", "r2") in kinds(*events)


# --- edits


def test_a_reply_that_comes_back_in_other_words_was_edited():
    found = [s for s in infer(fold([FIRST, follow_up("Thanks!", EDITED)])) if s.kind is SignalKind.EDIT]
    assert [(s.response_id, s.text, s.event_ids) for s in found] == [("r1", EDITED, ("turn-r1", "turn-r2"))]


def test_an_edit_under_changed_instructions_is_still_one():
    """Products put the date into the system message."""
    later = turn("r2", [system("Tuesday"), user(QUESTION), assistant(EDITED), user("Thanks!")], "OK.", at=40)
    assert ("edit", "r1") in kinds(turn("r1", [system("Monday"), user(QUESTION)], REPLY), later)


def test_an_edit_is_one_signal_however_often_it_is_resent():
    history = [user(QUESTION), assistant(EDITED), user("Thanks!"), assistant("Fine."), user("Bye")]
    assert (
        kinds(FIRST, follow_up("Thanks!", EDITED), turn("r3", history, "Bye.", at=60)).count(("edit", "r1"))
        == 1
    )


def test_the_last_wording_of_an_edit_counts():
    later = turn("r3", [user(QUESTION), assistant(EDITED + " Then log in."), user("Thanks!")], "OK.", at=60)
    found = infer(fold([FIRST, follow_up("Thanks!", EDITED), later]))
    assert [s.text for s in found if s.kind is SignalKind.EDIT] == [EDITED + " Then log in."]


def test_an_edit_is_of_the_reply_it_is_nearest_to():
    other = turn("r0", QUESTION, "Please call our friendly staff by telephone at any hour.", at=-50)
    assert ("edit", "r1") in kinds(other, FIRST, follow_up("Thanks!", EDITED))


@pytest.mark.parametrize(
    ("case", "resent"),
    [
        ("whitespace", REPLY.replace(" ", "  ") + "\n"),
        ("markdown added", REPLY.replace("settings", "**settings**")),
        ("list markers", "- " + REPLY.replace(". A", ".\n- A")),
        ("typographic quotes and dashes", REPLY),
        ("truncated at the end", REPLY[:50]),
        ("truncated with dots", REPLY[:50] + "…"),
        ("its beginning cut off", REPLY[20:]),
        ("summarised", "The assistant explained how a password is reset."),
        ("replaced by something else", "I like trains."),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 40 else "",
)
def test_what_clients_do_to_a_reply_is_no_edit(case, resent):
    assert "edit" not in [kind for kind, _ in kinds(FIRST, follow_up("Thanks!", resent))]


def test_a_history_that_was_never_served_here_shows_no_edit():
    """Imported chats and few-shot examples hold assistant messages of other makes."""
    foreign = [user("Say hi"), assistant("Hi!"), user(QUESTION)]
    assert kinds(turn("r1", foreign, REPLY)) == []


def test_a_truncated_history_of_somebody_else_shows_nothing():
    """Similar replies are served to many."""
    history = [assistant(EDITED), user("Thanks!")]
    assert ("edit", "r1") in kinds(FIRST, turn("r2", history, "OK.", at=40))
    assert kinds(FIRST, turn("r2", history, "OK.", at=40, who="bob")) == []


def test_a_reply_hardly_altered_is_known_whatever_the_client_did_to_the_history():
    """The question came back with passages around it and the first exchange summarised: nothing tells the
    place, and 2 of 14 words are others. A reply that shares less may be anybody's."""
    asked = user(f"Passages: mail, reset, link.\n\nQuestion: {QUESTION} Answer briefly.")
    near = REPLY.replace("within a minute", "within an hour")
    history = [system("They said hello."), asked, assistant(near), user("Where are my invoices?")]
    assert ("edit", "r1") in kinds(FIRST, turn("r2", history, "Under billing.", at=40))
    history[2] = assistant("Open a ticket, and a colleague of ours comes and resets it with you.")
    assert "edit" not in [kind for kind, _ in kinds(FIRST, turn("r2", history, "Under billing.", at=40))]


def test_a_reply_without_consent_explains_a_resent_message():
    """It is the message that was served, only not one to learn from: nobody edited anything."""
    private = turn("r0", QUESTION, EDITED, at=-50, learn=False)
    assert "edit" not in [kind for kind, _ in kinds(private, FIRST, follow_up("Thanks!", EDITED))]


def test_an_edit_in_a_request_without_consent_is_not_seen():
    assert kinds(FIRST, follow_up("Thanks!", EDITED, learn=False)) == []


def test_an_older_message_altered_is_the_clients_doing():
    """Compacted histories; people edit the reply before them."""
    second = turn(
        "r2", [user(QUESTION), assistant(REPLY), user("And my name?")], "Open the profile page.", at=20
    )
    history = [
        user(QUESTION),
        assistant(EDITED),
        user("And my name?"),
        assistant("Open the profile tab."),
        user("OK"),
    ]
    assert "edit" not in [k for k, _ in kinds(FIRST, second, turn("r3", history, "Bye.", at=60))]


def test_a_client_that_alters_every_reply_edits_none():
    """A footer appended to each message is a product's habit."""
    history, events = [user("Question 0 is here?")], []
    for n in range(4):
        reply = f"Answer number {n} is that you should open page {n} of the manual and read it."
        events.append(turn(f"r{n}", history, reply, at=30 * n))
        history = [*history, assistant(reply + " Sent from my shop."), user(f"Question {n + 1} is here?")]
    assert "edit" not in [kind for kind, _ in kinds(*events)]


LONGER = (
    "Your name stands on the page of your profile, below the picture. Press the pencil beside it to edit."
)


def chat(*resent: str):
    """Each reply as it came back, one after another; the last one is the edit in question."""
    served = [REPLY, LONGER, REPLY.replace("mail", "message")][: len(resent)]
    history, events = [user("Question 0 is here?")], []
    for n, (reply, came_back) in enumerate(zip(served, resent, strict=True)):
        events.append(turn(f"r{n}", history, reply, at=30 * n))
        history = [*history, assistant(came_back), user(f"Question {n + 1} is here?")]
    return [*events, turn("last", history, "Bye.", at=300)]


def edited(*resent: str) -> list[str]:
    return [response_id for kind, response_id in kinds(*chat(*resent)) if kind == "edit"]


def test_something_put_under_a_reply_counts_where_the_client_puts_nothing_there_itself():
    """That another reply came back as it was shows that it has no footer."""
    assert edited(REPLY + " Ask Maria if it fails.") == []
    assert edited(REPLY, LONGER + " Ask Maria if it fails.") == ["r1"]


def test_sentences_left_out_count_where_longer_replies_came_back_whole():
    """Else it may be a limit of length."""
    shorter = "Your name stands on the page of your profile, below the picture."
    assert edited(REPLY[:51], shorter) == []
    assert edited(REPLY, shorter) == ["r1"]


def test_a_sentence_out_of_the_middle_of_the_only_reply_is_a_persons_doing():
    """Limits of length and stripped courtesies take from the ends."""
    first = turn("r1", QUESTION, f"{REPLY} Then choose a new one.")
    middle, last = REPLY.split(". ")[0] + ". Then choose a new one.", REPLY
    assert ("edit", "r1") in kinds(first, follow_up("And now?", middle))
    assert "edit" not in [kind for kind, _ in kinds(first, follow_up("And now?", last))]


def test_sources_listed_under_a_reply_are_a_programs():
    assert edited(REPLY, LONGER + "\n\nSources: handbook, page 4") == []


def test_an_edit_is_seen_although_the_client_adds_its_footer():
    """What two replies have in common is the client's, what is left is the person's."""
    footer = "\n\nSent from my shop."
    assert edited(REPLY + footer, LONGER.replace("picture", "photograph") + footer) == ["r1"]


def test_html_is_not_a_persons_doing():
    assert edited(REPLY.replace(". ", ".<br>\n"), LONGER.replace(",", "&#44;")) == []


# --- reactions


def test_going_on_is_a_continuation():
    assert kinds(FIRST, follow_up("Great. Where are my invoices?")) == [("continuation", "r1")]


def test_only_the_first_reaction_to_a_reply_counts():
    """Later requests resend the same exchange."""
    history = [user(QUESTION), assistant(REPLY), user("Great."), assistant("Fine."), user("Bye")]
    found = kinds(FIRST, follow_up("Great."), turn("r3", history, "Bye.", at=60))
    assert found == [("continuation", "r1"), ("continuation", "r2")]


@pytest.mark.parametrize(
    "said",
    [
        "No, I meant the wifi password",
        "no, the other one",
        "That's wrong.",
        "that is not what I asked",
        "You misunderstood me",
        "I meant my work account",
        "Actually, I asked about invoices",
        "Incorrect!",
        "That did not work.",
        "It still doesn't help",
        "You got me wrong: I have no phone",
        "That was way too long",
        "Please be brief.",
    ],
)
def test_this_corrects_the_reply(said):
    assert reaction(QUESTION, REPLY, said) is SignalKind.CORRECTION


@pytest.mark.parametrize(
    "said",
    [
        "No problem, thanks!",
        "No thanks",
        "no, that's all",
        "No, that's great, thank you",
        "No worries",
        "Nothing arrived so far",
        "Now what?",
        "Is it wrong to use the same password twice?",
        "What does reset mean?",
        "My phone does not work",
        "That is too kind of you!",
        "Can it be shorter than eight letters?",
    ],
)
def test_this_corrects_nothing(said):
    assert reaction(QUESTION, REPLY, said) is SignalKind.CONTINUATION


def test_no_to_a_question_of_the_assistant_is_an_answer():
    assert reaction(QUESTION, "Do you still have your phone?", "No, I lost it") is SignalKind.CONTINUATION
    assert reaction(QUESTION, "Do you mean a car?", "No, that's not what I asked") is SignalKind.CORRECTION


@pytest.mark.parametrize("said", [QUESTION, "Password reset: how?"])
def test_this_asks_the_same_in_other_words(said):
    assert reaction(QUESTION, REPLY, said) is SignalKind.REPHRASE


def test_what_may_or_may_not_ask_the_same_is_no_label():
    """By its words alone, another question about the same thing looks like this one."""
    asked = "How can I reset my email password?"
    assert reaction(QUESTION, REPLY, asked) is None
    assert kinds(FIRST, follow_up(asked)) == []


@pytest.mark.parametrize(
    ("question", "following"),
    [
        ("What is the capital of France?", "What is the capital of Spain?"),
        ("Where is order 1234 from Monday now?", "Where is order 5678 from Monday now?"),
        ("OK, go on", "OK, go on"),
        (QUESTION, "How do I change my email address?"),
    ],
)
def test_this_asks_something_else(question, following):
    assert reaction(question, REPLY, following) is SignalKind.CONTINUATION


def test_the_reaction_belongs_to_the_reply_that_was_resent():
    """After a regeneration the history shows which of the two the user went on from."""
    named = {"identity": IdentitySource.EXPLICIT}
    events = [turn("r1", QUESTION, REPLY, **named), turn("r1b", QUESTION, "Call our staff.", at=20, **named)]
    assert kinds(*events, follow_up("Great.", **named)) == [("regeneration", "r1"), ("continuation", "r1")]


def test_an_opening_gone_on_with_was_not_asked_again_unless_the_chat_is_named():
    """Without a conversation id it may as well be a second tab that was given up."""
    assert kinds(FIRST, turn("r1b", QUESTION, "Call our staff.", at=20), follow_up("Great.")) == [
        ("continuation", "r1")
    ]


@pytest.mark.parametrize(
    "said", ["Thanks", "Great, thank you! Where are my invoices?", "Cheers, that did it"]
)
def test_this_thanks_for_the_reply(said):
    assert reaction(QUESTION, REPLY, said) is SignalKind.THANKS


@pytest.mark.parametrize("said", ["Write a thank you note", "Thanks, but that did not work", "No thanks"])
def test_these_are_no_thanks(said):
    """The word alone is none; a complaint weighs more than the courtesy before it."""
    assert reaction(QUESTION, REPLY, said) is not SignalKind.THANKS


# --- branches and programs


def test_a_question_changed_and_asked_again_is_a_branch():
    """Only after the opening: a changed first message makes another conversation."""
    opened = [user(QUESTION), assistant(REPLY)]
    first = turn("r2", [*opened, user("Which mail?")], "The one from us.", at=20)
    second = turn("r3", [*opened, user("Which address is it from?")], "From support.", at=40)
    assert ("branch", "r2") in kinds(FIRST, first, second)


def test_a_program_that_asks_for_a_title_reacts_to_nothing():
    """Chat clients ask for titles and suggestions themselves, at once, with the same history."""
    errand = turn("r2", [user(QUESTION), assistant(REPLY), user("Name this chat")], "Password", at=1.4)
    said = turn("r3", [user(QUESTION), assistant(REPLY), user("That's wrong.")], "Sorry.", at=40)
    assert kinds(FIRST, errand, said) == [("correction", "r1")]


def test_nobody_types_two_hundred_characters_in_two_seconds():
    """A program's errand, a little slower than others."""
    errand = "Suggest three questions that the user might ask next. " * 4
    typed = turn("r2", [user(QUESTION), assistant(REPLY), user(errand)], "[]", at=3)
    assert kinds(FIRST, typed) == []


def test_two_tabs_that_both_go_on_are_no_regeneration():
    """Neither reply took the other's place."""
    other = turn("r2", QUESTION, "Call our staff at the number on the card.", at=20)
    on = [
        turn(f"r{n}", [user(QUESTION), assistant(reply), user("Great.")], "Fine.", at=10 * n)
        for n, reply in ((4, REPLY), (5, "Call our staff at the number on the card."))
    ]
    assert "regeneration" not in [kind for kind, _ in kinds(FIRST, other, *on)]


def test_a_clock_in_the_instructions_does_not_hide_a_regeneration():
    """Products put the time there; nobody's mind was changed by it."""
    first, second = (
        turn(f"r{n}", [system(f"It is Monday, 10:{n}0."), user(QUESTION)], f"Answer {n}.", at=20 * n)
        for n in (1, 2)
    )
    assert kinds(first, second) == [("regeneration", "r1")]


def test_a_shortened_history_still_shows_a_reaction():
    """The reply is known by its wording."""
    second = turn(
        "r2",
        [user(QUESTION), assistant(REPLY), user("And my name?")],
        "Open the page of your profile.",
        at=20,
    )
    cut = [user("And my name?"), assistant("Open the page of your profile."), user("That's wrong.")]
    assert ("correction", "r2") in kinds(FIRST, second, turn("r3", cut, "Sorry.", at=60))


# --- programs that ask again


def timed(*at: float) -> list:
    return [turn(f"r{n}", QUESTION, f"Answer {n}.", at=second) for n, second in enumerate(at)]


def test_a_timer_asks_nothing_again():
    """Equal intervals of a minute are a program's; people ask once they have read."""
    assert kinds(*timed(0, 60, 121, 180)) == []
    assert len(kinds(*timed(0, 60, 180, 195))) == 3


def test_a_conversation_replayed_at_a_programs_pace_asks_nothing_again():
    """The last question comes again half a second after the reply to the first one."""
    then = [user(QUESTION), assistant(REPLY), user("And by phone?")]
    chat = [FIRST, turn("r2", then, "Call us.", at=40)]
    again = [turn("r3", QUESTION, "Write to us.", at=300), turn("r4", then, "Ring us.", at=301.5)]
    assert ("regeneration", "r2") not in kinds(*chat, *again)
    assert ("regeneration", "r2") in kinds(*chat, turn("r4", then, "Ring us.", at=301.5))
