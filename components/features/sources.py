"""The Parquet sources behind the Feast views, computed from the event log.

Each holds the key, `event_timestamp` and the view's features. A row is what is known of one entity after all its events
at that time, so the newest row strictly before an event counts nothing at or after it. In the SQL, our own names
start with an underscore, which a field's name cannot.
"""

from collections.abc import Callable
from pathlib import Path

import duckdb

from narrowcast.components.data.schema import LABEL, ROW_ID, TIMESTAMP, Schema
from narrowcast.errors import NarrowcastError
from narrowcast.feature_repo.definitions import EPOCH, View, views

PRIOR_CLICK_RATE = 0.5
PRIOR_EVENTS = 10
"""The click rate starts as if an entity had this many events at the prior rate (our choice)."""
SQL_TYPES = {"categorical": "VARCHAR", "numeric": "DOUBLE", "sequence": "VARCHAR[]"}
_EPOCH = f"TIMESTAMPTZ '{EPOCH.isoformat(sep=' ')}'"


def connect(dataset: Path) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with a view for every table of an ingested data set. The caller closes it."""
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    for table in ("events", "users", "items", "histories"):
        path = dataset / f"{table}.parquet"
        if path.is_file():
            connection.read_parquet(str(path)).create_view(table)
    return connection


def write_sources(connection: duckdb.DuckDBPyConnection, schema: Schema, folder: Path) -> None:
    """Write one Parquet file for each of the schema's views into `folder`.

    Raises NarrowcastError where an entity table or the history's initial items are missing, or an event has no time.
    """
    if schema.timestamp:
        untimed = connection.execute(f'SELECT count(*) FROM events WHERE "{TIMESTAMP}" IS NULL').fetchone()
        if untimed and untimed[0]:
            raise NarrowcastError(
                f"{untimed[0]} events have no timestamp, so nothing can be known before them: quarantine them in "
                "validation (`checks: {on_failure: quarantine}`) or drop them from the raw data"
            )
    tables = {
        name for (name,) in connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
    }
    for view in views(schema):
        query = QUERIES[view.name.removeprefix(f"{view.owner}_")](view, schema, tables)
        connection.execute(f"COPY ({query}) TO ? (FORMAT parquet)", [str(folder / view.path)])


def _attributes(view: View, schema: Schema, tables: set[str]) -> str:
    table = f"{view.owner}s"
    if table not in tables:
        raise NarrowcastError(
            f"the data set has no {table}.parquet, but schema '{schema.name}' has {view.owner} fields: ingest it again"
        )
    columns = ", ".join(f'"{f.name}"::{SQL_TYPES[f.type]} AS "{f.name}"' for f in view.fields)
    return f'SELECT "{view.key}", {_EPOCH} AS "{TIMESTAMP}", {columns} FROM {table} WHERE "{view.key}" IS NOT NULL'


def _statistics(view: View, schema: Schema, tables: set[str]) -> str:
    prior_clicks = PRIOR_EVENTS * PRIOR_CLICK_RATE
    return f"""
        WITH moments AS (
            SELECT "{view.key}", "{TIMESTAMP}", count(*) AS _events, sum("{LABEL}") AS _clicks
            FROM events WHERE "{view.key}" IS NOT NULL GROUP BY ALL
        )
        SELECT "{view.key}", "{TIMESTAMP}", (sum(_events) OVER past)::DOUBLE AS {view.owner}_events,
            (sum(_clicks) OVER past + {prior_clicks})::DOUBLE / (sum(_events) OVER past + {PRIOR_EVENTS})
                AS {view.owner}_click_rate,
            "{TIMESTAMP}" AS {view.as_of}
        FROM moments WINDOW past AS (PARTITION BY "{view.key}" ORDER BY "{TIMESTAMP}")
        ORDER BY ALL"""


def _history(view: View, schema: Schema, tables: set[str]) -> str:
    assert schema.history
    only = f'AND "{LABEL}" = 1' if schema.history.positive_only else ""
    initial = ""
    if schema.history.initial_column:
        if "histories" not in tables:
            raise NarrowcastError(
                f"the data set has no histories.parquet, but schema '{schema.name}' names "
                f"history.initial_column '{schema.history.initial_column}': ingest it again"
            )
        initial = f"""
            UNION ALL
            SELECT "{view.key}", {_EPOCH}, generate_subscripts(history, 1), unnest(history)
            FROM histories WHERE "{view.key}" IS NOT NULL"""
    as_of = f', CASE WHEN "{TIMESTAMP}" > {_EPOCH} THEN "{TIMESTAMP}" END AS {view.as_of}' if view.as_of else ""
    return f"""
        WITH steps AS (
            SELECT "{view.key}", "{TIMESTAMP}", "{ROW_ID}" AS _position, "{schema.item}" AS _item
            FROM events WHERE "{view.key}" IS NOT NULL AND "{schema.item}" IS NOT NULL {only}
            {initial}
        )
        SELECT "{view.key}", "{TIMESTAMP}", list(_item) OVER (
                PARTITION BY "{view.key}" ORDER BY "{TIMESTAMP}", _position
                ROWS BETWEEN {schema.history.max_length - 1} PRECEDING AND CURRENT ROW
            ) AS history{as_of}
        FROM steps
        WHERE _item IS NOT NULL
        QUALIFY lead("{TIMESTAMP}") OVER (PARTITION BY "{view.key}" ORDER BY "{TIMESTAMP}", _position)
            IS DISTINCT FROM "{TIMESTAMP}"
        ORDER BY ALL"""


QUERIES: dict[str, Callable[[View, Schema, set[str]], str]] = {
    "attributes": _attributes,
    "statistics": _statistics,
    "history": _history,
}
