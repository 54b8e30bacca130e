"""The throwaway servers themselves: without them, a broken fixture would look like a broken product."""

import boto3
import psycopg
import pytest

from tests.servers import PostgresServer, S3Bucket


@pytest.mark.postgres
def test_a_database_is_copied_from_a_template_and_dropped(postgres: PostgresServer) -> None:
    with postgres.database() as first:
        plain = first.replace("+psycopg", "")
        with psycopg.connect(plain, autocommit=True) as connection:
            connection.execute("CREATE TABLE seen (n int)")
        with (
            postgres.database(template=first.rsplit("/", 1)[1]) as second,
            psycopg.connect(second.replace("+psycopg", "")) as connection,
        ):
            assert connection.execute("SELECT count(*) FROM seen").fetchone() == (0,)
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(plain)


@pytest.mark.s3
def test_the_bucket_takes_an_object_and_gives_it_back(s3_bucket: S3Bucket) -> None:
    client = boto3.client("s3")
    client.put_object(Bucket=s3_bucket.bucket, Key=f"{s3_bucket.prefix}/one", Body=b"1")
    assert client.get_object(Bucket=s3_bucket.bucket, Key=f"{s3_bucket.prefix}/one")["Body"].read() == b"1"
