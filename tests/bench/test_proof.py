"""The bench judges others, so it is judged here: a server that loses and repeats on purpose is found out."""

import sys
from collections import Counter

from bench import processes
from bench.measure import Plan, measure
from bench.systems import Recorded

#: Forwards what it accepts to the sink, but for every ninth event, and every seventh twice; it refuses every eleventh. What it
#: did is noted in a file, a word for each event: how many events it gets depends on how fast the machine is.
FAULTY = """
import http.client, http.server, re, sys

class Faulty(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        number = int((found := re.search(rb"evt-([0-9a-f]{6})-([0-9]{6})", body))[2])
        times = 0 if number % 11 == 10 or number % 9 == 8 else 2 if number % 7 == 6 else 1
        for _ in range(times):
            sink = http.client.HTTPConnection(sys.argv[2].removeprefix("http://"))
            sink.request("POST", "/api/v1/tasks", body)
            sink.getresponse().read()
            sink.close()
        with open(sys.argv[3], "a") as deeds:
            print(found[1].decode(), "refused" if number % 11 == 10 else ("lost", "taken", "doubled")[times], file=deeds)
        self.send_response(503 if number % 11 == 10 else 202)
        self.send_header("Content-Length", "0")
        self.end_headers()

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Faulty).serve_forever()
"""


class Faulty:
    """A system that is worse than it says: it has nothing on disk either."""

    name = "faulty"

    def __init__(self, deeds):
        self._deeds = deeds

    def start(self, place):
        """Start its one process."""
        command = [sys.executable, "-c", FAULTY, str(place.port), place.sink_url, str(self._deeds)]
        log = place.folder / "log.txt"
        return [processes.start("server", command, folder=place.folder, environment={}, log=log)]

    def role_of(self, command):
        """Leave every process the role it was started in."""

    def recorded(self, place):
        """Have nothing."""
        return Recorded(events=frozenset(), delivered=frozenset())

    def described(self):
        """Say what it is."""
        return "loses and repeats"


def test_what_is_lost_doubled_refused_or_not_on_disk_is_counted(tmp_path):
    """Exactly the events that the server lost, repeated or refused are counted, in all steps together."""
    plan = Plan(
        seconds=0.1,
        connections=1,
        rates=((200, 0.4),),
        warm_seconds=0.02,
        rest_seconds=0,
        quiet_seconds=1.5,
        settle_seconds=0,
    )
    deeds_file = tmp_path / "deeds.txt"
    found = measure(Faulty(deeds_file), plan, tmp_path / "run")
    noted = [line.split() for line in deeds_file.read_text().splitlines()]
    first_run = noted[0][0]  # the cold start, which asks until it is answered: what is refused meanwhile does not count
    deeds = Counter(deed for run, deed in noted if (run, deed) != (first_run, "refused"))
    assert 80 == found["at_200"]["sent"]
    for deed in ("refused", "lost", "doubled"):
        assert deeds[deed] == found[deed] > 0
    assert deeds.total() - deeds["refused"] == found["accepted"] == found["not_recorded"] == found["not_delivered"]
