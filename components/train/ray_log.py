"""The program's log, from the pods that hand it in, into the step's own."""

import json
import threading
import time

import urllib3
from kubernetes.client.rest import ApiException

from narrowcast.components.train.ray_api import PAUSE_SECONDS, Object, RayJobs
from narrowcast.components.train.ray_ends import role_of
from narrowcast.step import MARK


class PodLog(threading.Thread):
    """Prints one pod's log from where the last reading of it ended, to its end or that of the connection.

    `is_last`: the pod has printed all it will. `is_whole`: the reading came to the end.
    """

    def __init__(self, log: "ProgramLog", pod: str, is_last: bool) -> None:
        super().__init__(daemon=True)
        self.log, self.pod, self.is_last, self.is_whole = log, pod, is_last, False

    def run(self) -> None:
        seen = self.log.seen.get(self.pod, "")
        try:
            for time_printed, line in self.log.jobs.log(self.pod):
                if time_printed > seen:
                    self.log.show(self.pod, line)
                    self.log.seen[self.pod] = time_printed
            self.is_whole = True
        except (ApiException, urllib3.exceptions.HTTPError, OSError, ValueError):
            pass  # read again at the next look


class ProgramLog:
    """Follows the log of every pod that hands the program in, one a try of the job.

    `error` is the sentence with which the step itself ended in the last try, where it has printed one. Lines that a
    pod prints within the same nanosecond are lost where a connection breaks between them.
    """

    def __init__(self, jobs: RayJobs) -> None:
        self.jobs = jobs
        self.seen: dict[str, str] = {}
        self._readings: dict[str, PodLog] = {}
        self._errors: dict[str, str | None] = {}

    @property
    def error(self) -> str | None:
        return self._errors.get(list(self._readings)[-1]) if self._readings else None

    def look(self, pods: list[Object]) -> None:
        """Read on where a reading has ended early, and the logs of new pods."""
        for pod in pods:
            name, phase = pod["metadata"]["name"], pod.get("status", {}).get("phase")
            reading = self._readings.get(name)
            if role_of(pod) != "submitter" or phase not in ("Running", "Succeeded", "Failed"):
                continue
            if reading is None or not (reading.is_alive() or (reading.is_last and reading.is_whole)):
                self._readings[name] = PodLog(self, name, is_last=phase != "Running")
                self._readings[name].start()

    def finish(self, pods: list[Object], seconds: float) -> None:
        """Read every log to its end, or for as long as that."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.look(pods)
            for reading in self._readings.values():
                reading.join(max(0, until - time.monotonic()))
            if all(reading.is_whole for reading in self._readings.values()):
                return
            time.sleep(PAUSE_SECONDS)

    def show(self, pod: str, line: str) -> None:
        if line.startswith(MARK):
            self._errors[pod] = json.loads(line.removeprefix(MARK))["error"]
        else:
            print(line, flush=True)
