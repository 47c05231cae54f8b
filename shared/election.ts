import { lstatSync, rmSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { errorCode } from './errors.ts';
import { LockSocket, askHolder } from './lock-socket.ts';

/**
 * What processes compete for. `place` is the stem of their sockets' names, on Windows the one pipe they share. `former` is
 * where a former release listened itself: whoever still does holds it.
 */
export type Office = { place: string; former: string; answerMs: number };

/**
 * The socket that holds the office, once `hold()` was called, or what the one says that has it. Each process has a socket under
 * a name of its own, which the kernel closes at death, however that comes. Nobody waits for a holder longer than `answerMs`.
 *
 * Two never hold at a time, however long anybody is stopped between any two steps. (1) A name belongs to one socket ever,
 * and is seen only when that listens: who is refused there is gone for good, and his name may be removed by anybody.
 * (2) Each looks for the names of others after his own is there, and his own stays for as long as he holds. So of any two,
 * the later one sees the earlier, and holds only after that one is gone. Which of two that are starting gives way, the
 * later or the earlier, is no matter of safety; that the one with the lower name does not is why one of them stays.
 *
 * Who dies before his name is there leaves a file that nobody asks; later, a name that is refused; while he is asked, a
 * connection that ends, and the next one is refused. The next holder removes all of them. (macOS refuses, too, where more
 * wait than a socket's queue holds, which takes a holder that hangs and hundreds that ask.)
 */
export async function elect(office: Office, { who }: { who: string }): Promise<LockSocket | string> {
  if (process.platform === 'win32') return await takePipe(office, who);
  const socket = await LockSocket.appearAt(office.place, { who });
  try {
    const others = (await namesAt(office)).filter((name) => name !== socket.name);
    const holder = await firstLiving(others, { own: socket.name, office });
    if (holder === undefined) {
      // Not what came since that look: it may live.
      for (const name of [...others, ...(await namesAt(office, '#'))]) {
        rmSync(join(dirname(office.place), name), { force: true });
      }
      return socket;
    }
    await socket[Symbol.asyncDispose]();
    return holder;
  } catch (error) {
    await socket[Symbol.asyncDispose]();
    throw error;
  }
}

/** What the holder says of itself; undefined when there is none. Nothing is changed. */
export async function holderOf(office: Office): Promise<string | undefined> {
  const { place, answerMs } = office;
  if (process.platform === 'win32') return await askHolder(place, { until: 'decided', answerMs });
  try {
    return await firstLiving(await namesAt(office), { own: '', office });
  } catch (error) {
    if (errorCode(error) === 'ENOENT') return undefined; // no directory, no holder
    throw error;
  }
}

/** The kernel gives a pipe's name to one, and takes it away at death. */
async function takePipe({ place, answerMs }: Office, who: string): Promise<LockSocket | string> {
  for (;;) {
    const holder =
      (await LockSocket.onPipe(place, { who })) ?? (await askHolder(place, { until: 'decided', answerMs }));
    if (holder !== undefined) return holder;
  }
}

/** The lower names first: there is nothing to wait for when one of them lives. The others decide soon. */
async function firstLiving(
  names: readonly string[],
  { own, office: { place, former, answerMs } }: { own: string; office: Office },
): Promise<string | undefined> {
  for (const name of names.toSorted()) {
    const until = name < own ? 'starting' : 'decided';
    const holder = await askHolder(join(dirname(place), name), { until, answerMs });
    if (holder !== undefined) return holder;
  }
  if (lstatSync(former, { throwIfNoEntry: false })?.isSocket() !== true) return undefined;
  return await askHolder(former, { until: 'decided', answerMs });
}

/** Those that listen or did, or with `#` those that never came to it. */
async function namesAt({ place }: Office, mark: '.' | '#' = '.'): Promise<string[]> {
  const start = `${basename(place)}${mark}`;
  const names = await readdir(dirname(place));
  return names.filter((name) => name.startsWith(start) && /^[0-9a-f]{8}$/.test(name.slice(start.length)));
}
