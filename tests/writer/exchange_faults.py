"""What an exchange could do wrong: each fault changes the rows on their way from the encode tasks to the shard tasks."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

Row = tuple[bytes, bytes]
Flight = dict[tuple[int, int], list[Row]]
"""The rows in flight, by (partition, shard)."""

Fault = Callable[[random.Random, Flight], None]


def rows_of(flight: Flight, shard: int) -> list[Row]:
    return [row for (_, where), rows in sorted(flight.items()) if where == shard for row in rows]


def changed_shards(before: Flight, after: Flight) -> list[int]:
    """Shards that get other rows than they should; which partition a row comes through does not matter."""
    shards = sorted({shard for _, shard in before})
    return [shard for shard in shards if Counter(rows_of(before, shard)) != Counter(rows_of(after, shard))]


def damaged(flight: Flight, fault: Fault, seed: int | str) -> Flight:
    """The flight after a fault that really changed something."""
    rng = random.Random(seed)
    for _ in range(1_000):
        copy = {place: list(rows) for place, rows in flight.items()}
        fault(rng, copy)
        if changed_shards(flight, copy):
            return copy
    raise AssertionError(f"{fault.__name__} changes nothing, seed {seed}")


def _piece(rng: random.Random, flight: Flight, *, other_than: int | None = None) -> list[Row]:
    """A piece with rows, of any shard but the given one."""
    return flight[rng.choice([at for at, rows in sorted(flight.items()) if rows and at[1] != other_than])]


def _two_shards(rng: random.Random, flight: Flight) -> tuple[list[Row], list[Row]]:
    place = rng.choice([place for place, rows in sorted(flight.items()) if rows])
    return flight[place], _piece(rng, flight, other_than=place[1])


def _two_places(rng: random.Random, flight: Flight) -> tuple[tuple[list[Row], int], tuple[list[Row], int]]:
    """Two different rows of one shard, as (piece, index)."""
    shard = rng.choice([at[1] for at, rows in sorted(flight.items()) if rows])
    places = [(rows, i) for at, rows in sorted(flight.items()) if at[1] == shard for i in range(len(rows))]
    one, other = rng.sample(places, 2)
    return one, other


# -- rows that go missing or come twice ----------------------------------------------------------------------------------


def drop_a_row(rng: random.Random, flight: Flight) -> None:
    rows = _piece(rng, flight)
    rows.pop(rng.randrange(len(rows)))


def repeat_a_row(rng: random.Random, flight: Flight) -> None:
    rows = _piece(rng, flight)
    rows.insert(rng.randrange(len(rows) + 1), rng.choice(rows))


def repeat_a_row_elsewhere(rng: random.Random, flight: Flight) -> None:
    one, other = _two_shards(rng, flight)
    other.append(rng.choice(one))


def drop_a_partition(rng: random.Random, flight: Flight) -> None:
    lost = rng.choice(sorted({partition for partition, _ in flight}))
    for place in [place for place in flight if place[0] == lost]:
        del flight[place]


def empty_a_partition(rng: random.Random, flight: Flight) -> None:
    lost = rng.choice(sorted({partition for partition, _ in flight}))
    for place in [place for place in flight if place[0] == lost]:
        flight[place] = []


def repeat_a_partition(rng: random.Random, flight: Flight) -> None:
    twice = rng.choice(sorted({partition for partition, _ in flight}))
    for place in [place for place in flight if place[0] == twice]:
        flight[place] = flight[place] * 2


def empty_a_piece(rng: random.Random, flight: Flight) -> None:
    _piece(rng, flight).clear()


def empty_a_shard(rng: random.Random, flight: Flight) -> None:
    shard = rng.choice(sorted({at[1] for at, rows in flight.items() if rows}))
    for place in [place for place in flight if place[1] == shard]:
        del flight[place]


# -- rows in the wrong place ---------------------------------------------------------------------------------------------


def move_a_row(rng: random.Random, flight: Flight) -> None:
    one, other = _two_shards(rng, flight)
    other.append(one.pop(rng.randrange(len(one))))


def swap_rows_between_shards(rng: random.Random, flight: Flight) -> None:
    one, other = _two_shards(rng, flight)
    i, j = rng.randrange(len(one)), rng.randrange(len(other))
    one[i], other[j] = other[j], one[i]


def swap_pieces(rng: random.Random, flight: Flight) -> None:
    one, other = _two_shards(rng, flight)
    one[:], other[:] = list(other), list(one)


def swap_values_across_shards(rng: random.Random, flight: Flight) -> None:
    one, other = _two_shards(rng, flight)
    i, j = rng.randrange(len(one)), rng.randrange(len(other))
    one[i], other[j] = (one[i][0], other[j][1]), (other[j][0], one[i][1])


# -- as many rows as before, but others ----------------------------------------------------------------------------------


def replace_a_value(rng: random.Random, flight: Flight) -> None:
    rows = _piece(rng, flight)
    i = rng.randrange(len(rows))
    rows[i] = (rows[i][0], rng.randbytes(rng.randrange(12)))


def replace_a_key(rng: random.Random, flight: Flight) -> None:
    rows = _piece(rng, flight)
    i = rng.randrange(len(rows))
    rows[i] = (rng.randbytes(len(rows[i][0])), rows[i][1])


def flip_a_bit(rng: random.Random, flight: Flight) -> None:
    rows = _piece(rng, flight)
    i, column = rng.randrange(len(rows)), rng.randrange(2)
    changed = bytearray(rows[i][column])
    if changed:
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    rows[i] = (bytes(changed), rows[i][1]) if column == 0 else (rows[i][0], bytes(changed))


def exchange_two_values(rng: random.Random, flight: Flight) -> None:
    (one, i), (other, j) = _two_places(rng, flight)
    one[i], other[j] = (one[i][0], other[j][1]), (other[j][0], one[i][1])


def exchange_a_byte_of_two_values(rng: random.Random, flight: Flight) -> None:
    (one, i), (other, j) = _two_places(rng, flight)
    (key, value), (other_key, other_value) = one[i], other[j]
    one[i], other[j] = (key, other_value[:1] + value[1:]), (other_key, value[:1] + other_value[1:])


def rotate_three_values(rng: random.Random, flight: Flight) -> None:
    rows = max(flight.values(), key=len)
    i, j, k = rng.sample(range(len(rows)), 3)
    values = [rows[i][1], rows[j][1], rows[k][1]]
    for at, value in zip((j, k, i), values, strict=True):
        rows[at] = (rows[at][0], value)


def move_a_byte_from_key_to_value(rng: random.Random, flight: Flight) -> None:
    rows = _piece(rng, flight)
    i = rng.randrange(len(rows))
    key, value = rows[i]
    rows[i] = (key[:-1], key[-1:] + value)


def move_a_byte_from_value_to_key(rng: random.Random, flight: Flight) -> None:
    rows = _piece(rng, flight)
    i = rng.randrange(len(rows))
    key, value = rows[i]
    rows[i] = (key + value[:1], value[1:])


def move_a_byte_to_the_next_value(rng: random.Random, flight: Flight) -> None:
    (one, i), (other, j) = _two_places(rng, flight)
    (key, value), (other_key, other_value) = one[i], other[j]
    one[i], other[j] = (key, value[:-1]), (other_key, value[-1:] + other_value)


def overwrite_a_row_by_another(rng: random.Random, flight: Flight) -> None:
    (one, i), (other, j) = _two_places(rng, flight)
    one[i] = other[j]


def overwrite_two_rows_by_others(rng: random.Random, flight: Flight) -> None:
    """A sum of two equal errors: XOR would not see it."""
    rows = max(flight.values(), key=len)
    i, j, k = rng.sample(range(len(rows)), 3)
    rows[i] = rows[j] = rows[k]


def drop_a_row_and_invent_one(rng: random.Random, flight: Flight) -> None:
    rows = _piece(rng, flight)
    i = rng.randrange(len(rows))
    rows[i] = (rng.randbytes(len(rows[i][0])), rng.randbytes(8))


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        drop_a_row,
        repeat_a_row,
        repeat_a_row_elsewhere,
        drop_a_partition,
        empty_a_partition,
        repeat_a_partition,
        empty_a_piece,
        empty_a_shard,
        move_a_row,
        swap_rows_between_shards,
        swap_pieces,
        swap_values_across_shards,
        replace_a_value,
        replace_a_key,
        flip_a_bit,
        exchange_two_values,
        exchange_a_byte_of_two_values,
        rotate_three_values,
        move_a_byte_from_key_to_value,
        move_a_byte_from_value_to_key,
        move_a_byte_to_the_next_value,
        overwrite_a_row_by_another,
        overwrite_two_rows_by_others,
        drop_a_row_and_invent_one,
    )
}
