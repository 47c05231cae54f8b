import { pause } from './abort.ts';
import { errorCode } from './errors.ts';

/** So often it is tried again, each time after a longer pause: 1.5 s in all. */
const TRIES = 6;
const FIRST_PAUSE_MS = 50;
const HELD = new Set(['EPERM', 'EBUSY', 'EACCES']);

/**
 * Windows refuses to rename or delete a file while a virus scanner or an indexer has it open, which they do for a moment
 * with every new one: there it is tried again. Elsewhere the same codes mean what they say. Rejects with the last failure.
 */
export async function whileHeld<T>(work: () => Promise<T>, platform: NodeJS.Platform = process.platform): Promise<T> {
  for (let tries = 1; ; tries += 1) {
    try {
      return await work();
    } catch (error) {
      const isHeld = HELD.has(errorCode(error) ?? '');
      if (platform !== 'win32' || !isHeld || tries === TRIES) throw error;
      await pause(FIRST_PAUSE_MS * tries, new AbortController().signal);
    }
  }
}
