"""adapterhub: store, combine, port and serve the patches people train on top of large models.

The code lives in the top-level folders `hub/`, `cli/`, `merging/`, `storage/` and `migrations/`, which this package holds
as symbolic links. It imports nothing of them.
"""

import os.path

__version__ = "0.5.0"

if not os.path.isdir(os.path.join(os.path.dirname(__file__), "hub")):
    # git on a system without symbolic links writes them as text files; importing on would register every variant twice
    # or not at all.
    raise ImportError(
        "adapterhub: src/adapterhub/hub is not a folder; this checkout lost its symbolic links: "
        "run 'git config core.symlinks true && git checkout -- src' or install the wheel"
    )
