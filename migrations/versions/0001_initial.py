"""Every table of the first release, and the full-text index of repositories.

The index is a virtual FTS5 table in SQLite and a tsvector column with a GIN index in PostgreSQL; neither is known to
`tables.py`, and only `services/search_index.py` speaks to it. prefix='2 3 4' keeps searching as one types fast; the
service splits text into words itself, so that both databases find the same.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables, then the index."""
    _create_tables()
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            "CREATE VIRTUAL TABLE search_document USING fts5("
            "repository_id UNINDEXED, name, tags, body, prefix='2 3 4', tokenize='unicode61 remove_diacritics 2')"
        )
    else:
        op.execute(
            "CREATE TABLE search_document ("
            "repository_id VARCHAR PRIMARY KEY REFERENCES repository (id), "
            "name TEXT NOT NULL, tags TEXT NOT NULL, body TEXT NOT NULL, "
            "document tsvector GENERATED ALWAYS AS (array_to_tsvector(array_remove("
            "string_to_array(name || ' ' || tags || ' ' || body, ' '), ''))) STORED)"
        )
        op.execute("CREATE INDEX ix_search_document ON search_document USING gin (document)")


def downgrade() -> None:
    """Drop everything."""
    op.drop_table("search_document")
    for table in reversed(TABLES):
        op.drop_table(table)


TABLES = (
    "account",
    "audit_event",
    "blob",
    "alias",
    "job",
    "membership",
    "recipe",
    "repository",
    "token",
    "alias_move",
    "blob_owner",
    "commit",
    "git_blob",
    "git_tree_entry",
    "lineage_edge",
    "ref",
    "repository_name",
    "repository_tag",
    "upload_session",
    "xet_scope",
    "xorb",
    "evaluation",
    "patch",
    "revision_facts",
)


def _create_tables() -> None:
    op.create_table(
        "account",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("name_key", sa.String(), nullable=False),
        sa.Column("fullname", sa.String(), nullable=False),
        sa.Column("email", sa.String(), nullable=False),
        sa.Column("is_admin", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
        sa.UniqueConstraint("name_key"),
    )
    op.create_table(
        "audit_event",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor_id", sa.String(), nullable=True),
        sa.Column("token_id", sa.String(), nullable=True),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("target_id", sa.String(), nullable=True),
        sa.Column("target_name", sa.String(), nullable=False),
        sa.Column("before", sa.String(), nullable=True),
        sa.Column("after", sa.String(), nullable=True),
        sa.Column("request_id", sa.String(), nullable=True),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_audit_event_action", "audit_event", ["action"])
    op.create_index("ix_audit_event_actor_id", "audit_event", ["actor_id"])
    op.create_index("ix_audit_event_at", "audit_event", ["at"])
    op.create_index("ix_audit_event_target_id", "audit_event", ["target_id"])
    op.create_table(
        "blob",
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("codec", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_table(
        "alias",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("channel", sa.String(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_by", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["owner_id"],
            ["account.id"],
        ),
        sa.ForeignKeyConstraint(
            ["updated_by"],
            ["account.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("owner_id", "name", "channel"),
    )
    op.create_table(
        "job",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=True),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("owner_id", sa.String(), nullable=True),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("progress", sa.JSON(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["owner_id"],
            ["account.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_job_created_at", "job", ["created_at"])
    op.create_index("ix_job_key", "job", ["key"])
    op.create_index("ix_job_owner_id", "job", ["owner_id"])
    op.create_index("ix_job_state", "job", ["state"])
    op.create_index(
        "uq_job_unfinished",
        "job",
        ["kind", "key"],
        unique=True,
        sqlite_where=sa.text("state IN ('queued', 'running')"),
        postgresql_where=sa.text("state IN ('queued', 'running')"),
    )
    op.create_table(
        "membership",
        sa.Column("organisation_id", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organisation_id"],
            ["account.id"],
        ),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["account.id"],
        ),
        sa.PrimaryKeyConstraint("organisation_id", "user_id"),
    )
    op.create_index("ix_membership_user_id", "membership", ["user_id"])
    op.create_table(
        "recipe",
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("canonical", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["created_by"],
            ["account.id"],
        ),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_table(
        "repository",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner_id", sa.String(), nullable=False),
        sa.Column("full_name", sa.String(), nullable=False),
        sa.Column("name_key", sa.String(), nullable=True),
        sa.Column("is_private", sa.Boolean(), nullable=False),
        sa.Column("gated", sa.String(), nullable=True),
        sa.Column("default_branch", sa.String(), nullable=False),
        sa.Column("downloads", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["owner_id"],
            ["account.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name_key"),
    )
    op.create_index("ix_repository_owner_id", "repository", ["owner_id"])
    op.create_index("ix_repository_updated_at", "repository", ["updated_at"])
    op.create_table(
        "token",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("account_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("token_sha256", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["account_id"],
            ["account.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("token_sha256"),
    )
    op.create_index("ix_token_account_id", "token", ["account_id"])
    op.create_table(
        "alias_move",
        sa.Column("alias_id", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("moved_by", sa.String(), nullable=True),
        sa.Column("moved_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["alias_id"],
            ["alias.id"],
        ),
        sa.ForeignKeyConstraint(
            ["moved_by"],
            ["account.id"],
        ),
        sa.PrimaryKeyConstraint("alias_id", "version"),
    )
    op.create_table(
        "blob_owner",
        sa.Column("repository_id", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("linked_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["digest"],
            ["blob.digest"],
        ),
        sa.ForeignKeyConstraint(
            ["repository_id"],
            ["repository.id"],
        ),
        sa.PrimaryKeyConstraint("repository_id", "digest"),
    )
    op.create_index("ix_blob_owner_digest", "blob_owner", ["digest"])
    op.create_table(
        "commit",
        sa.Column("repository_id", sa.String(), nullable=False),
        sa.Column("oid", sa.String(), nullable=False),
        sa.Column("tree_oid", sa.String(), nullable=False),
        sa.Column("parents", sa.JSON(), nullable=False),
        sa.Column("author_name", sa.String(), nullable=False),
        sa.Column("author_email", sa.String(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("committed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("author_id", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["author_id"],
            ["account.id"],
        ),
        sa.ForeignKeyConstraint(
            ["repository_id"],
            ["repository.id"],
        ),
        sa.PrimaryKeyConstraint("repository_id", "oid"),
    )
    op.create_table(
        "git_blob",
        sa.Column("repository_id", sa.String(), nullable=False),
        sa.Column("oid", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("is_lfs", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["digest"],
            ["blob.digest"],
        ),
        sa.ForeignKeyConstraint(
            ["repository_id"],
            ["repository.id"],
        ),
        sa.PrimaryKeyConstraint("repository_id", "oid"),
    )
    op.create_index("ix_git_blob_digest", "git_blob", ["digest"])
    op.create_table(
        "git_tree_entry",
        sa.Column("repository_id", sa.String(), nullable=False),
        sa.Column("tree_oid", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("mode", sa.String(), nullable=False),
        sa.Column("oid", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["repository_id"],
            ["repository.id"],
        ),
        sa.PrimaryKeyConstraint("repository_id", "tree_oid", "name"),
    )
    op.create_table(
        "lineage_edge",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("child_repository_id", sa.String(), nullable=False),
        sa.Column("child_commit", sa.String(), nullable=False),
        sa.Column("child_digest", sa.String(), nullable=True),
        sa.Column("parent_repository_id", sa.String(), nullable=True),
        sa.Column("parent_name", sa.String(), nullable=False),
        sa.Column("parent_commit", sa.String(), nullable=True),
        sa.Column("parent_digest", sa.String(), nullable=True),
        sa.Column("relation", sa.String(), nullable=False),
        sa.Column("evidence", sa.String(), nullable=False),
        sa.Column("weight", sa.Float(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["child_repository_id"],
            ["repository.id"],
        ),
        sa.ForeignKeyConstraint(
            ["parent_repository_id"],
            ["repository.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_lineage_edge_child_repository_id", "lineage_edge", ["child_repository_id"])
    op.create_index("ix_lineage_edge_parent_repository_id", "lineage_edge", ["parent_repository_id"])
    op.create_table(
        "ref",
        sa.Column("repository_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("target_oid", sa.String(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["repository_id"],
            ["repository.id"],
        ),
        sa.PrimaryKeyConstraint("repository_id", "name"),
    )
    op.create_table(
        "repository_name",
        sa.Column("name_key", sa.String(), nullable=False),
        sa.Column("full_name", sa.String(), nullable=False),
        sa.Column("repository_id", sa.String(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["repository_id"],
            ["repository.id"],
        ),
        sa.PrimaryKeyConstraint("name_key"),
    )
    op.create_index("ix_repository_name_repository_id", "repository_name", ["repository_id"])
    op.create_table(
        "repository_tag",
        sa.Column("repository_id", sa.String(), nullable=False),
        sa.Column("tag", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["repository_id"],
            ["repository.id"],
        ),
        sa.PrimaryKeyConstraint("repository_id", "tag"),
    )
    op.create_index("ix_repository_tag_tag", "repository_tag", ["tag"])
    op.create_table(
        "upload_session",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("repository_id", sa.String(), nullable=False),
        sa.Column("account_id", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("branch", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["account_id"],
            ["account.id"],
        ),
        sa.ForeignKeyConstraint(
            ["repository_id"],
            ["repository.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("repository_id", "account_id", "branch", "path"),
    )
    op.create_index("ix_upload_session_repository_id", "upload_session", ["repository_id"])
    op.create_table(
        "xet_scope",
        sa.Column("repository_id", sa.String(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["repository_id"],
            ["repository.id"],
        ),
        sa.PrimaryKeyConstraint("repository_id"),
    )
    op.create_table(
        "xorb",
        sa.Column("repository_id", sa.String(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("xorb_hash", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("chunks", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["digest"],
            ["blob.digest"],
        ),
        sa.ForeignKeyConstraint(
            ["repository_id"],
            ["repository.id"],
        ),
        sa.PrimaryKeyConstraint("repository_id", "epoch", "xorb_hash"),
    )
    op.create_index("ix_xorb_digest", "xorb", ["digest"])
    op.create_table(
        "evaluation",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("repository_id", sa.String(), nullable=False),
        sa.Column("commit_oid", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("task", sa.String(), nullable=True),
        sa.Column("dataset", sa.String(), nullable=True),
        sa.Column("metric", sa.String(), nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("recipe_digest", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["recipe_digest"],
            ["recipe.digest"],
        ),
        sa.ForeignKeyConstraint(
            ["repository_id", "commit_oid"],
            ["commit.repository_id", "commit.oid"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_evaluation_revision", "evaluation", ["repository_id", "commit_oid"])
    op.create_table(
        "patch",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("repository_id", sa.String(), nullable=False),
        sa.Column("commit_oid", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("effect", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=True),
        sa.Column("base_name", sa.String(), nullable=True),
        sa.Column("base_repository_id", sa.String(), nullable=True),
        sa.Column("base_commit", sa.String(), nullable=True),
        sa.Column("base_fingerprint", sa.String(), nullable=True),
        sa.Column("base_quantisation", sa.String(), nullable=False),
        sa.Column("rank_min", sa.Integer(), nullable=True),
        sa.Column("rank_max", sa.Integer(), nullable=True),
        sa.Column("targets", sa.JSON(), nullable=False),
        sa.Column("layers", sa.JSON(), nullable=False),
        sa.Column("parameter_count", sa.BigInteger(), nullable=False),
        sa.Column("dtypes", sa.JSON(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("licence", sa.String(), nullable=True),
        sa.Column("training_method", sa.String(), nullable=True),
        sa.Column("datasets", sa.JSON(), nullable=False),
        sa.Column("tasks", sa.JSON(), nullable=False),
        sa.Column("languages", sa.JSON(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("problems", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["base_repository_id"],
            ["repository.id"],
        ),
        sa.ForeignKeyConstraint(
            ["repository_id", "commit_oid"],
            ["commit.repository_id", "commit.oid"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("repository_id", "commit_oid", "path"),
    )
    op.create_index("ix_patch_base_fingerprint", "patch", ["base_fingerprint"])
    op.create_index("ix_patch_base_name", "patch", ["base_name"])
    op.create_index("ix_patch_base_repository_id", "patch", ["base_repository_id"])
    op.create_index("ix_patch_digest", "patch", ["digest"])
    op.create_index("ix_patch_kind", "patch", ["kind"])
    op.create_table(
        "revision_facts",
        sa.Column("repository_id", sa.String(), nullable=False),
        sa.Column("commit_oid", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("card", sa.JSON(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("library", sa.String(), nullable=True),
        sa.Column("pipeline_tag", sa.String(), nullable=True),
        sa.Column("licence", sa.String(), nullable=True),
        sa.Column("base_models", sa.JSON(), nullable=False),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=True),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["repository_id", "commit_oid"],
            ["commit.repository_id", "commit.oid"],
        ),
        sa.PrimaryKeyConstraint("repository_id", "commit_oid"),
    )
    op.create_index("ix_revision_facts_fingerprint", "revision_facts", ["fingerprint"])
    op.create_index("ix_revision_facts_kind", "revision_facts", ["kind"])
    op.create_index("ix_revision_facts_licence", "revision_facts", ["licence"])
    op.create_index("ix_revision_facts_pipeline_tag", "revision_facts", ["pipeline_tag"])
