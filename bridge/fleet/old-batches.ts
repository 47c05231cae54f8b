import { open, readdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { Uuid } from '../../shared/job.ts';

/** Ended batches are remembered this long, and at most so many. */
export const REMEMBERED_MS = 30 * 24 * 3_600_000;
const REMEMBERED = 500;
/** A directory without a manifest is a call that was never answered; a younger one may be in the making. */
const UNANSWERED_MS = 24 * 3_600_000;
const TAIL_BYTES = 64 * 1024;

/**
 * Removes the directories of batches that ended long ago, or before the newest so many. The images are elsewhere and
 * stay. Never an unfinished one, however old. Returns how many were removed.
 */
export async function removeOldBatches(root: string, o: { nowMs: number; keep?: number }): Promise<number> {
  const names = await readdir(root).catch(() => []); // nothing was ever asked for
  const found = await Promise.all(names.filter((name) => Uuid.safeParse(name).success).map((id) => look(root, id)));
  const ended = found.filter(({ kind }) => kind === 'ended').sort((a, b) => b.changedMs - a.changedMs);
  const old = [
    ...found.filter(({ kind, changedMs }) => kind === 'unanswered' && o.nowMs - changedMs > UNANSWERED_MS),
    ...ended.filter(({ changedMs }, rank) => rank >= (o.keep ?? REMEMBERED) || o.nowMs - changedMs > REMEMBERED_MS),
  ];
  for (const { id } of old) await rm(join(root, id), { recursive: true, force: true });
  return old.length;
}

type Found = { id: string; kind: 'ended' | 'unfinished' | 'unanswered'; changedMs: number };

async function look(root: string, id: string): Promise<Found> {
  const directory = join(root, id);
  const manifest = await open(join(directory, 'manifest.jsonl'), 'r').catch(() => undefined);
  if (manifest === undefined) {
    const changedMs = (await stat(directory).catch(() => undefined))?.mtimeMs ?? Number.POSITIVE_INFINITY;
    return { id, kind: 'unanswered', changedMs };
  }
  try {
    const { size, mtimeMs } = await manifest.stat();
    const { buffer, bytesRead } = await manifest.read({
      buffer: Buffer.alloc(Math.min(size, TAIL_BYTES)),
      position: Math.max(0, size - TAIL_BYTES),
    });
    // At the start of a line: inside of one, a prompt that says the same has its quotes escaped.
    const isEnded = /^\{"type":"ended".*\}\n/m.test(buffer.toString('utf8', 0, bytesRead));
    return { id, kind: isEnded ? 'ended' : 'unfinished', changedMs: mtimeMs };
  } finally {
    await manifest.close();
  }
}
