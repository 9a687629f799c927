"""Feast's DuckDB offline store with a join that grows with the rows, not with their square."""

import copy
from datetime import datetime

import duckdb
import ibis
import pandas as pd
from feast import FeatureView, FileSource, RepoConfig
from feast.data_source import DataSource
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore, DuckDBOfflineStoreConfig
from feast.infra.offline_stores.ibis import IbisRetrievalJob
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.infra.registry.base_registry import BaseRegistry


class AsOfOfflineStoreConfig(DuckDBOfflineStoreConfig):
    type: str = "narrowcast.components.features.offline.AsOfOfflineStore"


class AsOfOfflineStore(DuckDBOfflineStore):
    """Joins every entity row to the newest feature row at or before its time with DuckDB's `ASOF JOIN`.

    The parent joins a row to every earlier state of its entity and then drops all but one, which an item with tens of
    thousands of events makes impossible. Every entity row comes back once, repeated ones and null keys included.
    Sources with a relative path are found beside feature_store.yaml, whatever the working directory. Views with a
    lifetime, a creation time or renamed columns, which narrowcast's own definitions do not use, are left to the parent.
    """

    @staticmethod
    def get_historical_features(  # type: ignore[override]  # an entity_df of None is no use to the parent either
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
    ) -> RetrievalJob:
        if isinstance(entity_df, str) or not all(_is_plain(view) for view in feature_views):
            return DuckDBOfflineStore.get_historical_features(
                config,
                feature_views,
                feature_refs,
                entity_df,
                registry,
                project,
                full_feature_names,
                filter_by_created_timestamp,
            )
        time = infer_event_timestamp_from_entity_df(dict(entity_df.dtypes))
        selected, joins, parameters = ["entities.*"], [], []
        for i, view in enumerate(feature_views):
            name = view.projection.name_to_use()
            for reference in feature_refs:
                if reference.split(":")[0] == name:
                    feature = reference.split(":")[1]
                    alias = f"{name}__{feature}" if full_feature_names else feature
                    selected.append(f'view{i}."{feature}" AS "{alias}"')
            keys = view.projection.join_key_map or {column.name: column.name for column in view.entity_columns}
            assert isinstance(view.batch_source, FileSource)
            source = view.batch_source
            on = [f'entities."{mine}" = view{i}."{theirs}"' for theirs, mine in keys.items()]
            on.append(f'entities."{time}" >= view{i}."{source.timestamp_field}"')
            joins.append(f"ASOF LEFT JOIN read_parquet(?) AS view{i} ON {' AND '.join(on)}")
            parameters.append(FileSource.get_uri_for_file_path(config.repo_path, source.path))
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute("SET asof_loop_join_threshold = 0")  # a wrong row estimate would make it quadratic again
            connection.register("entity_df", entity_df)
            connection.execute("CREATE TABLE entities AS FROM entity_df")
            query = f"SELECT {', '.join(selected)} FROM entities {' '.join(joins)}"
            joined = connection.execute(query, parameters).to_arrow_table()
        return IbisRetrievalJob(
            ibis.memtable(joined),
            [],
            full_feature_names,
            metadata=RetrievalMetadata(
                features=feature_refs,
                keys=[column for column in entity_df.columns if column != time],
                min_event_timestamp=entity_df[time].min(),
                max_event_timestamp=entity_df[time].max(),
            ),
            data_source_writer=None,
            staging_location=None,
            staging_location_endpoint_override=None,
            repo_path=str(config.repo_path),
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        return DuckDBOfflineStore.pull_latest_from_table_or_query(
            config,
            _located(data_source, config),
            join_key_columns,
            feature_name_columns,
            timestamp_field,
            created_timestamp_column,
            start_date,
            end_date,
        )


def _is_plain(view: FeatureView) -> bool:
    source = view.batch_source
    return (
        isinstance(source, FileSource)
        and source.path.endswith(".parquet")
        and not (view.ttl or source.created_timestamp_column or source.field_mapping)
    )


def _located(source: DataSource, config: RepoConfig) -> DataSource:
    """The source with its path resolved from the folder of feature_store.yaml."""
    located = copy.deepcopy(source)
    if isinstance(located, FileSource):
        located.file_options.uri = FileSource.get_uri_for_file_path(config.repo_path, located.path)
    return located
