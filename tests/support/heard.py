"""A `Progress` that remembers."""

from taskpgm.progress import Progress


class Heard(Progress):
    """Totals of the stages by name, pieces done of each, and what was said."""

    def __init__(self):
        super().__init__()
        self.totals, self.done, self.said, self.ended = {}, {}, [], []
        self.shared = []  # numbers of workers as they were told

    def say(self, sentence):
        self.said.append(sentence)

    def begin(self, what, total, unit):
        self.totals[what], self.done[what] = total, 0
        self.now = what

    def count(self, pieces):
        self.done[self.now] = self.done.get(self.now, 0) + pieces

    def spread(self, workers):
        self.shared.append(workers)

    def end(self, finished):
        self.ended.append((self.now, finished))
