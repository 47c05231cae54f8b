import { readdir } from 'node:fs/promises';
import { pause } from '../../shared/abort.ts';
import { AppError } from '../../shared/errors.ts';
import { ServerLog } from '../server/server-log.ts';
import type { Screen } from './screen.ts';

/** How often it is looked whether the server was started anew. */
const LOOK_EVERY_MS = 1_000;

export type LogsOptions = Pick<Screen, 'write'> & {
  logDir: string;
  /** The alias; a replica is `alias#2`. */
  model: string;
  lines: number;
  isFollowing: boolean;
  signal: AbortSignal;
};

/** The end of the log of a server's last start, from the files: it needs no agent. Following goes on over new starts. */
export async function printLogs({ logDir, model, lines, isFollowing, signal, write }: LogsOptions): Promise<void> {
  const newest = (): Promise<ServerLog | undefined> => ServerLog.newest({ logDir, slotId: model });
  let log = await newest();
  if (log === undefined) throw new AppError('MODEL_UNKNOWN', await noLog({ logDir, model }));
  const print = (line: string): void => write(`${line}\n`);
  (await log.tail(lines)).forEach(print);
  while (isFollowing && !signal.aborted) {
    const stop = new AbortController();
    const following = log.followLines({ signal: stop.signal, onLine: print });
    const next = await nextStart(log, { newest, signal });
    stop.abort();
    await following;
    if (next === undefined) return;
    log = next;
    print(`--- ${model} was started again`);
    (await log.tail(lines)).forEach(print);
  }
}

/** Undefined when the signal aborts before there is one. */
async function nextStart(
  log: ServerLog,
  { newest, signal }: { newest: () => Promise<ServerLog | undefined>; signal: AbortSignal },
): Promise<ServerLog | undefined> {
  while (!signal.aborted) {
    await pause(LOOK_EVERY_MS, signal);
    const next = await newest();
    if (next !== undefined && next.path !== log.path) return next;
  }
  return undefined;
}

async function noLog({ logDir, model }: { logDir: string; model: string }): Promise<string> {
  const names = await readdir(logDir).catch(() => []); // there is no such directory yet
  const slots = [...new Set(names.flatMap((name) => ServerLog.slotOf(name) ?? []))].sort();
  const others = slots.length === 0 ? 'No server was started here yet.' : `There are logs of ${slots.join(', ')}.`;
  return `There is no log of ${model} in ${logDir}. ${others}`;
}
