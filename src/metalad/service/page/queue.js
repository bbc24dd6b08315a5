// Pictures that wait to be scored: few requests at the same time, in the order in which the pictures came.

const CONCURRENT = 2;

// work(entry, signal) scores one picture and never throws. changed(done, total) is called when the numbers change.
export function makeQueue(work, changed) {
  let waiting = [], running = 0, done = 0, total = 0, control = new AbortController();

  async function next() {
    while (running < CONCURRENT && waiting.length) {
      const entry = waiting.shift();
      running += 1;
      const { signal } = control;
      work(entry, signal).finally(() => {
        running -= 1;
        done += 1;
        if (!running && !waiting.length) { changed(done, total); done = total = 0; } else changed(done, total);
        next();
      });
    }
  }

  return {
    add(entries) {
      waiting = waiting.concat(entries);
      total += entries.length;
      changed(done, total);
      next();
    },
    // Stop the requests that are under way, and return the pictures that were not sent.
    stop() {
      const left = waiting;
      waiting = [];
      total -= left.length;
      control.abort(new DOMException("stopped", "AbortError"));
      control = new AbortController();
      return left;
    },
  };
}
