"""Threads that stop before each thing they do, so that a schedule decides whose step comes next."""

from __future__ import annotations

import threading


class Crash(BaseException):
    """The actor's process dies."""


class Turnstile:
    """Lets one thread through, one step at a time, when told."""

    def __init__(self):
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._crashing = False
        self.done = False

    def wait(self):
        """Stop before a step, in the actor's thread; one that died does nothing more, not even tidy up."""
        if not self._crashing:
            self._stopped.release()
            self._go.acquire()
        if self._crashing:
            raise Crash

    def finish(self):
        """Say that there are no more steps, in the actor's thread."""
        self.done = True
        self._stopped.release()

    def await_stop(self):
        """Wait until the actor stands before a step, or is done."""
        assert self._stopped.acquire(timeout=60)

    def step(self, *, crash=False):
        """Let the actor do one step, or die instead."""
        self._crashing = crash
        self._go.release()
        self.await_stop()


class SteppedClient:
    """The real client, with a stop before each command."""

    def __init__(self, client, turnstile):
        self._client, self._turnstile = client, turnstile
        self.link = client.link

    def __getattr__(self, name):
        method = getattr(self._client, name)

        def stepped(*args):
            self._turnstile.wait()
            return method(*args)

        return stepped


class Actor:
    """One call in a thread of its own; *answer* is what it returned."""

    def __init__(self, work):
        self.turnstile = Turnstile()
        self.answer = None
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.turnstile.await_stop()

    def _run(self):
        try:
            self.answer = self._work(self.turnstile)
        except Crash:
            self.answer = Crash
        self.turnstile.finish()
