"""A live tour: `python -m examples.demo` runs 20,000 calls through real processes and checks them.

Read `tasks` first: it is all that an application writes. The rest starts, watches and checks it.
"""

from importlib.util import find_spec

if not (find_spec("celery") and find_spec("rich")):
    raise SystemExit(
        "The demo's packages are missing: `sh run.sh demo`, or `pip install '.[demo]'`"
    )
