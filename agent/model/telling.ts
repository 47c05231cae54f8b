import { pause } from '../../shared/abort.ts';
import type { Changes } from './changes.ts';
import type { Slot } from './slot.ts';

/** What is being done for this slot: for those who wait for it, and for the status. */
export function say(slot: Slot, text: string, changes: Changes): void {
  if (slot.detail === text) return;
  slot.detail = text;
  for (const listener of slot.listeners) listener(text);
  changes.announce();
}

/** Says what is being done, and again every `everyMs` while it is done. Where there is no text, nothing is said. */
export async function whileTelling<T>(
  work: Promise<T>,
  { text, everyMs, say }: { text: () => string | undefined; everyMs: number; say: (text: string) => void },
): Promise<T> {
  const done = new AbortController();
  const telling = (async (): Promise<void> => {
    while (!done.signal.aborted) {
      const words = text();
      if (words !== undefined) say(words);
      await pause(everyMs, done.signal);
    }
  })();
  try {
    return await work;
  } finally {
    done.abort();
    await telling;
  }
}
