from datetime import date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_context.errors import FilterError
from shared_context.store.filters import compile_filter

BOOK = {"year": 2024, "lang": "en", "tags": ["law", "tax"], "draft": False, "rating": 4.5, "isbn": None, "by": {"n": 1}}


@pytest.mark.parametrize(
    "filters, expected",
    [
        (None, True),
        ({}, True),
        ({"year": 2024}, True),
        ({"year": 2024.0}, True),
        ({"year": "2024"}, False),
        ({"year": 2024, "lang": "de"}, False),
        ({"year": {"$gte": 2020, "$lt": 2025}}, True),
        ({"year": {"$gte": 2020, "$lt": 2024}}, False),
        ({"year": {"$gt": 2024}}, False),
        ({"year": {"$lte": 2024}}, True),
        ({"rating": {"$gt": 4}}, True),
        ({"lang": {"$gt": "de"}}, True),
        ({"lang": {"$gt": 3}}, False),
        ({"lang": {"$lte": 3}}, False),
        ({"year": {"$ne": "2024"}}, True),
        ({"year": {"$ne": 2024}}, False),
        ({"lang": {"$in": ["de", "en"]}}, True),
        ({"lang": {"$in": {"de", "en"}}}, True),
        ({"lang": {"$in": []}}, False),
        ({"lang": {"$nin": ["de", "en"]}}, False),
        ({"lang": {"$nin": ["de"]}}, True),
        ({"isbn": None}, True),
        ({"isbn": {"$exists": True}}, True),
        ({"isbn": {"$gt": 0}}, False),
        ({"by": {"$eq": {"n": 1}}}, True),
        ({"by": {"$eq": {"n": 2}}}, False),
        ({"$and": [{"year": 2024}, {"lang": "en"}]}, True),
        ({"$or": [{"year": 1999}, {"lang": "en"}]}, True),
        ({"$or": [{"year": 1999}, {"lang": "de"}]}, False),
        ({"$not": {"lang": "en"}}, False),
        ({"$not": {"$or": [{"lang": "de"}, {"year": {"$lt": 2000}}]}, "year": 2024}, True),
    ],
)
def test_operators(filters, expected):
    assert compile_filter(filters)(BOOK) is expected


@pytest.mark.parametrize(
    "condition, expected",
    [
        (1, False),
        (None, False),
        ({"$eq": 1}, False),
        ({"$ne": 1}, True),
        ({"$gt": 1}, False),
        ({"$gte": 1}, False),
        ({"$lt": 1}, False),
        ({"$lte": 1}, False),
        ({"$in": [1]}, False),
        ({"$nin": [1]}, True),
        ({"$contains": 1}, False),
        ({"$icontains": "a"}, False),
        ({"$exists": True}, False),
        ({"$exists": False}, True),
    ],
)
def test_a_missing_key(condition, expected):
    assert compile_filter({"publisher": condition})(BOOK) is expected


@pytest.mark.parametrize(
    "condition, expected",
    [
        ("law", False),
        (["law", "tax"], True),
        (("law", "tax"), True),
        (["tax", "law"], False),
        ({"$in": ["law"]}, False),
        ({"$in": [["law", "tax"]]}, True),
        ({"$contains": "law"}, True),
        ({"$contains": "la"}, False),
        ({"$contains": 3}, False),
    ],
)
def test_lists_are_equal_as_a_whole_and_contain_their_items(condition, expected):
    assert compile_filter({"tags": condition})(BOOK) is expected


def test_strings_contain_substrings_and_numbers_contain_nothing():
    assert compile_filter({"lang": {"$contains": "e"}})(BOOK)
    assert not compile_filter({"lang": {"$contains": 1}})(BOOK)
    assert not compile_filter({"year": {"$contains": 2}})(BOOK)


def test_strings_contain_substrings_in_capitals_or_not():
    street = {"street": "Hauptstraße", "number": 7}
    assert compile_filter({"street": {"$icontains": "STRASSE"}})(street)
    assert not compile_filter({"street": {"$icontains": "gasse"}})(street)
    assert not compile_filter({"number": {"$icontains": "7"}})(street)


@pytest.mark.parametrize("value, operand", [(True, 1), (1, True), (False, 0), ([True], [1]), ({"a": 0}, {"a": False})])
def test_booleans_are_not_numbers(value, operand):
    assert not compile_filter({"flag": {"$eq": operand}})({"flag": value})
    assert compile_filter({"flag": {"$ne": operand}})({"flag": value})
    assert not compile_filter({"flag": {"$in": [operand]}})({"flag": value})
    assert not compile_filter({"flag": {"$lte": 1}})({"flag": True})


def test_dates_compare_as_the_text_that_is_stored():
    opened = {"at": "2024-05-01T08:30:00+00:00"}
    berlin = timezone(timedelta(hours=2))
    assert compile_filter({"at": datetime(2024, 5, 1, 10, 30, tzinfo=berlin)})(opened)
    assert compile_filter({"at": {"$lt": datetime(2024, 5, 1, 10, 31, tzinfo=berlin)}})(opened)
    assert compile_filter({"at": {"$gte": date(2024, 5, 1), "$lt": date(2024, 5, 2)}})(opened)
    assert not compile_filter({"at": {"$lt": date(2024, 5, 1)}})(opened)


@pytest.mark.parametrize(
    "filters, named",
    [
        ({"year": {"$greater": 3}}, ["'$greater'", "filters['year']", "$gte", "$exists"]),
        ({"$nor": [{"year": 3}]}, ["'$nor'", "filters", "$and", "$or", "$not"]),
        ({"year": {"$not": {"$gt": 3}}}, ["'$not'", "filters['year']"]),
        ({"year": {"$gt": 3, "lt": 5}}, ["'lt'", "filters['year']"]),
        ({"$and": [{"a": 1}, {"$or": [{"b": {"$x": 1}}]}]}, ["'$x'", "filters['$and'][1]['$or'][0]['b']"]),
        ({"$and": {"a": 1}}, ["filters['$and']", "list"]),
        ({"$or": []}, ["filters['$or']", "non-empty"]),
        ({"$and": [3]}, ["filters['$and'][0]", "int"]),
        ({"$not": [{"a": 1}]}, ["filters['$not']", "list"]),
        ({"year": {"gt": 3}}, ["filters['year']", "$gt", "$eq"]),
        ({"year": {}}, ["filters['year']", "$eq"]),
        ({"year": {"$in": "abc"}}, ["filters['year']['$in']", "'abc'"]),
        ({"year": {"$gt": None}}, ["filters['year']['$gt']", "None"]),
        ({"year": {"$gt": True}}, ["filters['year']['$gt']", "True"]),
        ({"year": {"$lt": [3]}}, ["filters['year']['$lt']", "[3]"]),
        ({"year": {"$exists": 1}}, ["filters['year']['$exists']", "True or False"]),
        ({"year": {"$icontains": 1}}, ["filters['year']['$icontains']", "string"]),
        ({"year": {1, 2}}, ["filters['year']", "set"]),
        ({"year": b"2024"}, ["filters['year']", "bytes"]),
        ({3: 3}, ["filters[3]", "int"]),
        ([{"year": 3}], ["filters", "list"]),
        ("year", ["filters", "str"]),
    ],
)
def test_a_malformed_filter_says_what_where_and_the_mend(filters, named):
    with pytest.raises(FilterError) as caught:
        compile_filter(filters)
    for word in named:
        assert word in str(caught.value)


scalars = (
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.0, 1.0, 1.5]) | st.sampled_from(["", "a", "b"])
)
values = scalars | st.lists(scalars, max_size=2)
keys = st.sampled_from(["a", "b", "c"])
metadata = st.dictionaries(keys, values)
ordered = st.integers(-3, 3) | st.sampled_from(["", "a", "b"])
conditions = st.one_of(
    values,
    st.fixed_dictionaries({"$eq": values}),
    st.fixed_dictionaries({"$ne": values}),
    st.fixed_dictionaries({"$gt": ordered, "$lte": ordered}),
    st.fixed_dictionaries({"$in": st.lists(values, max_size=3)}),
    st.fixed_dictionaries({"$contains": scalars}),
    st.fixed_dictionaries({"$exists": st.booleans()}),
)
filters = st.recursive(
    st.dictionaries(keys, conditions, max_size=2),
    lambda inner: (
        st.fixed_dictionaries({"$and": st.lists(inner, min_size=1, max_size=3)})
        | st.fixed_dictionaries({"$or": st.lists(inner, min_size=1, max_size=3)})
        | st.fixed_dictionaries({"$not": inner})
    ),
    max_leaves=5,
)


@given(metadata, filters, filters)
def test_joined_filters_follow_boolean_algebra(document, one, other):
    first, second = compile_filter(one)(document), compile_filter(other)(document)
    assert compile_filter({"$and": [one, other]})(document) is (first and second)
    assert compile_filter({"$or": [one, other]})(document) is (first or second)
    assert compile_filter({"$not": one})(document) is (not first)
    assert compile_filter({"$not": {"$and": [one, other]}})(document) is compile_filter(
        {"$or": [{"$not": one}, {"$not": other}]}
    )(document)


@given(metadata, keys, values, st.lists(values, max_size=3), ordered)
def test_operators_agree_with_each_other(document, key, value, several, bound):
    def holds(name, operand):
        return compile_filter({key: {name: operand}})(document)

    assert holds("$ne", value) is not holds("$eq", value)
    assert holds("$nin", several) is not holds("$in", several)
    assert holds("$in", several) is any(holds("$eq", one) for one in several)
    assert holds("$gte", bound) is (holds("$gt", bound) or holds("$eq", bound))
    assert not (holds("$gt", bound) and holds("$lte", bound))
    if key in document:
        assert holds("$eq", document[key])
