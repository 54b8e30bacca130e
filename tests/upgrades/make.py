"""Makes the data folder of the present version: `python -m tests.upgrades.make`. Later versions must open it."""

import shutil
import sqlite3
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import SecretStr

from adapterhub import __version__
from adapterhub.hub.jobs.inline import InlineExecutor
from adapterhub.hub.services import accounts, merges, recipes, repos
from adapterhub.hub.services.access import authenticate
from adapterhub.hub.services.commits import commit
from adapterhub.hub.services.wiring import open_hub
from adapterhub.hub.settings import Settings
from adapterhub.hub.worker import handlers_of
from tests.hub.services.samples import lora, model, sparse

TOKEN = "ah_a-token-that-opens-only-the-kept-data-folders"


def main() -> None:
    """Write `tests/upgrades/<version>`: two models, patches, merges and a saved recipe, with their jobs and lineage."""
    folder = Path(__file__).parent / __version__
    shutil.rmtree(folder, ignore_errors=True)
    hub = open_hub(Settings(data=folder, admin_token=SecretStr(TOKEN), secret=SecretStr("kept" * 10)))
    hub.db.transact(lambda session: accounts.first_admin(session, "ann", TOKEN))
    with hub.db.read() as session:
        ann = authenticate(session, f"Bearer {TOKEN}")
    for repo_id, files in {"ann/base": model(), "ann/code": lora("ann/base"), "ann/secret": lora("ann/base")}.items():
        repos.create(hub, ann, repo_id, private=repo_id == "ann/secret")
        commit(hub, ann, repo_id, "main", files, "push")
    with TemporaryDirectory() as into:
        native = sparse(Path(into), {"repo_id": "ann/base"}, contract={"chat_template": "KEPT"})
    repos.create(hub, ann, "ann/sparse")
    commit(hub, ann, "ann/sparse", "main", native, "push")
    merges.request(hub, ann, "ann/base + 0.5*ann/code", push="ann/both")
    for density in (0.2, 0.5):
        recipes.save(hub, ann, "ann/trimmed", f"ties(ann/base; 0.5*ann/code, ann/secret, density={density})")
    merges.rerun(hub, ann, "ann/trimmed", push="ann/trimmed")
    InlineExecutor(hub.jobs, handlers_of(hub)).drain()
    hub.db.close()
    with sqlite3.connect(folder / "adapterhub.db") as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.execute("PRAGMA journal_mode=DELETE")
        database.execute("VACUUM")
    database.close()
    for empty in ("spool", "blobs/tmp"):
        shutil.rmtree(folder / empty, ignore_errors=True)


if __name__ == "__main__":
    main()
