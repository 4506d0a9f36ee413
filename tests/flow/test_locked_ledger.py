"""A ledger that somebody else holds."""

import uuid

from pysqlite3 import dbapi2 as sqlite


def test_a_locked_ledger_is_answered_with_busy_and_nothing_is_lost(own_line):
    """While another program holds the ledger a sender hears "busy" before it hangs up; later the same webhook is taken once."""
    own_line.start()
    event = own_line.event("deal.created", name=uuid.uuid4().hex)
    holder = sqlite.connect(str(own_line.home / "ledger.sqlite3"), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    refused = own_line.post(event, patience_seconds=8)
    holder.execute("ROLLBACK")
    holder.close()
    assert (503, True) == (refused.status_code, int(refused.headers["Retry-After"]) > 0)
    assert own_line.until(lambda: own_line.post(event).is_success)
    assert own_line.until(
        lambda: [f"Person {event['lead']['name']}"] == [t["title"] for t in own_line.sandbox.tasks("vambe")]
    )
