"""A text is shown once, its other sources are named; what is nearly the same comes after what is new."""

import pytest

from shared_context import Document, StoreConfig
from shared_context.store.duplicates import NEARLY, Said

FEE = (
    "The mooring fee for boats of up to eight metres is 14 crowns a night, to be paid at the harbour office before ten "
    "in the morning. Larger boats pay 22 crowns. Whoever leaves before noon pays nothing for that day."
)
DISCOUNT = "Members of the rowing club are given thirty per cent off the mooring fee when they show their card."
QUESTION = "What is the mooring fee, and is there anything off it?"


def novelty(first, second):
    said = Said()
    said.add(first)
    return said.novelty(second)


def test_the_same_words_are_repeated_whatever_stands_between_them():
    quoted = "> " + FEE[:110].replace(" is ", " is\n> ")
    assert novelty(FEE, quoted).repeated
    assert novelty(FEE, quoted).twin == 0
    assert not novelty(quoted, FEE).repeated


@pytest.mark.parametrize("date", ["4 May 2031", "May 4, 2031", "2031-05-04", "04.05.2031", "4. Mai 2031", "1st June"])
def test_another_date_is_nearly_the_same(date):
    new = novelty(f"Notice of 3 April 2030. {FEE}", f"Notice of {date}. {FEE}")
    assert new.share <= NEARLY and not new.repeated


@pytest.mark.parametrize(
    "mark",
    [
        "Page {} of 9\n",
        "Printed at 10:0{}. ",
        "Last updated on {} May 2031 at 17:30 by Ilse Marr.\n",
        "Version 2.{}\n",
        "From: Ada Quist\nDate: Mon, {} May 2031 10:03\n\n",
        "On Mon, {} May 2031 at 10:03, Ada Quist wrote:\n> ",
    ],
)
def test_what_marks_a_copy_says_next_to_nothing(mark):
    new = novelty(mark.format(3) + FEE, mark.format(4) + FEE)
    assert new.share <= NEARLY and not new.repeated


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Notice 9 of 40. ", "Notice 17 of 40. "),
        ("Copy no. 3\n\n", "Copy no. 14\n\n"),
        ("(Notice 3 of 8) ", "(Notice 4 of 8) "),
        ("Page no. 3\n", "Page no. 4\n"),
        ("# Harbour notice no. 3\n\n", "# Harbour notice no. 4\n\n"),
        ("Monday. ", "Tuesday. "),
        ("Monday\n\n", "Friday\n\n"),
        ("Posted on Monday. ", "Posted on Friday. "),
        ("Monday, 4 May 2031. ", "Tuesday, 5 May 2031. "),
        ("March newsletter: ", "April newsletter: "),
        ("Notice for May. ", "Notice for June. "),
        ("Aushang Nr. 3. ", "Aushang Nr. 17. "),
        ("Stand März 2031. ", "Stand Juni 2031. "),
        ("3ページ。", "4ページ。"),
    ],
)
def test_the_number_the_day_or_the_month_of_a_copy_says_next_to_nothing(one, other):
    assert novelty(one + FEE, other + FEE).share <= NEARLY
    assert novelty(f"{FEE}\n{one}", f"{FEE}\n{other}").share <= NEARLY


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Invoice no. {} of 40 was paid by the harbour office on time and in full.", ("17", "18")),
        ("Order {} was delivered to the yard at the lower end of the quay.", ("17", "18")),
        ("Valve {} of 8 is broken and has to be replaced at once by the crew.", ("3", "4")),
        ("See notice {} for the fee that larger boats have to pay here.", ("17", "18")),
        ("Letter 17-{} was sent to the office of the mayor at noon.", ("204", "205")),
        ("The market is held on {} in front of the town hall from six to noon.", ("Monday", "Friday")),
        ("The results are published on {} by the harbour office.", ("Monday", "Friday")),
        ("The office opens once a week: {}.", ("Monday", "Friday")),
        ("{}: soup with bread", ("Monday", "Friday")),
        ("| {} | soup | 14 |", ("Monday", "Friday")),
        ("In {} the lock is closed for repairs and nobody may pass.", ("March", "June")),
    ],
)
def test_a_number_or_a_day_that_may_be_asked_for_is_new(first, second):
    assert novelty(*map(first.format, second)).share > NEARLY


@pytest.mark.parametrize("parted", ["har-\nbour", "har-\n> bour", "har\u00adbour"])
def test_a_word_that_is_parted_is_the_same_word(parted):
    assert novelty(FEE, FEE.replace("harbour", parted)).repeated
    assert novelty(FEE.replace("harbour", parted), FEE).repeated


def test_another_greeting_and_markup_say_next_to_nothing():
    assert novelty(f"Dear Ada,\n{FEE}", f"Dear Ilse Marr,\n{FEE}").share <= NEARLY
    assert novelty(FEE, FEE.replace("mooring fee", "<b>mooring fee</b>")).repeated


def test_a_copy_is_found_with_its_links_and_another_link_is_new():
    linked = f'See <a href="plans/Quay7.html">the plan</a>. {FEE}'
    assert novelty(linked, linked).repeated
    assert novelty(linked, linked.replace("Quay7", "Quay8")).share == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Dogs are allowed in the reading room after five.", "Dogs are not allowed in the reading room after five."),
        ("Guests may bring a dog into the old hall.", "Guests may never bring a dog into the old hall."),
        ("Visitors enter the yard at any hour.", "No visitors enter the yard at any hour."),
        ("The gate stays open to visitors in winter.", "The gate stays closed to visitors in winter."),
        ("Open the valve before the pump is started.", "Open the valve after the pump is started."),
        ("The rent includes breakfast for all guests.", "The rent excludes breakfast for all guests."),
        ("Am Sonntag darf das Boot im Hafen liegen.", "Am Sonntag darf das Boot nicht im Hafen liegen."),
        ("Les chiens sont admis dans la salle.", "Les chiens ne sont pas admis dans la salle."),
    ],
)
def test_the_opposite_is_new_whichever_comes_first(first, second):
    assert novelty(first, second).share == 1
    assert novelty(second, first).share == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Revenue came to 107 million crowns, in line with the plan.", "Revenue came to 121 million crowns, in line."),
        ("The prize for the best bread went to Ada Quist.", "The prize for the best bread went to Ilse Marr."),
        ("2031-05-04 12:01:33 the disk is full", "2031-05-04 12:07:41 the disk is full"),
        (FEE, DISCOUNT),
    ],
)
def test_another_number_or_name_or_time_of_day_is_new(first, second):
    assert novelty(first, second).share > NEARLY


def test_a_text_of_which_half_was_said_is_new_by_half():
    first = "the boat is moored at the pier and the mate"
    assert 0.4 < novelty(first, f"{first} goes below to boil the water for the soup").share < 0.8


@pytest.mark.parametrize("before", ["", "Notice of {} May 2030. "])
def test_the_budget_goes_to_what_is_new(store, before):
    copies = [Document(before.format(number) + FEE, f"copy {number}") for number in range(1, 8)]
    store.add([*copies, Document(DISCOUNT, "club")])
    selection = store.select(QUESTION, budget=128)
    assert "thirty per cent" in selection.text
    assert selection.text.count("14 crowns a night") == 1 or before
    passages = store.retrieve(QUESTION, 2)
    assert {node.doc_id for node in passages} >= {"club"}


def test_both_sides_of_a_contradiction_are_shown(store):
    allowed = "Dogs are allowed in the reading room of the library on weekdays after five in the afternoon."
    forbidden = allowed.replace("are allowed", "are not allowed")
    store.add([Document(f"{allowed} {FEE}", "old"), Document(f"{forbidden} {FEE}", "new"), Document(DISCOUNT, "club")])
    shown = store.select("Are dogs allowed in the reading room?", budget=96).text
    assert "are allowed" in shown and "are not allowed" in shown


def test_the_other_sources_are_named(store):
    store.add([Document(FEE, id) for id in ("one", "two", "three")])
    first = store.select("What is the mooring fee?", budget=512)
    assert len(first.doc_ids) == 1
    others = {"one", "two", "three"} - set(first.doc_ids)
    assert all(set(node.also_in) == others for node in first.nodes)
    (passage, *_) = store.retrieve("What is the mooring fee?", 1)
    assert {passage.doc_id, *passage.also_in} == {"one", "two", "three"}


def test_a_text_is_shown_whole_where_it_stands_alone(filled, documents):
    shown = filled.select("ferry", budget=4096)
    assert shown.kv_entries == sum(filled.model.count_tokens(document.text) for document in documents)
    assert not any(node.also_in for node in shown.nodes)


def test_nearly_the_same_is_shown_where_there_is_room(store):
    store.add([Document(f"Notice of {n} May 2030. {FEE}", str(n)) for n in range(1, 5)])
    assert {f"Notice of {n} May" in store.select("Of when are the notices?", budget=512).text for n in range(1, 5)} == {
        True
    }


@pytest.mark.parametrize(
    "copy",
    [
        "Dear {name},\n{fee}",
        "# Fees (version 2.{n})\n\nLast updated on {n} May 2031 by {name}.\n\n{fee}",
        "From: {name}\nDate: Mon, {n} May 2031 10:0{n}\n\n{fee}",
        "Printed on {n} May 2031. {fee}",
        "Notice {n} of 12. {fee}",
        "{day}. {fee}",
    ],
)
def test_the_sources_of_near_duplicates_are_named_too(store, copy):
    days = {"Ada": "Monday", "Ilse Marr": "Tuesday", "Ole": "Friday"}
    copies = [copy.format(n=n, name=name, day=days[name], fee=FEE) for n, name in enumerate(days, start=1)]
    store.add([*(Document(text, str(n)) for n, text in enumerate(copies)), Document(DISCOUNT, "club")])
    selection = store.select(QUESTION, budget=96)
    passages = store.retrieve(QUESTION, 2)
    assert {"0", "1", "2"} <= set(selection.doc_ids) | {id for node in selection.nodes for id in node.also_in}
    assert {"0", "1", "2"} <= {id for passage in passages for id in (passage.doc_id, *passage.also_in)}
    assert "thirty per cent" in selection.text and not any(
        "club" in node.also_in for node in (*selection.nodes, *passages)
    )


WATER = (
    "Notice to all residents. The water will be turned off while the main pipe is repaired. Please fill buckets and "
    "bottles beforehand, close all taps, and run no washing machine until the water is back. Questions about the water "
    "are answered by the porter. "
)
PORTER = "The porter, Mr Quist, is reached about the water at extension 4417 between eight and ten."
HOUSE = (
    "The bicycle cellar is unlocked on Sundays.",
    "Parcels are kept on the second floor until evening.",
    "The garden is raked in autumn by volunteers, who get soup afterwards.",
)
RESIDENTS = ("Ada Marr", "Bo Linde", "Cy Holm", "Di Falk", "Ed Ravn", "Flo Berg", "Gus Dahl", "Hal Voss")


def notices(copy):
    return [Document(copy.format(name=name, n=n, water=WATER), name) for n, name in enumerate(RESIDENTS, start=10)]


@pytest.mark.parametrize(
    "copy",
    [
        "Block {n}, contact {name}. {water}",
        "{water}Turned off from {n} o'clock in the street of {name}.",
        "Ticket 7{n}4 opened by {name}\n\n{water}\n\nPriority {n}",
        "{water}Ref. 7{n}42-{n}; amount 5{n}.33; meter 205{n}645.",
    ],
)
def test_what_says_the_same_of_others_leaves_room_for_what_is_new(open_store, embedder, copy):
    store = open_store(None, embedder=embedder, config=StoreConfig())
    store.add([Document(f"Page {number}. {place}", str(number)) for number, place in enumerate(HOUSE * 4)])
    store.add([*notices(copy), Document(f"House rules. {HOUSE[0]} {PORTER} {HOUSE[1]}", "rules")])
    shown = store.select("Who answers questions about the water, and at which extension?", budget=256).text
    assert "4417" in shown and "bottles beforehand" in shown
    passages = store.retrieve("Who answers questions about the water, and at which extension?", 4)
    assert len(passages) == 4 and any("4417" in passage.text for passage in passages)


def test_what_is_asked_for_by_its_name_is_shown_beside_what_says_the_same(open_store, embedder):
    store = open_store(None, embedder=embedder, config=StoreConfig())
    store.add([*notices("Block {n}, contact {name}. {water}"), Document(PORTER, "rules")])
    shown = store.select("Who are the contacts of block 14, block 11 and block 16 about the water?", budget=160).text
    assert all(name in shown for name in ("Ed Ravn", "Bo Linde", "Gus Dahl"))


def test_records_of_one_kind_are_not_held_for_copies(open_store, embedder):
    store = open_store(None, embedder=embedder, config=StoreConfig())
    halls = [f"The {name} hall is closed for cleaning on Mondays from {n} to 17." for n, name in enumerate(RESIDENTS)]
    store.add([Document(hall, str(n)) for n, hall in enumerate(halls)])
    store.add([Document(f"{WATER} {place}", place) for place in HOUSE])
    question = "Which halls are closed for cleaning, and when?"
    shown = store.select(question, budget=200).text
    assert all(hall in shown for hall in halls)
    assert {passage.text for passage in store.retrieve(question, len(halls))} == set(halls)
